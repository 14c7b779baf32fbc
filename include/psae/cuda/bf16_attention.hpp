#pragma once
// Multi-head attention of bf16 by tensor cores: as the kernel of attention.hpp, with the scores and weights of a warp's
// 16 queries in registers (Dao, FlashAttention-2, 2023).

#include <cmath>
#include <cstddef>
#include <cstdint>

#include <psae/core/element.hpp>
#include <psae/cuda/attention.hpp>
#include <psae/cuda/tensor_cores.hpp>

namespace psae {

namespace detail {

// A block keeps 16 queries for each of its warps and has `others` keys and values in shared memory, of which a warp takes
// `step` at a time.
template <unsigned width>
struct bf16_attention_tile {
    using memory = attention_tile<bf16, width, 1>;
    static constexpr unsigned most_threads = 256, queries = 16, others = 128, step = 32, stride = memory::stride;
    static constexpr std::size_t bytes = sizeof(bf16) * 2 * others * stride;
    static_assert(width % 32 == 0, "psae: values are loaded 32 columns at a time");
    static_assert(most_threads / 32 * queries <= others, "psae: queries pass through the memory of keys");
};

__device__ inline std::uint32_t pair_at(const bf16* p) { return *reinterpret_cast<const std::uint32_t*>(p); }

template <unsigned width>
__global__ void __launch_bounds__(bf16_attention_tile<width>::most_threads)
    bf16_attention_kernel(bf16* out, const bf16* qkv, attention_sizes s, float scale) {
    using tile = bf16_attention_tile<width>;
    constexpr unsigned stride = tile::stride, step = tile::step;
    bf16 *keys = shared_memory<bf16>(), *values = keys + tile::others * stride;
    const unsigned own = blockDim.x / 32 * tile::queries, first_row = threadIdx.x / 32 * tile::queries,
                   row = threadIdx.x % 32 / 4, pair = threadIdx.x % 4 * 2;       // see multiply_add
    const unsigned loaded_row = threadIdx.x % 8, matrix = threadIdx.x % 32 / 8;  // see load_matrices
    const attention_place at(s, own);
    const std::size_t d = s.d, tokens = s.tokens;
    const bf16* q = qkv + at.rows * 3 * d + at.column;
    const auto fetch = [&](bf16* to, unsigned count, const bf16* from, std::size_t first) {
        tile::memory::fetch(to, count, from, 3 * d, first, tokens, s.width, s.wide, blockDim.x);
    };

    std::uint32_t queries[width / 16][4];
    fetch(keys, own, q, at.first);
    __syncthreads();
    for (unsigned k = 0; k < width / 16; ++k)
        for (unsigned i = 0; i < 4; ++i)
            queries[k][i] = pair_at(keys + (first_row + row + i % 2 * 8) * stride + k * 16 + i / 2 * 8 + pair);

    const bool idle = first_row >= tokens - at.first;
    const std::size_t query = at.first + first_row + row;  // the lane's first; the other is 8 further
    float result[width / 8][4] = {}, most[2] = {lowest<float>, lowest<float>}, total[2] = {};
    const std::size_t end = s.causal && at.first + own < tokens ? at.first + own : tokens;
    for (std::size_t start = 0; start < end; start += tile::others) {
        __syncthreads();
        fetch(keys, tile::others, q + d, start);
        fetch(values, tile::others, q + 2 * d, start);
        __syncthreads();
        for (unsigned from = 0; !idle && from < tile::others && start + from < end; from += step) {
            float scores[step / 8][4] = {};
            for (unsigned j = 0; j < step / 8; ++j)
                for (unsigned k = 0; k < width / 16; k += 2) {
                    std::uint32_t key[4];
                    load_matrices<false>(key, keys + (from + j * 8 + loaded_row) * stride + k * 16 + matrix * 8);
                    multiply_add(scores[j], queries[k], {key[0], key[1]});
                    multiply_add(scores[j], queries[k + 1], {key[2], key[3]});
                }
            for (unsigned half = 0; half < 2; ++half) {
                float now = most[half];
                for (unsigned j = 0; j < step / 8; ++j)
                    for (unsigned i = 2 * half; i < 2 * half + 2; ++i) {
                        float& score = scores[j][i];
                        score = s.sees(query + half * 8, start + from + j * 8 + pair + i % 2) ? score * scale
                                                                                              : lowest<float>;
                        now = score > now ? score : now;
                    }
                for (int distance = 1; distance < 4; distance *= 2) {
                    const float other = __shfl_xor_sync(0xffffffffu, now, distance);
                    now = other > now ? other : now;
                }
                const float correction = std::exp2(most[half] - now);
                most[half] = now;
                total[half] *= correction;
                for (auto& of_columns : result)
                    for (unsigned i = 2 * half; i < 2 * half + 2; ++i) of_columns[i] *= correction;
                for (unsigned j = 0; j < step / 8; ++j)
                    for (unsigned i = 2 * half; i < 2 * half + 2; ++i) {
                        scores[j][i] = std::exp2(scores[j][i] - now);
                        total[half] += scores[j][i];
                    }
            }
            for (unsigned j = 0; j < step / 16; ++j) {
                const auto &left = scores[2 * j], &right = scores[2 * j + 1];
                const std::uint32_t weights[4] = {rounded_pair(left[0], left[1]), rounded_pair(left[2], left[3]),
                                                  rounded_pair(right[0], right[1]), rounded_pair(right[2], right[3])};
                for (unsigned c = 0; c < width / 8; c += 2) {
                    std::uint32_t value[4];
                    load_matrices<true>(
                        value, values + (from + j * 16 + matrix % 2 * 8 + loaded_row) * stride + (c + matrix / 2) * 8);
                    multiply_add(result[c], weights, {value[0], value[1]});
                    multiply_add(result[c + 1], weights, {value[2], value[3]});
                }
            }
        }
    }
    if (idle) return;
    for (unsigned half = 0; half < 2; ++half) {
        float sum = total[half];
        for (int distance = 1; distance < 4; distance *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, distance);
        const float inverse = 1 / sum;
        if (query + half * 8 >= tokens) continue;
        bf16* target = out + (at.rows + query + half * 8) * d + at.column;
        for (unsigned c = 0; c < width / 8; ++c) {
            const unsigned column = c * 8 + pair;
            const std::uint32_t values = rounded_pair(result[c][2 * half] * inverse, result[c][2 * half + 1] * inverse);
            if (s.wide) {
                if (column < s.width) *reinterpret_cast<std::uint32_t*>(target + column) = values;
            } else {
                for (unsigned i = 0; i < 2; ++i)
                    if (column + i < s.width) target[column + i].bits = static_cast<std::uint16_t>(values >> (16 * i));
            }
        }
    }
}

}  // namespace detail

// As attention of floats (attention.hpp), of bf16: scores and sums are float, weights are rounded to bf16 as they are
// multiplied with the values.
inline void attention(cuda& device, arena<space::device>&, bf16* out, const bf16* qkv, std::size_t images,
                      std::size_t tokens, std::size_t d, std::size_t heads, bool causal = false) {
    using namespace detail;
    if (tokens == 0) return;
    const attention_sizes sizes = sizes_of_attention<bf16>(tokens, d, heads, causal, {out, qkv});
    constexpr float log2_of_e = 1.4426950408889634f;  // exp(x) = 2^(x log2 e)
    const float scale = log2_of_e / std::sqrt(static_cast<float>(sizes.width));
    with_head_width(sizes.width, [&]<unsigned width>(std::integral_constant<unsigned, width>) {
        using tile = bf16_attention_tile<width>;
        // As few blocks as hold a head's queries, with as few warps as that takes.
        constexpr unsigned most_warps = tile::most_threads / 32;
        const unsigned groups = blocks_of(tokens, tile::queries), blocks = blocks_of(groups, most_warps),
                       warps = blocks_of(groups, blocks), of_head = blocks_of(tokens, warps * tile::queries);
        launch(device, bf16_attention_kernel<width>, blocks_of(images * heads * of_head, 1), 32 * warps, tile::bytes,
               out, qkv, sizes, scale);
    });
}

}  // namespace psae
