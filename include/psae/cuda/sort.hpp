#pragma once
// Sorts and prefix sums over whole arrays, with CUB, in scratch memory.

#include <bit>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_scan.cuh>

#include <psae/cuda/backend.hpp>

namespace psae::detail {

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

}  // namespace psae::detail
