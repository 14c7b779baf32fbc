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
#include <utility>
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
    const std::size_t T = tower.tokens(), d = tower.width();
    std::vector<std::size_t> by_layer;
    std::vector<reconstruction_sums> sums;
    std::vector<latent_summary_builder> summaries;
    for (const layer_sae& s : saes) {
        require_fit(tower, s.sae);
        by_layer.push_back(by_layer.size());
        sums.emplace_back(d, s.sae.d_sae);
        if (options.top_images > 0) summaries.emplace_back(s.sae.d_sae, options.top_images);
    }
    std::stable_sort(by_layer.begin(), by_layer.end(),
                     [&](std::size_t a, std::size_t b) { return saes[a].layer < saes[b].layer; });
    const auto* classifier = options.classifier;
    if (classifier != nullptr) require_fit(tower, *classifier, pictures.list(), options.class_of_label);

    model_evaluation result;
    result.saes.resize(saes.size());
    std::vector<std::int64_t> labels;
    arena<> scratch;
    std::vector<float> x, x_hat;
    const auto classify = [&](accuracy_counts& counts, std::vector<float>& tokens, std::size_t count,
                              std::size_t layer) {
        const auto logits = logits_of_tokens(device, scratch, tower, *classifier, tokens.data(), count, layer);
        const std::size_t C = classifier->classes.size();
        for (std::size_t i = 0; i < count; ++i) {
            const std::int64_t label = labels[labels.size() - count + i];
            counts.add(std::span(logits).subspan(i * C, C),
                       label < 0 ? -1 : options.class_of_label[static_cast<std::size_t>(label)]);
        }
    };
    pictures.each_batch(device, 8, [&](const float* pixels, std::span<const std::size_t> which, std::size_t done) {
        const std::size_t count = which.size();
        if (count > 0) {
            for (const std::size_t i : which) {
                labels.push_back(pictures.list().labels[i]);
                result.labelled += labels.back() >= 0;
            }
            scratch.reset();
            x.resize(count * T * d);
            x_hat.resize(x.size());
            tower.embed(device, scratch, pixels, count, x.data());
            std::size_t reached = 0;
            for (const std::size_t s : by_layer) {
                const layer_sae& l = saes[s];
                tower.run(device, scratch, x.data(), count, std::exchange(reached, l.layer), l.layer);
                const std::size_t at_once = std::max<std::size_t>(1, 512 / T);  // dense codes of more take much memory
                for (std::size_t first = 0; first < count; first += at_once) {
                    const std::size_t rows = std::min(at_once, count - first) * T;
                    const float* tokens = x.data() + first * T * d;
                    float* reconstructed = x_hat.data() + first * T * d;
                    const auto mark = scratch.position();
                    const auto z = encode_rows(device, scratch, l.sae, tokens, rows);
                    decode_rows(device, l.sae, z, tokens, reconstructed);
                    sums[s].add(tokens, z, reconstructed, T);
                    if (options.top_images > 0) summaries[s].add(z, T);
                    scratch.release_to(mark);
                }
                if (classifier != nullptr) classify(result.saes[s].accuracy, x_hat, count, l.layer);
            }
            if (classifier != nullptr) classify(result.plain, x, count, reached);
        }
        options.progress(done);
    });
    result.pictures = labels.size();
    for (std::size_t s = 0; s < saes.size(); ++s) {
        result.saes[s].quality = sums[s].result();
        if (options.top_images > 0 && result.labelled > 0)
            result.saes[s].purity = purity_of_top_images(summaries[s].finish(labels), labels);
    }
    return result;
}

}  // namespace psae
