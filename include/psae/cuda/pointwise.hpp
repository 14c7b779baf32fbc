#pragma once
// Evaluation and reduction of pointwise expressions on the GPU. A block's threads stand side by side on the columns, and
// where these are few on several rows at once. Sums are taken in an order that follows from the shape alone, so they are
// the same on every run.

#include <cstddef>
#include <cstring>

#include <psae/core/arena.hpp>
#include <psae/cuda/rows.hpp>
#include <psae/expr/evaluation.hpp>

namespace psae {

namespace detail {

inline constexpr unsigned pointwise_threads = 256;  // of a block

// How many threads of a block stand side by side on `cols` columns: 2^n of them, at most 2^most. The others are on
// further rows.
inline unsigned columns_as_power(std::size_t cols, unsigned most = 8) {
    unsigned n = 0;
    while (n < most && (std::size_t{1} << n) < cols) ++n;
    return n;
}

// How many blocks of `each` make up count, or `most`, whose threads then go on in steps.
inline unsigned blocks_up_to(std::size_t most, std::size_t count, std::size_t each) {
    const std::size_t all = (count + each - 1) / each;
    return static_cast<unsigned>(all < most ? all : most);
}
inline unsigned blocks_of_columns(std::size_t cols, unsigned power) {
    return blocks_up_to(65535, cols, std::size_t{1} << power);
}

struct pointwise_place {
    std::size_t row, row_step, col, col_step;
};
// Where a thread begins, and its steps, if the rows are shared out among blocks along x and the columns along y.
__device__ inline pointwise_place place_of_thread(unsigned power) {
    const unsigned width = 1u << power, rows = pointwise_threads >> power;
    return {std::size_t{blockIdx.x} * rows + (threadIdx.x >> power), std::size_t{gridDim.x} * rows,
            std::size_t{blockIdx.y} * width + (threadIdx.x & (width - 1)), std::size_t{gridDim.y} * width};
}

inline constexpr unsigned assign_rows = 4;  // of one thread, whose loads are under way at once

template <class T, class E>
__global__ void assign_kernel(T* out, E e, std::size_t rows, std::size_t cols, unsigned power, write mode) {
    const auto [first_row, row_step, first_col, col_step] = place_of_thread(power);
    for (std::size_t col = first_col; col < cols; col += col_step) {
        T values[assign_rows];
        for (unsigned i = 0; i < assign_rows; ++i) {
            const std::size_t row = first_row + i * row_step;
            if (row < rows) {
                values[i] = static_cast<T>(e.load(position{row, col}));
                if (mode == write::add) values[i] += out[row * cols + col];
            }
        }
        for (unsigned i = 0; i < assign_rows; ++i) {
            const std::size_t row = first_row + i * row_step;
            if (row < rows) out[row * cols + col] = values[i];
        }
    }
}

template <class T>
__global__ void fill_kernel(T* p, std::size_t count, T value) {
    const std::size_t step = std::size_t{gridDim.x} * pointwise_threads;
    for (std::size_t i = std::size_t{blockIdx.x} * pointwise_threads + threadIdx.x; i < count; i += step) p[i] = value;
}

// 2^power threads for a row, all of a block or fewer.
template <class T, class E>
__global__ void row_sums_kernel(T* out, E e, std::size_t rows, std::size_t cols, unsigned power, write mode) {
    const auto [row, row_step, first_col, width] = place_of_thread(power);
    T sum = 0;
    if (row < rows)
        for (std::size_t col = first_col; col < cols; col += width) sum += static_cast<T>(e.load(position{row, col}));
    if (width >= 32) {
        sum = sum_of_row(sum, static_cast<unsigned>(width));
    } else {
        for (int distance = static_cast<int>(width) / 2; distance > 0; distance /= 2)
            sum += __shfl_xor_sync(0xffffffffu, sum, distance);
    }
    if (row < rows && first_col == 0) out[row] = mode == write::add ? out[row] + sum : sum;
}

// partial[b, c]: the sum of column c over block b of rows_of_block rows. Few numbers in a row are summed in T, these
// sums in double.
template <class T, class E>
__global__ void column_partial_kernel(double* partial, E e, std::size_t rows, std::size_t cols,
                                      std::size_t rows_of_block, unsigned power) {
    __shared__ double sums[pointwise_threads];
    const unsigned width = 1u << power, step = pointwise_threads >> power;
    const std::size_t first = std::size_t{blockIdx.x} * rows_of_block,
                      last = first + rows_of_block < rows ? first + rows_of_block : rows;
    const std::size_t col_step = std::size_t{gridDim.y} * width;
    for (std::size_t block_col = std::size_t{blockIdx.y} * width; block_col < cols; block_col += col_step) {
        const std::size_t col = block_col + (threadIdx.x & (width - 1));
        double sum = 0;
        if (col < cols)
            for (std::size_t row = first + (threadIdx.x >> power); row < last;) {
                T few = 0;
                for (unsigned i = 0; i < 16 && row < last; ++i, row += step)
                    few += static_cast<T>(e.load(position{row, col}));
                sum += static_cast<double>(few);
            }
        sums[threadIdx.x] = sum;
        __syncthreads();
        if (threadIdx.x < width && col < cols) {
            for (unsigned i = 1; i < step; ++i) sum += sums[threadIdx.x + i * width];
            partial[blockIdx.x * cols + col] = sum;
        }
        __syncthreads();
    }
}

inline constexpr unsigned column_total_width = 32;  // columns of a block; its warps share the partial sums out

template <class T>
__global__ void column_total_kernel(T* out, const double* partial, std::size_t blocks, std::size_t cols, write mode) {
    constexpr unsigned width = column_total_width, warps = pointwise_threads / width;
    __shared__ double sums[pointwise_threads];
    const std::size_t col = std::size_t{blockIdx.x} * width + threadIdx.x % width;
    double sum = 0;
    if (col < cols)
        for (std::size_t b = threadIdx.x / width; b < blocks; b += warps) sum += partial[b * cols + col];
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x >= width || col >= cols) return;
    for (unsigned i = 1; i < warps; ++i) sum += sums[threadIdx.x + i * width];
    out[col] = static_cast<T>(mode == write::add ? static_cast<double>(out[col]) + sum : sum);
}

// partial[b]: the sum over the part of block b, in T along each row and in double over rows.
template <class E>
__global__ void total_partial_kernel(double* partial, E e, std::size_t rows, std::size_t cols, unsigned power) {
    using T = typename E::value_type;
    const auto [first_row, row_step, first_col, col_step] = place_of_thread(power);
    double sum = 0;
    for (std::size_t row = first_row; row < rows; row += row_step) {
        T of_row = 0;
        for (std::size_t col = first_col; col < cols; col += col_step) of_row += e.load(position{row, col});
        sum += static_cast<double>(of_row);
    }
    sum = sum_of_row(sum, pointwise_threads);
    if (threadIdx.x == 0) partial[std::size_t{blockIdx.y} * gridDim.x + blockIdx.x] = sum;
}

template <class T>
__global__ void total_kernel(T* out, const double* partial, unsigned count, double factor, write mode) {
    double sum = 0;
    for (unsigned i = threadIdx.x; i < count; i += pointwise_threads) sum += partial[i];
    sum = factor * sum_of_row(sum, pointwise_threads);
    if (threadIdx.x == 0) *out = static_cast<T>(mode == write::add ? static_cast<double>(*out) + sum : sum);
}

}  // namespace detail

// out = e or out += e at every position of `out`; e broadcasts to the shape of `out`.
// Throws psae::error if e reads out's memory at other positions than the one written (there is never a silent
// temporary).
template <class T, class Shape, node E>
void assign(const cuda& device, view<T, Shape, space::device> out, const E& e, write mode = write::overwrite) {
    detail::require_assignable(out, e);
    const std::size_t rows = out.rows(), cols = out.cols();
    const unsigned power = detail::columns_as_power(cols);
    const std::size_t rows_of_block = std::size_t{detail::assign_rows} * (detail::pointwise_threads >> power);
    launch(device, detail::assign_kernel<T, E>,
           dim3(detail::blocks_of(rows, rows_of_block), detail::blocks_of_columns(cols, power)),
           detail::pointwise_threads, 0, out.data, e, rows, cols, power, mode);
}
template <class T, class Shape, node E>
void assign(const cuda& device, tensor<T, Shape, space::device>& out, const E& e, write mode = write::overwrite) {
    assign(device, out.view(), e, mode);
}

// p[i] = value for i < count.
template <class T>
void fill(const cuda& device, T* p, std::size_t count, T value) {
    const T zero{};
    if (std::memcmp(&value, &zero, sizeof(T)) == 0) {
        if (count > 0) detail::check(cudaMemsetAsync(p, 0, count * sizeof(T), device.stream()), "fill");
        return;
    }
    const auto most = 16 * static_cast<std::size_t>(device.multiprocessors());
    launch(device, detail::fill_kernel<T>, detail::blocks_up_to(most, count, detail::pointwise_threads),
           detail::pointwise_threads, 0, p, count, value);
}

// out[r] (+)= sum over columns c < cols of e(r, c). out: [n, 1].
template <class T, node E>
void row_sums(const cuda& device, T* out, const E& e, std::size_t rows, std::size_t cols,
              write mode = write::overwrite) {
    detail::require_dense<E, space::device>();
    // A warp for a row, a block for a long one.
    const unsigned power = detail::columns_as_power(cols, cols < 2048 ? 5 : 8);
    launch(device, detail::row_sums_kernel<T, E>, detail::blocks_of(rows, detail::pointwise_threads >> power),
           detail::pointwise_threads, 0, out, e, rows, cols, power, mode);
}

// out[c] (+)= sum over rows r < rows of e(r, c). out: [cols]. Scratch comes from the arena.
template <class T, node E>
void column_sums(const cuda& device, arena<space::device>& scratch, T* out, const E& e, std::size_t rows,
                 std::size_t cols, write mode = write::overwrite) {
    detail::require_dense<E, space::device>();
    constexpr std::size_t most_blocks = 256, least_rows = 16;
    const std::size_t share = (rows + most_blocks - 1) / most_blocks,
                      rows_of_block = share > least_rows ? share : least_rows;
    const unsigned blocks = detail::blocks_of(rows, rows_of_block), power = detail::columns_as_power(cols);
    const auto mark = scratch.position();
    double* partial = scratch.allocate<double>(blocks * cols);
    launch(device, detail::column_partial_kernel<T, E>, dim3(blocks, detail::blocks_of_columns(cols, power)),
           detail::pointwise_threads, 0, partial, e, rows, cols, rows_of_block, power);
    launch(device, detail::column_total_kernel<T>, detail::blocks_of(cols, detail::column_total_width),
           detail::pointwise_threads, 0, out, partial, blocks, cols, mode);
    scratch.release_to(mark);
}

// *out (+)= factor times the sum of e over rows x cols, which is taken in double but along a row.
template <class T, node E>
void total(const cuda& device, arena<space::device>& scratch, T* out, const E& e, std::size_t rows, std::size_t cols,
           double factor = 1, write mode = write::overwrite) {
    detail::require_dense<E, space::device>();
    constexpr unsigned most_blocks = 1024, elements = 8;  // of a thread, if there are that many
    const unsigned power = detail::columns_as_power(cols), rows_of_block = detail::pointwise_threads >> power;
    const unsigned along_rows = detail::blocks_up_to(most_blocks, rows, elements * rows_of_block);
    const unsigned along_cols =
        detail::blocks_up_to(most_blocks / (along_rows == 0 ? 1 : along_rows), cols, std::size_t{elements} << power);
    const unsigned blocks = along_rows * along_cols;
    const auto mark = scratch.position();
    double* partial = scratch.allocate<double>(blocks);
    launch(device, detail::total_partial_kernel<E>, dim3(along_rows, along_cols), detail::pointwise_threads, 0, partial,
           e, rows, cols, power);
    launch(device, detail::total_kernel<T>, 1, detail::pointwise_threads, 0, out, partial, blocks, factor, mode);
    scratch.release_to(mark);
}

}  // namespace psae
