#pragma once
// Kernels on codes: pointwise expressions over their entries, sparse decode and its adjoint, and rows of weight
// gradients. Every sum is taken in a fixed order (a token's entries by latent, a latent's entries by token).

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <utility>

#include <psae/core/arena.hpp>
#include <psae/core/norm.hpp>
#include <psae/cpu/pointwise.hpp>
#include <psae/grad/tape.hpp>

namespace psae {

namespace detail {
inline constexpr std::size_t token_block = 16;    // tokens of one parallel task
inline constexpr std::size_t latent_block = 256;  // latents of one parallel task

// Calls f(token) for every token.
template <class F>
void each_token(cpu& device, std::size_t tokens, const F& f) {
    device.parallel_for((tokens + token_block - 1) / token_block, [&](std::size_t b) {
        for (std::size_t t = b * token_block; t < std::min(tokens, (b + 1) * token_block); ++t) f(t);
    });
}

// sums[j] += what add(token, share) adds to share[j], over all tokens; in blocks of tokens, whose shares are added in
// order. sums, share: [count].
template <class T, class Add>
void add_tile_column_sums(cpu& device, arena<>& scratch, T* sums, std::size_t tokens, std::size_t count,
                          const Add& add) {
    const auto mark = scratch.position();
    constexpr std::size_t block = 64;
    const std::size_t blocks = (tokens + block - 1) / block;
    T* partial = scratch.allocate<T>(blocks * count);
    device.parallel_for(blocks, [&](std::size_t b) {
        T* share = partial + b * count;
        std::fill_n(share, count, T(0));
        for (std::size_t t = b * block; t < std::min(tokens, (b + 1) * block); ++t) add(t, share);
    });
    for (std::size_t b = 0; b < blocks; ++b)
        for (std::size_t j = 0; j < count; ++j) sums[j] += partial[b * count + j];
    scratch.release_to(mark);
}

// Calls f(has) with what says whether a value of the tile is an entry, decided before the loops: one that asks
// `everywhere` at every value is not vectorised.
template <class T, class F>
void with_places_of(const codes_tile<T>& z, const F& f) {
    if (z.everywhere) f([](T) { return true; });
    else f([](T value) { return value != 0; });
}
}  // namespace detail

// out[t] = sum over the entries of token t of e. out: [n, 1].
template <class T, class E>
void codes_sums(cpu& device, T* out, const codes_view<T>& z, const E& e) {
    detail::each_token(device, z.tokens, [&](std::size_t t) {
        T sum = 0;
        for (std::size_t i = z.offsets[t]; i < z.offsets[t + 1]; ++i)
            sum += e.load(codes_position<T>{t, z.latent[i], z.value[i], i});
        out[t] = sum;
    });
}

// The same for a tile; shares of tiles after the first are added.
template <class T, class E>
void codes_sums(cpu& device, T* out, const codes_tile<T>& z, const E& e) {
    detail::with_places_of(z, [&](const auto& has) {
        detail::each_token(device, z.tokens, [&](std::size_t t) {
            const T* value = z.value + t * z.count;
            T sum = 0;
#pragma omp simd reduction(+ : sum)
            for (std::size_t j = 0; j < z.count; ++j) {
                const T term = static_cast<T>(e.load(codes_position<T>{t, z.first + j, value[j], t * z.count + j}));
                sum += has(value[j]) ? term : T(0);
            }
            out[t] = z.first == 0 ? sum : out[t] + sum;
        });
    });
}

// g[i] *= activation.derivative(z[i]): the gradient of the pre-activations from that of the values, in place.
template <class T, class Activation>
void multiply_by_derivative(cpu& device, T* g, const codes_view<T>& z, const Activation& activation) {
    detail::each_token(device, z.tokens, [&](std::size_t t) {
        for (std::size_t i = z.offsets[t]; i < z.offsets[t + 1]; ++i) g[i] *= activation.derivative(z.value[i]);
    });
}

// The same for a tile, g: [n, count], 0 where a latent is not active. sums[j] = sum over tokens of g[:, j]; sums:
// [count].
template <class T, class Activation>
void multiply_by_derivative(cpu& device, arena<>& scratch, T* g, T* sums, const codes_tile<T>& z,
                            const Activation& activation) {
    std::fill_n(sums, z.count, T(0));
    detail::with_places_of(z, [&](const auto& has) {
        detail::add_tile_column_sums(device, scratch, sums, z.tokens, z.count, [&](std::size_t t, T* sum) {
            const T* value = z.value + t * z.count;
            T* own = g + t * z.count;
#pragma omp simd
            for (std::size_t j = 0; j < z.count; ++j) {
                own[j] = has(value[j]) ? own[j] * activation.derivative(value[j]) : T(0);
                sum[j] += own[j];
            }
        });
    });
}

// out[i] (+)= e at entry i. out: [nnz].
template <class T, class E>
void codes_assign(cpu& device, T* out, const codes_view<T>& z, const E& e, write mode) {
    detail::each_token(device, z.tokens, [&](std::size_t t) {
        for (std::size_t i = z.offsets[t]; i < z.offsets[t + 1]; ++i) {
            const T value = e.load(codes_position<T>{t, z.latent[i], z.value[i], i});
            out[i] = mode == write::add ? out[i] + value : value;
        }
    });
}

// The same for a tile. out: [n, count]; 0 (or unchanged) where a latent is not active.
template <class T, class E>
void codes_assign(cpu& device, T* out, const codes_tile<T>& z, const E& e, write mode) {
    detail::with_places_of(z, [&](const auto& has) {
        detail::each_token(device, z.tokens, [&](std::size_t t) {
            const T* value = z.value + t * z.count;
            T* own = out + t * z.count;
            if (mode == write::overwrite) std::fill_n(own, z.count, T(0));
#pragma omp simd
            for (std::size_t j = 0; j < z.count; ++j) {
                const T term = static_cast<T>(e.load(codes_position<T>{t, z.first + j, value[j], t * z.count + j}));
                own[j] += has(value[j]) ? term : T(0);
            }
        });
    });
}

namespace detail {

// The entries of token t whose latents are in the range: first and end.
template <class T>
std::pair<std::size_t, std::size_t> entries_of(const codes_view<T>& z, std::size_t t, const latent_range& range) {
    const std::size_t first = z.offsets[t], end = z.offsets[t + 1];
    if (range.is_everything()) return {first, end};
    const auto place = [&](std::size_t latent) {
        return static_cast<std::size_t>(std::lower_bound(z.latent + first, z.latent + end, latent) - z.latent);
    };
    return {place(range.first), range.end == latent_range::unbounded ? end : place(range.end)};
}

}  // namespace detail

// out[t, :] = bias + sum over entries of weight[i] * W[latent[i], :], for latents in the range; bias may be null. out:
// [n, d]. weights: [nnz]. Rows of bias are bias_stride apart, 0 for a single one.
template <class T>
void sparse_decode(cpu& device, T* out, const codes_view<T>& z, const T* weights, const T* W, const T* bias,
                   std::size_t d, latent_range range = {}, std::size_t bias_stride = 0) {
    detail::each_token(device, z.tokens, [&](std::size_t t) {
        T* row = out + t * d;
        for (std::size_t c = 0; c < d; ++c) row[c] = bias == nullptr ? T(0) : bias[t * bias_stride + c];
        const auto [first, end] = detail::entries_of(z, t, range);
        for (std::size_t i = first; i < end; ++i) {
            const T w = weights[i];
            if (w == 0) continue;
            const T* source = W + z.latent[i] * d;
#pragma omp simd
            for (std::size_t c = 0; c < d; ++c) row[c] += w * source[c];
        }
    });
}

// out[i] (+)= <G[token of i, :], W[latent[i], :]>: the adjoint of sparse_decode with respect to the values. G: [n, d].
template <class T>
void sparse_decode_adjoint(cpu& device, T* out, const codes_view<T>& z, const T* G, const T* W, std::size_t d,
                           write mode, latent_range range = {}) {
    detail::each_token(device, z.tokens, [&](std::size_t t) {
        const T* g = G + t * d;
        if (mode == write::overwrite) std::fill(out + z.offsets[t], out + z.offsets[t + 1], T(0));
        const auto [first, end] = detail::entries_of(z, t, range);
        for (std::size_t i = first; i < end; ++i) {
            const T* w = W + z.latent[i] * d;
            T dot = 0;
#pragma omp simd reduction(+ : dot)
            for (std::size_t c = 0; c < d; ++c) dot += g[c] * w[c];
            out[i] += dot;
        }
    });
}

// out[t, :] = bias, or 0 if it is null: what tiles are decoded onto. out: [n, d]. Rows of bias are bias_stride apart, 0
// for a single one.
template <class T>
void decode_start(cpu& device, T* out, std::size_t tokens, std::size_t d, const T* bias, std::size_t bias_stride) {
    detail::each_token(device, tokens, [&](std::size_t t) {
        for (std::size_t c = 0; c < d; ++c) out[t * d + c] = bias == nullptr ? T(0) : bias[t * bias_stride + c];
    });
}

// norms[r] = Euclidean norm of row r of W. W: [rows, d].
template <class T>
void row_norms(cpu& device, T* norms, const T* W, std::size_t rows, std::size_t d) {
    constexpr std::size_t block = 256;
    device.parallel_for((rows + block - 1) / block, [&](std::size_t b) {
        for (std::size_t r = b * block; r < std::min(rows, (b + 1) * block); ++r)
            norms[r] = euclidean_norm(W + r * d, d);
    });
}

// out[i] = z.value[i] for the k largest values of each token (of equal ones those that stand first), by weight[f] *
// value unless weight is null, else 0.
template <class T>
void keep_strongest(cpu& device, arena<>& scratch, T* out, const codes_view<T>& z, std::size_t k, const T* weight) {
    const auto rank = [&](std::size_t i) { return weight == nullptr ? z.value[i] : weight[z.latent[i]] * z.value[i]; };
    const auto mark = scratch.position();
    auto* order = scratch.allocate<std::size_t>(z.entries());
    detail::each_token(device, z.tokens, [&](std::size_t t) {
        std::size_t *own = order + z.offsets[t], *end = order + z.offsets[t + 1];
        std::iota(own, end, z.offsets[t]);
        std::size_t* last = own + std::min<std::size_t>(k, static_cast<std::size_t>(end - own));
        if (last != end)
            std::nth_element(own, last, end, [&](std::size_t a, std::size_t b) {
                return rank(a) > rank(b) || (rank(a) == rank(b) && a < b);
            });
        for (const std::size_t* i = own; i != end; ++i) out[*i] = i < last ? z.value[*i] : T(0);
    });
    scratch.release_to(mark);
}

namespace detail {

// f(position) for every entry of token t, in order.
template <class T, class F>
void each_entry(const codes_view<T>& z, std::size_t t, const F& f) {
    for (std::size_t i = z.offsets[t]; i < z.offsets[t + 1]; ++i) f(codes_position<T>{t, z.latent[i], z.value[i], i});
}
template <class T, class F>
void each_entry(const codes_tile<T>& z, std::size_t t, const F& f) {
    for (std::size_t i = t * z.count; i < (t + 1) * z.count; ++i)
        if (z.has(z.value[i])) f(codes_position<T>{t, z.first + (i - t * z.count), z.value[i], i});
}

}  // namespace detail

// Adds e over all entries to a leaf of this shape, whose last extent is cols: to a single number, to one for each token,
// or at (token, latent). z: entries or a tile.
template <class Shape, class T, class Codes, class E>
void add_to_leaf(cpu& device, arena<>& scratch, T* leaf, std::size_t cols, const Codes& z, const E& e) {
    constexpr bool is_column = Shape::static_cols == 1;
    static_assert(Shape::rank != 1 || is_column, "psae: numbers by latent are sums of their own");
    const auto mark = scratch.position();
    T* sums = Shape::rank > 1 ? leaf : scratch.allocate<T>(z.tokens);  // by token
    if constexpr (Shape::rank <= 1) std::fill_n(sums, z.tokens, T(0));
    detail::each_token(device, z.tokens, [&](std::size_t t) {
        detail::each_entry(z, t, [&](codes_position<T> p) {
            sums[Shape::rank <= 1 || is_column ? t : t * cols + p.col] += e.load(p);
        });
    });
    if constexpr (Shape::rank <= 1) *leaf += std::accumulate(sums, sums + z.tokens, T(0));
    scratch.release_to(mark);
}

// leaf[f] += sum over the entries of latent f of e. leaf: [d_sae].
template <class T, class E>
void add_latent_sums(cpu& device, arena<>&, T* leaf, const codes_view<T>& z, const E& e) {
    device.parallel_for((z.latents + detail::latent_block - 1) / detail::latent_block, [&](std::size_t b) {
        for (std::size_t f = b * detail::latent_block; f < std::min(z.latents, (b + 1) * detail::latent_block); ++f) {
            T sum = 0;
            for (std::size_t j = z.latent_offsets[f]; j < z.latent_offsets[f + 1]; ++j) {
                const std::size_t i = z.entry_by_latent[j];
                sum += e.load(codes_position<T>{z.token_by_latent[j], f, z.value[i], i});
            }
            leaf[f] += sum;
        }
    });
}
template <class T, class E>
void add_latent_sums(cpu& device, arena<>& scratch, T* leaf, const codes_tile<T>& z, const E& e) {
    detail::with_places_of(z, [&](const auto& has) {
        detail::add_tile_column_sums(device, scratch, leaf + z.first, z.tokens, z.count, [&](std::size_t t, T* sum) {
            const T* value = z.value + t * z.count;
#pragma omp simd
            for (std::size_t j = 0; j < z.count; ++j) {
                const T term = static_cast<T>(e.load(codes_position<T>{t, z.first + j, value[j], t * z.count + j}));
                sum[j] += has(value[j]) ? term : T(0);
            }
        });
    });
}

// sums[f] = sum over the entries of latent f of weights. sums: [d_sae].
template <class T>
void latent_sums(cpu& device, T* sums, const codes_view<T>& z, const T* weights) {
    device.parallel_for((z.latents + detail::latent_block - 1) / detail::latent_block, [&](std::size_t b) {
        for (std::size_t f = b * detail::latent_block; f < std::min(z.latents, (b + 1) * detail::latent_block); ++f) {
            T sum = 0;
            for (std::size_t j = z.latent_offsets[f]; j < z.latent_offsets[f + 1]; ++j)
                sum += weights[z.entry_by_latent[j]];
            sums[f] = sum;
        }
    });
}

// fired[f] = number of entries of latent f that are not 0. fired: [d_sae]. With or without a latent-major view.
template <class T>
void count_active(cpu& device, arena<>&, std::uint32_t* fired, const codes_view<T>& z) {
    if (z.latent_offsets == nullptr) {
        std::fill_n(fired, z.latents, std::uint32_t{0});
        for (std::size_t i = 0; i < z.entries(); ++i) fired[z.latent[i]] += z.value[i] != 0;
        return;
    }
    device.parallel_for((z.latents + detail::latent_block - 1) / detail::latent_block, [&](std::size_t b) {
        for (std::size_t f = b * detail::latent_block; f < std::min(z.latents, (b + 1) * detail::latent_block); ++f) {
            std::uint32_t active = 0;
            for (std::size_t j = z.latent_offsets[f]; j < z.latent_offsets[f + 1]; ++j)
                active += z.value[z.entry_by_latent[j]] != 0;
            fired[f] = active;
        }
    });
}
// The same for the latents of a tile. fired: [count].
template <class T>
void count_active(cpu& device, arena<>& scratch, std::uint32_t* fired, const codes_tile<T>& z) {
    std::fill_n(fired, z.count, std::uint32_t{0});
    detail::add_tile_column_sums(device, scratch, fired, z.tokens, z.count, [&](std::size_t t, std::uint32_t* sum) {
        const T* value = z.value + t * z.count;
#pragma omp simd
        for (std::size_t j = 0; j < z.count; ++j) sum[j] += value[j] != 0;
    });
}

// *active = the sum of fired [latents].
template <class Sum>
void count_all_active(cpu&, Sum* active, const std::uint32_t* fired, std::size_t latents) {
    *active = static_cast<Sum>(std::accumulate(fired, fired + latents, std::uint64_t{0}));
}

// Those of the set with fired[f] == 0, ascending, and in *count their number. index: room for as many as the set has.
inline void keep_silent(cpu&, std::uint32_t* index, std::size_t* count, latent_set set, const std::uint32_t* fired) {
    *count = static_cast<std::size_t>(
        std::copy_if(set.index, set.index + *set.count, index, [&](std::uint32_t f) { return fired[f] == 0; }) - index);
}

// *out = number of latents of the set.
template <class T>
void copy_size(cpu&, T* out, latent_set set) {
    *out = static_cast<T>(*set.count);
}

// out[:] (+)= sum over latents of weight[f] * W[f, :]. out: [d]; latents of weight 0 are not read.
template <class T>
void weighted_row_sum(cpu& device, arena<>& scratch, T* out, const T* weight, const T* W, std::size_t latents,
                      std::size_t d, write mode) {
    const auto mark = scratch.position();
    constexpr std::size_t block = 1024;
    const std::size_t blocks = (latents + block - 1) / block;
    T* partial = scratch.allocate<T>(blocks * d);
    device.parallel_for(blocks, [&](std::size_t b) {
        T* sum = partial + b * d;
        std::fill(sum, sum + d, T(0));
        for (std::size_t f = b * block; f < std::min(latents, (b + 1) * block); ++f) {
            if (weight[f] == 0) continue;
            const T w = weight[f];
            const T* row = W + f * d;
#pragma omp simd
            for (std::size_t c = 0; c < d; ++c) sum[c] += w * row[c];
        }
    });
    if (mode == write::overwrite) std::fill(out, out + d, T(0));
    for (std::size_t b = 0; b < blocks; ++b)
        for (std::size_t c = 0; c < d; ++c) out[c] += partial[b * d + c];
    scratch.release_to(mark);
}

// row += what the parts of a gradient say of row f, shares in the order they were recorded. row: [cols].
template <class T>
void add_gradient_row(const parameter_gradient<T>& g, std::size_t f, std::size_t cols, T* row) {
    if (g.written)
        for (std::size_t c = 0; c < cols; ++c) row[c] += g.data[f * cols + c];
    for (const outer_product<T>* p = g.products; p != nullptr; p = p->next) {
        if (!p->range.has(f)) continue;
        const codes_view<T>& z = *p->codes;
        for (std::size_t j = z.latent_offsets[f]; j < z.latent_offsets[f + 1]; ++j) {
            const T w = p->weights[z.entry_by_latent[j]];
            if (w == 0) continue;
            if (p->rows == nullptr) {
                row[0] += w;
            } else {
                const T* source = p->rows + std::size_t{z.token_by_latent[j]} * cols;
#pragma omp simd
                for (std::size_t c = 0; c < cols; ++c) row[c] += w * source[c];
            }
        }
    }
    for (const row_multiples<T>* m = g.multiples; m != nullptr; m = m->next) {
        if (!m->slope->written || m->divisor[f] == 0) continue;
        const T w = m->slope->data[f] / m->divisor[f];
        const T* source = m->rows + f * cols;
#pragma omp simd
        for (std::size_t c = 0; c < cols; ++c) row[c] += w * source[c];
    }
}

// Row f of a parameter's gradient. row: [cols].
template <class T>
void gradient_row(const parameter_gradient<T>& g, std::size_t f, std::size_t cols, T* row) {
    std::fill_n(row, cols, T(0));
    add_gradient_row(g, f, cols, row);
}

// rows += rows first .. first + count of a gradient. rows: [count, cols].
template <class T>
void add_gradient_rows(cpu& device, const parameter_gradient<T>& g, std::size_t first, std::size_t count,
                       std::size_t cols, T* rows) {
    if (!g.written && g.products == nullptr && g.multiples == nullptr) return;
    constexpr std::size_t block = 32;
    device.parallel_for((count + block - 1) / block, [&](std::size_t b) {
        for (std::size_t r = b * block; r < std::min(count, (b + 1) * block); ++r)
            add_gradient_row(g, first + r, cols, rows + r * cols);
    });
}

}  // namespace psae
