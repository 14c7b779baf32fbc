#pragma once
// Do the images that activate a latent most have one label? The purity of a latent is the share of the most common label
// among its top images, and what chance would give tells what that is worth: with 2 labels, or with latents that fire on
// one image only, purity is high whatever the latents do.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <span>
#include <vector>

#include <psae/attribution/latent_summary.hpp>

namespace psae {

// E[m]: the expected purity of m images drawn at random, without replacement, from images_of_label[c] images of each label c;
// m from 0 (E[0] is 0) to the smaller of `most` and the number of images. Exact: the expected count of the most common
// label is the sum over t of P(some count >= t), and P(every count < t) follows label by label from hypergeometric
// probabilities.
inline std::vector<double> expected_purity(std::span<const std::size_t> images_of_label, std::size_t most) {
    std::size_t rest = 0;
    for (const std::size_t n : images_of_label) rest += n;
    most = std::min(most, rest);
    std::vector<double> log_factorial(rest + 1);
    for (std::size_t i = 1; i <= rest; ++i) log_factorial[i] = log_factorial[i - 1] + std::log(double(i));
    const auto log_choose = [&](std::size_t n, std::size_t k) {
        return log_factorial[n] - log_factorial[k] - log_factorial[n - k];
    };
    // below[t][m]: P(every count < t) of m images drawn from the labels seen so far.
    const std::vector<double> none_drawn = [&] {
        std::vector<double> p(most + 1);
        p[0] = 1;
        return p;
    }();
    std::vector<std::vector<double>> below(most + 1, none_drawn);
    std::vector<double> taken(most + 1);
    std::size_t seen = 0;
    for (const std::size_t n : images_of_label) {
        seen += n;
        std::vector<std::vector<double>> next(most + 1, std::vector<double>(most + 1));
        for (std::size_t m = 0; m <= std::min(most, seen); ++m) {
            const std::size_t least = m > seen - n ? m - (seen - n) : 0, largest = std::min(m, n);
            for (std::size_t j = least; j <= largest; ++j)  // j of the m images have this label
                taken[j] = std::exp(log_choose(n, j) + log_choose(seen - n, m - j) - log_choose(seen, m));
            for (std::size_t t = 1; t <= most; ++t)
                for (std::size_t j = least; j <= largest && j < t; ++j) next[t][m] += taken[j] * below[t][m - j];
        }
        below = std::move(next);
    }
    std::vector<double> purity(most + 1);
    for (std::size_t m = 1; m <= most; ++m) {
        double count = 0;
        for (std::size_t t = 1; t <= m; ++t) count += 1 - below[t][m];
        purity[m] = count / double(m);
    }
    return purity;
}

// Means over the latents that have a top image with a label; NaN without one.
struct label_purity {
    std::size_t latents = 0;
    double purity = std::numeric_limits<double>::quiet_NaN();
    double chance = std::numeric_limits<double>::quiet_NaN();  // of as many images of all those with labels, at random
};

// labels: one per image, -1 for none. Top images without a label do not count.
inline label_purity purity_of_top_images(const latent_summary& s, std::span<const std::int64_t> labels) {
    std::map<std::int64_t, std::size_t> images;
    for (const std::int64_t label : labels)
        if (label >= 0) ++images[label];
    std::vector<std::size_t> images_of_label;
    for (const auto& [label, count] : images) images_of_label.push_back(count);
    const auto expected = expected_purity(images_of_label, s.top);
    label_purity result;
    double purity = 0, chance = 0;
    for (std::size_t f = 0; f < s.latents; ++f) {
        std::size_t all = 0, most = 0;
        for (const label_share& l : label_shares(s, f, labels)) {
            all += l.images;
            most = std::max(most, l.images);
        }
        if (all == 0) continue;
        ++result.latents;
        purity += double(most) / double(all);
        chance += expected[all];
    }
    if (result.latents == 0) return result;
    result.purity = purity / double(result.latents);
    result.chance = chance / double(result.latents);
    return result;
}

}  // namespace psae
