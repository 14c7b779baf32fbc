#pragma once
// A model and an adapted form of it on the same pictures, by the same SAE: which latents fire on each picture and class,
// and what is left of the accuracy of both when, at the hooked layer, only latents are kept that a class has in one of
// them or in both. Any adaptation is compared this way: prompts, weights that were changed, another head.
//
//   const auto before = psae::fired_latents(device, *tower, pictures, of_label, sae, layer, classes, what, tau);
//   const auto now = psae::fired_latents(device, *prompted, pictures, of_label, sae, layer, classes, what, tau);
//   const auto sets = psae::choose_sets(before.counts, now.counts, ks, psae::latent_order::count, seed);
//   const auto result = psae::run_interventions(device, *prompted, prompted_classifier, pictures, of_label, layer, sae,
//                                               sets.interventions(), {.rankings = sets.rankings});

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <iterator>
#include <numeric>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <psae/attribution/latent_comparison.hpp>
#include <psae/io/interventions.hpp>

namespace psae {

struct fired_on_pictures {
    class_latent_counts counts;
    std::vector<std::vector<std::uint32_t>> latents;  // of each picture of the list, ascending: those that count on it
    std::vector<char> read;                           // whether the picture could be read
};

// What class_latent_counter counts (`what`, `tau`), for classes and for each picture. All pictures must have a class.
// psae::error as count_class_latents.
inline fired_on_pictures fired_latents(
    const cpu& device, const vision_tower& tower, picture_reader& pictures,
    std::span<const std::int32_t> class_of_label, const sae_view& sae, std::size_t layer, std::size_t classes,
    class_count what, double tau, const std::function<void(std::size_t)>& progress = [](std::size_t) {}) {
    require_fit(tower, sae);
    require_fit(pictures.list(), class_of_label, classes);
    const std::size_t T = tower.image_tokens(), F = sae.d_sae;
    fired_on_pictures result{
        {}, std::vector<std::vector<std::uint32_t>>(pictures.size()), std::vector<char>(pictures.size(), 0)};
    class_latent_counter all(classes, F, what, tau);
    const auto in_place = put_in_place(device, tower, layer, sae);
    const auto at = [&](arena<>& scratch, const hooked_tokens& h) {
        in_place->take(h.tokens, h.pictures.size(), h.there);
        for (std::size_t i = 0; i < h.pictures.size(); ++i) {
            const std::size_t picture = h.pictures[i];
            const auto mark = scratch.position();
            const std::int32_t of = class_of(pictures.list(), picture, class_of_label), own = 0;
            const auto z = in_place->codes(scratch, i);
            all.add(z, T, {&of, 1});
            class_latent_counter alone(1, F, what, tau);  // the picture a class of its own
            alone.add(z, T, {&own, 1});
            scratch.release_to(mark);
            result.read[picture] = 1;
            const auto fires = alone.counts().of_class(0);
            for (std::uint32_t f = 0; f < F; ++f)
                if (fires[f] > 0) result.latents[picture].push_back(f);
        }
    };
    each_hooked(device, tower, pictures, std::span(&layer, 1), at, progress);
    result.counts = std::move(all).counts();
    return result;
}

// Of two ascending lists: what is in both over what is in one of them; NaN if both are empty.
inline double jaccard_index(std::span<const std::uint32_t> a, std::span<const std::uint32_t> b) {
    std::vector<std::uint32_t> both;
    std::set_intersection(a.begin(), a.end(), b.begin(), b.end(), std::back_inserter(both));
    const double either = double(a.size() + b.size() - both.size());
    return double(both.size()) / either;
}

// Latents of each class that an intervention keeps or removes.
struct compared_set {
    const char* name;     // see compared_sets
    std::size_t k;        // of first ones; 0: all of the kind
    std::size_t ranking;  // in compared_sets::rankings
    intervention::action what;
};

// Sets of a class's latents, chosen by counts in both models:
//   base, adapted      the first k of the class in that model
//   shared             those that are in both
//   base_fired         all that fire on the class in the base model: what was there before. So adapted_fired
//   new                removed: those that fire on it in the adapted model and not in the base model
//   random             removed: as many of those that fire on it in the adapted model, drawn at random
struct compared_sets {
    std::vector<latent_ranking> rankings;
    std::vector<compared_set> sets;

    // Each set without the error term, then with it; before these all latents kept, without and with.
    std::vector<intervention> interventions() const {
        std::vector<intervention> list;
        for (const bool error_term : {false, true}) list.push_back({.error_term = error_term});
        for (const compared_set& s : sets)
            for (const bool error_term : {false, true})
                list.push_back({.what = s.what,
                                .k = s.k > 0 ? std::min(s.k, rankings[s.ranking].top) : rankings[s.ranking].top,
                                .ranking = s.ranking,
                                .error_term = error_term});
        return list;
    }
};

// ks: ascending. psae::error as compare_latents.
inline compared_sets choose_sets(const class_latent_counts& base, const class_latent_counts& adapted,
                                 std::span<const std::size_t> ks, latent_order order, std::uint64_t seed) {
    using lists = std::vector<std::vector<std::uint32_t>>;
    using action = intervention::action;
    detail::require_comparable(base, adapted);
    const auto base_fires = base.of_all(), adapted_fires = adapted.of_all();
    compared_sets result;
    const auto add = [&](const char* name, std::size_t k, action what, const lists& latents) {
        result.sets.push_back({name, k, result.rankings.size(), what});
        result.rankings.push_back(ranking_of(latents));
    };
    lists base_order, adapted_order;
    const std::size_t most = ks.empty() ? 0 : ks.back();
    for (std::size_t c = 0; c < base.classes; ++c) {
        base_order.push_back(first_latents(base, c, most, order, base_fires));
        adapted_order.push_back(first_latents(adapted, c, most, order, adapted_fires));
    }
    for (const std::size_t k : ks) {
        lists first = base_order, second = adapted_order, shared;
        for (std::size_t c = 0; c < base.classes; ++c) {
            first[c].resize(std::min(k, first[c].size()));
            second[c].resize(std::min(k, second[c].size()));
            shared.push_back(detail::split_by(first[c], second[c], base.latents).first);
        }
        add("base", k, action::keep, first);
        add("adapted", k, action::keep, second);
        add("shared", k, action::keep, shared);
    }
    lists before(base.classes), now(base.classes), fresh(base.classes), drawn(base.classes);
    random_stream random(seed);
    for (std::size_t c = 0; c < base.classes; ++c) {
        for (std::uint32_t f = 0; f < base.latents; ++f) {
            const bool in_base = base.of_class(c)[f] > 0, in_adapted = adapted.of_class(c)[f] > 0;
            if (in_base) before[c].push_back(f);
            if (in_adapted) now[c].push_back(f);
            if (in_adapted && !in_base) fresh[c].push_back(f);
        }
        drawn[c] = now[c];
        shuffle(drawn[c], random);
        drawn[c].resize(fresh[c].size());
    }
    add("base_fired", 0, action::keep, before);
    add("adapted_fired", 0, action::keep, now);
    add("new", 0, action::remove, fresh);
    add("random", 0, action::remove, drawn);
    return result;
}

}  // namespace psae
