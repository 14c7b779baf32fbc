#pragma once
// Layer normalisation over the last axis, and its adjoint. A row stays in the first-level cache between its passes.

#include <algorithm>
#include <cmath>
#include <cstddef>

#include <psae/core/arena.hpp>
#include <psae/cpu/backend.hpp>
#include <psae/expr/node.hpp>

namespace psae {

// out[r, :] = (x[r, :] - mean) / sqrt(variance + eps) * gain + bias, the variance with 1/d (Ba, Kiros, Hinton, Layer
// normalization, 2016). x, out: [n, d], may be the same; gain, bias: [d]. The mean and 1 / sqrt(variance + eps) of each
// row go to means and scales, [n], unless they are null.
template <class T>
void layer_norm(cpu& device, T* out, const T* x, const T* gain, const T* bias, std::size_t n, std::size_t d, T eps,
                T* means = nullptr, T* scales = nullptr) {
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
            if (means != nullptr) {
                means[r] = mean;
                scales[r] = scale;
            }
        }
    });
}

// dx (+)= the adjoint with respect to x: scale * (h - mean(h) - y mean(h y)) for h = g gain and y = (x - mean) scale.
// g, x, dx: [n, d].
template <class T>
void layer_norm_adjoint_input(cpu& device, T* dx, const T* g, const T* x, const T* gain, const T* means,
                              const T* scales, std::size_t n, std::size_t d, write how) {
    constexpr std::size_t block = 8;
    device.parallel_for((n + block - 1) / block, [=](std::size_t b) {
        for (std::size_t r = b * block; r < std::min(n, (b + 1) * block); ++r) {
            const T* row = x + r * d;
            const T* cotangent = g + r * d;
            T* target = dx + r * d;
            const T mean = means[r], scale = scales[r];
            T sum = 0, dot = 0;
#pragma omp simd reduction(+ : sum, dot)
            for (std::size_t c = 0; c < d; ++c) {
                const T h = cotangent[c] * gain[c];
                sum += h;
                dot += h * (row[c] - mean);
            }
            const T shift = sum / static_cast<T>(d), slope = dot * scale * scale / static_cast<T>(d);
            if (how == write::overwrite) std::fill_n(target, d, T(0));
#pragma omp simd
            for (std::size_t c = 0; c < d; ++c)
                target[c] += scale * (cotangent[c] * gain[c] - shift - (row[c] - mean) * slope);
        }
    });
}

}  // namespace psae
