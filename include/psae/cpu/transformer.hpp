#pragma once
// The kernels of a vision transformer's forward pass: patch embedding, layer norm, attention, activations.
// Formulas as in Hugging Face's CLIPModel.

#include <algorithm>
#include <cmath>
#include <cstddef>

#include <psae/core/arena.hpp>
#include <psae/cpu/gemm.hpp>
#include <psae/core/vector_math.hpp>

namespace psae {

enum class mlp_activation { quick_gelu, gelu };

// out[r, :] = (x[r, :] - mean) / sqrt(variance + eps) * gain + bias, the variance with 1/d. x, out: [n, d]; may be the
// same.
template <class T>
void layer_norm(const cpu& device, T* out, const T* x, const T* gain, const T* bias, std::size_t n, std::size_t d,
                T eps) {
    constexpr std::size_t block = 8;
    device.parallel_for((n + block - 1) / block, [=](std::size_t b) {
        for (std::size_t r = b * block; r < std::min(n, (b + 1) * block); ++r) {
            const T* row = x + r * d;
            T* target = out + r * d;
            T sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
            for (std::size_t c = 0; c < d; ++c) sum += row[c];
            const T mean = sum / static_cast<T>(d);
#pragma omp simd reduction(+ : squares)
            for (std::size_t c = 0; c < d; ++c) squares += (row[c] - mean) * (row[c] - mean);
            const T scale = T(1) / std::sqrt(squares / static_cast<T>(d) + eps);
#pragma omp simd
            for (std::size_t c = 0; c < d; ++c) target[c] = (row[c] - mean) * scale * gain[c] + bias[c];
        }
    });
}

// x[r, :] += bias. x: [n, d].
template <class T>
void add_bias(const cpu& device, T* x, const T* bias, std::size_t n, std::size_t d) {
    constexpr std::size_t block = 16;
    device.parallel_for((n + block - 1) / block, [=](std::size_t b) {
        for (std::size_t r = b * block; r < std::min(n, (b + 1) * block); ++r) {
            T* row = x + r * d;
#pragma omp simd
            for (std::size_t c = 0; c < d; ++c) row[c] += bias[c];
        }
    });
}

// x = activation(x + bias) in place; quick_gelu(x) = x sigmoid(1.702 x), gelu in its exact erf form. x: [n, d].
template <class T>
void add_bias_and_activate(const cpu& device, T* x, const T* bias, std::size_t n, std::size_t d,
                           mlp_activation activation) {
    constexpr std::size_t block = 8;
    device.parallel_for((n + block - 1) / block, [=](std::size_t b) {
        for (std::size_t r = b * block; r < std::min(n, (b + 1) * block); ++r) {
            T* row = x + r * d;
            if (activation == mlp_activation::quick_gelu) {
#pragma omp simd
                for (std::size_t c = 0; c < d; ++c) {
                    const T v = row[c] + bias[c];
                    row[c] = v / (T(1) + fast_exp(T(-1.702) * v));
                }
            } else {
                for (std::size_t c = 0; c < d; ++c) {
                    const T v = row[c] + bias[c];
                    row[c] = v * T(0.5) * (T(1) + std::erf(v * T(0.70710678118654752)));
                }
            }
        }
    });
}

// out = softmax(Q K^T / sqrt(head width)) V for each image and head. qkv: [images * tokens, 3 d] (queries, keys, values
// side by side, heads within each), out: [images * tokens, d]. The [tokens, tokens] scores of one head at a time stay
// in cache.
template <class T>
void attention(const cpu& device, arena<>& scratch, T* out, const T* qkv, std::size_t images, std::size_t tokens,
               std::size_t d, std::size_t heads) {
    const auto mark = scratch.position();
    const std::size_t width = d / heads;
    T* all_scores = scratch.allocate<T>(static_cast<std::size_t>(device.threads) * tokens * tokens);
    const T scale = T(1) / std::sqrt(static_cast<T>(width));
    device.parallel_for(images * heads, [&](std::size_t task) {
        const cpu alone(1);
        const std::size_t image = task / heads, head = task % heads;
        T* scores = all_scores + static_cast<std::size_t>(omp_get_thread_num()) * tokens * tokens;
        const T* q = qkv + image * tokens * 3 * d + head * width;
        gemm(alone, false, true, tokens, tokens, width, scale, q, 3 * d, q + d, 3 * d, T(0), scores, tokens);
        for (std::size_t r = 0; r < tokens; ++r) {
            T* row = scores + r * tokens;
            T largest = row[0], sum = 0;
#pragma omp simd reduction(max : largest)
            for (std::size_t c = 0; c < tokens; ++c) largest = std::max(largest, row[c]);
#pragma omp simd reduction(+ : sum)
            for (std::size_t c = 0; c < tokens; ++c) {
                row[c] = fast_exp(row[c] - largest);
                sum += row[c];
            }
            const T inverse = T(1) / sum;
#pragma omp simd
            for (std::size_t c = 0; c < tokens; ++c) row[c] *= inverse;
        }
        gemm(alone, false, false, tokens, width, tokens, T(1), scores, tokens, q + 2 * d, 3 * d, T(0),
             out + image * tokens * d + head * width, d);
    });
    scratch.release_to(mark);
}

// The token matrix before the first layer norm: row 0 of each image is class_embedding + position[0], row 1 + p is the
// convolution of patch p with `weights` plus position[1 + p]. pixels: [images, 3, side, side]; weights: [d, 3 * patch *
// patch]; position: [1 + patches, d]; out: [images * (1 + patches), d].
template <class T>
void patch_embedding(const cpu& device, arena<>& scratch, T* out, const T* pixels, const T* weights,
                     const T* class_embedding, const T* position, std::size_t images, std::size_t side,
                     std::size_t patch, std::size_t d) {
    const auto mark = scratch.position();
    const std::size_t grid = side / patch, patches = grid * grid, inputs = 3 * patch * patch, tokens = patches + 1;
    T* columns = scratch.allocate<T>(images * patches * inputs);
    device.parallel_for(images * patches, [=](std::size_t task) {
        const std::size_t image = task / patches, gy = task % patches / grid, gx = task % grid;
        T* target = columns + task * inputs;
        for (std::size_t channel = 0; channel < 3; ++channel)
            for (std::size_t y = 0; y < patch; ++y) {
                const T* source = pixels + ((image * 3 + channel) * side + gy * patch + y) * side + gx * patch;
                target = std::copy_n(source, patch, target);
            }
    });
    for (std::size_t image = 0; image < images; ++image) {
        T* rows = out + image * tokens * d;
        for (std::size_t c = 0; c < d; ++c) rows[c] = class_embedding[c] + position[c];
        std::copy_n(position + d, patches * d, rows + d);
        gemm(device, false, true, patches, d, inputs, T(1), columns + image * patches * inputs, inputs, weights, inputs,
             T(1), rows + d, d);
    }
    scratch.release_to(mark);
}

}  // namespace psae
