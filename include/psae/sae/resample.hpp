#pragma once
// Resampling: dead latents start anew in the direction of tokens that are badly reconstructed. The two routines of
// PatchSAE's code (which its training never calls); `anthropic` is that of Bricken et al., Towards Monosemanticity,
// 2023. What a variant has beside W_enc, b_enc and W_dec takes its start values: see its restart(...).

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <psae/core/random.hpp>
#include <psae/core/tensor.hpp>
#include <psae/cpu/backend.hpp>

namespace psae {

// How rows are drawn, and what direction a row x gives:
//   l2         with replacement, in proportion to the square of the row's error (its ||x - x_hat||^2); x - b_dec
//   anthropic  without replacement, in proportion to the row's error (its loss); x
enum class resampling { l2, anthropic };

// `count` row numbers drawn by the errors of the rows (not negative). Throws psae::error where an error is negative or
// not finite, or where too few rows have one above zero.
inline std::vector<std::size_t> draw_rows(resampling how, std::span<const float> errors, std::size_t count,
                                          random_stream& random) {
    std::vector<double> weights;
    std::size_t positive = 0;
    for (const float e : errors) {
        if (!(e >= 0) || !std::isfinite(e))
            throw error("rows cannot be drawn by their errors", "resampling",
                        "expected numbers of at least 0, found " + std::to_string(e));
        weights.push_back(how == resampling::l2 ? static_cast<double>(e) * static_cast<double>(e) : e);
        positive += e > 0;
    }
    const std::size_t needed = how == resampling::anthropic ? count : std::min<std::size_t>(count, 1);
    if (positive < needed)
        throw error("too few rows to draw from", "resampling",
                    "expected " + std::to_string(needed) + " with an error above 0, found " + std::to_string(positive),
                    "use a larger batch");
    std::vector<std::size_t> rows;
    for (std::size_t i = 0; i < count; ++i) {
        double total = 0;
        for (const double w : weights) total += w;
        double left = total * static_cast<double>(random.below(std::uint64_t{1} << 53)) * 0x1p-53;
        std::size_t chosen = errors.size();
        for (std::size_t r = 0; r < weights.size(); ++r) {
            if (weights[r] == 0) continue;
            chosen = r;  // the last one, should rounding leave something over
            if (left < weights[r]) break;
            left -= weights[r];
        }
        rows.push_back(chosen);
        if (how == resampling::anthropic) weights[chosen] = 0;
    }
    return rows;
}

// Gives dead[i] the direction of row rows[i] of x [n, d_in]: W_dec[f] of unit length, W_enc[f] in the same direction
// with `scale` times the mean length of the living latents' encoder rows, b_enc[f] = 0, and what else the variant has by
// latent as its restart(...) says. `run` is the trainer: Adam's moments of these latents are zeroed; those of b_dec and
// the count of updates stay. Throws psae::error where the numbers of rows and latents differ or one of them does not
// exist; nothing has changed then. Not for transcoders, whose decoder rows are no directions of tokens.
template <class Variant, class Trainer, class Shape>
void resample(Variant& sae, Trainer& run, std::span<const std::uint32_t> dead,
              view<const typename Variant::value_type, Shape> x, std::span<const std::size_t> rows, resampling how,
              double scale = 0.2, [[maybe_unused]] const cpu& host = cpu()) {
    using T = typename Variant::value_type;
    const std::size_t d = sae.inputs();
    std::vector<char> is_dead(sae.latents(), 0);
    for (const std::uint32_t f : dead) {
        if (f >= sae.latents())
            throw error("no such latent", "resampling",
                        "below " + std::to_string(sae.latents()) + ", found " + std::to_string(f));
        is_dead[f] = 1;
    }
    if (rows.size() != dead.size() || x.cols() != d ||
        std::any_of(rows.begin(), rows.end(), [&](std::size_t r) { return r >= x.rows(); }))
        throw error("rows do not fit the latents to be resampled", "resampling",
                    std::to_string(dead.size()) + " rows of x " + to_string(x.shape()) + " with " + std::to_string(d) +
                        " columns, found " + std::to_string(rows.size()));
    if constexpr (requires { run.read_parameters(); }) run.read_parameters();  // from another device than the host
    const auto length = [d](const T* row) {
        double squares = 0;
        for (std::size_t c = 0; c < d; ++c) squares += static_cast<double>(row[c]) * static_cast<double>(row[c]);
        return std::sqrt(squares);
    };
    double sum = 0;
    std::size_t living = 0;
    for (std::size_t f = 0; f < sae.latents(); ++f) {
        if (is_dead[f]) continue;
        sum += length(sae.W_enc.data() + f * d);
        ++living;
    }
    const double encoder_length = scale * (living > 0 ? sum / static_cast<double>(living) : 1.0);
    for (std::size_t i = 0; i < dead.size(); ++i) {
        T *decoder = sae.W_dec.data() + dead[i] * d, *encoder = sae.W_enc.data() + dead[i] * d;
        for (std::size_t c = 0; c < d; ++c)
            decoder[c] = x(rows[i], c) - (how == resampling::l2 ? sae.b_dec.data()[c] : T(0));
        const double n = length(decoder);
        for (std::size_t c = 0; c < d; ++c) {
            decoder[c] = n > 0 ? static_cast<T>(static_cast<double>(decoder[c]) / n) : T(0);
            encoder[c] = static_cast<T>(encoder_length * static_cast<double>(decoder[c]));
        }
        sae.b_enc.data()[dead[i]] = 0;
    }
    if constexpr (requires { sae.restart(host, dead, x.data, x.rows()); }) sae.restart(host, dead, x.data, x.rows());
    run.each_state([&](std::string_view moment, auto* data, std::size_t) {
        if (!moment.starts_with("adam_")) return;
        sae.each_parameter([&](const std::string& name, auto& p) {
            if (!moment.ends_with("." + name) || p.shape().extent(0) != sae.latents() || p.data() == sae.b_dec.data())
                return;
            const std::size_t columns = p.size() / sae.latents();
            for (const std::uint32_t f : dead) std::fill_n(data + f * columns, columns, 0);
        });
    });
    if constexpr (requires { run.write_parameters(); }) run.write_parameters();
}

}  // namespace psae
