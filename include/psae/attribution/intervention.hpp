#pragma once
// Interventions on latents: codes of which only some latents are kept, from which some are removed, or in which some
// are set to a value; and the statistics of what they do to an accuracy.
//
//   const auto edited = psae::filter_codes(scratch, z, [](std::uint32_t latent) { return latent != 1234; });
//   const psae::latent_value values[] = {{1234, 5.0f}};
//   const auto steered = psae::set_codes(scratch, z, values);
//   psae::decode_rows(device, sae, steered, x, tokens);                  // tokens to go on with in place of x

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>

#include <psae/core/arena.hpp>
#include <psae/core/error.hpp>
#include <psae/sparse/codes.hpp>

namespace psae {

namespace detail {

// Codes that are written entry by entry to memory of an arena.
class codes_writer {
public:
    codes_writer(arena<>& scratch, std::size_t tokens, std::size_t latents, std::size_t most_entries)
        : offsets_(scratch.allocate<std::size_t>(tokens + 1)),
          latent_(scratch.allocate<std::uint32_t>(most_entries)),
          value_(scratch.allocate<float>(most_entries)),
          latents_(latents) {
        offsets_[0] = 0;
    }
    void put(std::uint32_t latent, float value) {
        latent_[entries_] = latent;
        value_[entries_++] = value;
    }
    void end_token() { offsets_[++tokens_] = entries_; }
    codes_view<float> codes() const {
        codes_view<float> z;
        z.tokens = tokens_, z.latents = latents_;
        z.offsets = offsets_, z.latent = latent_, z.value = value_;
        return z;
    }

private:
    std::size_t* offsets_;
    std::uint32_t* latent_;
    float* value_;
    std::size_t latents_, tokens_ = 0, entries_ = 0;
};

}  // namespace detail

// The entries whose latent `keeps`(latent), in memory of the arena.
template <class Keeps>
codes_view<float> filter_codes(arena<>& scratch, const codes_view<float>& z, const Keeps& keeps) {
    detail::codes_writer out(scratch, z.tokens, z.latents, z.offsets[z.tokens] - z.offsets[0]);
    for (std::size_t t = 0; t < z.tokens; ++t) {
        for (std::size_t i = z.offsets[t]; i < z.offsets[t + 1]; ++i)
            if (keeps(z.latent[i])) out.put(z.latent[i], z.value[i]);
        out.end_token();
    }
    return out.codes();
}

// A latent and the value it is set to.
struct latent_value {
    std::uint32_t latent;
    float value;
};

// psae::error unless these can be set in codes of so many latents: latents that exist, each once and ascending, finite
// values.
inline void require_settable(std::span<const latent_value> values, std::size_t latents) {
    for (std::size_t i = 0; i < values.size(); ++i) {
        const auto& [f, v] = values[i];
        const std::string where = "latent " + std::to_string(f);
        if (f >= latents) throw error("no such latent", where, "0 to " + std::to_string(latents - 1));
        if (!std::isfinite(v)) throw error("value of a latent is not finite", where);
        if (i > 0 && f <= values[i - 1].latent)
            throw error("latents to set are not ascending", where, "expected each of them once");
    }
}

// The codes with those latents at those values on every token, the others as they are, in memory of the arena.
// psae::error as require_settable.
inline codes_view<float> set_codes(arena<>& scratch, const codes_view<float>& z, std::span<const latent_value> values) {
    require_settable(values, z.latents);
    detail::codes_writer out(scratch, z.tokens, z.latents,
                             z.offsets[z.tokens] - z.offsets[0] + z.tokens * values.size());
    for (std::size_t t = 0; t < z.tokens; ++t) {
        auto next = values.begin();
        for (std::size_t i = z.offsets[t]; i < z.offsets[t + 1]; ++i) {
            for (; next != values.end() && next->latent < z.latent[i]; ++next) out.put(next->latent, next->value);
            if (next == values.end() || next->latent != z.latent[i]) out.put(z.latent[i], z.value[i]);
        }
        for (; next != values.end(); ++next) out.put(next->latent, next->value);
        out.end_token();
    }
    return out.codes();
}

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
