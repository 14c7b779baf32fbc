#pragma once
// SAEs evaluated on pictures: reconstruction by kind of token, zero-shot accuracy with the reconstruction in place, purity
// of the top images' labels. The vision tower runs over the pictures once for all SAEs, whatever their layers (the blocks
// behind a layer run again for each SAE whose accuracy is asked for). Memory does not grow with the number of pictures,
// but for a label of each. A transcoder is evaluated against the tokens of its target layer, which its output replaces.
//
//   const std::vector<psae::layer_sae> saes{{first, 11}, {second, 11}, {early, 4}, {transcoder, 4, 5}};
//   const auto result = psae::evaluate_saes(device, *tower, pictures, saes, {.classifier = &classifier, ...});
//   result.saes[0].quality.patches.nmse, result.saes[0].accuracy.top_1(), result.plain.top_1()

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <psae/attribution/label_purity.hpp>
#include <psae/io/zero_shot_accuracy.hpp>

namespace psae {

// An SAE and the hidden state whose tokens it takes; a transcoder and the one behind it that it explains.
struct layer_sae {
    sae_view sae;
    std::size_t layer, target = layer;
};

struct evaluation_options {
    // Without a classifier there is no accuracy. class_of_label: a class or -1 for each label of the list.
    const zero_shot_classifier* classifier = nullptr;
    std::span<const std::int32_t> class_of_label{};
    std::size_t top_images = 10;  // of each latent, whose labels are looked at; 0: none
    // Called after each batch with the number of pictures behind it; what it throws ends the work.
    std::function<void(std::size_t)> progress = [](std::size_t) {};
};

struct sae_evaluation {
    reconstruction_quality quality;
    accuracy_counts accuracy;  // with the reconstruction in place
    label_purity purity;
};

// psae::error if what the SAE puts out cannot be compared with tokens of the target.
inline void require_target(const vision_tower& tower, const layer_sae& s) {
    if (!s.sae.is_transcoder() && s.target == s.layer) return;
    if (!s.sae.is_transcoder() || s.target <= s.layer || s.sae.d_out != tower.width())
        throw error("SAE and target layer do not fit", tower.name(),
                    "expected a transcoder to d_out " + std::to_string(tower.width()) + " from a layer before " +
                        std::to_string(s.target) + ", found outputs " + std::to_string(s.sae.outputs()) +
                        " from layer " + std::to_string(s.layer));
}

struct model_evaluation {
    std::size_t pictures = 0, labelled = 0;  // that could be read; and have a label
    accuracy_counts plain;                   // of the model as it is
    std::vector<sae_evaluation> saes;        // in the order they were given
};

// psae::error if there is no SAE, one's d_in or outputs() is not the tower's width, a transcoder's target is not behind
// its layer, the classifier does not fit (see zero_shot_accuracy), or as encode_rows.
inline model_evaluation evaluate_saes(const cpu& device, const vision_tower& tower, picture_reader& pictures,
                                      std::span<const layer_sae> saes, const evaluation_options& options = {}) {
    if (saes.empty()) throw error("no SAE to evaluate", tower.name(), "expected at least one");
    const std::size_t T = tower.image_tokens(), d = tower.width();
    std::vector<std::size_t> layers;
    std::vector<std::unique_ptr<sae_in_place>> in_place;
    const auto memory = std::make_shared<arena<>>();
    std::vector<reconstruction_sums> sums;
    std::vector<latent_summary_builder> summaries;
    for (const layer_sae& s : saes) {
        require_fit(tower, s.sae);
        require_target(tower, s);
        in_place.push_back(put_in_place(device, tower, s.target, s.sae, memory));
        layers.insert(layers.end(), {s.layer, s.target});
        sums.emplace_back(d, s.sae.d_sae);
        if (options.top_images > 0) summaries.emplace_back(s.sae.d_sae, options.top_images);
    }
    const auto* classifier = options.classifier;
    if (classifier != nullptr) require_fit(tower, *classifier, pictures.list(), options.class_of_label);
    std::sort(layers.begin(), layers.end());
    layers.erase(std::unique(layers.begin(), layers.end()), layers.end());

    model_evaluation result;
    result.saes.resize(saes.size());
    std::vector<std::int64_t> labels;
    std::vector<float> x_hat(tower.tokens() * d);
    std::vector<std::vector<float>> inputs(saes.size());  // of transcoders, from their layer to the target
    const auto at = [&](arena<>& scratch, const hooked_tokens& h) {
        const std::size_t images = h.pictures.size();
        const auto classify = [&](accuracy_counts& counts, const std::vector<float>& embeddings) {
            const std::size_t C = classifier->classes.size();
            const auto logits = classifier->logits(embeddings, images);
            for (std::size_t i = 0; i < images; ++i)
                counts.add(std::span(logits).subspan(i * C, C),
                           class_of(pictures.list(), h.pictures[i], options.class_of_label));
        };
        for (std::size_t s = 0; s < saes.size(); ++s) {
            const bool is_transcoder = saes[s].sae.is_transcoder();
            if (is_transcoder && saes[s].layer == h.layer) inputs[s].assign(h.tokens, h.tokens + images * x_hat.size());
            if (saes[s].target != h.layer) continue;
            sae_in_place& own = *in_place[s];
            if (is_transcoder) own.take(inputs[s].data(), images);
            else own.take(h.tokens, images, h.there);
            for (std::size_t i = 0; i < images; ++i) {
                const auto mark = scratch.position();
                own.reconstruct(i, x_hat.data(), classifier != nullptr);
                const codes_view<float> z = own.codes(scratch, i);
                sums[s].add(h.tokens + i * x_hat.size(), z, x_hat.data(), T);
                if (options.top_images > 0) summaries[s].add(z, T);
                scratch.release_to(mark);
            }
            if (classifier != nullptr) classify(result.saes[s].accuracy, own.embeddings());
        }
        if (h.layer != layers.back()) return;
        for (const std::size_t i : h.pictures) {
            labels.push_back(pictures.list().labels[i]);
            result.labelled += labels.back() >= 0;
        }
        if (classifier == nullptr) return;
        // Tokens as they are, for which any SAE's place will do.
        const auto last = std::find_if(saes.begin(), saes.end(), [&](const auto& s) { return s.target == h.layer; });
        sae_in_place& own = *in_place[static_cast<std::size_t>(last - saes.begin())];
        own.take(h.tokens, images, h.there);
        for (std::size_t i = 0; i < images; ++i) own.add(i);
        classify(result.plain, own.embeddings());
    };
    each_hooked(device, tower, pictures, layers, at, options.progress);
    result.pictures = labels.size();
    for (std::size_t s = 0; s < saes.size(); ++s) {
        result.saes[s].quality = sums[s].result();
        if (options.top_images > 0 && result.labelled > 0)
            result.saes[s].purity = purity_of_top_images(summaries[s].finish(labels), labels);
    }
    return result;
}

}  // namespace psae
