#pragma once
// Kernels on codes: pointwise expressions over their entries, sparse decode and its adjoint, and rows of weight
// gradients. Every sum is taken in a fixed order (a token's entries by latent, a latent's entries by token).

#include <algorithm>
#include <cstddef>

#include <psae/core/arena.hpp>
#include <psae/cpu/backend.hpp>
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
}  // namespace detail

// out[t] = sum over the entries of token t of e. out: [n, 1].
template <class T, class E>
void codes_sums(cpu& device, T* out, const codes_view<T>& z, const E& e) {
    detail::each_token(device, z.tokens, [&](std::size_t t) {
        T sum = 0;
        for (std::size_t i = z.offsets[t]; i < z.offsets[t + 1]; ++i)
            sum += e.load(codes_position<T>{t, z.latent[i], z.value[i]});
        out[t] = sum;
    });
}

// g[i] *= activation.derivative(z[i]): the gradient of the pre-activations from that of the values, in place.
template <class T, class Activation>
void multiply_by_derivative(cpu& device, T* g, const codes_view<T>& z, const Activation& activation) {
    detail::each_token(device, z.tokens, [&](std::size_t t) {
        for (std::size_t i = z.offsets[t]; i < z.offsets[t + 1]; ++i) g[i] *= activation.derivative(z.value[i]);
    });
}

// out[i] (+)= e at entry i. out: [nnz].
template <class T, class E>
void codes_assign(cpu& device, T* out, const codes_view<T>& z, const E& e, write mode) {
    detail::each_token(device, z.tokens, [&](std::size_t t) {
        for (std::size_t i = z.offsets[t]; i < z.offsets[t + 1]; ++i) {
            const T value = e.load(codes_position<T>{t, z.latent[i], z.value[i]});
            out[i] = mode == write::add ? out[i] + value : value;
        }
    });
}

// out[t, :] = bias + sum over entries of weight[i] * W[latent[i], :]; bias may be null. out: [n, d]. weights: [nnz].
template <class T>
void sparse_decode(cpu& device, T* out, const codes_view<T>& z, const T* weights, const T* W, const T* bias,
                   std::size_t d) {
    detail::each_token(device, z.tokens, [&](std::size_t t) {
        T* row = out + t * d;
        for (std::size_t c = 0; c < d; ++c) row[c] = bias == nullptr ? T(0) : bias[c];
        for (std::size_t i = z.offsets[t]; i < z.offsets[t + 1]; ++i) {
            const T w = weights[i];
            const T* source = W + z.latent[i] * d;
#pragma omp simd
            for (std::size_t c = 0; c < d; ++c) row[c] += w * source[c];
        }
    });
}

// out[i] (+)= <G[token of i, :], W[latent[i], :]>: the adjoint of sparse_decode with respect to the values. G: [n, d].
template <class T>
void sparse_decode_adjoint(cpu& device, T* out, const codes_view<T>& z, const T* G, const T* W, std::size_t d,
                           write mode) {
    detail::each_token(device, z.tokens, [&](std::size_t t) {
        const T* g = G + t * d;
        for (std::size_t i = z.offsets[t]; i < z.offsets[t + 1]; ++i) {
            const T* w = W + z.latent[i] * d;
            T dot = 0;
#pragma omp simd reduction(+ : dot)
            for (std::size_t c = 0; c < d; ++c) dot += g[c] * w[c];
            out[i] = mode == write::add ? out[i] + dot : dot;
        }
    });
}

// Adds e over the entries to leaf[0] (one number), leaf[token] (one per token) or leaf[latent] (one per latent).
// Sequential: what broadcasts over codes is small.
template <class T, class E, class Place>
void codes_scatter(cpu&, T* leaf, std::size_t count, const codes_view<T>& z, const E& e, write mode,
                   const Place& place) {
    if (mode == write::overwrite) std::fill(leaf, leaf + count, T(0));
    for (std::size_t t = 0; t < z.tokens; ++t)
        for (std::size_t i = z.offsets[t]; i < z.offsets[t + 1]; ++i)
            leaf[place(t, z.latent[i])] += e.load(codes_position<T>{t, z.latent[i], z.value[i]});
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

// out[:] = sum over latents of weight[f] * W[f, :]. out: [d]; latents of weight 0 are not read.
template <class T>
void weighted_row_sum(cpu& device, arena<>& scratch, T* out, const T* weight, const T* W, std::size_t latents,
                      std::size_t d) {
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
    std::fill(out, out + d, T(0));
    for (std::size_t b = 0; b < blocks; ++b)
        for (std::size_t c = 0; c < d; ++c) out[c] += partial[b * d + c];
    scratch.release_to(mark);
}

// Row f of a parameter's gradient: its dense part plus its outer-product shares, in the order they were recorded. row:
// [cols].
template <class T>
void gradient_row(const parameter_gradient<T>& g, std::size_t f, std::size_t cols, T* row) {
    for (std::size_t c = 0; c < cols; ++c) row[c] = g.written ? g.data[f * cols + c] : T(0);
    for (const outer_product<T>* p = g.products; p != nullptr; p = p->next) {
        const codes_view<T>& z = *p->codes;
        for (std::size_t j = z.latent_offsets[f]; j < z.latent_offsets[f + 1]; ++j) {
            const T w = p->weights[z.entry_by_latent[j]];
            if (p->rows == nullptr) {
                row[0] += w;
            } else {
                const T* source = p->rows + std::size_t{z.token_by_latent[j]} * cols;
#pragma omp simd
                for (std::size_t c = 0; c < cols; ++c) row[c] += w * source[c];
            }
        }
    }
}

}  // namespace psae
