#pragma once
// What of CUB's radix sorts is used: stable, by the bits [first_bit, last_bit) of the keys.

#include <algorithm>
#include <numeric>
#include <vector>

#include <cuda_runtime.h>

namespace cub {

struct DeviceRadixSort {
    template <class Key, class Value, class Count>
    static cudaError_t SortPairs(void* storage, std::size_t& bytes, const Key* keys, Key* sorted_keys,
                                 const Value* values, Value* sorted_values, Count count, int first_bit, int last_bit,
                                 cudaStream_t stream) {
        return sort<false>(storage, bytes, keys, sorted_keys, values, sorted_values, static_cast<std::size_t>(count),
                           first_bit, last_bit, stream);
    }
    template <class Key, class Value, class Count>
    static cudaError_t SortPairsDescending(void* storage, std::size_t& bytes, const Key* keys, Key* sorted_keys,
                                           const Value* values, Value* sorted_values, Count count, int first_bit,
                                           int last_bit, cudaStream_t stream) {
        return sort<true>(storage, bytes, keys, sorted_keys, values, sorted_values, static_cast<std::size_t>(count),
                          first_bit, last_bit, stream);
    }

private:
    // The key as an unsigned number of the same order; the two zeros are equal.
    template <class Key>
    static std::uint64_t ordered(Key key) {
        constexpr std::uint64_t sign = std::uint64_t{1} << (8 * sizeof(Key) - 1);
        if (key == Key(0)) key = Key(0);
        std::uint64_t u = 0;
        std::memcpy(&u, &key, sizeof(Key));
        if constexpr (std::is_floating_point_v<Key>) return u & sign ? ~u & (sign | (sign - 1)) : u | sign;
        else if constexpr (std::is_signed_v<Key>) return u ^ sign;
        else return u;
    }
    template <bool Descending, class Key, class Value>
    static cudaError_t sort(void* storage, std::size_t& bytes, const Key* keys, Key* sorted_keys, const Value* values,
                            Value* sorted_values, std::size_t n, int first_bit, int last_bit, cudaStream_t stream) {
        const std::size_t wanted = 1024 + n * (sizeof(Key) + sizeof(Value));
        if (storage == nullptr) return bytes = wanted, cudaSuccess;
        if (bytes < wanted || first_bit < 0 || last_bit > static_cast<int>(8 * sizeof(Key)) || first_bit > last_bit)
            return cudaErrorInvalidValue;
        if (n > 0 && (keys == sorted_keys || static_cast<const void*>(values) == sorted_values))
            cuda_emulation::fail("a radix sort in place");
        cuda_emulation::give(stream, [=] {
            sort_now<Descending>(storage, wanted, keys, sorted_keys, values, sorted_values, n, first_bit, last_bit);
        });
        return cudaSuccess;
    }
    template <bool Descending, class Key, class Value>
    static void sort_now(void* storage, std::size_t bytes, const Key* keys, Key* sorted_keys, const Value* values,
                         Value* sorted_values, std::size_t n, int first_bit, int last_bit) {
        const cuda_emulation::access open;
        std::memset(storage, 0xff, bytes);
        const int width = last_bit - first_bit;
        const std::uint64_t mask = width == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << width) - 1;
        std::vector<std::uint64_t> bits(n);
        for (std::size_t i = 0; i < n; ++i) bits[i] = first_bit == 64 ? 0 : ordered(keys[i]) >> first_bit & mask;
        std::vector<std::size_t> order(n);
        std::iota(order.begin(), order.end(), std::size_t{0});
        std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
            return Descending ? bits[b] < bits[a] : bits[a] < bits[b];
        });
        for (std::size_t i = 0; i < n; ++i) {
            sorted_keys[i] = keys[order[i]];
            sorted_values[i] = values[order[i]];
        }
    }
};

}  // namespace cub
