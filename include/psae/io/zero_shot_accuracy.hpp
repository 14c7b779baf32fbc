#pragma once
// Zero-shot accuracy on pictures, of the model as it is and with an SAE's reconstruction in place: all tokens of the
// hooked layer are replaced by x_hat and the blocks behind it run on.
//
//   const auto text = load_clip_text(directory);
//   const auto classes = name_classes(read_lines("classes.txt"), pictures.list().class_names, "classes.txt");
//   const auto classifier = make_zero_shot_classifier(device, text, classes.names, templates);
//   const auto result = zero_shot_accuracy(device, *tower, classifier, pictures, classes.of_label, layer, sae);
//   result.plain.top_1(), result.with_sae.top_1()

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <psae/io/image_activations.hpp>
#include <psae/sae/inference.hpp>
#include <psae/vit/zero_shot.hpp>

namespace psae {

// x_hat in place of rows x [n, d_in]. psae::error as encode_rows.
inline void replace_by_reconstruction(const cpu& device, arena<>& scratch, const sae_view& sae, float* x,
                                      std::size_t n) {
    constexpr std::size_t most_rows = 512;  // dense codes of more would take much memory
    for (std::size_t first = 0; first < n; first += most_rows) {
        const std::size_t count = std::min(most_rows, n - first);
        float* rows = x + first * sae.d_in;
        const auto mark = scratch.position();
        const auto z = encode_rows(device, scratch, sae, rows, count);
        float* x_hat = scratch.allocate<float>(count * sae.d_in);
        decode_rows(device, sae, z, rows, x_hat);
        std::copy_n(x_hat, count * sae.d_in, rows);
        scratch.release_to(mark);
    }
}

// The classes of the `count` largest logits, largest first; of equal ones the first.
inline std::vector<std::size_t> best_classes(std::span<const float> logits, std::size_t count) {
    std::vector<std::size_t> order(logits.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    count = std::min(count, order.size());
    std::partial_sort(
        order.begin(), order.begin() + std::ptrdiff_t(count), order.end(),
        [&](std::size_t a, std::size_t b) { return logits[a] > logits[b] || (logits[a] == logits[b] && a < b); });
    order.resize(count);
    return order;
}

// Pictures whose class is known, and for how many of them it is the best, and among the five best.
struct accuracy_counts {
    std::size_t pictures = 0, best = 0, among_five = 0;
    double top_1() const { return pictures == 0 ? 0 : double(best) / double(pictures); }
    double top_5() const { return pictures == 0 ? 0 : double(among_five) / double(pictures); }
    void add(std::span<const float> logits, std::int32_t label) {
        if (label < 0) return;
        const auto five = best_classes(logits, 5);
        ++pictures;
        best += five[0] == static_cast<std::size_t>(label);
        among_five += std::find(five.begin(), five.end(), static_cast<std::size_t>(label)) != five.end();
    }
};

// The logits [images, classes] that follow from tokens [images, T, width] of hidden state `layer`. The tokens are gone
// afterwards.
inline std::vector<float> logits_of_tokens(const cpu& device, arena<>& scratch, const vision_tower& tower,
                                           const zero_shot_classifier& classifier, float* tokens, std::size_t images,
                                           std::size_t layer) {
    std::vector<float> embeds(images * tower.projection());
    tower.run(device, scratch, tokens, images, layer, tower.layers());
    tower.project(device, scratch, tokens, images, embeds.data(), true);
    return classifier.logits(embeds, images);
}

// psae::error if the SAE's d_in is not the tower's width, or it is a transcoder.
inline void require_fit(const vision_tower& tower, const sae_description& sae) {
    require_reconstruction(sae, tower.name());
    if (sae.d_in != tower.width())
        throw error(
            "SAE and model do not fit", tower.name(),
            "the SAE takes d_in " + std::to_string(sae.d_in) + ", the tokens have " + std::to_string(tower.width()));
}

// psae::error if the classifier's embeddings are not of the tower's projection, or class_of_label is not a class or -1
// for each label of the list.
inline void require_fit(const vision_tower& tower, const zero_shot_classifier& classifier, const image_list& list,
                        std::span<const std::int32_t> class_of_label) {
    const std::size_t C = classifier.classes.size();
    if (classifier.embeddings.size() != C * tower.projection())
        throw error("class and image embeddings do not fit", tower.name(),
                    "expected " + std::to_string(tower.projection()) + " numbers a class");
    if (class_of_label.size() != list.class_names.size() ||
        std::any_of(class_of_label.begin(), class_of_label.end(), [&](auto c) { return c >= std::int32_t(C); }))
        throw error("classes and labels do not fit", "zero-shot accuracy",
                    "expected a class below " + std::to_string(C) + ", or -1, for each of " +
                        std::to_string(list.class_names.size()) + " labels");
}

struct zero_shot_result {
    accuracy_counts plain, with_sae;  // with_sae counts nothing without an SAE
    std::size_t pictures = 0;         // that could be read, labels or not
};

// One picture's result: its index in the list, its class or -1, its logits [classes], and those with the reconstruction
// in place (empty without an SAE).
struct zero_shot_picture {
    std::size_t index;
    std::int32_t label;
    std::span<const float> logits, logits_with_sae;
};

// Classifies all pictures that can be read, in order. class_of_label: a class or -1 for each label of the list. layer:
// the hidden state whose tokens the SAE replaces; the blocks before it run once for both. each(zero_shot_picture) sees
// every picture; what it throws ends the work. psae::error if the SAE's d_in is not the tower's width, or the
// classifier's embeddings are not of the tower's projection.
inline zero_shot_result zero_shot_accuracy(
    const cpu& device, const vision_tower& tower, const zero_shot_classifier& classifier, picture_reader& pictures,
    std::span<const std::int32_t> class_of_label, std::size_t layer, const std::optional<sae_view>& sae = {},
    const std::function<void(const zero_shot_picture&)>& each = [](const zero_shot_picture&) {}) {
    const std::size_t T = tower.tokens(), d = tower.width(), C = classifier.classes.size();
    if (sae) require_fit(tower, *sae);
    require_fit(tower, classifier, pictures.list(), class_of_label);
    zero_shot_result result;
    arena<> scratch;
    std::vector<float> x, replaced;
    pictures.each_batch(device, 8, [&](const float* pixels, std::span<const std::size_t> which, std::size_t) {
        const std::size_t count = which.size();
        if (count == 0) return;
        scratch.reset();
        x.resize(count * T * d);
        tower.embed(device, scratch, pixels, count, x.data());
        tower.run(device, scratch, x.data(), count, 0, layer);
        std::vector<float> logits_with_sae;
        if (sae) {
            replaced = x;
            replace_by_reconstruction(device, scratch, *sae, replaced.data(), count * T);
            logits_with_sae = logits_of_tokens(device, scratch, tower, classifier, replaced.data(), count, layer);
        }
        const auto logits = logits_of_tokens(device, scratch, tower, classifier, x.data(), count, layer);
        for (std::size_t i = 0; i < count; ++i) {
            const std::int32_t label = pictures.list().labels[which[i]];
            zero_shot_picture p{which[i],
                                label < 0 ? -1 : class_of_label[static_cast<std::size_t>(label)],
                                std::span(logits).subspan(i * C, C),
                                {}};
            result.plain.add(p.logits, p.label);
            if (sae) {
                p.logits_with_sae = std::span(logits_with_sae).subspan(i * C, C);
                result.with_sae.add(p.logits_with_sae, p.label);
            }
            ++result.pictures;
            each(p);
        }
    });
    return result;
}

}  // namespace psae
