#pragma once
// What a class's latents do to zero-shot classification: accuracy when only its first k latents are kept at the hooked
// layer, or when they are removed, when others drawn at random are, or when latents are set to values (steering). The
// tower runs up to the layer and the SAE encodes once for all interventions; only decoding and the blocks behind the
// layer run for each.
//
//   const auto counts = std::move(counter).counts();                       // of training pictures, count_class_latents
//   const psae::latent_ranking rankings[] = {psae::rank_latents(counts, 100), psae::random_ranking(counts, 100, seed)};
//   const std::vector<psae::intervention> list{{.what = psae::intervention::action::keep, .k = 10},
//                                              {.what = psae::intervention::action::remove, .k = 10, .ranking = 1}};
//   const auto result = psae::run_interventions(device, *tower, classifier, pictures, of_label, layer, sae, list,
//                                               {.rankings = rankings});
//   result.plain.top_1(), result.interventions[0].accuracy.top_1(), result.interventions[0].lost

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <psae/attribution/class_latents.hpp>
#include <psae/attribution/intervention.hpp>
#include <psae/io/zero_shot_accuracy.hpp>

namespace psae {

struct intervention {
    using action = codes_edit::action;
    static constexpr std::size_t all = std::numeric_limits<std::size_t>::max();

    action what = action::keep;
    // Of keep and remove: the first k latents of the picture's class in ranking number `ranking`, or all there are, for
    // which no ranking is asked. Keeping all leaves the reconstruction, removing all leaves b_dec.
    std::size_t k = all, ranking = 0;
    std::span<const latent_value> values{};  // of set: as require_settable has them
    // What the SAE leaves unexplained, x - x_hat, is added to the tokens: then removing nothing changes nothing.
    bool error_term = false;
};

struct intervened_picture {
    std::size_t index;                // in the list
    std::int32_t label;               // its class
    std::span<const float> plain;     // logits [classes] of the model as it is
    std::span<const float> logits{};  // [interventions, classes]
};

struct intervention_options {
    std::span<const latent_ranking> rankings{};
    // A picture's class, of which the latents are, is the one the plain model predicts. By its label, as PatchSAE has
    // it, the right answer is put into what is measured.
    bool by_label = false;
    std::function<void(std::size_t)> progress = [](std::size_t) {};  // as each_hooked
    std::function<void(const intervened_picture&)> each = [](const intervened_picture&) {};
};

struct intervention_result {
    accuracy_counts accuracy;
    std::vector<accuracy_counts> by_class;  // [classes], of the pictures with that label
    std::size_t gained = 0, lost = 0;       // pictures that are right now and were not in the plain model; the reverse
};

struct intervention_results {
    accuracy_counts plain;
    std::vector<accuracy_counts> plain_by_class;
    std::vector<intervention_result> interventions;  // in the order they were given
};

// Classifies the pictures that can be read, plain and under each of the interventions, on the tokens of hidden state
// `layer`. class_of_label: a class for each label of the list; pictures without a class are an error (with_class leaves
// them out). psae::error for parts that do not fit, rankings that are too short or name no latent, and as encode_rows.
inline intervention_results run_interventions(const cpu& device, const vision_tower& tower,
                                              const zero_shot_classifier& classifier, picture_reader& pictures,
                                              std::span<const std::int32_t> class_of_label, std::size_t layer,
                                              const sae_view& sae, std::span<const intervention> interventions,
                                              const intervention_options& options = {}) {
    using action = intervention::action;
    const std::size_t C = classifier.classes.size(), F = sae.d_sae, n = interventions.size(),
                      rankings = options.rankings.size();
    require_fit(tower, sae);
    require_reconstruction(sae, tower.name());
    require_fit(tower, classifier, pictures.list(), class_of_label);
    for (std::size_t i = 0; i < pictures.size(); ++i)
        if (class_of(pictures.list(), i, class_of_label) < 0)
            throw error("picture has no class", pictures.list().files[i].string(), "",
                        "interventions are measured on pictures whose label is known");
    for (const latent_ranking& r : options.rankings)
        if (r.classes != C || r.latents.size() != C * r.top ||
            std::any_of(r.latents.begin(), r.latents.end(),
                        [&](std::uint32_t f) { return f >= F && f != latent_ranking::none; }))
            throw error("ranking of latents does not fit", "interventions",
                        "expected " + std::to_string(C) + " classes and latents below " + std::to_string(F));
    for (const intervention& v : interventions) {
        require_settable(v.values, F);
        if (v.what != action::set && v.k != intervention::all &&
            (v.ranking >= rankings || v.k > options.rankings[v.ranking].top))
            throw error("ranking of latents is too short", "interventions",
                        "expected the first " + std::to_string(v.k) + " latents of each class in ranking " +
                            std::to_string(v.ranking));
    }

    intervention_results result;
    result.plain_by_class.resize(C);
    result.interventions.assign(n, {{}, std::vector<accuracy_counts>(C), 0, 0});
    const auto in_place = put_in_place(device, tower, layer, sae);
    // What an intervention does to the codes of a picture of class `of`.
    std::vector<latent_value> latents;
    const auto edit_of = [&](const intervention& v, std::size_t of) -> codes_edit {
        if (v.what == action::set) return {v.what, v.values};
        if (v.k == intervention::all) return {v.what == action::keep ? action::remove : action::keep, {}};
        latents.clear();
        for (const std::uint32_t f : options.rankings[v.ranking].of_class(of).first(v.k))
            if (f != latent_ranking::none) latents.push_back({f, 0});
        std::sort(latents.begin(), latents.end(), [](const auto& a, const auto& b) { return a.latent < b.latent; });
        return {v.what, latents};
    };

    const auto at = [&](arena<>&, const hooked_tokens& h) {
        const std::size_t count = h.pictures.size();
        in_place->take(h.tokens, count, h.there);
        for (std::size_t i = 0; i < count; ++i) in_place->add(i);
        const auto plain = classifier.logits(in_place->embeddings(), count);
        const auto label = [&](std::size_t i) { return class_of(pictures.list(), h.pictures[i], class_of_label); };
        for (std::size_t i = 0; i < count; ++i) {
            const std::size_t of = options.by_label ? static_cast<std::size_t>(label(i))
                                                    : best_classes(std::span(plain).subspan(i * C, C), 1)[0];
            for (const intervention& v : interventions) in_place->add(i, edit_of(v, of), v.error_term);
        }
        const auto logits = classifier.logits(in_place->embeddings(), count * n);  // [count, n, C]
        for (std::size_t i = 0; i < count; ++i) {
            const intervened_picture p{h.pictures[i], label(i), std::span(plain).subspan(i * C, C),
                                       std::span(logits).subspan(i * n * C, n * C)};
            const auto c = static_cast<std::size_t>(p.label);
            const auto add = [&](accuracy_counts& all, accuracy_counts& of_class, std::span<const float> values) {
                const std::size_t before = all.best;
                all.add(values, p.label);
                of_class.add(values, p.label);
                return all.best > before;
            };
            const bool right = add(result.plain, result.plain_by_class[c], p.plain);
            for (std::size_t v = 0; v < n; ++v) {
                intervention_result& own = result.interventions[v];
                const bool now = add(own.accuracy, own.by_class[c], p.logits.subspan(v * C, C));
                own.gained += now && !right;
                own.lost += right && !now;
            }
            options.each(p);
        }
    };
    each_hooked(device, tower, pictures, std::span(&layer, 1), at, options.progress);
    return result;
}

}  // namespace psae
