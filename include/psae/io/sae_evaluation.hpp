#pragma once
// SAEs evaluated on pictures: reconstruction by kind of token, zero-shot accuracy with the reconstruction in place, purity
// of the top images' labels. The vision tower runs over the pictures once for all SAEs, whatever their layers (the blocks
// behind a layer run again for each SAE whose accuracy is asked for). Memory does not grow with the number of pictures,
// but for a label of each.
//
//   const std::vector<psae::layer_sae> saes{{first, 11}, {second, 11}, {early, 4}};
//   const auto result = psae::evaluate_saes(device, *tower, pictures, saes, {.classifier = &classifier, ...});
//   result.saes[0].quality.patches.nmse, result.saes[0].accuracy.top_1(), result.plain.top_1()

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include <psae/attribution/label_purity.hpp>
#include <psae/io/zero_shot_accuracy.hpp>

namespace psae {

// An SAE and the hidden state whose tokens it takes.
struct layer_sae {
    sae_view sae;
    std::size_t layer;
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

struct model_evaluation {
    std::size_t pictures = 0, labelled = 0;  // that could be read; and have a label
    accuracy_counts plain;                   // of the model as it is
    std::vector<sae_evaluation> saes;        // in the order they were given
};

// psae::error if an SAE's d_in is not the tower's width, the classifier does not fit (see zero_shot_accuracy), or as
// encode_rows.
inline model_evaluation evaluate_saes(const cpu& device, const vision_tower& tower, picture_reader& pictures,
                                      std::span<const layer_sae> saes, const evaluation_options& options = {}) {
    const std::size_t T = tower.image_tokens(), d = tower.width();
    std::vector<std::size_t> layers;
    std::vector<reconstruction_sums> sums;
    std::vector<latent_summary_builder> summaries;
    for (const layer_sae& s : saes) {
        require_fit(tower, s.sae);
        require_reconstruction(s.sae, tower.name());
        layers.push_back(s.layer);
        sums.emplace_back(d, s.sae.d_sae);
        if (options.top_images > 0) summaries.emplace_back(s.sae.d_sae, options.top_images);
    }
    const auto* classifier = options.classifier;
    if (classifier != nullptr) {
        require_fit(tower, *classifier, pictures.list(), options.class_of_label);
        layers.push_back(tower.layers());  // where the plain model ends
    }
    std::sort(layers.begin(), layers.end());
    layers.erase(std::unique(layers.begin(), layers.end()), layers.end());

    model_evaluation result;
    result.saes.resize(saes.size());
    std::vector<std::int64_t> labels;
    std::vector<float> replaced, memory;
    // Of what stands in `replaced`.
    const auto classify = [&](accuracy_counts& counts, arena<>& scratch, const hooked_tokens& h) {
        const std::size_t C = classifier->classes.size(), count = h.pictures.size();
        const auto logits = logits_of_tokens(device, scratch, tower, *classifier, replaced.data(), count, h.layer);
        for (std::size_t i = 0; i < count; ++i)
            counts.add(std::span(logits).subspan(i * C, C),
                       class_of(pictures.list(), h.pictures[i], options.class_of_label));
    };
    const auto at = [&](arena<>& scratch, const hooked_tokens& h) {
        const std::size_t images = h.pictures.size(), all = images * tower.tokens();
        replaced.resize(all * d);
        for (std::size_t s = 0; s < saes.size(); ++s) {
            if (saes[s].layer != h.layer) continue;
            const float* own = tokens_of_images(tower, h.tokens, images, memory);
            encode_in_batches(device, scratch, saes[s].sae, own, images * T, T, [&](std::size_t r, const auto& z) {
                const float* tokens = own + r * d;
                float* x_hat = replaced.data() + r * d;
                decode_rows(device, saes[s].sae, z, tokens, x_hat);
                sums[s].add(tokens, z, x_hat, T);
                if (options.top_images > 0) summaries[s].add(z, T);
            });
            if (classifier == nullptr) continue;
            if (tower.prompts() > 0)  // they are replaced too
                encode_in_batches(device, scratch, saes[s].sae, h.tokens, all, 1, [&](std::size_t r, const auto& z) {
                    decode_rows(device, saes[s].sae, z, h.tokens + r * d, replaced.data() + r * d);
                });
            classify(result.saes[s].accuracy, scratch, h);
        }
        if (h.layer != layers.back()) return;
        for (const std::size_t i : h.pictures) {
            labels.push_back(pictures.list().labels[i]);
            result.labelled += labels.back() >= 0;
        }
        if (classifier == nullptr) return;
        replaced.assign(h.tokens, h.tokens + all * d);
        classify(result.plain, scratch, h);
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
