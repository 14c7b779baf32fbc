#pragma once
// Rows of a parameter's gradient on the GPU: its parts as a kernel takes them, and their sum at some elements of a row.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <psae/cuda/rows.hpp>
#include <psae/grad/tape.hpp>

namespace psae::detail {

// The parts of a parameter_gradient, which the host links, side by side.
template <class T>
struct gradient_parts {
    static constexpr unsigned most_products = 32, most_multiples = 4;
    struct product {
        const std::size_t* latent_offsets;
        const std::uint32_t *token_by_latent, *entry_by_latent;
        const T *weights, *rows;
        latent_range range;
    };
    struct multiple {
        const T *slope, *divisor, *rows;
    };

    const T* dense = nullptr;  // or null
    unsigned product_count = 0, multiple_count = 0;
    product products[most_products];
    multiple multiples[most_multiples];

    bool empty() const { return dense == nullptr && product_count == 0 && multiple_count == 0; }
};

template <class T>
bool has_rows(const outer_product<T>& p, std::size_t first, std::size_t end) {
    return p.range.first < end && p.range.end > first;
}

// The parts that rows first .. end of a gradient have.
template <class T>
gradient_parts<T> flatten(const parameter_gradient<T>& g, std::size_t first, std::size_t end) {
    gradient_parts<T> parts{};
    if (g.written) parts.dense = g.data;
    for (const outer_product<T>* p = g.products; p != nullptr; p = p->next) {
        if (!has_rows(*p, first, end)) continue;
        const codes_view<T>& z = *p->codes;
        parts.products[parts.product_count++] = {z.latent_offsets, z.token_by_latent, z.entry_by_latent,
                                                 p->weights,       p->rows,           p->range};
    }
    for (const row_multiples<T>* m = g.multiples; m != nullptr; m = m->next) {
        if (!m->slope->written) continue;
        if (parts.multiple_count == parts.most_multiples)
            throw error("the norms of a parameter's rows have too many uses", "its gradient on the GPU", "at most 4");
        parts.multiples[parts.multiple_count++] = {m->slope->data, m->divisor, m->rows};
    }
    return parts;
}

// Where the rows from `first` on, at most to `end`, have as many products as a kernel takes. Where each prefix of the
// latents has products of its own there may be more of them, but few have the same rows.
template <class T>
std::size_t end_of_piece(const parameter_gradient<T>& g, std::size_t first, std::size_t end) {
    constexpr std::size_t most = gradient_parts<T>::most_products;
    std::vector<std::size_t> starts;
    for (const outer_product<T>* p = g.products; p != nullptr; p = p->next)
        if (has_rows(*p, first, end)) starts.push_back(std::max(first, p->range.first));
    if (starts.size() <= most) return end;
    std::nth_element(starts.begin(), starts.begin() + most, starts.end());
    if (starts[most] == first)
        throw error("a row of a parameter has too many uses with codes", "its gradient on the GPU",
                    "at most " + std::to_string(most));
    return starts[most];
}

// f(first, end, parts) for pieces of the rows first .. end of a gradient, one after the other.
template <class T, class F>
void each_piece(const parameter_gradient<T>& g, std::size_t first, std::size_t end, const F& f) {
    while (first < end) {
        const std::size_t next = end_of_piece(g, first, end);
        f(first, next, flatten(g, first, next));
        first = next;
    }
}

// Whether all parts have rows that can be read 16 bytes at a time.
template <class T>
bool has_wide_rows(const gradient_parts<T>& g, std::size_t cols) {
    bool all = has_wide_rows(g.dense, cols);
    for (unsigned p = 0; p < g.product_count; ++p) all = all && has_wide_rows(g.products[p].rows, cols);
    for (unsigned m = 0; m < g.multiple_count; ++m) all = all && has_wide_rows(g.multiples[m].rows, cols);
    return all;
}

template <class T, unsigned width>
__device__ void add_multiple(row_pack<T, width>& sum, T weight, const row_pack<T, width>& values) {
    for (unsigned i = 0; i < width; ++i) sum.of[i] += weight * values.of[i];
}

// sum += elements c .. c + width of row f, of `cols`: the dense part, products in the order they were recorded, each
// with its entries by token, multiples. width: 1, or wide_pack where the parts have wide rows.
template <unsigned width, class T>
__device__ void add_gradient_elements(row_pack<T, width>& sum, const gradient_parts<T>& g, std::size_t f, std::size_t c,
                                      std::size_t cols) {
    if (g.dense != nullptr) add_multiple(sum, T(1), load_pack<width>(g.dense + f * cols + c));
    for (unsigned p = 0; p < g.product_count; ++p) {
        const auto& product = g.products[p];
        if (!product.range.has(f)) continue;
        std::size_t first = product.latent_offsets[f];
        const std::size_t end = product.latent_offsets[f + 1];
        if (product.rows == nullptr) {
            for (; c == 0 && first < end; ++first) sum.of[0] += product.weights[product.entry_by_latent[first]];
            continue;
        }
        // The rows of some entries are under way at once, and with them what leads to the next. Sums of blocks are summed:
        // added one by one, the entries of a latent that fires for thousands of like tokens would round one way.
        constexpr unsigned together = 4, rounds_of_block = 16;
        row_pack<T, width> block{};
        unsigned rounds = 0;
        T weight[together];
        std::uint32_t token[together];
        const auto fetch = [&](std::size_t from) {
            for (unsigned i = 0; i < together; ++i) {
                const bool present = from + i < end;
                weight[i] = present ? product.weights[product.entry_by_latent[from + i]] : T(0);
                token[i] = present ? product.token_by_latent[from + i] : 0;
            }
        };
        for (fetch(first); first < end; first += together) {
            T now[together];
            row_pack<T, width> source[together] = {};
            for (unsigned i = 0; i < together; ++i) {
                now[i] = weight[i];
                if (now[i] != 0) source[i] = load_pack<width>(product.rows + token[i] * cols + c);
            }
            fetch(first + together);
            for (unsigned i = 0; i < together; ++i) add_multiple(block, now[i], source[i]);
            if (++rounds % rounds_of_block == 0) {
                add_multiple(sum, T(1), block);
                block = {};
            }
        }
        add_multiple(sum, T(1), block);
    }
    for (unsigned m = 0; m < g.multiple_count; ++m) {
        const auto& multiple = g.multiples[m];
        const T divisor = multiple.divisor[f];
        if (divisor != 0)
            add_multiple(sum, multiple.slope[f] / divisor, load_pack<width>(multiple.rows + f * cols + c));
    }
}

// Row f of a gradient of one column, made by a warp whose lanes share the entries out. All lanes get it.
template <class T>
__device__ T gradient_number(const gradient_parts<T>& g, std::size_t f) {
    T number = g.dense != nullptr ? g.dense[f] : T(0);
    for (unsigned p = 0; p < g.product_count; ++p) {
        const auto& product = g.products[p];
        if (!product.range.has(f)) continue;
        const std::size_t end = product.latent_offsets[f + 1];
        T sum = 0;
        for (std::size_t j = product.latent_offsets[f] + threadIdx.x % 32; j < end; j += 32) {
            const T weight = product.weights[product.entry_by_latent[j]];
            if (product.rows == nullptr) sum += weight;
            else if (weight != 0) sum += weight * product.rows[product.token_by_latent[j]];
        }
        number += sum_of_row(sum, 32);
    }
    for (unsigned m = 0; m < g.multiple_count; ++m) {
        const auto& multiple = g.multiples[m];
        const T divisor = multiple.divisor[f];
        if (divisor != 0) number += multiple.slope[f] / divisor * multiple.rows[f];
    }
    return number;
}

}  // namespace psae::detail
