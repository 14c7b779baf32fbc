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
#include <psae/sae/sae_in_place.hpp>
#include <psae/vit/zero_shot.hpp>

namespace psae {

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
    tower.embeddings(device, scratch, tokens, images, layer, embeds.data());
    return classifier.logits(embeds, images);
}

// psae::error if the classifier's embeddings are not of the tower's projection, or class_of_label is not a class or -1
// for each label of the list.
inline void require_fit(const vision_tower& tower, const zero_shot_classifier& classifier, const image_list& list,
                        std::span<const std::int32_t> class_of_label) {
    const std::size_t C = classifier.classes.size();
    if (classifier.embeddings.size() != C * tower.projection())
        throw error("class and image embeddings do not fit", tower.name(),
                    "expected " + std::to_string(tower.projection()) + " numbers a class");
    require_fit(list, class_of_label, C);
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
    const std::size_t C = classifier.classes.size();
    if (sae) {
        require_fit(tower, *sae);
        require_reconstruction(*sae, tower.name());
    }
    require_fit(tower, classifier, pictures.list(), class_of_label);
    zero_shot_result result;
    const auto in_place = sae ? put_in_place(device, tower, layer, *sae) : nullptr;
    std::vector<float> copy;
    const auto at = [&](arena<>& scratch, const hooked_tokens& h) {
        const std::size_t count = h.pictures.size();
        std::vector<float> logits, logits_with_sae;
        if (sae) {
            in_place->take(h.tokens, count, h.there);
            for (std::size_t i = 0; i < count; ++i) in_place->add(i);
            logits = classifier.logits(in_place->embeddings(), count);
            for (std::size_t i = 0; i < count; ++i) in_place->add(i, {});
            logits_with_sae = classifier.logits(in_place->embeddings(), count);
        } else {
            copy.assign(h.tokens, h.tokens + count * tower.tokens() * tower.width());
            logits = logits_of_tokens(device, scratch, tower, classifier, copy.data(), count, layer);
        }
        for (std::size_t i = 0; i < count; ++i) {
            zero_shot_picture p{h.pictures[i],
                                class_of(pictures.list(), h.pictures[i], class_of_label),
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
    };
    each_hooked(device, tower, pictures, std::span(&layer, 1), at, [](std::size_t) {});
    return result;
}

}  // namespace psae
