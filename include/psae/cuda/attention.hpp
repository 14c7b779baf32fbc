#pragma once
// Multi-head attention, of whole sequences or causal, and its adjoint. A block keeps some tokens of a head and goes
// through the others block by block, with a softmax that is corrected as it goes (Milakov and Gimelshein, Online
// normalizer calculation for softmax, 2018; Dao et al., FlashAttention, 2022). No scores go to memory.

#include <cmath>
#include <cstddef>
#include <initializer_list>
#include <limits>
#include <string>
#include <type_traits>

#include <psae/core/arena.hpp>
#include <psae/cuda/rows.hpp>
#include <psae/cuda/shared_memory.hpp>
#include <psae/expr/node.hpp>

namespace psae {

namespace detail {

// How a block multiplies: its threads stand in 8 rows of 16. A thread works on `rows` of the block's own tokens, every
// other row of its warp's, and either on `scores` of the other tokens or on `columns` of a head's elements. In shared
// memory a token has `stride` elements, of which a head uses `width` or fewer; another pack sets rows off by a bank.
template <class T, unsigned width, unsigned rows_of_thread>
struct attention_tile {
    static constexpr unsigned threads = 128, across = 16, pack = wide_pack<T>, rows = rows_of_thread;
    static constexpr unsigned scores = pack / 2, columns = width / across;
    static constexpr unsigned own = threads / across * rows, others = across * scores;
    static constexpr unsigned stride = width + pack, score_stride = others + pack;
    static constexpr unsigned neighbours = columns % pack == 0 ? pack : 2;  // columns that a thread has side by side

    // Bytes of `own_sets` of the own tokens, two of the others and `score_sets` of scores.
    static constexpr std::size_t bytes(unsigned own_sets, unsigned score_sets) {
        return sizeof(T) * ((own_sets * own + 2 * others) * stride + score_sets * own * score_stride);
    }

    __device__ static unsigned column() { return threadIdx.x % across; }
    __device__ static unsigned row(unsigned i) {
        return threadIdx.x / 32 * (2 * rows) + 2 * i + threadIdx.x / across % 2;
    }
    // The last of the own rows of this thread's warp are beyond what is left of the sequence: it has nothing to do.
    __device__ static bool idle(std::size_t left) { return threadIdx.x / 32 * (2 * rows) >= left; }
    __device__ static unsigned other(unsigned j) { return column() + j * across; }
    __device__ static unsigned element(unsigned c) { return (c * across + column()) * neighbours; }

    // to = `count` tokens of a head, from the first on; 0 beyond the sequence and beyond the head. Rows are d apart.
    __device__ static void fetch(T* to, unsigned count, const T* from, std::size_t d, std::size_t first,
                                 std::size_t tokens, unsigned head_width, bool wide,
                                 unsigned threads_of_block = threads) {
        for (unsigned r = threadIdx.x / across; r < count; r += threads_of_block / across)
            for (unsigned c = column() * pack; c < width; c += across * pack) {
                row_pack<T, pack> values{};
                const T* source = from + (first + r) * d + c;
                if (first + r < tokens) {
                    if (!wide) {
                        for (unsigned i = 0; i < pack; ++i)
                            if (c + i < head_width) values.of[i] = source[i];
                    } else if (c < head_width) {
                        values = load_pack<pack>(source);
                    }
                }
                store_pack(to + r * stride + c, values);
            }
    }
    // products[i][j] = <row i of own, row j of others>.
    __device__ static void multiply(T (&products)[rows][scores], const T* own_rows, const T* other_rows,
                                    unsigned head_width) {
        for (unsigned i = 0; i < rows; ++i)
            for (unsigned j = 0; j < scores; ++j) products[i][j] = 0;
        for (unsigned k = 0; k < head_width; k += pack) {
            row_pack<T, pack> a[rows], b[scores];
            for (unsigned i = 0; i < rows; ++i) a[i] = load_pack<pack>(own_rows + row(i) * stride + k);
            for (unsigned j = 0; j < scores; ++j) b[j] = load_pack<pack>(other_rows + other(j) * stride + k);
            for (unsigned x = 0; x < pack; ++x)
                for (unsigned i = 0; i < rows; ++i)
                    for (unsigned j = 0; j < scores; ++j) products[i][j] += a[i].of[x] * b[j].of[x];
        }
    }
    // sums[i] += the rows of others, each times what row i of weights says.
    __device__ static void add_weighted(T (&sums)[rows][columns], const T* weights, const T* other_rows) {
        for (unsigned k = 0; k < others; k += pack) {
            row_pack<T, pack> a[rows];
            for (unsigned i = 0; i < rows; ++i) a[i] = load_pack<pack>(weights + row(i) * score_stride + k);
            for (unsigned x = 0; x < pack; ++x)
                for (unsigned c = 0; c < columns / neighbours; ++c) {
                    const auto b = load_pack<neighbours>(other_rows + (k + x) * stride + element(c));
                    for (unsigned i = 0; i < rows; ++i)
                        for (unsigned y = 0; y < neighbours; ++y) sums[i][c * neighbours + y] += a[i].of[x] * b.of[y];
                }
        }
    }
    // The own rows of `to` (+)= sums.
    __device__ static void put(T* to, const T (&sums)[rows][columns], std::size_t d, std::size_t first,
                               std::size_t tokens, unsigned head_width, bool wide, bool add) {
        for (unsigned i = 0; i < rows; ++i) {
            if (first + row(i) >= tokens) return;
            for (unsigned c = 0; c < columns / neighbours; ++c) {
                T* target = to + (first + row(i)) * d + element(c);
                row_pack<T, neighbours> values{};
                if (!wide) {
                    for (unsigned y = 0; y < neighbours; ++y)
                        if (element(c) + y < head_width)
                            target[y] = sums[i][c * neighbours + y] + (add ? target[y] : T(0));
                } else if (element(c) < head_width) {
                    if (add) values = load_pack<neighbours>(target);
                    for (unsigned y = 0; y < neighbours; ++y) values.of[y] += sums[i][c * neighbours + y];
                    store_pack_whole(target, values);
                }
            }
        }
    }
    // Of 16 threads that have a row in common.
    __device__ static T largest(T value) {
        for (int distance = 8; distance > 0; distance /= 2) {
            const T other = __shfl_xor_sync(0xffffffffu, value, distance);
            value = other > value ? other : value;
        }
        return value;
    }
    __device__ static T sum(T value) {
        for (int distance = 8; distance > 0; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
        return value;
    }
};

// What all kernels of attention know.
struct attention_sizes {
    std::size_t tokens, d, heads;
    unsigned width;  // of a head
    bool causal, wide;

    // Whether a query attends to a key. Keys may be of tokens beyond the sequence, which nothing attends to.
    __device__ bool sees(std::size_t query, std::size_t key) const { return key < tokens && (!causal || key <= query); }
};

// Where a block works: its head, counted over all images, and the first of its tokens.
struct attention_place {
    std::size_t head, first;
    std::size_t rows, column;  // where the head begins, in matrices of the queries' rows

    __device__ attention_place(const attention_sizes& s, unsigned own) {
        const std::size_t blocks = (s.tokens + own - 1) / own;
        head = blockIdx.x / blocks;
        first = (blockIdx.x - head * blocks) * own;
        rows = head / s.heads * s.tokens;
        column = head % s.heads * s.width;
    }
};

template <class T>
inline constexpr T lowest = std::numeric_limits<T>::lowest();

template <class T, unsigned width>
using forward_tile = attention_tile<T, width, sizeof(T) == 4 ? 8 : 4>;
template <class T, unsigned width>
using adjoint_tile = attention_tile<T, width, sizeof(T) == 4 ? 4 : 2>;

template <class T, unsigned width>
__global__ void __launch_bounds__(forward_tile<T, width>::threads)
    attention_kernel(T* out, const T* qkv, attention_sizes s, T scale) {
    using tile = forward_tile<T, width>;
    T *queries = shared_memory<T>(), *keys = queries + tile::own * tile::stride,
      *values = keys + tile::others * tile::stride, *weights = values + tile::others * tile::stride;
    const attention_place at(s, tile::own);
    const std::size_t d = s.d, tokens = s.tokens;
    const T* q = qkv + at.rows * 3 * d + at.column;
    const bool idle = tile::idle(tokens - at.first);
    tile::fetch(queries, tile::own, q, 3 * d, at.first, tokens, s.width, s.wide);
    T result[tile::rows][tile::columns] = {}, most[tile::rows], total[tile::rows] = {};
    for (T& m : most) m = lowest<T>;
    const std::size_t end = s.causal && at.first + tile::own < tokens ? at.first + tile::own : tokens;
    for (std::size_t start = 0; start < end; start += tile::others) {
        __syncthreads();
        tile::fetch(keys, tile::others, q + d, 3 * d, start, tokens, s.width, s.wide);
        tile::fetch(values, tile::others, q + 2 * d, 3 * d, start, tokens, s.width, s.wide);
        __syncthreads();
        if (idle) continue;
        T scores[tile::rows][tile::scores];
        tile::multiply(scores, queries, keys, s.width);
        for (unsigned i = 0; i < tile::rows; ++i) {
            const std::size_t query = at.first + tile::row(i);
            T now = most[i];
            for (unsigned j = 0; j < tile::scores; ++j) {
                T& score = scores[i][j];
                score = s.sees(query, start + tile::other(j)) ? score * scale : lowest<T>;
                now = score > now ? score : now;
            }
            now = tile::largest(now);
            const T correction = std::exp(most[i] - now);
            most[i] = now;
            total[i] *= correction;
            for (T& element : result[i]) element *= correction;
            for (unsigned j = 0; j < tile::scores; ++j) {
                const T weight = std::exp(scores[i][j] - now);
                total[i] += weight;
                weights[tile::row(i) * tile::score_stride + tile::other(j)] = weight;
            }
        }
        __syncwarp();  // a row of weights is made and used by one warp
        tile::add_weighted(result, weights, values);
    }
    if (idle) return;
    for (unsigned i = 0; i < tile::rows; ++i) {
        const T inverse = T(1) / tile::sum(total[i]);
        for (T& element : result[i]) element *= inverse;
    }
    tile::put(out + at.rows * d + at.column, result, d, at.first, tokens, s.width, s.wide, false);
}

// What the adjoint knows of each query of each head, [images * heads, tokens]: the largest of its scores, the inverse of
// the sum of their exponentials relative to it, and the product of its row of probabilities with their gradients.
template <class T>
struct attention_rows {
    T *most, *inverse, *dot;
};

// dQ of a block of queries. A first pass over the keys finds the rows' numbers.
template <class T, unsigned width>
__global__ void __launch_bounds__(adjoint_tile<T, width>::threads)
    attention_adjoint_queries_kernel(T* dqkv, attention_rows<T> found, const T* g, const T* qkv, attention_sizes s,
                                     T scale, bool add) {
    using tile = adjoint_tile<T, width>;
    T *queries = shared_memory<T>(), *cotangents = queries + tile::own * tile::stride,
      *keys = cotangents + tile::own * tile::stride, *values = keys + tile::others * tile::stride,
      *weights = values + tile::others * tile::stride;
    const attention_place at(s, tile::own);
    const std::size_t d = s.d, tokens = s.tokens;
    const T* q = qkv + at.rows * 3 * d + at.column;
    const bool idle = tile::idle(tokens - at.first);
    tile::fetch(queries, tile::own, q, 3 * d, at.first, tokens, s.width, s.wide);
    tile::fetch(cotangents, tile::own, g + at.rows * d + at.column, d, at.first, tokens, s.width, s.wide);
    T result[tile::rows][tile::columns] = {}, most[tile::rows], total[tile::rows] = {}, dot[tile::rows] = {};
    for (T& m : most) m = lowest<T>;
    const std::size_t end = s.causal && at.first + tile::own < tokens ? at.first + tile::own : tokens;
    for (int pass = 0; pass < 2; ++pass) {
        for (std::size_t start = 0; start < end; start += tile::others) {
            __syncthreads();
            tile::fetch(keys, tile::others, q + d, 3 * d, start, tokens, s.width, s.wide);
            tile::fetch(values, tile::others, q + 2 * d, 3 * d, start, tokens, s.width, s.wide);
            __syncthreads();
            if (idle) continue;
            T scores[tile::rows][tile::scores], changes[tile::rows][tile::scores];
            tile::multiply(scores, queries, keys, s.width);
            tile::multiply(changes, cotangents, values, s.width);
            for (unsigned i = 0; i < tile::rows; ++i) {
                const std::size_t query = at.first + tile::row(i);
                for (unsigned j = 0; j < tile::scores; ++j)
                    scores[i][j] = s.sees(query, start + tile::other(j)) ? scores[i][j] * scale : lowest<T>;
                if (pass == 0) {
                    T now = most[i];
                    for (const T score : scores[i]) now = score > now ? score : now;
                    now = tile::largest(now);
                    const T correction = std::exp(most[i] - now);
                    most[i] = now;
                    total[i] *= correction;
                    dot[i] *= correction;
                    for (unsigned j = 0; j < tile::scores; ++j) {
                        const T weight = std::exp(scores[i][j] - now);
                        total[i] += weight;
                        dot[i] += weight * changes[i][j];
                    }
                } else {
                    for (unsigned j = 0; j < tile::scores; ++j)
                        weights[tile::row(i) * tile::score_stride + tile::other(j)] =
                            std::exp(scores[i][j] - most[i]) * total[i] * (changes[i][j] - dot[i]) * scale;
                }
            }
            if (pass == 0) continue;
            __syncwarp();
            tile::add_weighted(result, weights, keys);
        }
        if (pass == 1 || idle) continue;
        for (unsigned i = 0; i < tile::rows; ++i) {
            total[i] = T(1) / tile::sum(total[i]);
            dot[i] = tile::sum(dot[i]) * total[i];
            const std::size_t query = at.first + tile::row(i);
            if (tile::column() == 0 && query < tokens) {
                found.most[at.head * tokens + query] = most[i];
                found.inverse[at.head * tokens + query] = total[i];
                found.dot[at.head * tokens + query] = dot[i];
            }
        }
    }
    if (!idle) tile::put(dqkv + at.rows * 3 * d + at.column, result, 3 * d, at.first, tokens, s.width, s.wide, add);
}

// dK and dV of a block of keys, of what the other kernel has found.
template <class T, unsigned width>
__global__ void __launch_bounds__(adjoint_tile<T, width>::threads)
    attention_adjoint_keys_kernel(T* dqkv, attention_rows<T> found, const T* g, const T* qkv, attention_sizes s,
                                  T scale, bool add) {
    using tile = adjoint_tile<T, width>;
    T *keys = shared_memory<T>(), *values = keys + tile::own * tile::stride,
      *queries = values + tile::own * tile::stride, *cotangents = queries + tile::others * tile::stride,
      *weights = cotangents + tile::others * tile::stride, *score_weights = weights + tile::own * tile::score_stride;
    const attention_place at(s, tile::own);
    const std::size_t d = s.d, tokens = s.tokens;
    const T *q = qkv + at.rows * 3 * d + at.column, *cotangent = g + at.rows * d + at.column;
    const bool idle = tile::idle(tokens - at.first);
    tile::fetch(keys, tile::own, q + d, 3 * d, at.first, tokens, s.width, s.wide);
    tile::fetch(values, tile::own, q + 2 * d, 3 * d, at.first, tokens, s.width, s.wide);
    T of_keys[tile::rows][tile::columns] = {}, of_values[tile::rows][tile::columns] = {};
    for (std::size_t start = s.causal ? at.first / tile::others * tile::others : 0; start < tokens;
         start += tile::others) {
        __syncthreads();
        tile::fetch(queries, tile::others, q, 3 * d, start, tokens, s.width, s.wide);
        tile::fetch(cotangents, tile::others, cotangent, d, start, tokens, s.width, s.wide);
        __syncthreads();
        if (idle) continue;
        T scores[tile::rows][tile::scores], changes[tile::rows][tile::scores];
        tile::multiply(scores, keys, queries, s.width);
        tile::multiply(changes, values, cotangents, s.width);
        for (unsigned j = 0; j < tile::scores; ++j) {
            const std::size_t query = start + tile::other(j), place = at.head * tokens + query;
            const bool present = query < tokens;
            const T most = present ? found.most[place] : T(0), inverse = present ? found.inverse[place] : T(0),
                    dot = present ? found.dot[place] : T(0);
            for (unsigned i = 0; i < tile::rows; ++i) {
                const bool seen = present && s.sees(query, at.first + tile::row(i));
                const T weight = seen ? std::exp(scores[i][j] * scale - most) * inverse : T(0);
                weights[tile::row(i) * tile::score_stride + tile::other(j)] = weight;
                score_weights[tile::row(i) * tile::score_stride + tile::other(j)] =
                    weight * (changes[i][j] - dot) * scale;
            }
        }
        __syncwarp();
        tile::add_weighted(of_values, weights, cotangents);
        tile::add_weighted(of_keys, score_weights, queries);
    }
    if (idle) return;
    T* target = dqkv + at.rows * 3 * d + at.column;
    tile::put(target + d, of_keys, 3 * d, at.first, tokens, s.width, s.wide, add);
    tile::put(target + 2 * d, of_values, 3 * d, at.first, tokens, s.width, s.wide, add);
}

// Calls f(std::integral_constant of the width that kernels are compiled for).
template <class F>
void with_head_width(std::size_t width, const F& f) {
    if (width <= 32) f(std::integral_constant<unsigned, 32>{});
    else if (width <= 64) f(std::integral_constant<unsigned, 64>{});
    else if (width <= 96) f(std::integral_constant<unsigned, 96>{});
    else if (width <= 128) f(std::integral_constant<unsigned, 128>{});
    else
        throw error("attention heads are too wide", "attention on the GPU",
                    "at most 128, found " + std::to_string(width));
}

template <class T>
attention_sizes sizes_of_attention(std::size_t tokens, std::size_t d, std::size_t heads, bool causal,
                                   std::initializer_list<const T*> matrices) {
    const std::size_t width = d / heads;
    bool wide = width % wide_pack<T> == 0;
    for (const T* matrix : matrices) wide = wide && has_wide_rows(matrix, d);
    return {tokens, d, heads, static_cast<unsigned>(width), causal, wide};
}

}  // namespace detail

// out = softmax(Q K^T / sqrt(head width)) V for each image and head (Vaswani et al., Attention is all you need, 2017).
// qkv: [images * tokens, 3 d], queries, keys and values side by side, heads within each; out: [images * tokens, d].
// causal: a token attends to itself and those before it; the scores of the others weigh exactly 0. Heads are at most 128
// wide.
template <class T>
void attention(cuda& device, arena<space::device>&, T* out, const T* qkv, std::size_t images, std::size_t tokens,
               std::size_t d, std::size_t heads, bool causal = false) {
    using namespace detail;
    const attention_sizes sizes = sizes_of_attention<T>(tokens, d, heads, causal, {out, qkv});
    const T scale = T(1) / std::sqrt(static_cast<T>(sizes.width));
    with_head_width(sizes.width, [&]<unsigned width>(std::integral_constant<unsigned, width>) {
        using tile = forward_tile<T, width>;
        launch(device, attention_kernel<T, width>, blocks_of(images * heads * blocks_of(tokens, tile::own), 1),
               tile::threads, tile::bytes(1, 1), out, qkv, sizes, scale);
    });
}

// dqkv (+)= the adjoint of attention; the probabilities P are made again. g: [images * tokens, d].
// dV = P^T g, dP = g V^T, dS = P * (dP - row sums of P * dP) / sqrt(head width), dQ = dS K, dK = dS^T Q.
template <class T>
void attention_adjoint(cuda& device, arena<space::device>& scratch, T* dqkv, const T* g, const T* qkv,
                       std::size_t images, std::size_t tokens, std::size_t d, std::size_t heads, write how,
                       bool causal = false) {
    using namespace detail;
    const attention_sizes sizes = sizes_of_attention<T>(tokens, d, heads, causal, {dqkv, g, qkv});
    const T scale = T(1) / std::sqrt(static_cast<T>(sizes.width));
    const bool add = how == write::add;
    const auto mark = scratch.position();
    const std::size_t rows = images * heads * tokens;
    const attention_rows<T> found{scratch.allocate<T>(rows), scratch.allocate<T>(rows), scratch.allocate<T>(rows)};
    with_head_width(sizes.width, [&]<unsigned width>(std::integral_constant<unsigned, width>) {
        using tile = adjoint_tile<T, width>;
        const unsigned blocks = blocks_of(images * heads * blocks_of(tokens, tile::own), 1);
        launch(device, attention_adjoint_queries_kernel<T, width>, blocks, tile::threads, tile::bytes(2, 1), dqkv,
               found, g, qkv, sizes, scale, add);
        launch(device, attention_adjoint_keys_kernel<T, width>, blocks, tile::threads, tile::bytes(2, 2), dqkv, found,
               g, qkv, sizes, scale, add);
    });
    scratch.release_to(mark);
}

}  // namespace psae
