#pragma once
// Class-level latents: how often each latent fires on the images of each class, in one pass over codes, which latents
// are a class's first, and how specific they are to it. Memory is classes x d_sae counts of 4 bytes.
//
//   psae::class_latent_counter counter(classes, d_sae);          // images whose mean activation is above 0.2
//   counter.add(z, tokens_per_image, class_of_image);            // batch by batch
//   const psae::class_latent_counts& c = counter.counts();
//   psae::rank_latents(c, 10).of_class(k)                        // the ten latents of class k
//   psae::specific_latents(c, k, 10, c.of_all())                 // the ten that tell class k best, with phi and npmi

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <psae/core/error.hpp>
#include <psae/core/random.hpp>
#include <psae/sparse/codes.hpp>

namespace psae {

// What is counted for a class and a latent; CLS is one of the tokens.
//   images      images whose mean activation over all tokens (the score of latent_summary) is above tau. PatchSAE's paper
//               describes this
//   images_max  images of which a token is above tau
//   tokens      tokens above tau. PatchSAE's code counts these
enum class class_count { images, images_max, tokens };
inline constexpr std::array<std::string_view, 3> class_count_names{"images", "images_max", "tokens"};

struct class_latent_counts {
    std::size_t classes = 0, latents = 0, tokens_per_image = 1;
    class_count what = class_count::images;
    double tau = 0.2;
    std::vector<std::uint32_t> count;   // [classes, latents]
    std::vector<std::uint32_t> images;  // [classes]

    std::span<const std::uint32_t> of_class(std::size_t c) const {
        return std::span(count).subspan(c * latents, latents);
    }
    // The largest count that class c could have: its images, or their tokens.
    std::uint64_t possible(std::size_t c) const {
        return std::uint64_t{images[c]} * (what == class_count::tokens ? tokens_per_image : 1);
    }
    // The counts of all classes together: [latents].
    std::vector<std::uint64_t> of_all() const {
        std::vector<std::uint64_t> sum(latents);
        for (std::size_t i = 0; i < count.size(); ++i) sum[i % latents] += count[i];
        return sum;
    }
    std::uint64_t possible_of_all() const {
        std::uint64_t sum = 0;
        for (std::size_t c = 0; c < classes; ++c) sum += possible(c);
        return sum;
    }
};

class class_latent_counter {
public:
    // psae::error for a tau that is below 0 or not a number.
    class_latent_counter(std::size_t classes, std::size_t latents, class_count what = class_count::images,
                         double tau = 0.2)
        : score_(what == class_count::tokens ? 0 : latents) {
        if (!(tau >= 0 && std::isfinite(tau)))
            throw error("threshold of class-level latents is out of range", "tau",
                        "expected a number not below 0, found " + std::to_string(tau));
        counts_.classes = classes;
        counts_.latents = latents;
        counts_.what = what;
        counts_.tau = tau;
        counts_.count.resize(classes * latents);
        counts_.images.resize(classes);
    }

    // Codes of whole images: `tokens_per_image` tokens each. class_of_image: a class of each, or -1, whose image does
    // not count. psae::error if they have another number of latents, or tokens that are not these images, and for a
    // class that does not exist.
    template <class T>
    void add(const codes_view<T>& z, std::size_t tokens_per_image, std::span<const std::int32_t> class_of_image) {
        if (z.latents != counts_.latents || z.tokens != tokens_per_image * class_of_image.size() ||
            (seen_ && tokens_per_image != counts_.tokens_per_image))
            throw error("codes do not fit the counts", "class_latent_counter::add",
                        "expected " + std::to_string(counts_.latents) + " latents and " +
                            std::to_string(class_of_image.size()) + " images of " + std::to_string(tokens_per_image) +
                            " tokens, found " + std::to_string(z.latents) + " latents and " + std::to_string(z.tokens) +
                            " tokens");
        for (const std::int32_t c : class_of_image)
            if (c >= std::int64_t(counts_.classes))
                throw error("there is no such class", "class_latent_counter::add",
                            "expected one below " + std::to_string(counts_.classes) + ", found " + std::to_string(c));
        seen_ = true;
        counts_.tokens_per_image = tokens_per_image;
        for (std::size_t i = 0; i < class_of_image.size(); ++i) {
            if (class_of_image[i] < 0) continue;
            const auto c = static_cast<std::size_t>(class_of_image[i]);
            ++counts_.images[c];
            add_image(z, z.offsets[i * tokens_per_image], z.offsets[(i + 1) * tokens_per_image],
                      counts_.count.data() + c * counts_.latents);
        }
    }

    const class_latent_counts& counts() const& { return counts_; }
    class_latent_counts counts() && { return std::move(counts_); }

private:
    template <class T>
    void add_image(const codes_view<T>& z, std::size_t first, std::size_t end, std::uint32_t* count) {
        if (counts_.what == class_count::tokens) {
            for (std::size_t i = first; i < end; ++i) count[z.latent[i]] += double(z.value[i]) > counts_.tau;
            return;
        }
        const bool mean = counts_.what == class_count::images;
        for (std::size_t i = first; i < end; ++i) {
            const auto value = static_cast<double>(z.value[i]);
            if (!(value > 0)) continue;
            double& score = score_[z.latent[i]];
            if (score == 0) touched_.push_back(z.latent[i]);
            score = mean ? score + value : std::max(score, value);
        }
        for (const std::uint32_t f : touched_) {
            const double score = std::exchange(score_[f], 0.0);
            count[f] += (mean ? score / double(counts_.tokens_per_image) : score) > counts_.tau;
        }
        touched_.clear();
    }

    class_latent_counts counts_;
    bool seen_ = false;
    std::vector<double> score_;  // of the image at hand
    std::vector<std::uint32_t> touched_;
};

// How a latent and a class go together. An event is an image, or a token, of the labelled images; p are shares of them.
struct class_association {
    double frequency = 0;    // of the class's images (tokens), the share on which the latent fires
    double share = 0;        // of what the latent fires on, the share that is of the class; 0 if it never fires
    double class_share = 0;  // of all images, the share that is of the class: what `share` would be by chance
    // Normalised pointwise mutual information, ln(p(c, f) / (p(c) p(f))) / -ln p(c, f) (Bouma, Normalized (pointwise)
    // mutual information in collocation extraction, 2009): 1 if the latent fires on the class's images, all of them,
    // and on no others, 0 if they are independent, -1 if they never come together.
    double npmi = -1;
    // The correlation of the two events (phi, or Matthews correlation coefficient): 1 and 0 as npmi, but a latent that fires
    // on one image of many is near 0. 0 where the latent or the class is always or never there.
    double phi = 0;
};

// Over all classes: fires, the count of the latent (an element of of_all()), and possible, possible_of_all().
inline class_association association_of(const class_latent_counts& counts, std::size_t c, std::size_t latent,
                                        std::uint64_t fires, std::uint64_t possible) {
    const double all = double(possible);
    const double both = counts.of_class(c)[latent], of_class = double(counts.possible(c));
    class_association a;
    if (all > 0) a.class_share = of_class / all;
    const double fired = double(fires), spread = of_class * (all - of_class) * fired * (all - fired);
    if (spread > 0) a.phi = (both * all - of_class * fired) / std::sqrt(spread);
    if (both == 0) return a;
    a.frequency = both / of_class;
    a.share = both / double(fires);
    a.npmi = both == all ? 0 : std::log(a.share / a.class_share) / -std::log(both / all);
    return a;
}

// Some latents of each class, the first ones first.
struct latent_ranking {
    static constexpr std::uint32_t none = ~std::uint32_t{0};  // behind the last latent of a class that has fewer

    std::size_t classes = 0, top = 0;
    std::vector<std::uint32_t> latents;  // [classes, top]

    std::span<const std::uint32_t> of_class(std::size_t c) const { return std::span(latents).subspan(c * top, top); }
};

// Lists of latents of different lengths, one for each class, as a ranking.
inline latent_ranking ranking_of(const std::vector<std::vector<std::uint32_t>>& lists) {
    latent_ranking ranking{lists.size(), 0, {}};
    for (const auto& list : lists) ranking.top = std::max(ranking.top, list.size());
    ranking.latents.assign(lists.size() * ranking.top, latent_ranking::none);
    for (std::size_t c = 0; c < lists.size(); ++c)
        std::copy(lists[c].begin(), lists[c].end(), ranking.latents.begin() + std::ptrdiff_t(c * ranking.top));
    return ranking;
}

namespace detail {

// The order by count: the largest first; of equal ones the larger index, as PatchSAE has them.
inline auto by_count(std::span<const std::uint32_t> count) {
    return [count](std::uint32_t a, std::uint32_t b) { return count[a] > count[b] || (count[a] == count[b] && a > b); };
}

}  // namespace detail

// The `top` latents of each class with the largest counts; of equal counts the larger index first, as PatchSAE has them.
// psae::error if there are fewer latents.
inline latent_ranking rank_latents(const class_latent_counts& counts, std::size_t top) {
    if (top > counts.latents)
        throw error("there are not so many latents", "ranking of a class's latents",
                    "expected at most " + std::to_string(counts.latents) + ", found " + std::to_string(top));
    latent_ranking ranking{counts.classes, top, {}};
    ranking.latents.reserve(counts.classes * top);
    std::vector<std::uint32_t> order(counts.latents);
    for (std::size_t c = 0; c < counts.classes; ++c) {
        const auto count = counts.of_class(c);
        std::iota(order.begin(), order.end(), std::uint32_t{0});
        std::partial_sort(order.begin(), order.begin() + std::ptrdiff_t(top), order.end(), detail::by_count(count));
        ranking.latents.insert(ranking.latents.end(), order.begin(), order.begin() + std::ptrdiff_t(top));
    }
    return ranking;
}

// The `top` latents of class c that are most specific to it, by phi; of equal ones the smaller index first. Fewer if
// fewer fire on the class. fires: of_all() of the counts.
inline std::vector<std::pair<std::uint32_t, class_association>> specific_latents(const class_latent_counts& counts,
                                                                                 std::size_t c, std::size_t top,
                                                                                 std::span<const std::uint64_t> fires) {
    const std::uint64_t possible = counts.possible_of_all();
    std::vector<std::pair<std::uint32_t, class_association>> found;
    for (std::uint32_t f = 0; f < counts.latents; ++f)
        if (counts.of_class(c)[f] > 0) found.emplace_back(f, association_of(counts, c, f, fires[f], possible));
    std::stable_sort(found.begin(), found.end(),
                     [](const auto& a, const auto& b) { return a.second.phi > b.second.phi; });
    if (found.size() > top) found.resize(top);
    return found;
}

// A control for that ranking: `top` latents of each class drawn at random, without replacement. Latents that fire on
// some class come first, since taking away or keeping one that never fires changes nothing; only when they are used up
// others follow. psae::error as rank_latents.
inline latent_ranking random_ranking(const class_latent_counts& counts, std::size_t top, std::uint64_t seed) {
    if (top > counts.latents)
        throw error("there are not so many latents", "random latents",
                    "expected at most " + std::to_string(counts.latents) + ", found " + std::to_string(top));
    const auto fires = counts.of_all();
    std::vector<std::uint32_t> pool(counts.latents);
    std::iota(pool.begin(), pool.end(), std::uint32_t{0});
    const auto alive = static_cast<std::size_t>(
        std::stable_partition(pool.begin(), pool.end(), [&](std::uint32_t f) { return fires[f] > 0; }) - pool.begin());
    random_stream random(seed);
    latent_ranking ranking{counts.classes, top, {}};
    ranking.latents.reserve(counts.classes * top);
    for (std::size_t c = 0; c < counts.classes; ++c)
        for (std::size_t i = 0; i < top; ++i) {  // the pool stays a permutation within its two parts
            const std::size_t left = (i < alive ? alive : pool.size()) - i;
            std::swap(pool[i], pool[i + static_cast<std::size_t>(random.below(left))]);
            ranking.latents.push_back(pool[i]);
        }
    return ranking;
}

}  // namespace psae
