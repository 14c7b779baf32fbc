#pragma once
// A training step's work on rows of parameters and on counters of latents. Each row of a weight gradient is made,
// projected and consumed by Adam while it is in cache.

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include <psae/core/arena.hpp>
#include <psae/core/norm.hpp>
#include <psae/cpu/codes.hpp>
#include <psae/optim/row_update.hpp>
#include <psae/optim/step_outcome.hpp>

namespace psae {

// Scales each row of W, [rows, d], to unit Euclidean norm; zero rows stay.
template <class T>
void normalise_rows(cpu& device, T* W, std::size_t rows, std::size_t d) {
    constexpr std::size_t block = 256;
    device.parallel_for((rows + block - 1) / block, [&](std::size_t b) {
        for (std::size_t r = b * block; r < std::min(rows, (b + 1) * block); ++r) normalise(W + r * d, d);
    });
}

// The latents with since_fired > dead_after, ascending, to index, and their number to *count.
inline void find_dead(cpu&, arena<>&, std::uint32_t* index, std::size_t* count, const std::uint32_t* since_fired,
                      std::size_t latents, std::size_t dead_after) {
    std::size_t dead = 0;
    for (std::size_t f = 0; f < latents; ++f)
        if (since_fired[f] > dead_after) index[dead++] = static_cast<std::uint32_t>(f);
    *count = dead;
}

// What a step adds to the counters of latents: activation_count[f] += fired[f], and since_fired[f] = 0 or, where fired[f]
// is 0, 1 more. Nothing where go is not null and *go is 0.
template <class Count>
void count_activity(cpu&, std::uint32_t* since_fired, Count* activation_count, const std::uint32_t* fired,
                    std::size_t latents, const std::uint32_t* go) {
    if (go != nullptr && *go == 0) return;
    for (std::size_t f = 0; f < latents; ++f) {
        activation_count[f] += fired[f];
        since_fired[f] = fired[f] > 0 ? 0 : since_fired[f] + 1;
    }
}

// Judges a loss (step_outcome.hpp).
template <class T>
void judge(cpu&, step_outcome* outcome, const loss_numbers<T>& loss) {
    outcome->judge(loss);
}

namespace detail {

// Takes off the component of a gradient row that is parallel to w, of unit length.
template <class T>
void project(const T* w, T* g, std::size_t cols) {
    T parallel = 0;
#pragma omp simd reduction(+ : parallel)
    for (std::size_t c = 0; c < cols; ++c) parallel += g[c] * w[c];
#pragma omp simd
    for (std::size_t c = 0; c < cols; ++c) g[c] -= parallel * w[c];
}

// f(row, its gradient) for the rows first .. first + count, projected where they are to be. make(row, g) fills g.
template <class T, class Make, class F>
void each_gradient_row(cpu& device, arena<>& scratch, std::size_t first, std::size_t count, const row_update<T>& u,
                       const Make& make, const F& f) {
    constexpr std::size_t block = 64;
    parallel_with_scratch<T>(device, scratch, (count + block - 1) / block, u.cols, [&](std::size_t b, T* g) {
        for (std::size_t r = first + b * block; r < first + std::min(count, (b + 1) * block); ++r) {
            make(r, g);
            if (u.projected) project(u.w + r * u.cols, g, u.cols);
            f(r, g);
        }
    });
}

// Adam's update of rows first .. first + count with the gradients that `make` makes.
template <class T, class Make>
void update_made_rows(cpu& device, arena<>& scratch, std::size_t first, std::size_t count, const row_update<T>& u,
                      const Make& make) {
    if (!u.goes()) return;
    const T clipping = u.clipping();
    const std::size_t cols = u.cols;
    each_gradient_row(device, scratch, first, count, u, make, [&](std::size_t r, T* g) {
        if (clipping != T(1))
            for (std::size_t c = 0; c < cols; ++c) g[c] *= clipping;
        const adam_update<T> update = *u.update;  // here, so that it stays in registers
        T *w = u.w + r * cols, *m = u.m + r * cols, *v = u.v + r * cols;
#pragma omp simd
        for (std::size_t c = 0; c < cols; ++c) update(w[c], m[c], v[c], g[c]);
    });
}

}  // namespace detail

// A step of Adam on all rows of a parameter, whose gradient is g.
template <class T>
void update_rows(cpu& device, arena<>& scratch, const parameter_gradient<T>& g, const row_update<T>& u) {
    detail::update_made_rows(device, scratch, 0, u.rows, u,
                             [&](std::size_t r, T* row) { gradient_row(g, r, u.cols, row); });
}

// The same on the rows first .. first + count alone, whose gradients are what g says of them and, unless it is null,
// `rows`, [count, cols].
template <class T>
void update_rows(cpu& device, arena<>& scratch, const T* rows, std::size_t first, std::size_t count,
                 const parameter_gradient<T>& g, const row_update<T>& u) {
    detail::update_made_rows(device, scratch, first, count, u, [&](std::size_t r, T* row) {
        if (rows == nullptr) std::fill_n(row, u.cols, T(0));
        else std::copy_n(rows + (r - first) * u.cols, u.cols, row);
        add_gradient_row(g, r, u.cols, row);
    });
}

// *squares += the squares of a parameter's gradient, projected where its update is.
template <class T>
void add_gradient_squares(cpu& device, arena<>& scratch, const parameter_gradient<T>& g, const row_update<T>& u,
                          double* squares) {
    const auto mark = scratch.position();
    double* of_row = scratch.allocate<double>(u.rows);
    detail::each_gradient_row(
        device, scratch, 0, u.rows, u, [&](std::size_t r, T* row) { gradient_row(g, r, u.cols, row); },
        [&](std::size_t r, const T* row) {
            double sum = 0;
            for (std::size_t c = 0; c < u.cols; ++c) sum += static_cast<double>(row[c]) * static_cast<double>(row[c]);
            of_row[r] = sum;
        });
    for (std::size_t r = 0; r < u.rows; ++r) *squares += of_row[r];
    scratch.release_to(mark);
}

}  // namespace psae
