#pragma once
// Selection under a top-k of the whole batch.

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include <psae/cuda/pointwise.hpp>
#include <psae/cuda/pre_activations.hpp>
#include <psae/cuda/sort.hpp>

namespace psae::detail {

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

// In no order. Behind the room for them is one that is not there: it comes last in every order.
template <class T>
struct batch_candidates {
    std::uint32_t *token, *latent;
    T* value;
    rank_key<T>* key;
    std::size_t room;
};
template <class T>
__global__ void write_last_candidate_kernel(batch_candidates<T> candidates, std::size_t tokens, std::size_t latents) {
    candidates.token[candidates.room] = static_cast<std::uint32_t>(tokens);
    candidates.latent[candidates.room] = static_cast<std::uint32_t>(latents);
    candidates.value[candidates.room] = 0;
    candidates.key[candidates.room] = 0;
}

// Appends what is not below the foot to the candidates, and counts it by bins unless there is no histogram.
template <class T, class Activation>
__global__ void collect_candidates_kernel(product_chunk<T> chunk, Activation activation, batch_bound* bound,
                                          unsigned long long* histogram, batch_candidates<T> candidates) {
    __shared__ unsigned long long place_of_block;
    const std::size_t token = blockIdx.x;
    const auto foot = static_cast<unsigned>(bound->foot);
    const T* h = chunk.row(token);
    const auto key_of = [&](std::size_t j) { return key_of_pre_activation(activation, h[j], chunk.latent(j)); };
    const auto comes_in = [&](std::size_t j) {
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
        candidates.value[at] = value_of(activation, h[j], std::size_t{latent});
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

// order: the candidates that are not below the foot, bound->number of them, in any order; `most` at most. *taken starts at 0.
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

template <class T>
__global__ void write_chosen_kernel(std::uint32_t* latent, T* value, const std::uint32_t* order, std::size_t count,
                                    batch_candidates<T> candidates) {
    const std::size_t i = std::size_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (i >= count) return;
    latent[i] = candidates.latent[order[i]];
    value[i] = candidates.value[order[i]];
}
// *rank = that of the last of order [most], of which bound->number are there; 0 if none is. (Where candidates were dropped
// for want of room, the last need not be there.)
template <class T, class Activation>
__global__ void write_least_rank_kernel(T* rank, const std::uint32_t* order, std::size_t most, const batch_bound* bound,
                                        Activation activation, batch_candidates<T> candidates) {
    const std::size_t count = bound->number < most ? bound->number : most;
    const std::uint32_t last = count == 0 ? static_cast<std::uint32_t>(candidates.room) : order[count - 1];
    *rank = last == candidates.room ? T(0) : rank_of(activation, candidates.value[last], candidates.latent[last]);
}

// By one thread.
template <class Bound>
__global__ void check_bound_kernel(room_check check, const Bound* bound) {
    check.passes({bound->collected, bound->number});
}

// Codes under a top-k of the whole batch: the entries with the largest ranks, activation.batch_entries(tokens) of
// them at most (z.room); of equal ones those of lower latents, then of earlier tokens. *least_rank = the least rank kept
// (0 if none was), unless null.
//
// The chunks raise the foot as they go by, and what is not below it is collected, in a buffer that as a rule is large
// enough: `spare` entries more than the first chunk has, or what is expected. Then sorts decide what is kept of the bin at
// the foot. Where nothing is expected it waits to learn how many there are to sort; if the buffer was too small the chunks
// are made again under the final foot, for which the room is known.
template <class T, class Activation>
requires selects_per_batch<Activation>
void select(const chunked_products<T>& pre, codes_view<T>& z, const Activation& activation, T* least_rank,
            std::size_t spare, const selection_plan& plan = {}) {
    constexpr unsigned threads = 256;
    const cuda& device = pre.device;
    arena<space::device>& scratch = pre.scratch;
    const std::size_t tokens = pre.tokens, all = tokens * pre.columns.room,
                      wanted = std::min(activation.batch_entries(tokens), all);
    const bool waits = plan.expected == nullptr;
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
        const batch_candidates<T> made{scratch.allocate<std::uint32_t>(room + 1),
                                       scratch.allocate<std::uint32_t>(room + 1), scratch.allocate<T>(room + 1),
                                       scratch.allocate<rank_key<T>>(room + 1), room};
        launch(device, write_last_candidate_kernel<T>, 1, 1, 0, made, tokens, z.latents);
        return made;
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
    auto candidates = room_for(std::min(all, waits ? tokens * pre.chunk_columns() + spare : plan.expected->candidates));
    std::size_t collected = candidates.room, sorted = waits ? 0 : std::min(all, plan.expected->entries);  // or fewer
    if (wanted > 0) {
        collect(candidates, true);
        if (plan.needed != nullptr)
            launch(device, check_bound_kernel<batch_bound>, 1, 1, 0,
                   room_check{{candidates.room, sorted}, plan.needed, waits ? nullptr : plan.too_small}, bound);
        if (waits) {
            const batch_bound found = read(device, bound);
            collected = sorted = found.number;
            if (found.collected <= candidates.room) {
                collected = found.collected;
            } else {
                scratch.release_to(before_candidates);
                candidates = room_for(found.number);
                check(cudaMemsetAsync(&bound->collected, 0, sizeof(bound->collected), device.stream()), "encode");
                collect(candidates, false);
            }
        }
    }
    const std::size_t kept = std::min(sorted, wanted);
    auto *order = scratch.allocate<std::uint32_t>(sorted), *other = scratch.allocate<std::uint32_t>(sorted);
    fill(device, order, sorted, static_cast<std::uint32_t>(candidates.room));
    launch(device, choose_candidates_kernel<T>, blocks_of(collected, threads), threads, 0, order, sorted, taken, bound,
           candidates);
    const auto sort_by = [&](const std::uint32_t* numbers, std::size_t most, std::size_t count) {
        sort_order<std::uint32_t>(device, scratch, order, other, count, number_at{numbers}, bits_below(most + 1));
    };
    sort_by(candidates.token, tokens, sorted);
    sort_by(candidates.latent, z.latents, sorted);
    sort_order<rank_key<T>>(device, scratch, order, other, sorted, falling_key<T>{candidates},
                            8 * static_cast<int>(sizeof(T)));
    if (least_rank != nullptr)
        launch(device, write_least_rank_kernel<T, Activation>, 1, 1, 0, least_rank, order, kept, bound, activation,
               candidates);
    sort_by(candidates.latent, z.latents, kept);
    sort_by(candidates.token, tokens, kept);
    launch(device, write_chosen_kernel<T>, blocks_of(kept, threads), threads, 0, latent, value, order, kept,
           candidates);
    launch(device, find_starts_kernel<number_at>, blocks_of(tokens + 1, threads), threads, 0, offsets, tokens, kept,
           number_at{candidates.token, order});
    scratch.release_to(mark);
}

}  // namespace psae::detail
