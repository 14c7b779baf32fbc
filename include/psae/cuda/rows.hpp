#pragma once
// For kernels that go through rows: 16 bytes at a time where the rows are laid out so, and sums over the threads of a
// row, of which a block has one or several, in whole warps.

#include <cstddef>
#include <cstdint>

#include <psae/cuda/backend.hpp>

namespace psae::detail {

// Neighbouring elements of a row, read or written at once.
template <class T, unsigned width>
struct alignas(width * sizeof(T)) row_pack {
    T of[width];
};
// How many of them are 16 bytes.
template <class T>
inline constexpr unsigned wide_pack = 16 / sizeof(T);

template <unsigned width, class T>
__device__ row_pack<T, width> load_pack(const T* from) {
    return *reinterpret_cast<const row_pack<T, width>*>(from);
}
template <unsigned width, class T>
__device__ void store_pack(T* to, const row_pack<T, width>& values) {
    *reinterpret_cast<row_pack<T, width>*>(to) = values;
}
// The same to global memory, for kernels in which nvcc takes the store above apart into its elements.
template <unsigned width, class T>
__device__ void store_pack_whole(T* to, const row_pack<T, width>& values) {
    if constexpr (sizeof(values) == 16) __stwb(reinterpret_cast<uint4*>(to), __builtin_bit_cast(uint4, values));
    else if constexpr (sizeof(values) == 8) __stwb(reinterpret_cast<uint2*>(to), __builtin_bit_cast(uint2, values));
    else store_pack(to, values);
}

// Whether rows of `cols` elements that start at p can be read in packs of 16 bytes. Null can: it is not read.
template <class T>
bool has_wide_rows(const T* p, std::size_t cols) {
    return cols % wide_pack<T> == 0 && reinterpret_cast<std::uintptr_t>(p) % 16 == 0;
}

// How the threads of blocks are shared out among rows: `threads` for each row, a multiple of 32, and `rows` rows in a
// block.
struct row_threads {
    unsigned threads, rows;

    // For rows of `work` pieces of work, one for each thread but no more than `most` threads.
    row_threads(std::size_t work, unsigned most) {
        constexpr unsigned block = 256;
        const std::size_t wanted = (work + 31) / 32 * 32;
        threads = wanted == 0 ? 32 : wanted > most ? most : static_cast<unsigned>(wanted);
        rows = threads < block ? block / threads : 1;
    }
    unsigned of_block() const { return threads * rows; }
};

// Where a thread works: its row, counted over the blocks along x, and its place among the threads of the row.
struct row_place {
    std::size_t row;
    unsigned thread;
};
__device__ inline row_place place_in_rows(unsigned threads_of_row) {
    const unsigned row = threadIdx.x / threads_of_row;
    return {std::size_t{blockIdx.x} * (blockDim.x / threads_of_row) + row, threadIdx.x - row * threads_of_row};
}

// The sum over the threads of a row, in a fixed order. Called by all threads of the block; each gets that of its row.
template <class T>
__device__ T sum_of_row(T value, unsigned threads_of_row) {
    for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
    if (threads_of_row == 32) return value;
    __shared__ T of_warp[32];
    __syncthreads();  // until the sums of an earlier call have been read
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
    __syncthreads();
    const unsigned first = threadIdx.x / threads_of_row * threads_of_row / 32;
    T sum = of_warp[first];
    for (unsigned warp = 1; warp < threads_of_row / 32; ++warp) sum += of_warp[first + warp];
    return sum;
}

}  // namespace psae::detail
