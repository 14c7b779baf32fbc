#pragma once
// The pre-activations h = x W^T + b of a batch, made for one chunk of latents at a time: either as one float product,
// or screened: by a cheaper product, of bf16 or of whole numbers of 16 bits, that says between which bounds each h
// lies, so that h itself need be computed only where the bounds do not decide.
//
// The bound. Let x' and w' be x and w as they are rounded for it. Then
//   |w x - w' x'| = |(w - w') x' + w (x - x')| <= |w - w'| |x'| + |w| |x - x'|          (Euclidean norms)
// where the norms of what rounding took off are computed, not estimated. A sum of d products in any order, with u the
// rounding of a float, is off by at most d u |w'| |x'| (of whole numbers it is exact, and 3 u for making it a float);
// the bound is for two such sums (this one and the float product that h itself would come from), doubled. Norms have d
// times the least normal float added under the root, for squares that vanish, and every bound a thousandth.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

#include <psae/cpu/codes.hpp>
#include <psae/cpu/gemm.hpp>
#include <psae/cpu/screen.hpp>

namespace psae::detail {

// Latents per chunk so that a tile [tokens, chunk] of floats takes about 4 MiB.
inline std::size_t encode_chunk(std::size_t tokens, std::size_t latents) {
    const std::size_t chunk = (std::size_t{1} << 20) / std::max<std::size_t>(tokens, 1) / 64 * 64;
    return std::min(latents, std::clamp<std::size_t>(chunk, 128, 1024));
}

// The latents that are encoded: all, or those of a set, whose places in it are the columns.
struct encoded_latents {
    std::size_t count;
    const std::uint32_t* index;  // null for all

    encoded_latents(std::size_t latents, const latent_set* among)
        : count(among == nullptr ? latents : *among->count), index(among == nullptr ? nullptr : among->index) {}
    std::uint32_t operator[](std::size_t column) const {
        return index == nullptr ? static_cast<std::uint32_t>(column) : index[column];
    }
};

// A chunk of float products: the columns first .. first + count of all tokens.
template <class T>
struct exact_chunk {
    // Of one token.
    struct row {
        const T *products, *bias;
        PSAE_HOST_FN T low(std::size_t j) const { return products[j] + bias[j]; }
        PSAE_HOST_FN T high(std::size_t j) const { return low(j); }
    };
    std::size_t first, count;
    const T *tile, *bias;  // [tokens, count], [count]
    static constexpr bool is_exact = true;

    row operator()(std::size_t token) const { return {tile + token * count, bias}; }
};

// The encoder of a batch as the selections below see it. x: [tokens, d], W: [latents, d], b: [latents].
template <class T>
class exact_pre_activations {
public:
    static constexpr bool is_screened = false;

    exact_pre_activations(cpu& device, arena<>& scratch, const T* x, std::size_t tokens, std::size_t d, const T* W,
                          const T* b, encoded_latents among)
        : device_(device), scratch_(scratch), x_(x), W_(W), b_(b), tokens_(tokens), d_(d), among_(among) {}

    // f(chunk) for all columns, in order.
    template <class F>
    void each_chunk(const F& f) {
        const std::size_t chunk = encode_chunk(tokens_, among_.count);
        T* tile = scratch_.template allocate<T>(tokens_ * chunk);
        T* bias = scratch_.template allocate<T>(chunk);
        T* gathered = among_.index == nullptr ? nullptr : scratch_.template allocate<T>(chunk * d_);
        for (std::size_t first = 0; first < among_.count; first += chunk) {
            const std::size_t count = std::min(chunk, among_.count - first);
            const T* rows = weights(first, count, bias, gathered);
            gemm(device_, false, true, tokens_, count, d_, T(1), x_, d_, rows, d_, T(0), tile, count);
            f(exact_chunk<T>{first, count, tile, bias});
        }
    }
    // h of a token and a latent that are between the bounds low and high.
    T exactly(std::size_t, std::uint32_t, T low, T) const { return low; }

protected:
    // The weights of the columns first .. first + count, [count, d], and their biases.
    const T* weights(std::size_t first, std::size_t count, T* bias, T* gathered) const {
        for (std::size_t j = 0; j < count; ++j) bias[j] = b_[among_[first + j]];
        if (among_.index == nullptr) return W_ + first * d_;
        for (std::size_t j = 0; j < count; ++j)
            std::copy_n(W_ + std::size_t{among_[first + j]} * d_, d_, gathered + j * d_);
        return gathered;
    }

    cpu& device_;
    arena<>& scratch_;
    const T *x_, *W_, *b_;
    std::size_t tokens_, d_;
    encoded_latents among_;
};

// A chunk of such products and the bounds that follow from them. An exact one has bounds of width 0 (whatever the norms
// of its tokens, which may be infinite).
struct screened_chunk {
    struct row {
        const float *products, *bias, *by_norm, *by_rest, *own;
        float norm, rest;  // of the rounded token, and of what rounding took off
        PSAE_HOST_FN float width(std::size_t j) const { return norm * by_norm[j] + rest * by_rest[j] + own[j]; }
        PSAE_HOST_FN float low(std::size_t j) const { return products[j] + bias[j] - width(j); }
        PSAE_HOST_FN float high(std::size_t j) const { return products[j] + bias[j] + width(j); }
    };
    std::size_t first, count;
    float* tile;
    const float *bias, *by_norm, *by_rest, *own, *norm, *rest;
    const float* weights;  // [count, d]
    bool is_exact;

    row operator()(std::size_t token) const {
        return {tile + token * count,      bias, by_norm, by_rest, own, is_exact ? 0 : norm[token],
                is_exact ? 0 : rest[token]};
    }
};

class screened_pre_activations : exact_pre_activations<float> {
public:
    static constexpr bool is_screened = true;

    screened_pre_activations(cpu& device, arena<>& scratch, const float* x, std::size_t tokens, std::size_t d,
                             const float* W, const float* b, encoded_latents among, screen& by)
        : exact_pre_activations(device, scratch, x, tokens, d, W, b, among),
          screen_(by),
          norm_(scratch.allocate<float>(tokens)),
          rest_(scratch.allocate<float>(tokens)) {
        each_token(device, tokens, [&](std::size_t t) {
            const rounded_norms of_token = screen_.set_token(t, x + t * d);
            norm_[t] = of_token.rounded;
            rest_[t] = of_token.rest;
            if (!of_token.are_within()) pays_ = false;
        });
    }

    template <class F>
    void each_chunk(const F& f) {
        const std::size_t chunk = encode_chunk(tokens_, among_.count);
        const auto floats = [&](std::size_t n) { return scratch_.allocate<float>(n); };
        float *tile = floats(tokens_ * chunk), *bias = floats(chunk), *by_norm = floats(chunk),
              *by_rest = floats(chunk), *own = floats(chunk),
              *gathered = among_.index == nullptr ? nullptr : floats(chunk * d_);
        float* none = floats(chunk);
        std::fill_n(none, chunk, 0.0f);
        no_width_ = none;
        for (std::size_t first = 0; first < among_.count; first += chunk) {
            const std::size_t count = std::min(chunk, among_.count - first);
            const float* rows = weights(first, count, bias, gathered);
            screened_chunk c{first, count, tile, bias, by_norm, by_rest, own, norm_, rest_, rows, false};
            if (!pays_ || !set_latents(rows, count, bias, by_norm, by_rest, own)) make_exact(c);
            else screen_.multiply(tile, count);
            f(c);
        }
    }
    // Computes the products of a chunk in float.
    void make_exact(screened_chunk& c) const {
        gemm(device_, false, true, tokens_, c.count, d_, 1.0f, x_, d_, c.weights, d_, 0.0f, c.tile, c.count);
        c.by_norm = c.by_rest = c.own = no_width_;
        c.is_exact = true;
    }

    float exactly(std::size_t token, std::uint32_t latent, float low, float high) const {
        if (low == high) return low;
        const float *x = x_ + token * d_, *w = W_ + std::size_t{latent} * d_;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (std::size_t c = 0; c < d_; ++c) sum += x[c] * w[c];
        return sum + b_[latent];
    }
    void give_up() { pays_ = false; }

private:
    // Rounds the weights of a chunk and makes what its bounds need; false if they are too large for it.
    bool set_latents(const float* rows, std::size_t count, const float* bias, float* by_norm, float* by_rest,
                     float* own) {
        constexpr std::size_t block = 16;
        std::atomic<bool> within = true;
        device_.parallel_for((count + block - 1) / block, [&](std::size_t b) {
            for (std::size_t j = b * block; j < std::min(count, (b + 1) * block); ++j) {
                const rounded_norms n = screen_.set_latent(j, rows + j * d_);
                const float summing = (4 * float(d_) + 16) * 0x1p-24f;
                by_norm[j] = 1.001f * (n.rest + summing * (n.whole + n.rest));
                by_rest[j] = 1.001f * (1 + summing) * n.whole;
                own[j] = 0x1p-21f * std::abs(bias[j]) + std::numeric_limits<float>::min();
                if (!(n.are_within() && std::abs(bias[j]) < rounded_norms::most)) within = false;
            }
        });
        return within;
    }

    screen& screen_;
    float *norm_, *rest_;
    const float* no_width_ = nullptr;  // zeros
    std::atomic<bool> pays_ = true;
};

// Whether so many pre-activations computed one by one cost about what the products of so many cost together. Then the
// chunks to come had better be exact.
inline bool computes_too_many(std::size_t computed, std::size_t of) { return computed > of / 16; }

}  // namespace psae::detail
