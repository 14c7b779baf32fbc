#pragma once
// Layer normalisation over the last axis, and its adjoint. The threads of a row, a warp where it is short, keep it in
// registers between its passes.

#include <cmath>
#include <cstddef>

#include <psae/core/arena.hpp>
#include <psae/core/element.hpp>
#include <psae/cuda/rows.hpp>
#include <psae/expr/node.hpp>

namespace psae {

namespace detail {

// The elements of a row that one thread works on, in packs that lie `threads of the row` packs apart. The first `held`
// of them stay in registers; those of longer rows are read again in each pass.
inline constexpr unsigned held_packs = 8, most_norm_threads = 256;

template <unsigned width, class T>
struct held_row {
    const T* row;
    std::size_t first, step, end;
    row_pack<T, width> held[held_packs];

    __device__ held_row(const T* from, unsigned thread, unsigned threads_of_row, std::size_t cols)
        : row(from), first(thread * width), step(std::size_t{threads_of_row} * width), end(cols) {
        for (unsigned i = 0; i < held_packs; ++i)
            held[i] = first + i * step < end ? load_pack<width>(row + first + i * step) : row_pack<T, width>{};
    }
    // Calls f(c, elements c .. c + width) for all of the thread's.
    template <class F>
    __device__ void each(const F& f) const {
        for (unsigned i = 0; i < held_packs; ++i)
            if (first + i * step < end) f(first + i * step, held[i]);
        for (std::size_t c = first + held_packs * step; c < end; c += step) f(c, load_pack<width>(row + c));
    }
};

template <unsigned width, class Out, class T>
__global__ void __launch_bounds__(most_norm_threads)
    layer_norm_kernel(Out* out, const T* x, const T* gain, const T* bias, std::size_t n, std::size_t d, T eps, T* means,
                      T* scales, unsigned threads_of_row) {
    const auto [r, thread] = place_in_rows(threads_of_row);
    const bool present = r < n;
    const held_row<width, T> row(x + r * d, thread, threads_of_row, present ? d : 0);
    T sum = 0, squares = 0;
    row.each([&](std::size_t, const row_pack<T, width>& values) {
        for (const T value : values.of) sum += value;
    });
    const T mean = sum_of_row(sum, threads_of_row) / static_cast<T>(d);
    row.each([&](std::size_t, const row_pack<T, width>& values) {
        for (const T value : values.of) squares += (value - mean) * (value - mean);
    });
    const T scale = T(1) / std::sqrt(sum_of_row(squares, threads_of_row) / static_cast<T>(d) + eps);
    row.each([&](std::size_t c, const row_pack<T, width>& values) {
        const auto gains = load_pack<width>(gain + c), biases = load_pack<width>(bias + c);
        row_pack<Out, width> result;
        for (unsigned i = 0; i < width; ++i)
            result.of[i] = element_cast<Out>((values.of[i] - mean) * scale * gains.of[i] + biases.of[i]);
        store_pack_whole(out + r * d + c, result);
    });
    if (means != nullptr && present && thread == 0) {
        means[r] = mean;
        scales[r] = scale;
    }
}

template <unsigned width, class T>
__global__ void __launch_bounds__(most_norm_threads)
    layer_norm_adjoint_kernel(T* dx, const T* g, const T* x, const T* gain, const T* means, const T* scales,
                              std::size_t n, std::size_t d, bool add, unsigned threads_of_row) {
    const auto [r, thread] = place_in_rows(threads_of_row);
    const bool present = r < n;
    const T mean = present ? means[r] : T(0), scale = present ? scales[r] : T(0);
    const T* row = x + r * d;
    const held_row<width, T> cotangent(g + r * d, thread, threads_of_row, present ? d : 0);
    T sum = 0, dot = 0;
    cotangent.each([&](std::size_t c, const row_pack<T, width>& values) {
        const auto gains = load_pack<width>(gain + c), inputs = load_pack<width>(row + c);
        for (unsigned i = 0; i < width; ++i) {
            const T h = values.of[i] * gains.of[i];
            sum += h;
            dot += h * (inputs.of[i] - mean);
        }
    });
    const T shift = sum_of_row(sum, threads_of_row) / static_cast<T>(d),
            slope = sum_of_row(dot, threads_of_row) * scale * scale / static_cast<T>(d);
    cotangent.each([&](std::size_t c, const row_pack<T, width>& values) {
        const auto gains = load_pack<width>(gain + c), inputs = load_pack<width>(row + c);
        T* target = dx + r * d + c;
        auto result = add ? load_pack<width>(target) : row_pack<T, width>{};
        for (unsigned i = 0; i < width; ++i)
            result.of[i] += scale * (values.of[i] * gains.of[i] - shift - (inputs.of[i] - mean) * slope);
        store_pack(target, result);
    });
}

// As few threads for a row as hold it.
inline row_threads threads_of_norm(std::size_t packs) {
    return {(packs + held_packs - 1) / held_packs, most_norm_threads};
}

}  // namespace detail

// out[r, :] = (x[r, :] - mean) / sqrt(variance + eps) * gain + bias, the variance with 1/d (Ba, Kiros, Hinton, Layer
// normalization, 2016). x, out: [n, d], may be the same; gain, bias: [d]; out may be bf16, of rounded results. The mean and
// 1 / sqrt(variance + eps) of each row go to means and scales, [n], unless they are null.
template <class Out, class T>
void layer_norm(cuda& device, Out* out, const T* x, const T* gain, const T* bias, std::size_t n, std::size_t d, T eps,
                T* means = nullptr, T* scales = nullptr) {
    using namespace detail;
    const bool wide = has_wide_rows(out, d) && has_wide_rows(x, d) && has_wide_rows(gain, d) && has_wide_rows(bias, d);
    const row_threads shared = threads_of_norm(wide ? d / wide_pack<T> : d);
    launch(device, wide ? layer_norm_kernel<wide_pack<T>, Out, T> : layer_norm_kernel<1, Out, T>,
           blocks_of(n, shared.rows), shared.of_block(), 0, out, x, gain, bias, n, d, eps, means, scales,
           shared.threads);
}

// dx (+)= the adjoint with respect to x: scale * (h - mean(h) - y mean(h y)) for h = g gain and y = (x - mean) scale.
// g, x, dx: [n, d].
template <class T>
void layer_norm_adjoint_input(cuda& device, T* dx, const T* g, const T* x, const T* gain, const T* means,
                              const T* scales, std::size_t n, std::size_t d, write how) {
    using namespace detail;
    const bool wide = has_wide_rows(dx, d) && has_wide_rows(g, d) && has_wide_rows(x, d) && has_wide_rows(gain, d);
    const row_threads shared = threads_of_norm(wide ? d / wide_pack<T> : d);
    launch(device, wide ? layer_norm_adjoint_kernel<wide_pack<T>, T> : layer_norm_adjoint_kernel<1, T>,
           blocks_of(n, shared.rows), shared.of_block(), 0, dx, g, x, gain, means, scales, n, d, how == write::add,
           shared.threads);
}

}  // namespace psae
