#pragma once
// What encoders on the GPU select from: the pre-activations x W^T + b of all latents or of some, chunk by chunk.

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include <psae/cuda/gemm.hpp>
#include <psae/cuda/selection.hpp>
#include <psae/sparse/codes.hpp>
#include <psae/stage/activation.hpp>

namespace psae::detail {

// Latents per chunk so that a tile [tokens, chunk] of floats takes no more than about half of the L2 cache. Among those
// the number whose product keeps the multiprocessors busiest, each having a piece of `rows` x `columns` at a time, as
// products of bf16 are cut on recent GPUs: the last pieces, which do not go round, take as long as if they did.
inline std::size_t encode_chunk(const cuda& device, std::size_t tokens) {
    constexpr std::size_t rows = 128, columns = 256;
    const auto at_once = static_cast<std::size_t>(device.multiprocessors());
    const std::size_t most = std::clamp<std::size_t>(
        device.l2_bytes() / 2 / sizeof(float) / std::max<std::size_t>(tokens, 1) / 64 * 64, 128, 4096);
    std::size_t best = most, best_rounds = 1, best_pieces = 0;
    for (std::size_t chunk = columns; chunk <= most; chunk += columns) {
        const std::size_t pieces = (tokens + rows - 1) / rows * (chunk / columns),
                          rounds = (pieces + at_once - 1) / at_once;
        if (pieces * best_rounds < best_pieces * rounds) continue;
        best = chunk;
        best_rounds = rounds;
        best_pieces = pieces;
    }
    return best;
}

// A block for each row: rows[j, :] = W[row_of(j), :], or 0 where there is no such row.
inline constexpr std::size_t no_row = ~std::size_t{0};

template <class T, class RowOf>
__global__ void gather_rows_kernel(T* rows, const T* W, std::size_t d, RowOf row_of) {
    const std::size_t j = blockIdx.x, from = row_of(j);
    for (std::size_t c = threadIdx.x; c < d; c += blockDim.x) rows[j * d + c] = from == no_row ? T(0) : W[from * d + c];
}
template <class T, class RowOf>
void gather(const cuda& device, T* rows, const T* W, std::size_t count, std::size_t d, const RowOf& row_of) {
    launch(device, gather_rows_kernel<T, RowOf>, blocks_of(count, 1), row_threads(d, 256).threads, 0, rows, W, d,
           row_of);
}

// The latents that are encoded, as columns: all, or those of a set, whose places in it are the columns and whose number
// the device knows.
struct encoded_columns {
    std::size_t room;
    const std::uint32_t* index = nullptr;
    const std::size_t* count = nullptr;

    // How many columns of first .. first + most are latents.
    __device__ unsigned known(std::size_t first, std::size_t most) const {
        const std::size_t all = count == nullptr || *count > room ? room : *count;
        return static_cast<unsigned>(all <= first ? 0 : all - first < most ? all - first : most);
    }
    __device__ std::uint32_t latent(std::size_t column) const {
        return index == nullptr ? static_cast<std::uint32_t>(column) : index[column];
    }
};
// The rows of the columns from `first`.
struct rows_of_columns {
    encoded_columns columns;
    std::size_t first;
    __device__ std::size_t operator()(std::size_t j) const {
        return j < columns.known(first, j + 1) ? columns.latent(first + j) : no_row;
    }
};

// The pre-activations of the columns first .. first + count of all tokens.
template <class T>
struct product_chunk {
    std::size_t first, count;
    const T* tile;  // [tokens, count]
    encoded_columns columns;

    __device__ unsigned known() const { return columns.known(first, count); }
    __device__ std::uint32_t latent(std::size_t j) const { return columns.latent(first + j); }
    __device__ const T* row(std::size_t token) const { return tile + token * count; }
};

// The encoder of a batch as the selections below see it. x: [tokens, d], W: [latents, d], b: [latents].
template <class T>
struct chunked_products {
    const cuda& device;
    arena<space::device>& scratch;
    const T* x;
    std::size_t tokens, d;
    const T *W, *b;
    encoded_columns columns;
    std::size_t chunk;  // latents of one

    std::size_t chunk_columns() const { return std::min(chunk, columns.room); }

    // f(chunk) for all columns, in order.
    template <class F>
    void each_chunk(const F& f) const {
        const auto mark = scratch.position();
        const bool gathers = columns.index != nullptr;
        T* tile = scratch.allocate<T>(tokens * chunk_columns());
        T* some_W = gathers ? scratch.allocate<T>(chunk_columns() * d) : nullptr;
        T* some_b = gathers ? scratch.allocate<T>(chunk_columns()) : nullptr;
        // Rounding is one pass over all rows: for each chunk it would take longer to start than to do.
        const auto all_x = operand_of_products(device, scratch, x, tokens * d);
        const auto all_W =
            gathers ? product_operand<T>(some_W) : operand_of_products(device, scratch, W, columns.room * d);
        for (std::size_t first = 0; first < columns.room; first += chunk) {
            const std::size_t count = std::min(chunk, columns.room - first);
            if (gathers) {
                gather(device, some_W, W, count, d, rows_of_columns{columns, first});
                gather(device, some_b, b, count, 1, rows_of_columns{columns, first});
            }
            product(device, scratch, false, true, tokens, count, d, all_x, gathers ? all_W : all_W.from(first * d),
                    write::overwrite, tile, gathers ? some_b : b + first);
            f(product_chunk<T>{first, count, tile, columns});
        }
        scratch.release_to(mark);
    }
};

inline constexpr unsigned select_threads = 128;  // of a block, which has one token

// The key of what a top-k goes by, for an active latent; nothing that is not active has one above least_key.
template <class T, class Activation>
__device__ rank_key<T> key_of_pre_activation(const Activation& activation, T h, std::uint32_t latent) {
    if (!is_active(activation, h, std::size_t{latent})) return least_key<T>;
    return key_of_rank(rank_of(activation, value_of(activation, h, std::size_t{latent}), latent));
}

// What an encoder expects and what it needs, as kernels see them. They get too_small null where the host waits and looks.
struct room_check {
    selection_room expected;
    selection_room* needed;
    std::uint32_t* too_small;

    __device__ bool passes(const selection_room& found) const {
        *needed = found;
        if (too_small == nullptr || (found.candidates <= expected.candidates && found.entries <= expected.entries))
            return true;
        *too_small = 1;
        return false;
    }
};

}  // namespace psae::detail
