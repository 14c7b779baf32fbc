#pragma once
// Kernels on codes on the GPU: pointwise expressions over their entries, sparse decode and its adjoint, and rows of
// weight gradients. Every sum is taken in a fixed order, whatever room the codes have: a token's decoded row by latent,
// what else is summed by threads or blocks that have fixed shares.
//
// The number of entries is in device memory. Kernels start one block for each token, or for each piece of the room, and
// stop where the offsets say.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include <psae/core/arena.hpp>
#include <psae/cuda/gradient_rows.hpp>
#include <psae/cuda/selection.hpp>
#include <psae/grad/tape.hpp>

namespace psae {

namespace detail {

inline constexpr unsigned threads_of_sum = 128;  // of a block that sums up a row: it decides the order of the sum

// Threads of a block that goes through the entries of a token without summing them up: as its mean number of them says.
template <class T>
unsigned threads_of_entries(const codes_view<T>& z) {
    const std::size_t mean = z.tokens == 0 ? 0 : z.room / z.tokens;
    return mean <= 64 ? 32 : mean <= 512 ? 128 : 256;
}

template <class T>
__device__ codes_position<T> entry_at(const codes_view<T>& z, std::size_t token, std::size_t i) {
    return {token, z.latent[i], z.value[i], i};
}
template <class T>
__device__ codes_position<T> entry_at(const codes_tile<T>& z, std::size_t token, std::size_t column) {
    const std::size_t i = token * z.count + column;
    return {token, z.first + column, z.value[i], i};
}

// A block for each token: out[t] (+)= sum over the entries of token t of e.
template <class T, class E>
__global__ void sum_entries_kernel(T* out, codes_view<T> z, E e, bool add) {
    const std::size_t token = blockIdx.x, end = z.offsets[token + 1];
    T sum = 0;
    for (std::size_t i = z.offsets[token] + threadIdx.x; i < end; i += blockDim.x)
        sum += static_cast<T>(e.load(entry_at(z, token, i)));
    sum = sum_of_row(sum, threads_of_sum);
    if (threadIdx.x == 0) out[token] = add ? out[token] + sum : sum;
}
template <class T, class E>
__global__ void sum_entries_of_tile_kernel(T* out, codes_tile<T> z, E e, bool add) {
    const std::size_t token = blockIdx.x;
    T sum = 0;
    for (std::size_t j = threadIdx.x; j < z.count; j += blockDim.x) {
        const codes_position<T> entry = entry_at(z, token, j);
        if (z.has(entry.value)) sum += static_cast<T>(e.load(entry));
    }
    sum = sum_of_row(sum, threads_of_sum);
    if (threadIdx.x == 0) out[token] = add ? out[token] + sum : sum;
}
template <class T, class E>
void sum_by_token(const cuda& device, T* out, const codes_view<T>& z, const E& e, bool add) {
    launch(device, sum_entries_kernel<T, E>, blocks_of(z.tokens, 1), threads_of_sum, 0, out, z, e, add);
}
template <class T, class E>
void sum_by_token(const cuda& device, T* out, const codes_tile<T>& z, const E& e, bool add) {
    launch(device, sum_entries_of_tile_kernel<T, E>, blocks_of(z.tokens, 1), threads_of_sum, 0, out, z, e, add);
}

// *sum += all of values [count], by one block.
template <class T>
__global__ void add_all_kernel(T* sum, const T* values, std::size_t count) {
    double own = 0;
    for (std::size_t i = threadIdx.x; i < count; i += blockDim.x) own += static_cast<double>(values[i]);
    own = sum_of_row(own, threads_of_sum);
    if (threadIdx.x == 0) *sum += static_cast<T>(own);
}

// Sums of columns, first over blocks of rows, partial[block, c] = sum of term(row, c), and then of those.
template <class Sum, class Term>
__global__ void sum_columns_of_blocks_kernel(Sum* partial, std::size_t rows, std::size_t cols,
                                             std::size_t rows_of_block, Term term) {
    const std::size_t c = std::size_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (c >= cols) return;
    const std::size_t first = blockIdx.y * rows_of_block,
                      end = first + rows_of_block < rows ? first + rows_of_block : rows;
    Sum sum = 0;
    for (std::size_t r = first; r < end; ++r) sum += term(r, c);
    partial[blockIdx.y * cols + c] = sum;
}
template <class Sum>
__global__ void add_columns_of_blocks_kernel(Sum* sums, const Sum* partial, std::size_t blocks, std::size_t cols,
                                             bool add) {
    const std::size_t c = std::size_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (c >= cols) return;
    Sum sum = add ? sums[c] : Sum(0);
    constexpr unsigned together = 16;  // loads that are under way at once
    for (std::size_t b = 0; b < blocks; b += together) {
        Sum some[together];
        for (unsigned i = 0; i < together; ++i) some[i] = b + i < blocks ? partial[(b + i) * cols + c] : Sum(0);
        for (const Sum one : some) sum += one;
    }
    sums[c] = sum;
}
// sums[c] (+)= sum over rows of term(row, c); term is called once for each place and may write there. sums: [cols].
template <class Sum, class Term>
void sum_columns(const cuda& device, arena<space::device>& scratch, Sum* sums, std::size_t rows, std::size_t cols,
                 const Term& term, write mode) {
    constexpr unsigned threads = 128;
    constexpr std::size_t most_blocks = 256;
    const std::size_t rows_of_block = std::max<std::size_t>(64, (rows + most_blocks - 1) / most_blocks);
    const unsigned blocks = blocks_of(rows, rows_of_block), across = blocks_of(cols, threads);
    const auto mark = scratch.position();
    Sum* partial = scratch.allocate<Sum>(blocks * cols);
    launch(device, sum_columns_of_blocks_kernel<Sum, Term>, dim3(across, blocks), threads, 0, partial, rows, cols,
           rows_of_block, term);
    launch(device, add_columns_of_blocks_kernel<Sum>, across, threads, 0, sums, partial, blocks, cols,
           mode == write::add);
    scratch.release_to(mark);
}

template <class T, class E>
struct tile_terms {
    codes_tile<T> z;
    E e;
    __device__ T operator()(std::size_t token, std::size_t column) const {
        const codes_position<T> entry = entry_at(z, token, column);
        return z.has(entry.value) ? static_cast<T>(e.load(entry)) : T(0);
    }
};
template <class T>
struct tile_activity {
    codes_tile<T> z;
    __device__ std::uint32_t operator()(std::size_t token, std::size_t column) const {
        return z.value[token * z.count + column] != 0 ? 1 : 0;
    }
};
// Makes the gradients of the pre-activations on its way.
template <class T, class Activation>
struct tile_derivatives {
    T* g;
    codes_tile<T> z;
    Activation activation;
    __device__ T operator()(std::size_t token, std::size_t column) const {
        const std::size_t i = token * z.count + column;
        const T value = z.value[i];
        return g[i] = z.has(value) ? g[i] * activation.derivative(value) : T(0);
    }
};

template <class T, class Activation>
__global__ void multiply_entries_by_derivative_kernel(T* g, codes_view<T> z, Activation activation) {
    const std::size_t i = std::size_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (i < z.offsets[z.tokens]) g[i] *= activation.derivative(z.value[i]);
}

// A block for each token.
template <class T, class E>
__global__ void assign_entries_kernel(T* out, codes_view<T> z, E e, bool add) {
    const std::size_t token = blockIdx.x, end = z.offsets[token + 1];
    for (std::size_t i = z.offsets[token] + threadIdx.x; i < end; i += blockDim.x) {
        const T value = static_cast<T>(e.load(entry_at(z, token, i)));
        out[i] = add ? out[i] + value : value;
    }
}

inline constexpr unsigned columns_of_block = 1024;  // of a tile's row, in kernels with blocks (token, part of the row)

template <class T, class E>
__global__ void assign_entries_of_tile_kernel(T* out, codes_tile<T> z, E e, bool add) {
    const std::size_t token = blockIdx.x, first = std::size_t{blockIdx.y} * columns_of_block,
                      end = first + columns_of_block < z.count ? first + columns_of_block : z.count;
    for (std::size_t j = first + threadIdx.x; j < end; j += blockDim.x) {
        const codes_position<T> entry = entry_at(z, token, j);
        const T value = z.has(entry.value) ? static_cast<T>(e.load(entry)) : T(0);
        out[entry.entry] = add ? out[entry.entry] + value : value;
    }
}

// leaf[token, latent] += e.
template <class T, class E>
__global__ void add_entries_at_places_kernel(T* leaf, std::size_t cols, codes_view<T> z, E e) {
    const std::size_t token = blockIdx.x, end = z.offsets[token + 1];
    for (std::size_t i = z.offsets[token] + threadIdx.x; i < end; i += blockDim.x) {
        const codes_position<T> entry = entry_at(z, token, i);
        leaf[token * cols + entry.col] += static_cast<T>(e.load(entry));
    }
}
template <class T, class E>
__global__ void add_tile_at_places_kernel(T* leaf, std::size_t cols, codes_tile<T> z, E e) {
    const std::size_t token = blockIdx.x, first = std::size_t{blockIdx.y} * columns_of_block,
                      end = first + columns_of_block < z.count ? first + columns_of_block : z.count;
    for (std::size_t j = first + threadIdx.x; j < end; j += blockDim.x) {
        const codes_position<T> entry = entry_at(z, token, j);
        if (z.has(entry.value)) leaf[token * cols + entry.col] += static_cast<T>(e.load(entry));
    }
}
template <class T, class E>
void add_at_places(const cuda& device, T* leaf, std::size_t cols, const codes_view<T>& z, const E& e) {
    launch(device, add_entries_at_places_kernel<T, E>, blocks_of(z.tokens, 1), threads_of_entries(z), 0, leaf, cols, z,
           e);
}
template <class T, class E>
void add_at_places(const cuda& device, T* leaf, std::size_t cols, const codes_tile<T>& z, const E& e) {
    launch(device, add_tile_at_places_kernel<T, E>, dim3(blocks_of(z.tokens, 1), blocks_of(z.count, columns_of_block)),
           256, 0, leaf, cols, z, e);
}

// The first of the entries [first, end) of a token whose latent is not below `latent`.
template <class T>
__device__ std::size_t first_entry_from(const codes_view<T>& z, std::size_t first, std::size_t end,
                                        std::size_t latent) {
    while (first < end) {
        const std::size_t middle = first + (end - first) / 2;
        if (z.latent[middle] < latent) first = middle + 1;
        else end = middle;
    }
    return first;
}

// A block for each token and part of its row, each thread with `width` columns. The entries are taken as many at a time
// as there are threads: what is not 0 of them moves together in shared memory, and all threads go through it.
inline constexpr unsigned most_decode_threads = 256;

template <unsigned width, class T>
__global__ void decode_entries_kernel(T* out, codes_view<T> z, const T* weights, const T* W, const T* bias,
                                      std::size_t bias_stride, std::size_t d, latent_range range) {
    __shared__ T weight[most_decode_threads];
    __shared__ std::size_t source[most_decode_threads];
    const std::size_t token = blockIdx.x, c = (std::size_t{blockIdx.y} * blockDim.x + threadIdx.x) * width;
    std::size_t first = z.offsets[token], end = z.offsets[token + 1];
    if (!range.is_everything()) {
        const std::size_t all = end;
        first = first_entry_from(z, first, all, range.first);
        if (range.end != latent_range::unbounded) end = first_entry_from(z, first, all, range.end);
    }
    row_pack<T, width> sum{};
    if (c < d && bias != nullptr) sum = load_pack<width>(bias + token * bias_stride + c);
    for (; first < end; first += blockDim.x) {
        const std::size_t i = first + threadIdx.x;
        const T own = i < end ? weights[i] : T(0);
        unsigned staged;
        const unsigned place = count_before(own != 0, staged);
        if (own != 0) {
            weight[place] = own;
            source[place] = z.latent[i] * d;
        }
        __syncthreads();
        if (c >= d) continue;
        constexpr unsigned together = 4;  // rows whose loads are under way at once
        for (unsigned j = 0; j < staged; j += together) {
            row_pack<T, width> values[together];
            for (unsigned k = 0; k < together; ++k)
                if (j + k < staged) values[k] = load_pack<width>(W + source[j + k] + c);
            for (unsigned k = 0; k < together; ++k)
                if (j + k < staged) add_multiple(sum, weight[j + k], values[k]);
        }
    }
    if (c < d) store_pack(out + token * d + c, sum);
}

// Blocks (token, part of its entries), a warp for each entry at a time.
template <unsigned width, class T>
__global__ void multiply_entries_by_rows_kernel(T* out, codes_view<T> z, const T* G, const T* W, std::size_t d,
                                                bool add, latent_range range) {
    const std::size_t token = blockIdx.x, end = z.offsets[token + 1];
    const unsigned lane = threadIdx.x % 32, warps = blockDim.x / 32;
    const T* g = G + token * d;
    for (std::size_t i = z.offsets[token] + blockIdx.y * warps + threadIdx.x / 32; i < end; i += gridDim.y * warps) {
        if (!range.has(z.latent[i])) {
            if (!add && lane == 0) out[i] = 0;
            continue;
        }
        const T* w = W + z.latent[i] * d;
        T dot = 0;
        for (std::size_t c = lane * width; c < d; c += 32 * width) {
            const row_pack<T, width> of_g = load_pack<width>(g + c), of_w = load_pack<width>(w + c);
            for (unsigned k = 0; k < width; ++k) dot += of_g.of[k] * of_w.of[k];
        }
        dot = sum_of_row(dot, 32);
        if (lane == 0) out[i] = add ? out[i] + dot : dot;
    }
}

template <class T>
__global__ void start_rows_kernel(T* out, std::size_t d, const T* bias, std::size_t bias_stride) {
    const std::size_t row = blockIdx.x;
    for (std::size_t c = threadIdx.x; c < d; c += blockDim.x)
        out[row * d + c] = bias == nullptr ? T(0) : bias[row * bias_stride + c];
}

// A warp for each row.
template <unsigned width, class T>
__global__ void measure_rows_kernel(T* norms, const T* W, std::size_t rows, std::size_t d) {
    const std::size_t row = (std::size_t{blockIdx.x} * blockDim.x + threadIdx.x) / 32;
    if (row >= rows) return;
    T squares = 0;
    for (std::size_t c = threadIdx.x % 32 * width; c < d; c += 32 * width) {
        const row_pack<T, width> w = load_pack<width>(W + row * d + c);
        for (unsigned k = 0; k < width; ++k) squares += w.of[k] * w.of[k];
    }
    squares = sum_of_row(squares, 32);
    if (threadIdx.x % 32 == 0) norms[row] = std::sqrt(squares);
}

// A block for each token.
template <class T>
__global__ void keep_strongest_entries_kernel(T* out, codes_view<T> z, std::size_t k, const T* weight) {
    const std::size_t first = z.offsets[blockIdx.x];
    const auto count = static_cast<unsigned>(z.offsets[blockIdx.x + 1] - first);
    const auto key_of = [&](unsigned i) {
        const T value = z.value[first + i];
        return key_of_rank(weight == nullptr ? value : weight[z.latent[first + i]] * value);
    };
    if (k == 0 || count <= k) {
        for (unsigned i = threadIdx.x; i < count; i += blockDim.x) out[first + i] = k == 0 ? T(0) : z.value[first + i];
        return;
    }
    const auto kth = find_kth_largest<rank_key<T>>(count, static_cast<unsigned>(k), key_of);
    unsigned equal = 0;  // to the k-th so far
    for (unsigned done = 0; done < count; done += blockDim.x) {
        const unsigned i = done + threadIdx.x;
        const rank_key<T> key = i < count ? key_of(i) : 0;
        const bool is_equal = i < count && key == kth.key;
        unsigned equal_here;
        const unsigned before = equal + count_before(is_equal, equal_here);
        equal += equal_here;
        if (i < count) out[first + i] = key > kth.key || (is_equal && before < kth.equal) ? z.value[first + i] : T(0);
    }
}

// A warp for each latent: sums[f] (+)= sum over its entries, by token, of e.
template <class T, class E>
__global__ void sum_entries_of_latents_kernel(T* sums, codes_view<T> z, E e, bool add) {
    const std::size_t f = (std::size_t{blockIdx.x} * blockDim.x + threadIdx.x) / 32;
    if (f >= z.latents) return;
    const std::size_t end = z.latent_offsets[f + 1];
    T sum = 0;
    for (std::size_t j = z.latent_offsets[f] + threadIdx.x % 32; j < end; j += 32) {
        const std::size_t i = z.entry_by_latent[j];
        sum += static_cast<T>(e.load(codes_position<T>{z.token_by_latent[j], f, z.value[i], i}));
    }
    sum = sum_of_row(sum, 32);
    if (threadIdx.x % 32 == 0) sums[f] = add ? sums[f] + sum : sum;
}
template <class T, class E>
void sum_by_latent(const cuda& device, T* sums, const codes_view<T>& z, const E& e, bool add) {
    constexpr unsigned latents_of_block = 8;
    launch(device, sum_entries_of_latents_kernel<T, E>, blocks_of(z.latents, latents_of_block), 32 * latents_of_block,
           0, sums, z, e, add);
}
// Numbers by entry, as what such sums take.
template <class T>
struct weights_by_entry {
    const T* weights;
    PSAE_FN T load(codes_position<T> p) const { return weights[p.entry]; }
};

// Rows of W, each weighted; a row of weight 0 is not read.
template <class T>
struct weighted_rows {
    const T *weight, *W;
    std::size_t d;
    __device__ T operator()(std::size_t row, std::size_t c) const {
        const T w = weight[row];
        return w == 0 ? T(0) : w * W[row * d + c];
    }
};

template <class T>
__global__ void count_active_entries_kernel(std::uint32_t* fired, codes_view<T> z) {
    const std::size_t i = std::size_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (i < z.offsets[z.tokens] && z.value[i] != 0) atomicAdd(&fired[z.latent[i]], 1u);
}

// One block.
template <class Sum, class Index>
__global__ void __launch_bounds__(1024) count_all_active_kernel(Sum* active, const Index* fired, std::size_t latents) {
    unsigned long long own = 0;
    constexpr unsigned together = 8;  // loads that are under way at once
    for (std::size_t from = threadIdx.x; from < latents; from += std::size_t{together} * blockDim.x)
        for (unsigned i = 0; i < together; ++i) {
            const std::size_t f = from + std::size_t{i} * blockDim.x;
            own += f < latents ? fired[f] : 0;
        }
    own = sum_of_row(own, 1024);
    if (threadIdx.x == 0) *active = static_cast<Sum>(own);
}

// One block.
template <class Index>
__global__ void __launch_bounds__(1024)
    keep_silent_latents_kernel(Index* index, std::size_t* count, latent_set set, const Index* fired) {
    const std::size_t all = *set.count;
    std::size_t kept = 0;
    for (std::size_t first = 0; first < all; first += blockDim.x) {
        const std::size_t j = first + threadIdx.x;
        const bool is_silent = j < all && fired[set.index[j]] == 0;
        unsigned kept_here;
        const std::size_t place = kept + count_before(is_silent, kept_here);
        if (is_silent) index[place] = set.index[j];
        kept += kept_here;
    }
    if (threadIdx.x == 0) *count = kept;
}

template <class T>
__global__ void copy_size_of_kernel(T* out, latent_set set) {
    *out = static_cast<T>(*set.count);
}

// A block for each row of several columns.
template <unsigned width, class T>
__global__ void add_gradient_to_rows_kernel(T* rows, gradient_parts<T> g, std::size_t first, std::size_t cols) {
    T* row = rows + blockIdx.x * cols;
    for (std::size_t c = threadIdx.x * width; c < cols; c += blockDim.x * width) {
        row_pack<T, width> sum = load_pack<width>(row + c);
        add_gradient_elements(sum, g, first + blockIdx.x, c, cols);
        store_pack(row + c, sum);
    }
}
// A warp for each row of one column.
template <class T>
__global__ void add_gradient_to_numbers_kernel(T* numbers, gradient_parts<T> g, std::size_t first, std::size_t count) {
    const std::size_t row = (std::size_t{blockIdx.x} * blockDim.x + threadIdx.x) / 32;
    if (row >= count) return;
    const T number = gradient_number(g, first + row);
    if (threadIdx.x % 32 == 0) numbers[row] += number;
}

}  // namespace detail

// out[t] = sum over the entries of token t of e. out: [n, 1].
template <class T, class E>
void codes_sums(const cuda& device, T* out, const codes_view<T>& z, const E& e) {
    detail::sum_by_token(device, out, z, e, false);
}
// The same for a tile; shares of tiles after the first are added.
template <class T, class E>
void codes_sums(const cuda& device, T* out, const codes_tile<T>& z, const E& e) {
    detail::sum_by_token(device, out, z, e, z.first != 0);
}

// g[i] *= activation.derivative(z[i]): the gradient of the pre-activations from that of the values, in place.
template <class T, class Activation>
void multiply_by_derivative(const cuda& device, T* g, const codes_view<T>& z, const Activation& activation) {
    constexpr unsigned threads = 256;
    launch(device, detail::multiply_entries_by_derivative_kernel<T, Activation>, detail::blocks_of(z.room, threads),
           threads, 0, g, z, activation);
}
// The same for a tile, g: [n, count], 0 where a latent is not active. sums[j] = sum over tokens of g[:, j]; sums:
// [count].
template <class T, class Activation>
void multiply_by_derivative(const cuda& device, arena<space::device>& scratch, T* g, T* sums, const codes_tile<T>& z,
                            const Activation& activation) {
    detail::sum_columns(device, scratch, sums, z.tokens, z.count,
                        detail::tile_derivatives<T, Activation>{g, z, activation}, write::overwrite);
}

// out[i] (+)= e at entry i. out: [nnz].
template <class T, class E>
void codes_assign(const cuda& device, T* out, const codes_view<T>& z, const E& e, write mode) {
    launch(device, detail::assign_entries_kernel<T, E>, detail::blocks_of(z.tokens, 1), detail::threads_of_entries(z),
           0, out, z, e, mode == write::add);
}
// The same for a tile. out: [n, count]; 0 (or unchanged) where a latent is not active.
template <class T, class E>
void codes_assign(const cuda& device, T* out, const codes_tile<T>& z, const E& e, write mode) {
    launch(device, detail::assign_entries_of_tile_kernel<T, E>,
           dim3(detail::blocks_of(z.tokens, 1), detail::blocks_of(z.count, detail::columns_of_block)), 256, 0, out, z,
           e, mode == write::add);
}

// out[t, :] = bias + sum over entries of weight[i] * W[latent[i], :], for latents in the range; bias may be null. out:
// [n, d]. weights: [nnz]. Rows of bias are bias_stride apart, 0 for a single one.
template <class T>
void sparse_decode(const cuda& device, T* out, const codes_view<T>& z, const T* weights, const T* W, const T* bias,
                   std::size_t d, latent_range range = {}, std::size_t bias_stride = 0) {
    using namespace detail;
    const auto start = [&](auto kernel, unsigned width) {
        const std::size_t pieces = (d + width - 1) / width;
        const unsigned threads = row_threads(pieces, most_decode_threads).threads;
        launch(device, kernel, dim3(blocks_of(z.tokens, 1), blocks_of(pieces, threads)), threads, 0, out, z, weights, W,
               bias, bias_stride, d, range);
    };
    if (has_wide_rows(out, d) && has_wide_rows(W, d) && has_wide_rows(bias, d) && bias_stride % wide_pack<T> == 0)
        start(decode_entries_kernel<wide_pack<T>, T>, wide_pack<T>);
    else start(decode_entries_kernel<1, T>, 1);
}

// out[i] (+)= <G[token of i, :], W[latent[i], :]>: the adjoint of sparse_decode with respect to the values. G: [n, d].
template <class T>
void sparse_decode_adjoint(const cuda& device, T* out, const codes_view<T>& z, const T* G, const T* W, std::size_t d,
                           write mode, latent_range range = {}) {
    using namespace detail;
    constexpr unsigned threads = 128;
    constexpr std::size_t entries_of_block = 64, most = 256;
    const std::size_t mean = z.tokens == 0 ? 0 : z.room / z.tokens;
    const dim3 blocks(blocks_of(z.tokens, 1),
                      static_cast<unsigned>(std::clamp<std::size_t>(mean / entries_of_block, 1, most)));
    launch(device,
           has_wide_rows(G, d) && has_wide_rows(W, d) ? multiply_entries_by_rows_kernel<wide_pack<T>, T>
                                                      : multiply_entries_by_rows_kernel<1, T>,
           blocks, threads, 0, out, z, G, W, d, mode == write::add, range);
}

// out[t, :] = bias, or 0 if it is null: what tiles are decoded onto. out: [n, d]. Rows of bias are bias_stride apart, 0
// for a single one.
template <class T>
void decode_start(const cuda& device, T* out, std::size_t tokens, std::size_t d, const T* bias,
                  std::size_t bias_stride) {
    launch(device, detail::start_rows_kernel<T>, detail::blocks_of(tokens, 1), detail::row_threads(d, 256).threads, 0,
           out, d, bias, bias_stride);
}

// norms[r] = Euclidean norm of row r of W. W: [rows, d].
template <class T>
void row_norms(const cuda& device, T* norms, const T* W, std::size_t rows, std::size_t d) {
    using namespace detail;
    constexpr unsigned rows_of_block = 8;
    launch(device, has_wide_rows(W, d) ? measure_rows_kernel<wide_pack<T>, T> : measure_rows_kernel<1, T>,
           blocks_of(rows, rows_of_block), 32 * rows_of_block, 0, norms, W, rows, d);
}

// out[i] = z.value[i] for the k largest values of each token (of equal ones those that stand first), by weight[f] *
// value unless weight is null, else 0.
template <class T>
void keep_strongest(const cuda& device, arena<space::device>&, T* out, const codes_view<T>& z, std::size_t k,
                    const T* weight) {
    launch(device, detail::keep_strongest_entries_kernel<T>, detail::blocks_of(z.tokens, 1), 128, 0, out, z, k, weight);
}

// Adds e over all entries to a leaf of this shape, whose last extent is cols: to a single number, to one for each token,
// or at (token, latent).
template <class Shape, class T, class Codes, class E>
void add_to_leaf(const cuda& device, arena<space::device>& scratch, T* leaf, std::size_t cols, const Codes& z,
                 const E& e) {
    constexpr bool is_column = Shape::static_cols == 1;
    static_assert(Shape::rank != 1 || is_column, "psae: numbers by latent are sums of their own");
    if constexpr (Shape::rank <= 1) {
        const auto mark = scratch.position();
        T* sums = scratch.allocate<T>(z.tokens);
        detail::sum_by_token(device, sums, z, e, false);
        launch(device, detail::add_all_kernel<T>, 1, detail::threads_of_sum, 0, leaf, sums, z.tokens);
        scratch.release_to(mark);
    } else if constexpr (is_column) {
        detail::sum_by_token(device, leaf, z, e, true);
    } else {
        detail::add_at_places(device, leaf, cols, z, e);
    }
}

// leaf[f] += sum over the entries of latent f of e. leaf: [d_sae].
template <class T, class E>
void add_latent_sums(const cuda& device, arena<space::device>&, T* leaf, const codes_view<T>& z, const E& e) {
    detail::sum_by_latent(device, leaf, z, e, true);
}
template <class T, class E>
void add_latent_sums(const cuda& device, arena<space::device>& scratch, T* leaf, const codes_tile<T>& z, const E& e) {
    detail::sum_columns(device, scratch, leaf + z.first, z.tokens, z.count, detail::tile_terms<T, E>{z, e}, write::add);
}

// sums[f] = sum over the entries of latent f of weights. sums: [d_sae].
template <class T>
void latent_sums(const cuda& device, T* sums, const codes_view<T>& z, const T* weights) {
    detail::sum_by_latent(device, sums, z, detail::weights_by_entry<T>{weights}, false);
}

// out[:] (+)= sum over latents of weight[f] * W[f, :]. out: [d]; latents of weight 0 are not read.
template <class T>
void weighted_row_sum(const cuda& device, arena<space::device>& scratch, T* out, const T* weight, const T* W,
                      std::size_t latents, std::size_t d, write mode) {
    detail::sum_columns(device, scratch, out, latents, d, detail::weighted_rows<T>{weight, W, d}, mode);
}

// fired[f] = number of entries of latent f that are not 0. fired: [d_sae]. With or without a latent-major view.
template <class T>
void count_active(const cuda& device, arena<space::device>&, std::uint32_t* fired, const codes_view<T>& z) {
    constexpr unsigned threads = 256;
    detail::check(cudaMemsetAsync(fired, 0, z.latents * sizeof(*fired), device.stream()), "count_active");
    launch(device, detail::count_active_entries_kernel<T>, detail::blocks_of(z.room, threads), threads, 0, fired, z);
}
// The same for the latents of a tile. fired: [count].
template <class T>
void count_active(const cuda& device, arena<space::device>& scratch, std::uint32_t* fired, const codes_tile<T>& z) {
    detail::sum_columns(device, scratch, fired, z.tokens, z.count, detail::tile_activity<T>{z}, write::overwrite);
}

// *active = the sum of fired [latents].
template <class Sum>
void count_all_active(const cuda& device, Sum* active, const std::uint32_t* fired, std::size_t latents) {
    launch(device, detail::count_all_active_kernel<Sum, std::uint32_t>, 1, 1024, 0, active, fired, latents);
}

// Those of the set with fired[f] == 0, ascending, and in *count their number. index: room for as many as the set has.
inline void keep_silent(const cuda& device, std::uint32_t* index, std::size_t* count, latent_set set,
                        const std::uint32_t* fired) {
    launch(device, detail::keep_silent_latents_kernel<std::uint32_t>, 1, 1024, 0, index, count, set, fired);
}

// *out = number of latents of the set.
template <class T>
void copy_size(const cuda& device, T* out, latent_set set) {
    launch(device, detail::copy_size_of_kernel<T>, 1, 1, 0, out, set);
}

// rows += rows first .. first + count of a gradient. rows: [count, cols].
template <class T>
void add_gradient_rows(const cuda& device, const parameter_gradient<T>& g, std::size_t first, std::size_t count,
                       std::size_t cols, T* rows) {
    using namespace detail;
    each_piece(g, first, first + count, [&](std::size_t from, std::size_t end, const gradient_parts<T>& parts) {
        if (parts.empty()) return;
        T* to = rows + (from - first) * cols;
        if (cols == 1) {
            constexpr unsigned rows_of_block = 8;
            launch(device, add_gradient_to_numbers_kernel<T>, blocks_of(end - from, rows_of_block), 32 * rows_of_block,
                   0, to, parts, from, end - from);
            return;
        }
        const bool wide = has_wide_rows(to, cols) && has_wide_rows(parts, cols);
        launch(device, wide ? add_gradient_to_rows_kernel<wide_pack<T>, T> : add_gradient_to_rows_kernel<1, T>,
               blocks_of(end - from, 1), row_threads(wide ? cols / wide_pack<T> : cols, 256).threads, 0, to, parts,
               from, cols);
    });
}

}  // namespace psae
