#pragma once
// Evaluation and reduction of pointwise expressions on the CPU. Sums are taken in a fixed order (rows in blocks of
// fixed size, blocks in order), so the number of threads does not change a result.

#include <algorithm>
#include <cstddef>

#include <psae/core/arena.hpp>
#include <psae/cpu/backend.hpp>
#include <psae/expr/evaluation.hpp>

namespace psae {

namespace detail {

inline constexpr std::size_t reduction_rows = 64;  // rows of one partial sum

}  // namespace detail

// p[i] = value for i < count.
template <class T>
void fill(const cpu& device, T* p, std::size_t count, T value) {
    constexpr std::size_t block = std::size_t{1} << 16;
    device.parallel_for((count + block - 1) / block,
                        [&](std::size_t b) { std::fill(p + b * block, p + std::min(count, (b + 1) * block), value); });
}

// out = e or out += e at every position of `out`; e broadcasts to the shape of `out`.
// Throws psae::error if e reads out's memory at other positions than the one written (there is never a silent
// temporary).
template <class T, class Shape, node E>
void assign(cpu& device, view<T, Shape> out, const E& e, write mode = write::overwrite) {
    detail::require_assignable(out, e);
    const std::size_t rows = out.rows(), cols = out.cols();
    constexpr std::size_t block = 4096;  // columns of one task, so that a single long row is shared as well
    const std::size_t tasks_per_row = (cols + block - 1) / block;
    const std::size_t rows_per_task = cols >= block ? 1 : block / (cols == 0 ? 1 : cols);
    const std::size_t row_tasks = (rows + rows_per_task - 1) / rows_per_task;
    device.parallel_for(row_tasks * tasks_per_row, [=](std::size_t task) {
        const std::size_t first_col = task % tasks_per_row * block, last_col = std::min(cols, first_col + block);
        const std::size_t first_row = task / tasks_per_row * rows_per_task,
                          last_row = std::min(rows, first_row + rows_per_task);
        for (std::size_t r = first_row; r < last_row; ++r) {
            T* target = out.data + r * cols;
            if (mode == write::overwrite) {
#pragma omp simd
                for (std::size_t c = first_col; c < last_col; ++c) target[c] = static_cast<T>(e.load(position{r, c}));
            } else {
#pragma omp simd
                for (std::size_t c = first_col; c < last_col; ++c) target[c] += static_cast<T>(e.load(position{r, c}));
            }
        }
    });
}
template <class T, class Shape, node E>
void assign(cpu& device, tensor<T, Shape>& out, const E& e, write mode = write::overwrite) {
    assign(device, out.view(), e, mode);
}

// out[r] (+)= sum over columns c < cols of e(r, c). out: [n, 1].
template <class T, node E>
void row_sums(cpu& device, T* out, const E& e, std::size_t rows, std::size_t cols, write mode = write::overwrite) {
    detail::require_dense<E, space::host>();
    constexpr std::size_t block = 16;
    device.parallel_for((rows + block - 1) / block, [=](std::size_t task) {
        for (std::size_t r = task * block; r < std::min(rows, (task + 1) * block); ++r) {
            T sum = 0;
#pragma omp simd reduction(+ : sum)
            for (std::size_t c = 0; c < cols; ++c) sum += static_cast<T>(e.load(position{r, c}));
            out[r] = mode == write::add ? out[r] + sum : sum;
        }
    });
}

// out[c] (+)= sum over rows r < rows of e(r, c). out: [cols]. Scratch comes from the arena.
template <class T, node E>
void column_sums(cpu& device, arena<>& scratch, T* out, const E& e, std::size_t rows, std::size_t cols,
                 write mode = write::overwrite) {
    detail::require_dense<E, space::host>();
    const auto mark = scratch.position();
    const std::size_t blocks = (rows + detail::reduction_rows - 1) / detail::reduction_rows;
    T* partial = scratch.allocate<T>(blocks * cols);
    device.parallel_for(blocks, [=](std::size_t b) {
        T* sums = partial + b * cols;
        for (std::size_t c = 0; c < cols; ++c) sums[c] = 0;
        for (std::size_t r = b * detail::reduction_rows; r < std::min(rows, (b + 1) * detail::reduction_rows); ++r) {
#pragma omp simd
            for (std::size_t c = 0; c < cols; ++c) sums[c] += static_cast<T>(e.load(position{r, c}));
        }
    });
    if (mode == write::overwrite)
        for (std::size_t c = 0; c < cols; ++c) out[c] = 0;
    for (std::size_t b = 0; b < blocks; ++b)
        for (std::size_t c = 0; c < cols; ++c) out[c] += partial[b * cols + c];
    scratch.release_to(mark);
}

// *out (+)= factor * sum of e over rows x cols; blocks of rows are summed in double.
template <class T, node E>
void total(cpu& device, arena<>& scratch, T* out, const E& e, std::size_t rows, std::size_t cols, double factor = 1,
           write mode = write::overwrite) {
    detail::require_dense<E, space::host>();
    const auto mark = scratch.position();
    constexpr std::size_t block = 16;
    const std::size_t blocks = (rows + block - 1) / block;
    double* partial = scratch.allocate<double>(blocks);
    device.parallel_for(blocks, [=](std::size_t b) {
        double sum = 0;
        for (std::size_t r = b * block; r < std::min(rows, (b + 1) * block); ++r) {
            typename E::value_type row = 0;
#pragma omp simd reduction(+ : row)
            for (std::size_t c = 0; c < cols; ++c) row += e.load(position{r, c});
            sum += static_cast<double>(row);
        }
        partial[b] = sum;
    });
    double sum = 0;
    for (std::size_t b = 0; b < blocks; ++b) sum += partial[b];
    scratch.release_to(mark);
    const T scaled = static_cast<T>(factor * sum);
    *out = mode == write::add ? *out + scaled : scaled;
}

}  // namespace psae
