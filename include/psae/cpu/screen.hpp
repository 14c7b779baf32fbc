#pragma once
// Cheaper products of a batch's tokens and the latents of a chunk, for encoders that are screened: operands are rounded
// to bf16 or to whole numbers of 16 bits, and it is known how much that took off each row.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>

#include <psae/cpu/bf16_gemm.hpp>
#include <psae/cpu/int16_gemm.hpp>

namespace psae::detail {

// Norms of a row of float, of what it is rounded to and of what rounding took off, from above.
struct rounded_norms {
    static constexpr float most = 0x1p60f;  // of norms, so that no product of two leaves the range of float

    float whole, rounded, rest;
    bool are_within() const { return whole < most; }
};

// The root of a sum of d squares, from above.
inline float norm_of(float squares, std::size_t d) {
    const auto length = float(d);
    return std::sqrt(squares + length * std::numeric_limits<float>::min()) * (1 + length * 0x1p-23f);
}

// Tokens and the latents of a chunk, rounded, and their product. Rows are set by several threads at once.
class screen {
public:
    virtual ~screen() = default;
    virtual rounded_norms set_token(std::size_t t, const float* v) = 0;
    virtual rounded_norms set_latent(std::size_t j, const float* v) = 0;
    // tile [tokens, count] = x W^T of the first `count` latents.
    virtual void multiply(float* tile, std::size_t count) = 0;
};

// By rounding to bf16.
class bf16_screen final : public screen {
public:
    bf16_screen(cpu& device, arena<>& scratch, std::size_t tokens, std::size_t d, std::size_t chunk)
        : device_(device),
          tokens_(tokens),
          d_(d),
          x_(scratch.allocate<bf16>(tokens * d)),
          W_(scratch.allocate<bf16>(chunk * d)) {}

    rounded_norms set_token(std::size_t t, const float* v) override { return round(v, x_ + t * d_); }
    rounded_norms set_latent(std::size_t j, const float* v) override { return round(v, W_ + j * d_); }
    void multiply(float* tile, std::size_t count) override {
        if (columns_ != count) product_.emplace(device_, false, true, tokens_, columns_ = count, d_);
        product_->run(x_, W_, tile);
    }

private:
    rounded_norms round(const float* v, bf16* out) const {
        float whole = 0, rounded = 0, rest = 0;
#pragma omp simd reduction(+ : whole, rounded, rest)
        for (std::size_t c = 0; c < d_; ++c) {
            out[c] = to_bf16(v[c]);
            const float r = widen(out[c]), off = v[c] - r;
            whole += v[c] * v[c];
            rounded += r * r;
            rest += off * off;
        }
        return {norm_of(whole, d_), norm_of(rounded, d_), norm_of(rest, d_)};
    }

    cpu& device_;
    std::size_t tokens_, d_;
    bf16 *x_, *W_;
    std::optional<bf16_product> product_;
    std::size_t columns_ = 0;
};

// By whole numbers of 16 bits, a power of two as scale of each row, so that norms are as large as sums within 32 bits
// allow. A row's largest number matters only if it is most of its norm, so dimensions far above the others cost little.
class int16_screen final : public screen {
public:
    int16_screen(cpu& device, arena<>& scratch, std::size_t tokens, std::size_t d, std::size_t chunk)
        : device_(device),
          tokens_(tokens),
          d_(d),
          pairs_((d + 1) / 2),
          largest_norm_(46340 - 1 - 0.5f * std::sqrt(float(d))) {  // 46340^2 < 2^31; each number is off by 1/2 at most
        const std::size_t rows = int16_tile::filled(tokens, int16_tile::rows),
                          columns = int16_tile::filled(chunk, int16_tile::columns);
        const auto zeros = [&]<class T>(T*& made, std::size_t n) {
            made = scratch.allocate<T>(n);
            std::fill_n(made, n, T(0));
        };
        zeros(x_, rows * pairs_ * 2), zeros(x_scale_, rows);
        zeros(W_, chunk * pairs_ * 2), zeros(panels_, columns * pairs_ * 2), zeros(W_scale_, columns);
    }

    rounded_norms set_token(std::size_t t, const float* v) override {
        return round(v, x_ + t * pairs_ * 2, x_scale_[t]);
    }
    rounded_norms set_latent(std::size_t j, const float* v) override {
        std::int16_t* row = W_ + j * pairs_ * 2;
        const rounded_norms n = round(v, row, W_scale_[j]);
        int16_tile::pack(panels_, j, row, pairs_);
        return n;
    }
    void multiply(float* tile, std::size_t count) override {
        int16_product(device_, tile, tokens_, count, pairs_, x_, x_scale_, panels_, W_scale_);
    }

private:
    // out * scale is v, rounded; of a v whose norm is not within bounds nothing.
    rounded_norms round(const float* v, std::int16_t* out, float& scale) const {
        float squares = 0, largest = 0;
#pragma omp simd reduction(+ : squares) reduction(max : largest)
        for (std::size_t c = 0; c < d_; ++c) {
            squares += v[c] * v[c];
            largest = std::max(largest, std::abs(v[c]));
        }
        rounded_norms n{norm_of(squares, d_), 0, 0};
        if (!n.are_within()) return n;
        const int exponent = std::min(std::ilogb(largest_norm_ / n.whole), std::ilogb(32767 / largest));
        const float up = std::ldexp(1.0f, exponent);
        float rounded = 0, rest = 0;
#pragma omp simd reduction(+ : rounded, rest)
        for (std::size_t c = 0; c < d_; ++c) {
            const float scaled = v[c] * up, nearest = (scaled + 12582912.0f) - 12582912.0f;  // far below 2^22
            const auto number = static_cast<std::int32_t>(nearest);
            out[c] = static_cast<std::int16_t>(number);
            const float r = static_cast<float>(number), off = scaled - r;  // of what is stored, however it was rounded
            rounded += r * r;
            rest += off * off;
        }
        scale = std::ldexp(1.0f, -exponent);
        n.rounded = norm_of(rounded, d_) * scale;
        n.rest = norm_of(rest, d_) * scale;
        return n;
    }

    cpu& device_;
    std::size_t tokens_, d_, pairs_;
    float largest_norm_;
    std::int16_t *x_, *W_, *panels_;
    float *x_scale_, *W_scale_;
};

}  // namespace psae::detail
