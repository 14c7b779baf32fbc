#pragma once
// Attribution of logits to latents on pictures: for each picture and its class the latents that speak most for and
// against the class, and what really happens without them. The tower runs up to the layer and the SAE encodes once; only
// the blocks behind the layer run for each gradient and each removal.
//
//   const auto agreement = psae::attribute_pictures(device, *tower, classifier, pictures, of_label, layer, sae,
//                                                   {.steps = 16}, [&](const psae::attributed_picture& p) { ... });
//   agreement.correlation(), agreement.completeness_error()

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <numeric>
#include <span>
#include <vector>

#include <psae/attribution/logit_attribution.hpp>
#include <psae/attribution/pair_correlation.hpp>
#include <psae/io/zero_shot_accuracy.hpp>

namespace psae {

struct attribution_options {
    static constexpr std::size_t all_others = ~std::size_t{0};

    // The explained class: what the plain model predicts, the picture's label, or one for all pictures.
    enum class choice { prediction, label, given };
    choice by = choice::prediction;
    std::size_t given = 0;
    // Classes whose mean logit is taken off; where the explained one is among them, that of the others. The single element
    // all_others stands for all others.
    std::vector<std::size_t> against{};
    std::size_t steps = 0;                                           // as of attribute_logit
    bool error_term = true;                                          // as of explained_image
    std::size_t top = 10;                                            // latents for the class, and as many against
    std::function<void(std::size_t)> progress = [](std::size_t) {};  // as each_hooked
};

// A picture's result; it lasts as long as the call that shows it.
struct attributed_picture {
    std::size_t index;              // in the list
    std::int32_t label;             // its class, or -1
    std::size_t of;                 // the explained class
    std::span<const float> logits;  // [classes], of the plain model
    codes_view<float> z;            // of its tokens
    const logit_attribution& attribution;
    std::span<const attributed_latent> strongest;  // for the class, the strongest first; then those against it
    std::size_t against;                           // where the latter begin
    std::span<const double> effects;               // of the removal of each of the strongest
};

// How attributions compare with what really happens, over the strongest latents of all pictures.
struct attribution_agreement {
    std::size_t pictures = 0;
    std::vector<double> attribution, effect;  // of each
    double missing = 0, change = 0;           // sums of |completeness error| and of |value - baseline| over pictures

    double correlation() const {
        pair_correlation pairs;
        for (std::size_t i = 0; i < effect.size(); ++i) pairs.add(attribution[i], effect[i]);
        return pairs.value();
    }
    // The share of the latents whose removal goes the way the attribution says. NaN without latents.
    double same_sign() const {
        double same = 0;
        for (std::size_t i = 0; i < effect.size(); ++i) same += (attribution[i] > 0) == (effect[i] > 0);
        return same / double(effect.size());
    }
    // How much of what the latents do is not accounted for, as a share.
    double completeness_error() const { return missing / change; }
};

// Explains the logit of a class on each picture that can be read, in order. class_of_label: a class or -1 for each label
// of the list. each(attributed_picture) sees every picture; what it throws ends the work. psae::error for parts and
// classes that do not fit, for pictures without a class if labels choose it, and as encode_rows.
inline attribution_agreement attribute_pictures(const cpu& device, const vision_tower& tower,
                                                const zero_shot_classifier& classifier, picture_reader& pictures,
                                                std::span<const std::int32_t> class_of_label, std::size_t layer,
                                                const sae_view& sae, const attribution_options& options,
                                                const std::function<void(const attributed_picture&)>& each) {
    using choice = attribution_options::choice;
    const std::size_t T = tower.tokens(), d = tower.width(), C = classifier.classes.size();
    require_fit(tower, sae);
    require_reconstruction(sae, tower.name());
    require_fit(tower, classifier, pictures.list(), class_of_label);
    if (options.by == choice::label)
        for (std::size_t i = 0; i < pictures.size(); ++i)
            if (class_of(pictures.list(), i, class_of_label) < 0)
                throw error("picture has no class", pictures.list().files[i].string(), "",
                            "its label is to choose the class that is explained");
    // The direction of each class, made when first asked for.
    std::vector<std::vector<float>> directions(C);
    const auto direction_of = [&](std::size_t of) -> const std::vector<float>& {
        if (directions.at(of).empty()) {
            std::vector<std::size_t> against = options.against;
            if (against == std::vector{attribution_options::all_others}) {
                against.resize(C);
                std::iota(against.begin(), against.end(), std::size_t{0});
            }
            std::erase(against, of);  // a class is not explained against itself
            directions[of] = classifier.direction(of, against);
        }
        return directions[of];
    };
    if (options.by == choice::given && options.given >= C)
        throw error("no such class", "attribution", "0 to " + std::to_string(C - 1));

    attribution_agreement agreement;
    std::vector<float> copy;
    const auto at = [&](arena<>& scratch, const hooked_tokens& h) {
        const std::size_t count = h.pictures.size();
        copy.assign(h.tokens, h.tokens + count * T * d);
        const auto logits = logits_of_tokens(device, scratch, tower, classifier, copy.data(), count, layer);
        encode_in_batches(device, scratch, sae, h.tokens, count * T, T, [&](std::size_t row, codes_view<float> z) {
            const std::size_t images = z.tokens / T;
            z.tokens = T;
            for (std::size_t i = 0; i < images; ++i, z.offsets += T) {  // codes of one picture after the other
                const std::size_t p = row / T + i;
                const std::int32_t label = class_of(pictures.list(), h.pictures[p], class_of_label);
                const auto own = std::span(logits).subspan(p * C, C);
                const std::size_t of = options.by == choice::label   ? static_cast<std::size_t>(label)
                                       : options.by == choice::given ? options.given
                                                                     : best_classes(own, 1)[0];
                const explained_image image{
                    tower, layer, sae, z, h.tokens + p * T * d, direction_of(of), options.error_term};
                const auto a = attribute_logit(device, scratch, image, options.steps);
                auto latents = attributed_latents(z, a, tower.image_tokens());
                const auto has = [&](const auto& begin, int sign) {
                    return static_cast<std::size_t>(
                        std::find_if(begin, begin + std::ptrdiff_t(std::min(options.top, latents.size())),
                                     [&](const attributed_latent& l) { return !(sign * l.attribution > 0); }) -
                        begin);
                };
                const std::size_t speak_for = has(latents.begin(), 1), speak_against = has(latents.rbegin(), -1);
                std::vector<attributed_latent> strongest(latents.begin(), latents.begin() + std::ptrdiff_t(speak_for));
                strongest.insert(strongest.end(), latents.rbegin(), latents.rbegin() + std::ptrdiff_t(speak_against));
                std::vector<std::uint32_t> removed;
                for (const attributed_latent& l : strongest) {
                    removed.push_back(l.latent);
                    agreement.attribution.push_back(l.attribution);
                }
                const auto effects = removal_effects(device, scratch, image, removed);
                agreement.effect.insert(agreement.effect.end(), effects.begin(), effects.end());
                agreement.missing += std::abs(a.completeness_error());
                agreement.change += std::abs(a.value - a.baseline);
                ++agreement.pictures;
                each({h.pictures[p], label, of, own, z, a, strongest, speak_for, effects});
            }
        });
    };
    each_hooked(device, tower, pictures, std::span(&layer, 1), at, options.progress);
    return agreement;
}

}  // namespace psae
