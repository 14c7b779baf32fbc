#pragma once
// Selection by the threads of a block together: what is wanted of a row, in its order, and the k-th largest of numbers.

#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>

#include <psae/cuda/rows.hpp>

namespace psae::detail {

// Unsigned numbers in the order of floating-point ranks. Both zeros have the same; NaN, which is nothing's rank, has the
// least.
template <class T>
using rank_key = std::conditional_t<std::is_same_v<T, float>, std::uint32_t, std::uint64_t>;

template <class T>
PSAE_FN rank_key<T> key_of_rank(T rank) {
    using key = rank_key<T>;
    constexpr key sign = key{1} << (8 * sizeof(key) - 1);
    const key bits = __builtin_bit_cast(key, rank == 0 ? T(0) : rank);
    return rank != rank ? 0 : (bits & sign) != 0 ? ~bits : bits | sign;
}
// What is at or below it never enters a selection: the key of minus infinity.
template <class T>
inline constexpr rank_key<T> least_key = ~__builtin_bit_cast(rank_key<T>, -std::numeric_limits<T>::infinity());

// For how many threads of the block before this one `yes` is true, and in `total` for how many at all. Called by all.
__device__ inline unsigned count_before(bool yes, unsigned& total) {
    __shared__ unsigned of_warp[32];
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const unsigned ballot = __ballot_sync(0xffffffffu, yes);
    __syncthreads();  // until the numbers of an earlier call have been read
    if (lane == 0) of_warp[warp] = static_cast<unsigned>(__popc(ballot));
    __syncthreads();
    unsigned before = static_cast<unsigned>(__popc(ballot & ((1u << lane) - 1)));
    total = 0;
    for (unsigned w = 0; w < blockDim.x / 32; ++w) {
        if (w < warp) before += of_warp[w];
        total += of_warp[w];
    }
    return before;
}

// What is wanted of the columns of a row: each warp of the block looks at its own share of them, [first, end).
struct wanted_columns {
    unsigned first, end;
    unsigned before, own;  // how many are wanted in the shares before, and in this one
    unsigned total;
};

// Counts the columns j < count with wanted(j). Called by all threads. (j is a std::size_t: what lies at it is one address and
// an offset in the code. An unsigned j, which may wrap around, makes an address of each.)
template <class Wanted>
__device__ wanted_columns count_wanted(unsigned count, const Wanted& wanted) {
    __shared__ unsigned of_warp[32];
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const unsigned share = (count + blockDim.x - 1) / blockDim.x * 32;
    wanted_columns found{warp * share, (warp + 1) * share, 0, 0, 0};
    if (found.end > count) found.end = count;
    for (std::size_t j = found.first + lane; j < found.end; j += 32) found.own += wanted(j) ? 1 : 0;
    found.own = sum_of_row(found.own, 32);
    __syncthreads();  // until the numbers of an earlier call have been read
    if (lane == 0) of_warp[warp] = found.own;
    __syncthreads();
    for (unsigned w = 0; w < blockDim.x / 32; ++w) {
        if (w < warp) found.before += of_warp[w];
        found.total += of_warp[w];
    }
    return found;
}

// Calls take(place, j) for them; places count from 0 in the order of the columns.
template <class Wanted, class Take>
__device__ void take_wanted(const wanted_columns& found, const Wanted& wanted, const Take& take) {
    if (found.own == 0) return;
    const unsigned lane = threadIdx.x % 32;
    unsigned place = found.before;
    for (unsigned first = found.first; first < found.end; first += 32) {
        const bool is_wanted = first + lane < found.end && wanted(first + lane);
        const unsigned ballot = __ballot_sync(0xffffffffu, is_wanted);
        if (is_wanted) take(place + static_cast<unsigned>(__popc(ballot & ((1u << lane) - 1))), first + lane);
        place += static_cast<unsigned>(__popc(ballot));
    }
}

// Where a selection of the k largest ends: all keys above `key` are in it, and the first `equal` of those equal to it.
template <class Key>
struct selection_end {
    Key key;
    unsigned equal;
};

// Of the keys key_of(i), i < count, for 0 < k <= count: digit by digit from the highest. Called by all threads.
template <class Key, class KeyOf>
__device__ selection_end<Key> find_kth_largest(unsigned count, unsigned k, const KeyOf& key_of) {
    constexpr unsigned digits = 256, own_digits = digits / 32;
    __shared__ unsigned number[digits], kth_digit, above_kth;
    selection_end<Key> kth{0, k};
    Key known = 0;  // the bits of the key that are known
    for (int shift = 8 * int(sizeof(Key)) - 8; shift >= 0; shift -= 8) {
        for (unsigned digit = threadIdx.x; digit < digits; digit += blockDim.x) number[digit] = 0;
        __syncthreads();
        for (unsigned i = threadIdx.x; i < count; i += blockDim.x) {
            const Key key = key_of(i);
            if ((key & known) == kth.key) atomicAdd(&number[static_cast<unsigned>(key >> shift) % digits], 1u);
        }
        __syncthreads();
        if (threadIdx.x < 32) {  // each lane has eight digits, the first lane the largest
            unsigned digit = digits - 1 - threadIdx.x * own_digits, own = 0;
            for (unsigned i = 0; i < own_digits; ++i) own += number[digit - i];
            unsigned up_to = own;
            for (unsigned distance = 1; distance < 32; distance *= 2) {
                const unsigned of_other =
                    __shfl_sync(0xffffffffu, up_to, static_cast<int>((threadIdx.x + 32 - distance) % 32));
                if (threadIdx.x >= distance) up_to += of_other;
            }
            unsigned above = up_to - own;
            if (above < kth.equal && kth.equal <= up_to) {
                while (above + number[digit] < kth.equal) above += number[digit--];
                kth_digit = digit;
                above_kth = above;
            }
        }
        __syncthreads();
        kth.key |= static_cast<Key>(kth_digit) << shift;
        kth.equal -= above_kth;
        known |= static_cast<Key>(digits - 1) << shift;
    }
    return kth;
}

}  // namespace psae::detail
