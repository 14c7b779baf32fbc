#pragma once
// Multi-head attention, of whole sequences or causal, and its adjoint. Of one head at a time, the keys (transposed) and values are packed into memory
// that stays in the second-level cache; the scores of a block of queries stay in the first.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>

#include <psae/core/arena.hpp>
#include <psae/cpu/gemm.hpp>
#include <psae/cpu/register_tile.hpp>
#include <psae/expr/node.hpp>

namespace psae {

namespace detail {

// row[c] = exp(row[c] - largest of the row) for c < n, and next to 0 up to the padded width; returns the sum.
template <class Tile, class T>
T exponentials(T* row, std::size_t n) {
    const std::size_t padded = Tile::padded(n);
    std::fill(row + n, row + padded, std::numeric_limits<T>::lowest());
    using vector = typename Tile::vector;
    vector largest_of_lane = *reinterpret_cast<const vector*>(row);
    for (std::size_t c = Tile::lanes; c < padded; c += Tile::lanes) {
        const vector x = *reinterpret_cast<const vector*>(row + c);
        largest_of_lane = x > largest_of_lane ? x : largest_of_lane;
    }
    T largest = largest_of_lane[0], sum = 0;
    for (std::size_t lane = 1; lane < Tile::lanes; ++lane) largest = std::max(largest, T(largest_of_lane[lane]));
    vector sums = {};
    for (std::size_t c = 0; c < padded; c += Tile::lanes) {
        vector& x = *reinterpret_cast<vector*>(row + c);
        x = Tile::exponential(x - largest);
        sums += x;
    }
    for (std::size_t lane = 0; lane < Tile::lanes; ++lane) sum += sums[lane];
    return sum;
}

}  // namespace detail

// out = softmax(Q K^T / sqrt(head width)) V for each image and head (Vaswani et al., Attention is all you need, 2017).
// qkv: [images * tokens, 3 d], queries, keys and values side by side, heads within each; out: [images * tokens, d].
// causal: a token attends to itself and those before it; the scores of the others weigh exactly 0.
template <class T>
void attention(cpu& device, arena<>& scratch, T* out, const T* qkv, std::size_t images, std::size_t tokens,
               std::size_t d, std::size_t heads, bool causal = false) {
    using tile = detail::register_tile<T>;
    constexpr std::size_t query_block = 4 * tile::rows;
    const std::size_t width = d / heads, width_padded = tile::padded(width), tokens_padded = tile::padded(tokens);
    const std::size_t elements =
        width * tokens_padded + tokens * width_padded + query_block * (width + tokens_padded + width_padded);
    parallel_with_scratch<T>(device, scratch, images * heads, elements, [=](std::size_t task, T* memory) {
        const std::size_t image = task / heads, head = task % heads;
        const T scale = T(1) / std::sqrt(static_cast<T>(width));
        T *keys = memory, *values = keys + width * tokens_padded, *scores = values + tokens * width_padded,
          *result = scores + query_block * tokens_padded, *queries = result + query_block * width_padded;
        const T* q = qkv + image * tokens * 3 * d + head * width;
        std::fill_n(keys, width * tokens_padded, T(0));
        for (std::size_t t0 = 0; t0 < tokens; t0 += tile::lanes) {
            const std::size_t count = std::min(tile::lanes, tokens - t0);
            for (std::size_t k = 0; k < width; ++k) {
                T* target = keys + k * tokens_padded + t0;
                const T* source = q + t0 * 3 * d + d + k;
                for (std::size_t t = 0; t < count; ++t) target[t] = source[t * 3 * d];
            }
        }
        for (std::size_t t = 0; t < tokens; ++t) {
            std::copy_n(q + t * 3 * d + 2 * d, width, values + t * width_padded);
            std::fill(values + t * width_padded + width, values + (t + 1) * width_padded, T(0));
        }
        for (std::size_t first = 0; first < tokens; first += query_block) {
            const std::size_t count = std::min(query_block, tokens - first),
                              rows = (count + tile::rows - 1) / tile::rows * tile::rows;
            for (std::size_t r = 0; r < count; ++r) {
                const T* row = q + (first + r) * 3 * d;
#pragma omp simd
                for (std::size_t k = 0; k < width; ++k) queries[r * width + k] = row[k] * scale;
            }
            std::fill(queries + count * width, queries + rows * width, T(0));
            tile::product(scores, tokens_padded, queries, width, keys, tokens_padded, width, rows, tokens_padded);
            T inverse[query_block];
            for (std::size_t r = 0; r < rows; ++r) {
                T* row = scores + r * tokens_padded;
                const std::size_t seen = causal ? std::min(tokens, first + r + 1) : tokens;
                inverse[r] = T(1) / detail::exponentials<tile>(row, seen);
                if (causal) std::fill(row + seen, row + tokens_padded, T(0));
            }
            tile::product(result, width_padded, scores, tokens_padded, values, width_padded, tokens, rows,
                          width_padded);
            for (std::size_t r = 0; r < count; ++r) {
                T* target = out + (image * tokens + first + r) * d + head * width;
#pragma omp simd
                for (std::size_t k = 0; k < width; ++k) target[k] = result[r * width_padded + k] * inverse[r];
            }
        }
    });
}

// dqkv (+)= the adjoint of attention; the probabilities P are made again. g: [images * tokens, d].
// dV = P^T g, dP = g V^T, dS = P * (dP - row sums of P * dP) / sqrt(head width), dQ = dS K, dK = dS^T Q.
template <class T>
void attention_adjoint(cpu& device, arena<>& scratch, T* dqkv, const T* g, const T* qkv, std::size_t images,
                       std::size_t tokens, std::size_t d, std::size_t heads, write how, bool causal = false) {
    using tile = detail::register_tile<T>;
    const std::size_t width = d / heads, padded = tile::padded(tokens);
    const T scale = T(1) / std::sqrt(static_cast<T>(width)), beta = how == write::add ? T(1) : T(0);
    parallel_with_scratch<T>(device, scratch, images * heads, 2 * tokens * padded, [=](std::size_t task, T* memory) {
        const cpu alone(1);
        const std::size_t first = task / heads * tokens, column = task % heads * width;
        const T *q = qkv + first * 3 * d + column, *k = q + d, *v = k + d, *cotangent = g + first * d + column;
        T *dq = dqkv + first * 3 * d + column, *dk = dq + d, *dv = dk + d;
        T *P = memory, *dP = P + tokens * padded;
        gemm(alone, false, true, tokens, tokens, width, scale, q, 3 * d, k, 3 * d, T(0), P, padded);
        gemm(alone, false, true, tokens, tokens, width, T(1), cotangent, d, v, 3 * d, T(0), dP, padded);
        for (std::size_t r = 0; r < tokens; ++r) {
            T *p = P + r * padded, *dp = dP + r * padded, dot = 0;
            const std::size_t seen = causal ? r + 1 : tokens;
            const T inverse = T(1) / detail::exponentials<tile>(p, seen);
            if (causal) std::fill(p + seen, p + tokens, T(0));
#pragma omp simd reduction(+ : dot)
            for (std::size_t c = 0; c < tokens; ++c) {
                p[c] *= inverse;
                dot += p[c] * dp[c];
            }
#pragma omp simd
            for (std::size_t c = 0; c < tokens; ++c) dp[c] = p[c] * (dp[c] - dot) * scale;
        }
        gemm(alone, true, false, tokens, width, tokens, T(1), P, padded, cotangent, d, beta, dv, 3 * d);
        gemm(alone, false, false, tokens, width, tokens, T(1), dP, padded, k, 3 * d, beta, dq, 3 * d);
        gemm(alone, true, false, tokens, width, tokens, T(1), dP, padded, q, 3 * d, beta, dk, 3 * d);
    });
}

}  // namespace psae
