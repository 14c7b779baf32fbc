#pragma once
// What an adaptation does to the latents of classes: for each class, which of its first latents a model and its adapted
// form share and which only one of them has; how much of what fires in the adapted model fired in the other already; how
// the association of latents and classes moves. Both counts are of the same pictures, by the same SAE.
//
//   const auto c = psae::compare_latents(base.counts(), adapted.counts(), 10);
//   c.classes[k].shared, c.classes[k].jaccard, c.present_mass

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <psae/attribution/class_latents.hpp>
#include <psae/attribution/pair_correlation.hpp>

namespace psae {

// The order in which latents are a class's first: as rank_latents, or as specific_latents.
enum class latent_order { count, phi };

// The first `top` latents of class c, of those that fire on it. fires: of_all() of the counts.
inline std::vector<std::uint32_t> first_latents(const class_latent_counts& counts, std::size_t c, std::size_t top,
                                                latent_order order, std::span<const std::uint64_t> fires) {
    std::vector<std::uint32_t> latents;
    if (order == latent_order::phi) {
        for (const auto& [f, a] : specific_latents(counts, c, top, fires)) latents.push_back(f);
        return latents;
    }
    const auto count = counts.of_class(c);
    for (std::uint32_t f = 0; f < counts.latents; ++f)
        if (count[f] > 0) latents.push_back(f);
    std::sort(latents.begin(), latents.end(), detail::by_count(count));
    if (latents.size() > top) latents.resize(top);
    return latents;
}

// A class in both models. Latents are in the order of the base model, adapted_only in that of the adapted one.
struct class_comparison {
    std::vector<std::uint32_t> shared, base_only, adapted_only;  // of the first ones of each
    double jaccard;  // shared over all of these; NaN if none fires on the class in either model
    // Of the class's counts in both models, over the latents that fire on it in one of them. NaN as pair_correlation.
    double count_correlation;
    std::size_t base_latents = 0, adapted_latents = 0;  // that fire on the class
    std::size_t present = 0;                            // of the adapted model's: that fire on it in the base model too
    double present_mass;  // their share of the class's counts in the adapted model; NaN if there are none
};

struct latent_comparison {
    std::vector<class_comparison> classes;
    double jaccard;  // mean over classes that have one
    // Over all classes: latents that fire at all, and those of the adapted model's that fire in the base model; their
    // share of all counts in the adapted model.
    std::size_t base_latents = 0, adapted_latents = 0, present = 0;
    double present_mass;
    // The mean over classes of their own present_mass: the latent must fire on the same class in the base model.
    double class_present_mass;
    // Of phi (association_of) in both models, over pairs of class and latent that come together in one of them.
    double association_correlation;
};

// One latent and class in both models.
struct association_change {
    std::size_t of_class;
    std::uint32_t latent;
    double base, adapted;  // phi
};

namespace detail {

inline void require_comparable(const class_latent_counts& base, const class_latent_counts& adapted) {
    if (base.classes != adapted.classes || base.latents != adapted.latents || base.what != adapted.what ||
        base.tau != adapted.tau || base.images != adapted.images)
        throw error("class-level latents cannot be compared", "comparison of models",
                    "expected counts of the same classes, latents and pictures, by the same rule");
}

// The latents that are among `others`, and those that are not.
inline std::pair<std::vector<std::uint32_t>, std::vector<std::uint32_t>> split_by(std::span<const std::uint32_t> list,
                                                                                  std::span<const std::uint32_t> others,
                                                                                  std::size_t latents) {
    std::vector<char> among(latents, 0);
    for (const std::uint32_t f : others) among[f] = 1;
    std::pair<std::vector<std::uint32_t>, std::vector<std::uint32_t>> parts;
    for (const std::uint32_t f : list) (among[f] ? parts.first : parts.second).push_back(f);
    return parts;
}

// Means of numbers that are not NaN.
class defined_mean {
public:
    void add(double v) {
        if (!std::isnan(v)) sum_ += v, ++count_;
    }
    double value() const { return count_ > 0 ? sum_ / count_ : std::numeric_limits<double>::quiet_NaN(); }

private:
    double sum_ = 0, count_ = 0;
};

// f(class, latent) for the pairs that come together in one of the models.
template <class F>
void each_pair(const class_latent_counts& base, const class_latent_counts& adapted, const F& f) {
    for (std::size_t c = 0; c < base.classes; ++c)
        for (std::uint32_t l = 0; l < base.latents; ++l)
            if (base.of_class(c)[l] > 0 || adapted.of_class(c)[l] > 0) f(c, l);
}

}  // namespace detail

// psae::error if the counts are not of the same pictures, latents and rule.
inline latent_comparison compare_latents(const class_latent_counts& base, const class_latent_counts& adapted,
                                         std::size_t top, latent_order order = latent_order::count) {
    constexpr double nan = std::numeric_limits<double>::quiet_NaN();
    detail::require_comparable(base, adapted);
    const auto base_fires = base.of_all(), adapted_fires = adapted.of_all();
    latent_comparison result;
    detail::defined_mean jaccards, masses;
    for (std::size_t c = 0; c < base.classes; ++c) {
        class_comparison& k = result.classes.emplace_back();
        const auto first = first_latents(base, c, top, order, base_fires),
                   second = first_latents(adapted, c, top, order, adapted_fires);
        std::tie(k.shared, k.base_only) = detail::split_by(first, second, base.latents);
        k.adapted_only = detail::split_by(second, first, base.latents).second;
        const std::size_t either = k.shared.size() + k.base_only.size() + k.adapted_only.size();
        k.jaccard = either == 0 ? nan : double(k.shared.size()) / double(either);

        pair_correlation counts;
        double all = 0, known = 0;
        for (std::size_t f = 0; f < base.latents; ++f) {
            const double x = base.of_class(c)[f], y = adapted.of_class(c)[f];
            k.base_latents += x > 0;
            k.adapted_latents += y > 0;
            k.present += x > 0 && y > 0;
            all += y;
            if (x > 0) known += y;
            if (x > 0 || y > 0) counts.add(x, y);
        }
        k.count_correlation = counts.value();
        k.present_mass = all > 0 ? known / all : nan;
        jaccards.add(k.jaccard);
        masses.add(k.present_mass);
    }
    result.jaccard = jaccards.value();
    result.class_present_mass = masses.value();

    double all = 0, known = 0;
    for (std::size_t f = 0; f < base.latents; ++f) {
        const bool before = base_fires[f] > 0, now = adapted_fires[f] > 0;
        result.base_latents += before;
        result.adapted_latents += now;
        result.present += before && now;
        all += double(adapted_fires[f]);
        if (before) known += double(adapted_fires[f]);
    }
    result.present_mass = all > 0 ? known / all : nan;
    const std::uint64_t possible = base.possible_of_all();  // of both, as their pictures are the same
    pair_correlation associations;
    detail::each_pair(base, adapted, [&](std::size_t c, std::uint32_t f) {
        associations.add(association_of(base, c, f, base_fires[f], possible).phi,
                         association_of(adapted, c, f, adapted_fires[f], possible).phi);
    });
    result.association_correlation = associations.value();
    return result;
}

// The `most` pairs whose association moves most, by the change of phi; of equal ones the first class, then latent.
inline std::vector<association_change> association_changes(const class_latent_counts& base,
                                                           const class_latent_counts& adapted, std::size_t most) {
    detail::require_comparable(base, adapted);
    const auto base_fires = base.of_all(), adapted_fires = adapted.of_all();
    const std::uint64_t possible = base.possible_of_all();
    const auto before = [](const association_change& a, const association_change& b) {
        const double x = std::abs(a.adapted - a.base), y = std::abs(b.adapted - b.base);
        return x != y ? x > y : std::tie(a.of_class, a.latent) < std::tie(b.of_class, b.latent);
    };
    std::vector<association_change> changes;  // while it is made a heap, the first one moves least
    if (most == 0) return changes;
    detail::each_pair(base, adapted, [&](std::size_t c, std::uint32_t f) {
        const association_change change{c, f, association_of(base, c, f, base_fires[f], possible).phi,
                                        association_of(adapted, c, f, adapted_fires[f], possible).phi};
        if (changes.size() == most) {
            if (!before(change, changes.front())) return;
            std::pop_heap(changes.begin(), changes.end(), before);
            changes.pop_back();
        }
        changes.push_back(change);
        std::push_heap(changes.begin(), changes.end(), before);
    });
    std::sort_heap(changes.begin(), changes.end(), before);
    return changes;
}

// How much of a gain in accuracy is left when only latents are kept that were there before:
//   (accuracy of the adapted model with these alone - accuracy of the base model) / (adapted - base)
// 1: all of it; 0: none; outside of these, keeping them does more harm than the adaptation does good, or helps. Not a
// number where the adapted model is not better: there is no gain to explain.
inline double explained_share(double base, double adapted, double adapted_with_present) {
    const double gain = adapted - base;
    return gain > 0 ? (adapted_with_present - base) / gain : std::numeric_limits<double>::quiet_NaN();
}

}  // namespace psae
