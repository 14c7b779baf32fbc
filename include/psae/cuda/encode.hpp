#pragma once
// Encode and select on the GPU. The products x W^T are made for one chunk of latents at a time, a tile that stays in the
// L2 cache, where a kernel adds the biases and takes what the activation keeps; no [tokens, latents] matrix is ever in
// memory.
//
// The room that two kinds of selection need is known to the device alone: elementwise activations, and the top-k of a whole
// batch. They wait for it, unless a selection_plan says what to expect; where that is too small, their codes are void and
// the plan's flag says so. A top-k of each token waits for nothing.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include <psae/cuda/batch_topk.hpp>
#include <psae/cuda/codes.hpp>
#include <psae/cuda/pre_activations.hpp>
#include <psae/cuda/sort.hpp>

namespace psae {

// Above this share of active latents tiles are faster than entries.
inline double dense_from_share(const cuda&) { return 1.0 / 24; }

namespace detail {

// Makes values of the pre-activations in a tile; counts what is active.
template <class T, class Activation, class LatentOf>
struct activate_in_tile {
    static constexpr bool everywhere = is_everywhere<Activation>();
    T* tile;
    std::size_t count;
    Activation activation;
    LatentOf latent_of;
    __device__ std::uint32_t operator()(std::size_t token, std::size_t j) const {
        T& place = tile[token * count + j];
        const T h = place;
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
void encode_tile(const cuda& device, arena<space::device>& scratch, T* tile, std::uint32_t* fired,
                 std::type_identity_t<product_operand<T>> x, std::size_t tokens, std::size_t d, const T* W, const T* b,
                 std::size_t count, const Activation& activation, const LatentOf& latent_of) {
    product(device, scratch, false, true, tokens, count, d, x, W, write::overwrite, tile, b);
    const auto mark = scratch.position();
    if (fired == nullptr) fired = scratch.allocate<std::uint32_t>(count);
    detail::sum_columns(device, scratch, fired, tokens, count,
                        detail::activate_in_tile<T, Activation, LatentOf>{tile, count, activation, latent_of},
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
    encode_tile(device, scratch, tile, fired, some_x, rows, d, static_cast<const T*>(some_W),
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

// Appends what is active in the chunk, in order, to the token's entries, of which there is room for `room`; counts go on
// beyond.
template <class T, class Activation>
__global__ void keep_active_kernel(product_chunk<T> chunk, Activation activation, std::size_t room,
                                   std::uint32_t* latents, T* values, std::size_t* counts) {
    const std::size_t token = blockIdx.x, have = counts[token];
    const T* h = chunk.row(token);
    const auto active = [&](std::size_t j) { return is_active(activation, h[j], std::size_t{chunk.latent(j)}); };
    const wanted_columns found = count_wanted(chunk.known(), active);
    take_wanted(found, active, [&](unsigned place, unsigned j) {
        if (have + place >= room) return;
        const std::uint32_t latent = chunk.latent(j);
        const std::size_t at = token * room + have + place;
        latents[at] = latent;
        values[at] = value_of(activation, h[j], std::size_t{latent});
    });
    if (threadIdx.x == 0) counts[token] = have + found.total;
}

// The largest count, and how many there are together. If there is no room for them there are none. By one block.
template <class Count>
__global__ void __launch_bounds__(1024)
    check_counts_kernel(room_check check, const Count* counts, Count* offsets, std::size_t tokens) {
    __shared__ unsigned most, fits;
    if (threadIdx.x == 0) most = 0;
    __syncthreads();
    unsigned own = 0;
    for (std::size_t t = threadIdx.x; t < tokens; t += blockDim.x)
        if (counts[t] > own) own = static_cast<unsigned>(counts[t]);
    atomicMax(&most, own);
    __syncthreads();
    if (threadIdx.x == 0) fits = check.passes({most, offsets[tokens]}) ? 1 : 0;
    __syncthreads();
    if (fits == 0)
        for (std::size_t t = threadIdx.x; t <= tokens; t += blockDim.x) offsets[t] = 0;
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
// `room` places, or as many as are expected, memory that stays taken until the arena is reset. Where nothing is expected it
// waits for the number of entries; should a token have more than its places, all is done again with as many as it takes.
template <class T, class Activation>
requires elementwise<Activation>
void select(const chunked_products<T>& pre, codes_view<T>& z, const Activation& activation, std::size_t room,
            const selection_plan& plan = {}) {
    const cuda& device = pre.device;
    arena<space::device>& scratch = pre.scratch;
    const std::size_t tokens = pre.tokens;
    const bool waits = plan.expected == nullptr;
    auto* offsets = scratch.allocate<std::size_t>(tokens + 1);
    auto* counts = scratch.allocate<std::size_t>(tokens + 1);
    room_check check_room{{}, plan.needed, nullptr};
    if (check_room.needed == nullptr) check_room.needed = scratch.allocate<selection_room>(1);
    if (!waits) {
        room = std::min(plan.expected->candidates, pre.columns.room);
        z.room = std::min(plan.expected->entries, tokens * pre.columns.room);
        check_room.expected = {room, z.room};
        check_room.too_small = plan.too_small;
    }
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
        launch(device, check_counts_kernel<std::size_t>, 1, 1024, 0, check_room, counts, offsets, tokens);
        if (!waits) break;
        const selection_room needed = read(device, check_room.needed);
        z.room = needed.entries;
        if (needed.candidates <= room) break;
        room = needed.candidates;
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
    const T* h = chunk.row(token);
    const auto comes_in = [&](std::size_t j) {
        return key_of_pre_activation(activation, h[j], chunk.latent(j)) > bound;
    };
    const wanted_columns found = count_wanted(chunk.known(), comes_in);
    if (found.total == 0) return;
    take_wanted(found, comes_in, [&](unsigned place, unsigned j) {
        const std::uint32_t latent = chunk.latent(j);
        own_latents[have + place] = latent;
        own_values[have + place] = value_of(activation, h[j], std::size_t{latent});
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

}  // namespace detail

// Codes of x [tokens, d] under an activation, with W: [latents, d], b: [latents]; of the latents of a set alone unless
// `among` is null. Under a top-k of the whole batch *least_rank becomes the least rank kept (0 if none was), unless
// null. Waits for the device, except under a top-k of each token or where the plan says what to expect.
template <class T, class Activation>
void encode(const cuda& device, arena<space::device>& scratch, codes_view<T>& z, const T* x, std::size_t tokens,
            std::size_t d, const T* W, const T* b, std::size_t latents, const Activation& activation,
            const latent_set* among, std::type_identity_t<T>* least_rank = nullptr, const selection_plan& plan = {}) {
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
        detail::select(pre, z, activation, least_rank, 4 * activation.batch_entries(tokens), plan);
    } else {
        std::size_t room = 0;
        if (plan.expected == nullptr) {
            // Tokens differ, the class token most of all: few places would often be too few, and cost the products again.
            const double share = active_share(device, scratch, x, tokens, d, W, b, latents, activation);
            const auto twice = static_cast<std::size_t>(2 * share * static_cast<double>(columns.room));
            room = std::min(columns.room, std::max<std::size_t>(twice, 512));
        }
        detail::select(pre, z, activation, room, plan);
    }
}

}  // namespace psae
