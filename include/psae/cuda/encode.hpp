#pragma once
// Encode and select on the GPU. The products x W^T are made for one chunk of latents at a time, a tile that stays in the
// L2 cache, where a kernel adds the biases and takes what the activation keeps; no [tokens, latents] matrix is ever in
// memory.
//
// Two kinds of selection wait for the device, because the room for what they keep is known only then: elementwise
// activations, and the top-k of a whole batch. A top-k of each token does not.

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_scan.cuh>

#include <psae/cuda/codes.hpp>
#include <psae/cuda/gemm.hpp>
#include <psae/stage/activation.hpp>

namespace psae {

// Above this share of active latents tiles are faster than entries.
inline double dense_from_share(const cuda&) { return 1.0 / 24; }

namespace detail {

// Latents per chunk so that a tile [tokens, chunk] of floats takes about half of the L2 cache.
inline std::size_t encode_chunk(const cuda& device, std::size_t tokens) {
    const std::size_t chunk = device.l2_bytes() / 2 / sizeof(float) / std::max<std::size_t>(tokens, 1) / 64 * 64;
    return std::clamp<std::size_t>(chunk, 128, 4096);
}

// How many bits the numbers below one have.
inline int bits_below(std::size_t number) { return number < 2 ? 1 : static_cast<int>(std::bit_width(number - 1)); }
// Sorts by the lowest `bits` bits of the keys; values with equal keys stay in their order.
template <class Key>
void sort_pairs(const cuda& device, arena<space::device>& scratch, const Key* keys, Key* sorted_keys,
                const std::uint32_t* values, std::uint32_t* sorted_values, std::size_t count, int bits) {
    if (count == 0) return;
    if (count > ~std::uint32_t{0})
        throw error("too many entries of codes to be sorted", "codes",
                    std::to_string(count) + ", but at most 2^32 - 1");
    const auto mark = scratch.position();
    const auto sort = [&](void* storage, std::size_t& bytes) {
        check(cub::DeviceRadixSort::SortPairs(storage, bytes, keys, sorted_keys, values, sorted_values,
                                              static_cast<std::uint32_t>(count), 0, bits, device.stream()),
              "sort");
    };
    std::size_t bytes = 0;
    sort(nullptr, bytes);
    sort(scratch.allocate<unsigned char>(bytes), bytes);
    scratch.release_to(mark);
}

// out[i] = sum of in[0 .. i), i < count.
inline void sum_up_to(const cuda& device, arena<space::device>& scratch, std::size_t* out, const std::size_t* in,
                      std::size_t count) {
    const auto mark = scratch.position();
    const auto scan = [&](void* storage, std::size_t& bytes) {
        check(cub::DeviceScan::ExclusiveSum(storage, bytes, in, out, count, device.stream()), "prefix sum");
    };
    std::size_t bytes = 0;
    scan(nullptr, bytes);
    scan(scratch.allocate<unsigned char>(bytes), bytes);
    scratch.release_to(mark);
}

// starts[g] = the first of the ascending group_of(i), i < count, that is not below g; for g <= groups.
template <class GroupOf>
__global__ void find_starts_kernel(std::size_t* starts, std::size_t groups, std::size_t count, GroupOf group_of) {
    const std::size_t g = std::size_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (g > groups) return;
    std::size_t first = 0, end = count;
    while (first < end) {
        const std::size_t middle = first + (end - first) / 2;
        if (group_of(middle) < g) first = middle + 1;
        else end = middle;
    }
    starts[g] = first;
}
// numbers[i], or numbers[order[i]].
struct number_at {
    const std::uint32_t* numbers;
    const std::uint32_t* order = nullptr;
    __device__ std::uint32_t operator()(std::size_t i) const { return numbers[order == nullptr ? i : order[i]]; }
};

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

// Adds the biases and makes values of the products in a tile; counts what is active.
template <class T, class Activation, class LatentOf>
struct activate_in_tile {
    static constexpr bool everywhere = is_everywhere<Activation>();
    T* tile;
    const T* b;
    std::size_t count;
    Activation activation;
    LatentOf latent_of;
    __device__ std::uint32_t operator()(std::size_t token, std::size_t j) const {
        T& place = tile[token * count + j];
        const T h = place + b[j];
        const std::size_t latent = latent_of(j);
        const bool active = is_active(activation, h, latent);
        place = active || everywhere ? value_of(activation, h, latent) : T(0);
        return active ? 1 : 0;
    }
};

}  // namespace detail

// Latents of one dense tile.
inline std::size_t encode_tile_latents(const cuda& device, std::size_t tokens, std::size_t latents) {
    return std::min(latents, detail::encode_chunk(device, tokens));
}

// A dense tile of codes [tokens, count] of x [tokens, d] under an elementwise activation, 0 where a latent is not
// active (unless the activation is `everywhere`); fired[j] = for how many tokens latent j is, unless null. W: [count,
// d], b: [count]; column j is the latent latent_of(j).
template <class T, class Activation, class LatentOf>
void encode_tile(const cuda& device, arena<space::device>& scratch, T* tile, std::uint32_t* fired, const T* x,
                 std::size_t tokens, std::size_t d, const T* W, const T* b, std::size_t count,
                 const Activation& activation, const LatentOf& latent_of) {
    product(device, scratch, false, true, tokens, count, d, x, W, write::overwrite, tile);
    const auto mark = scratch.position();
    if (fired == nullptr) fired = scratch.allocate<std::uint32_t>(count);
    detail::sum_columns(device, scratch, fired, tokens, count,
                        detail::activate_in_tile<T, Activation, LatentOf>{tile, b, count, activation, latent_of},
                        write::overwrite);
    scratch.release_to(mark);
}

// An estimate of the share of latents that are active, from at most 64 tokens and 1024 latents spread evenly. Waits for
// the device.
template <class T, class Activation>
double active_share(const cuda& device, arena<space::device>& scratch, const T* x, std::size_t tokens, std::size_t d,
                    const T* W, const T* b, std::size_t latents, const Activation& activation) {
    constexpr std::size_t most_rows = 64, most_columns = 1024;
    const std::size_t rows = std::min(tokens, most_rows), columns = std::min(latents, most_columns);
    if (rows * columns == 0) return 0;
    const auto mark = scratch.position();
    T* some_x = scratch.allocate<T>(rows * d);
    T* some_W = scratch.allocate<T>(columns * d);
    T* some_b = scratch.allocate<T>(columns);
    T* tile = scratch.allocate<T>(rows * columns);
    auto* fired = scratch.allocate<std::uint32_t>(columns);
    const spread_evenly tokens_of{tokens, rows}, latents_of{latents, columns};
    detail::gather(device, some_x, x, rows, d, tokens_of);
    detail::gather(device, some_W, W, columns, d, latents_of);
    detail::gather(device, some_b, b, columns, 1, latents_of);
    encode_tile(device, scratch, tile, fired, static_cast<const T*>(some_x), rows, d, static_cast<const T*>(some_W),
                static_cast<const T*>(some_b), columns, activation, latents_of);
    std::array<std::uint32_t, most_columns> of_latent;
    download(device, of_latent.data(), fired, columns);
    scratch.release_to(mark);
    std::size_t active = 0;
    for (std::size_t j = 0; j < columns; ++j) active += of_latent[j];
    return static_cast<double>(active) / static_cast<double>(rows * columns);
}

namespace detail {

// Entries as pairs that a sort by latent brings together; what the room has beyond them comes last.
template <class T>
__global__ void start_latent_view_kernel(codes_view<T> z, std::uint32_t* latent, std::uint32_t* entry) {
    const std::size_t i = std::size_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (i >= z.room) return;
    latent[i] = i < z.offsets[z.tokens] ? z.latent[i] : static_cast<std::uint32_t>(z.latents);
    entry[i] = static_cast<std::uint32_t>(i);
}
// A block for each token.
template <class Index>
__global__ void write_tokens_kernel(Index* token_of_entry, const std::size_t* offsets) {
    const std::size_t end = offsets[blockIdx.x + 1];
    for (std::size_t i = offsets[blockIdx.x] + threadIdx.x; i < end; i += blockDim.x) token_of_entry[i] = blockIdx.x;
}
template <class Index>
__global__ void gather_tokens_kernel(Index* token_by_latent, const Index* entry_by_latent, const Index* token_of_entry,
                                     const std::size_t* entries) {
    const std::size_t i = std::size_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (i < *entries) token_by_latent[i] = token_of_entry[entry_by_latent[i]];
}

}  // namespace detail

// Adds the latent-major view by a stable sort.
template <class T>
void add_latent_view(const cuda& device, arena<space::device>& scratch, codes_view<T>& z) {
    using namespace detail;
    constexpr unsigned threads = 256;
    const unsigned pieces = blocks_of(z.room, threads);
    auto* latent_offsets = scratch.allocate<std::size_t>(z.latents + 1);
    auto* token_by_latent = scratch.allocate<std::uint32_t>(z.room);
    auto* entry_by_latent = scratch.allocate<std::uint32_t>(z.room);
    const auto mark = scratch.position();
    auto* latent = scratch.allocate<std::uint32_t>(z.room);
    auto* sorted_latent = scratch.allocate<std::uint32_t>(z.room);
    auto* entry = scratch.allocate<std::uint32_t>(z.room);
    launch(device, start_latent_view_kernel<T>, pieces, threads, 0, z, latent, entry);
    sort_pairs(device, scratch, latent, sorted_latent, entry, entry_by_latent, z.room, bits_below(z.latents + 1));
    launch(device, find_starts_kernel<number_at>, blocks_of(z.latents + 1, threads), threads, 0, latent_offsets,
           z.latents, z.room, number_at{sorted_latent});
    std::uint32_t* token_of_entry = latent;  // which the sort has read
    launch(device, write_tokens_kernel<std::uint32_t>, blocks_of(z.tokens, 1), threads_of_entries(z), 0, token_of_entry,
           z.offsets);
    launch(device, gather_tokens_kernel<std::uint32_t>, pieces, threads, 0, token_by_latent, entry_by_latent,
           token_of_entry, z.offsets + z.tokens);
    scratch.release_to(mark);
    z.latent_offsets = latent_offsets;
    z.token_by_latent = token_by_latent;
    z.entry_by_latent = entry_by_latent;
}

namespace detail {

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

// The products of the columns first .. first + count with all tokens, and their biases.
template <class T>
struct product_chunk {
    std::size_t first, count;
    const T *tile, *bias;  // [tokens, count], [count]
    encoded_columns columns;

    __device__ unsigned known() const { return columns.known(first, count); }
    __device__ std::uint32_t latent(unsigned j) const { return columns.latent(first + j); }
    __device__ T pre_activation(std::size_t token, unsigned j) const { return tile[token * count + j] + bias[j]; }
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
        for (std::size_t first = 0; first < columns.room; first += chunk) {
            const std::size_t count = std::min(chunk, columns.room - first);
            if (gathers) {
                gather(device, some_W, W, count, d, rows_of_columns{columns, first});
                gather(device, some_b, b, count, 1, rows_of_columns{columns, first});
            }
            product(device, scratch, false, true, tokens, count, d, x, gathers ? some_W : W + first * d,
                    write::overwrite, tile);
            f(product_chunk<T>{first, count, tile, gathers ? some_b : b + first, columns});
        }
        scratch.release_to(mark);
    }
};

inline constexpr unsigned select_threads = 128;  // of a block, which has one token

// Appends what is active in the chunk, in order, to the token's entries, of which there is room for `room`; counts go on
// beyond.
template <class T, class Activation>
__global__ void keep_active_kernel(product_chunk<T> chunk, Activation activation, std::size_t room,
                                   std::uint32_t* latents, T* values, std::size_t* counts) {
    const std::size_t token = blockIdx.x, have = counts[token];
    const auto active = [&](unsigned j) {
        return is_active(activation, chunk.pre_activation(token, j), std::size_t{chunk.latent(j)});
    };
    const wanted_columns found = count_wanted(chunk.known(), active);
    take_wanted(found, active, [&](unsigned place, unsigned j) {
        if (have + place >= room) return;
        const std::uint32_t latent = chunk.latent(j);
        const std::size_t at = token * room + have + place;
        latents[at] = latent;
        values[at] = value_of(activation, chunk.pre_activation(token, j), std::size_t{latent});
    });
    if (threadIdx.x == 0) counts[token] = have + found.total;
}

// need: the largest count, and how many there are together. By one block.
template <class Count>
__global__ void __launch_bounds__(1024)
    sum_up_need_kernel(Count* need, const Count* counts, const Count* offsets, std::size_t tokens) {
    __shared__ unsigned most;
    if (threadIdx.x == 0) most = 0;
    __syncthreads();
    unsigned own = 0;
    for (std::size_t t = threadIdx.x; t < tokens; t += blockDim.x)
        if (counts[t] > own) own = static_cast<unsigned>(counts[t]);
    atomicMax(&most, own);
    __syncthreads();
    if (threadIdx.x != 0) return;
    need[0] = most;
    need[1] = offsets[tokens];
}

// Moves the entries of tokens, each of which has room for `room`, together. A block for each token.
template <class T>
__global__ void close_gaps_kernel(std::uint32_t* latent, T* value, const std::uint32_t* latents, const T* values,
                                  std::size_t room, const std::size_t* offsets) {
    const std::size_t token = blockIdx.x, first = offsets[token], count = offsets[token + 1] - first;
    for (std::size_t i = threadIdx.x; i < count; i += blockDim.x) {
        latent[first + i] = latents[token * room + i];
        value[first + i] = values[token * room + i];
    }
}

// Codes under an elementwise activation: entries where activation.active(h), with activation.value(h). Each token gets
// `room` places, memory that stays taken until the arena is reset; should one have more active latents, all is done again
// with as many places as it takes. z.room becomes the number of entries. Waits for the device to learn it.
template <class T, class Activation>
requires elementwise<Activation>
void select(const chunked_products<T>& pre, codes_view<T>& z, const Activation& activation, std::size_t room) {
    const cuda& device = pre.device;
    arena<space::device>& scratch = pre.scratch;
    const std::size_t tokens = pre.tokens;
    auto* offsets = scratch.allocate<std::size_t>(tokens + 1);
    auto* counts = scratch.allocate<std::size_t>(tokens + 1);
    auto* need = scratch.allocate<std::size_t>(2);
    const auto mark = scratch.position();
    std::uint32_t* latents;
    T* values;
    for (;;) {
        latents = scratch.allocate<std::uint32_t>(tokens * room);
        values = scratch.allocate<T>(tokens * room);
        check(cudaMemsetAsync(counts, 0, (tokens + 1) * sizeof(*counts), device.stream()), "encode");
        pre.each_chunk([&](const product_chunk<T>& chunk) {
            launch(device, keep_active_kernel<T, Activation>, blocks_of(tokens, 1), select_threads, 0, chunk,
                   activation, room, latents, values, counts);
        });
        sum_up_to(device, scratch, offsets, counts, tokens + 1);
        launch(device, sum_up_need_kernel<std::size_t>, 1, 1024, 0, need, counts, offsets, tokens);
        std::size_t needed[2];
        download(device, needed, need, 2);
        z.room = needed[1];
        if (needed[0] <= room) break;
        room = needed[0];
        scratch.release_to(mark);
    }
    auto* latent = scratch.allocate<std::uint32_t>(z.room);
    auto* value = scratch.allocate<T>(z.room);
    launch(device, close_gaps_kernel<T>, blocks_of(tokens, 1), threads_of_entries(z), 0, latent, value, latents, values,
           room, offsets);
    z.offsets = offsets;
    z.latent = latent;
    z.value = value;
}

// The key of what a top-k goes by, for an active latent; nothing that is not active has one above least_key.
template <class T, class Activation>
__device__ rank_key<T> key_of_pre_activation(const Activation& activation, T h, std::uint32_t latent) {
    if (!is_active(activation, h, std::size_t{latent})) return least_key<T>;
    return key_of_rank(rank_of(activation, value_of(activation, h, std::size_t{latent}), latent));
}

// Appends what may be among the token's k largest to its candidates, of which it has room for `room`, and drops what is
// not among the k largest so far. bounds: the k-th key so far, which nothing that comes later enters with: of equal ones
// the lower latents stay.
template <class T, class Activation>
__global__ void keep_largest_kernel(product_chunk<T> chunk, Activation activation, unsigned k, std::size_t room,
                                    std::uint32_t* latents, T* values, std::size_t* counts, rank_key<T>* bounds) {
    using key = rank_key<T>;
    const std::size_t token = blockIdx.x;
    std::uint32_t* own_latents = latents + token * room;
    T* own_values = values + token * room;
    const auto have = static_cast<unsigned>(counts[token]);
    const key bound = bounds[token];
    const auto comes_in = [&](unsigned j) {
        return key_of_pre_activation(activation, chunk.pre_activation(token, j), chunk.latent(j)) > bound;
    };
    const wanted_columns found = count_wanted(chunk.known(), comes_in);
    if (found.total == 0) return;
    take_wanted(found, comes_in, [&](unsigned place, unsigned j) {
        const std::uint32_t latent = chunk.latent(j);
        own_latents[have + place] = latent;
        own_values[have + place] = value_of(activation, chunk.pre_activation(token, j), std::size_t{latent});
    });
    const unsigned count = have + found.total;
    if (count <= k) {
        if (threadIdx.x == 0) counts[token] = count;
        return;
    }
    __syncthreads();
    const auto key_of = [&](unsigned i) { return key_of_rank(rank_of(activation, own_values[i], own_latents[i])); };
    const selection_end<key> kth = find_kth_largest<key>(count, k, key_of);
    unsigned above = 0, equal = 0;  // so far
    for (unsigned done = 0; done < count; done += blockDim.x) {
        const unsigned i = done + threadIdx.x;
        const bool is_there = i < count;
        const std::uint32_t latent = is_there ? own_latents[i] : 0;
        const T value = is_there ? own_values[i] : T(0);
        const key own = is_there ? key_of(i) : 0;
        const bool is_above = is_there && own > kth.key, is_equal = is_there && own == kth.key;
        unsigned above_here, equal_here;
        const unsigned above_before = above + count_before(is_above, above_here);
        const unsigned equal_before = equal + count_before(is_equal, equal_here);
        if (is_above || (is_equal && equal_before < kth.equal)) {
            const unsigned place = above_before + (equal_before < kth.equal ? equal_before : kth.equal);
            own_latents[place] = latent;  // which all threads have read by now, being at or after this place
            own_values[place] = value;
        }
        above += above_here;
        equal += equal_here;
    }
    if (threadIdx.x == 0) {
        counts[token] = k;
        bounds[token] = kth.key;
    }
}

template <class T>
__global__ void start_selection_kernel(std::size_t* counts, rank_key<T>* bounds, std::size_t tokens) {
    const std::size_t t = std::size_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (t <= tokens) counts[t] = 0;
    if (t < tokens) bounds[t] = least_key<T>;
}

// The same under a top-k activation: per token the k largest activation.value(h) (by activation.rank(value, latent)
// where it has one), ties to the lower latent; entries that activation.active refuses (values that a rectified top-k
// sets to zero) are left out. z.room: k for each token.
template <class T, class Activation>
requires selects_per_token<Activation>
void select(const chunked_products<T>& pre, codes_view<T>& z, const Activation& activation) {
    constexpr unsigned threads = 256;
    const cuda& device = pre.device;
    arena<space::device>& scratch = pre.scratch;
    const std::size_t tokens = pre.tokens, k = std::min(activation.k, pre.columns.room);
    z.room = tokens * k;
    auto* offsets = scratch.allocate<std::size_t>(tokens + 1);
    auto* latent = scratch.allocate<std::uint32_t>(z.room);
    auto* value = scratch.allocate<T>(z.room);
    const auto mark = scratch.position();
    auto* counts = scratch.allocate<std::size_t>(tokens + 1);
    auto* bounds = scratch.allocate<rank_key<T>>(tokens);
    launch(device, start_selection_kernel<T>, blocks_of(tokens + 1, threads), threads, 0, counts, bounds, tokens);
    const std::size_t room = k + pre.chunk_columns();
    auto* latents = scratch.allocate<std::uint32_t>(tokens * room);
    auto* values = scratch.allocate<T>(tokens * room);
    if (k > 0)
        pre.each_chunk([&](const product_chunk<T>& chunk) {
            launch(device, keep_largest_kernel<T, Activation>, blocks_of(tokens, 1), select_threads, 0, chunk,
                   activation, static_cast<unsigned>(k), room, latents, values, counts, bounds);
        });
    sum_up_to(device, scratch, offsets, counts, tokens + 1);
    launch(device, close_gaps_kernel<T>, blocks_of(tokens, 1), threads_of_entries(z), 0, latent, value, latents, values,
           room, offsets);
    scratch.release_to(mark);
    z.offsets = offsets;
    z.latent = latent;
    z.value = value;
}

// A top-k of the whole batch goes by the highest 16 bits of keys first: `number` of those counted are at or above the
// bin `foot`, in which the number that is wanted ends; nothing below it can still be kept.
struct batch_bound {
    unsigned long long foot, number;
    unsigned long long collected;  // by the kernels below, also where there was no room
};
inline constexpr unsigned key_bins = 1u << 16;

template <class Key>
__device__ unsigned bin_of_key(Key key) {
    return static_cast<unsigned>(key >> (8 * sizeof(Key) - 16));
}

// In no order.
template <class T>
struct batch_candidates {
    std::uint32_t *token, *latent;
    T* value;
    rank_key<T>* key;
    std::size_t room;
};

// Appends what is not below the foot to the candidates, and counts it by bins unless there is no histogram.
template <class T, class Activation>
__global__ void collect_candidates_kernel(product_chunk<T> chunk, Activation activation, batch_bound* bound,
                                          unsigned long long* histogram, batch_candidates<T> candidates) {
    __shared__ unsigned long long place_of_block;
    const std::size_t token = blockIdx.x;
    const auto foot = static_cast<unsigned>(bound->foot);
    const auto key_of = [&](unsigned j) {
        return key_of_pre_activation(activation, chunk.pre_activation(token, j), chunk.latent(j));
    };
    const auto comes_in = [&](unsigned j) {
        const rank_key<T> key = key_of(j);
        return key > least_key<T> && bin_of_key(key) >= foot;
    };
    const wanted_columns found = count_wanted(chunk.known(), comes_in);
    if (found.total == 0) return;
    if (threadIdx.x == 0) place_of_block = atomicAdd(&bound->collected, static_cast<unsigned long long>(found.total));
    __syncthreads();
    take_wanted(found, comes_in, [&](unsigned place, unsigned j) {
        const rank_key<T> key = key_of(j);
        if (histogram != nullptr) atomicAdd(&histogram[bin_of_key(key)], 1ull);
        const std::size_t at = place_of_block + place;
        if (at >= candidates.room) return;
        const std::uint32_t latent = chunk.latent(j);
        candidates.token[at] = static_cast<std::uint32_t>(token);
        candidates.latent[at] = latent;
        candidates.value[at] = value_of(activation, chunk.pre_activation(token, j), std::size_t{latent});
        candidates.key[at] = key;
    });
}

inline constexpr unsigned raise_threads = 1024;

// Raises the foot to the bin in which `wanted` ends, if there are that many. One block of raise_threads, which share the
// bins out from the highest.
template <class Count>
__global__ void __launch_bounds__(raise_threads)
    raise_foot_kernel(batch_bound* bound, const Count* histogram, std::size_t wanted) {
    __shared__ Count of_warp[32];
    constexpr unsigned own_bins = key_bins / raise_threads;
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, end = key_bins - threadIdx.x * own_bins;
    Count own = 0;
    if (end > bound->foot)
        for (unsigned bin = end - own_bins; bin < end; ++bin) own += histogram[bin];
    Count up_to = own;  // the sum over this thread and those before
    for (unsigned distance = 1; distance < 32; distance *= 2) {
        const Count of_other = __shfl_sync(0xffffffffu, up_to, static_cast<int>((lane + 32 - distance) % 32));
        if (lane >= distance) up_to += of_other;
    }
    if (lane == 31) of_warp[warp] = up_to;
    __syncthreads();
    for (unsigned w = 0; w < warp; ++w) up_to += of_warp[w];
    Count above = up_to - own;
    if (above < wanted && wanted <= up_to) {
        unsigned bin = end - 1;
        while (above + histogram[bin] < wanted) above += histogram[bin--];
        bound->foot = bin;
        bound->number = above + histogram[bin];
    }
    if (threadIdx.x == raise_threads - 1 && up_to < wanted) bound->number = up_to;
}

// For a sort that begins with the largest.
template <class T>
struct falling_key {
    batch_candidates<T> candidates;
    __device__ rank_key<T> operator()(std::size_t i) const { return ~candidates.key[i]; }
};

// order: the candidates that are not below the foot, bound->number of them, in any order. *taken starts at 0. Whatever
// the bound says, nothing beyond the candidates is read, and no more than `most` are written.
template <class T>
__global__ void choose_candidates_kernel(std::uint32_t* order, std::size_t most, unsigned* taken,
                                         const batch_bound* bound, batch_candidates<T> candidates) {
    __shared__ unsigned place_of_block;
    const std::size_t i = std::size_t{blockIdx.x} * blockDim.x + threadIdx.x;
    const bool is_in = i < bound->collected && i < candidates.room && bin_of_key(candidates.key[i]) >= bound->foot;
    unsigned number;
    const unsigned place = count_before(is_in, number);
    if (threadIdx.x == 0) place_of_block = atomicAdd(taken, number);
    __syncthreads();
    if (is_in && place_of_block + place < most) order[place_of_block + place] = static_cast<std::uint32_t>(i);
}

template <class Key, class KeyOf>
__global__ void write_keys_kernel(Key* keys, const std::uint32_t* order, std::size_t count, KeyOf key_of) {
    const std::size_t i = std::size_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (i < count) keys[i] = key_of(order[i]);
}
// Sorts order [count] by key_of(order[i]), the lowest `bits` bits of it, stably. The two arrays change places.
template <class Key, class KeyOf>
void sort_order(const cuda& device, arena<space::device>& scratch, std::uint32_t*& order, std::uint32_t*& other,
                std::size_t count, const KeyOf& key_of, int bits) {
    constexpr unsigned threads = 256;
    const auto mark = scratch.position();
    Key *keys = scratch.allocate<Key>(count), *sorted_keys = scratch.allocate<Key>(count);
    launch(device, write_keys_kernel<Key, KeyOf>, blocks_of(count, threads), threads, 0, keys, order, count, key_of);
    sort_pairs(device, scratch, keys, sorted_keys, order, other, count, bits);
    scratch.release_to(mark);
    std::swap(order, other);
}

template <class T>
__global__ void write_chosen_kernel(std::uint32_t* latent, T* value, const std::uint32_t* order, std::size_t count,
                                    batch_candidates<T> candidates) {
    const std::size_t i = std::size_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (i >= count) return;
    latent[i] = candidates.latent[order[i]];
    value[i] = candidates.value[order[i]];
}
// *rank = that of the last of order [count], 0 if there is none.
template <class T, class Activation>
__global__ void write_least_rank_kernel(T* rank, const std::uint32_t* order, std::size_t count, Activation activation,
                                        batch_candidates<T> candidates) {
    const std::uint32_t last = count == 0 ? 0 : order[count - 1];
    *rank = count == 0 ? T(0) : rank_of(activation, candidates.value[last], candidates.latent[last]);
}

// The same under a top-k of the whole batch: the entries with the largest ranks, activation.batch_entries(tokens) of
// them at most (z.room); of equal ones those of lower latents, then of earlier tokens. *least_rank = the least rank kept
// (0 if none was), unless null.
//
// The chunks raise the foot as they go by, and what is not below it is collected, in a buffer that as a rule is large
// enough: `spare` entries more than the first chunk has. If it is not, the chunks are made again under the final foot,
// for which the room is known. Then sorts decide what is kept of the bin at the foot. Waits for the device to learn how
// many there are to sort.
template <class T, class Activation>
requires selects_per_batch<Activation>
void select(const chunked_products<T>& pre, codes_view<T>& z, const Activation& activation, T* least_rank,
            std::size_t spare) {
    constexpr unsigned threads = 256;
    const cuda& device = pre.device;
    arena<space::device>& scratch = pre.scratch;
    const std::size_t tokens = pre.tokens, all = tokens * pre.columns.room,
                      wanted = std::min(activation.batch_entries(tokens), all);
    z.room = wanted;
    auto* offsets = scratch.allocate<std::size_t>(tokens + 1);
    auto* latent = scratch.allocate<std::uint32_t>(wanted);
    auto* value = scratch.allocate<T>(wanted);
    z.offsets = offsets;
    z.latent = latent;
    z.value = value;
    const auto mark = scratch.position();
    auto* bound = scratch.allocate<batch_bound>(1);
    auto* histogram = scratch.allocate<unsigned long long>(key_bins);
    auto* taken = scratch.allocate<unsigned>(1);
    check(cudaMemsetAsync(bound, 0, sizeof(*bound), device.stream()), "encode");
    check(cudaMemsetAsync(histogram, 0, key_bins * sizeof(*histogram), device.stream()), "encode");
    check(cudaMemsetAsync(taken, 0, sizeof(*taken), device.stream()), "encode");
    const auto room_for = [&](std::size_t room) {
        return batch_candidates<T>{scratch.allocate<std::uint32_t>(room), scratch.allocate<std::uint32_t>(room),
                                   scratch.allocate<T>(room), scratch.allocate<rank_key<T>>(room), room};
    };
    const auto collect = [&](const batch_candidates<T>& candidates, bool first_time) {
        pre.each_chunk([&](const product_chunk<T>& chunk) {
            launch(device, collect_candidates_kernel<T, Activation>, blocks_of(tokens, 1), select_threads, 0, chunk,
                   activation, bound, first_time ? histogram : nullptr, candidates);
            if (first_time)
                launch(device, raise_foot_kernel<unsigned long long>, 1, raise_threads, 0, bound, histogram, wanted);
        });
    };
    const auto before_candidates = scratch.position();
    auto candidates = room_for(std::min(all, tokens * pre.chunk_columns() + spare));
    batch_bound found{};
    if (wanted > 0) {
        collect(candidates, true);
        download(device, &found, bound, 1);
        if (found.collected > candidates.room) {
            scratch.release_to(before_candidates);
            candidates = room_for(found.number);
            found.collected = found.number;
            check(cudaMemsetAsync(&bound->collected, 0, sizeof(bound->collected), device.stream()), "encode");
            collect(candidates, false);
        }
    }
    const std::size_t number = found.number, kept = std::min(number, wanted);
    auto *order = scratch.allocate<std::uint32_t>(number), *other = scratch.allocate<std::uint32_t>(number);
    check(cudaMemsetAsync(order, 0, number * sizeof(*order), device.stream()), "encode");
    launch(device, choose_candidates_kernel<T>, blocks_of(found.collected, threads), threads, 0, order, number, taken,
           bound, candidates);
    const auto sort_by = [&](const std::uint32_t* numbers, std::size_t below, std::size_t count) {
        sort_order<std::uint32_t>(device, scratch, order, other, count, number_at{numbers}, bits_below(below));
    };
    sort_by(candidates.token, tokens, number);
    sort_by(candidates.latent, z.latents, number);
    sort_order<rank_key<T>>(device, scratch, order, other, number, falling_key<T>{candidates},
                            8 * static_cast<int>(sizeof(T)));
    if (least_rank != nullptr)
        launch(device, write_least_rank_kernel<T, Activation>, 1, 1, 0, least_rank, order, kept, activation,
               candidates);
    sort_by(candidates.latent, z.latents, kept);
    sort_by(candidates.token, tokens, kept);
    launch(device, write_chosen_kernel<T>, blocks_of(kept, threads), threads, 0, latent, value, order, kept,
           candidates);
    launch(device, find_starts_kernel<number_at>, blocks_of(tokens + 1, threads), threads, 0, offsets, tokens, kept,
           number_at{candidates.token, order});
    scratch.release_to(mark);
}

}  // namespace detail

// Codes of x [tokens, d] under an activation, with W: [latents, d], b: [latents]; of the latents of a set alone unless
// `among` is null. Under a top-k of the whole batch *least_rank becomes the least rank kept (0 if none was), unless
// null. Waits for the device, except under a top-k of each token.
template <class T, class Activation>
void encode(const cuda& device, arena<space::device>& scratch, codes_view<T>& z, const T* x, std::size_t tokens,
            std::size_t d, const T* W, const T* b, std::size_t latents, const Activation& activation,
            const latent_set* among, std::type_identity_t<T>* least_rank = nullptr) {
    z = {};
    z.tokens = tokens;
    z.latents = latents;
    const detail::encoded_columns columns =
        among == nullptr ? detail::encoded_columns{latents}
                         : detail::encoded_columns{std::min(among->room, latents), among->index, among->count};
    const detail::chunked_products<T> pre{
        device, scratch, x, tokens, d, W, b, columns, detail::encode_chunk(device, tokens)};
    if constexpr (detail::selects_per_token<Activation>) {
        detail::select(pre, z, activation);
    } else if constexpr (detail::selects_per_batch<Activation>) {
        detail::select(pre, z, activation, least_rank, 4 * activation.batch_entries(tokens));
    } else {
        const double share = active_share(device, scratch, x, tokens, d, W, b, latents, activation);
        const auto twice = static_cast<std::size_t>(2 * share * static_cast<double>(columns.room));
        // Tokens differ, the class token most of all: few places would often be too few, and cost the products again.
        detail::select(pre, z, activation, std::min(columns.room, std::max<std::size_t>(twice, 512)));
    }
}

}  // namespace psae
