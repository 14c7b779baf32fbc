#pragma once
// Interventions on latents: the statistics of what one does to an accuracy. (The codes themselves: edit_codes; in the
// place of a tower's tokens: sae/sae_in_place.hpp.)
//
//   const psae::latent_value values[] = {{1234, 5.0f}};
//   const auto steered = psae::edit_codes(device, scratch, z, {psae::codes_edit::action::set, values});
//   psae::decode_rows(device, sae, steered, x, tokens);                  // tokens to go on with in place of x

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <span>
#include <string>

#include <psae/core/error.hpp>
#include <psae/cpu/edit_codes.hpp>

namespace psae {

// 95% intervals.
struct interval {
    double low = std::numeric_limits<double>::quiet_NaN(), high = low;
};

// Of the share `right` / n (Wilson, Probable inference, the law of succession, and statistical inference, 1927). NaN for
// n = 0.
inline interval wilson_interval(std::size_t right, std::size_t n) {
    constexpr double z = 1.959963984540054, z2 = z * z;
    if (n == 0) return {};
    const double count = double(n), p = double(right) / count, middle = (p + z2 / (2 * count)) / (1 + z2 / count),
                 half = z * std::sqrt(p * (1 - p) / count + z2 / (4 * count * count)) / (1 + z2 / count);
    return {right == 0 ? 0 : middle - half, right == n ? 1 : middle + half};
}

// Of a difference of two accuracies on the same n images, of which `gained` are right in the second only and `lost` in
// the first only: (gained - lost) / n by Wald's interval with half an image added to each of the four cells (Agresti and
// Min, Simple improved confidence intervals for comparing matched proportions, 2005). NaN for n = 0.
inline interval paired_interval(std::size_t gained, std::size_t lost, std::size_t n) {
    constexpr double z = 1.959963984540054;
    if (n == 0) return {};
    const double more = double(gained) - double(lost), count = double(n) + 2,
                 half = z * std::sqrt(double(gained + lost) + 1 - more * more / count) / count;
    return {std::max(-1.0, more / count - half), std::min(1.0, more / count + half)};
}

}  // namespace psae
