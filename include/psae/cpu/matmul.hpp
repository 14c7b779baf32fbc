#pragma once
// x W^T with an epilogue, and its adjoints.
//
// Packed weights have a product of their own: a task is a panel of columns by a block of rows, summed up in the
// first-level cache while the next weights are on their way to the second; the epilogue is evaluated on a tile that has
// just left the registers. Beside oneDNN's packed product, which waits for weights that come from memory, this takes
// 0.9 of the time on a ViT-B/16 whose weights exceed the caches. An element is summed in one order whatever the number
// of threads and of rows, so neither changes a result.

#include <algorithm>
#include <cstddef>
#include <utility>

#include <psae/cpu/gemm.hpp>
#include <psae/cpu/pointwise.hpp>
#include <psae/cpu/register_tile.hpp>
#include <psae/expr/epilogue.hpp>
#include <psae/stage/matmul.hpp>

namespace psae {

// Frozen weights [out, in] as panels: [out / columns, in, columns], the last one filled up with zeros. Packed once,
// when made; unpacked only by adjoints, into scratch memory.
template <class T, class Shape>
class packed_matrix {
    static_assert(Shape::rank == 2, "psae: weights are a matrix, [out, in]");

public:
    using value_type = T;
    using shape_type = Shape;
    static constexpr bool is_packed = true;
    static constexpr std::size_t columns = detail::register_tile<T>::columns;

    packed_matrix() = default;
    explicit packed_matrix(view<const T, Shape> W)
        : extents_(W.shape()), memory_(psae::shape<dyn>{panels() * W.cols() * columns}) {
        for (std::size_t o = 0; o < W.rows(); ++o)
            for (std::size_t i = 0; i < W.cols(); ++i) memory_[place(o, i)] = W(o, i);
    }

    const Shape& shape() const { return extents_; }
    std::size_t rows() const { return extents_.rows(); }
    std::size_t cols() const { return extents_.cols(); }
    std::size_t panels() const { return (rows() + columns - 1) / columns; }
    // Columns [p * columns, (p + 1) * columns) of W^T, [in, columns].
    const T* panel(std::size_t p) const { return memory_.data() + p * cols() * columns; }
    // The weights, row-major, in scratch memory.
    const T* unpacked(const cpu& device, arena<>& scratch) const {
        T* plain = scratch.allocate<T>(extents_.size());
        device.parallel_for(panels(), [&](std::size_t p) {
            for (std::size_t o = p * columns; o < std::min(rows(), (p + 1) * columns); ++o)
                for (std::size_t i = 0; i < cols(); ++i) plain[o * cols() + i] = memory_[place(o, i)];
        });
        return plain;
    }

private:
    std::size_t place(std::size_t o, std::size_t i) const { return (o / columns * cols() + i) * columns + o % columns; }

    Shape extents_{};
    tensor<T, psae::shape<dyn>> memory_;
};

template <>
struct weights_of<cpu> {
    template <class T, class Shape>
    using packed = packed_matrix<T, Shape>;
    template <class T, class Shape>
    using bias = tensor<T, Shape>;
};

namespace detail {

// One row of a tile, as a node of an epilogue: start[c] is column c of the result of shape Shape.
template <class T, class Shape>
struct tile_row_node {
    using value_type = T;
    using shape_type = Shape;
    const T* start;
    Shape extents;
    const Shape& shape() const { return extents; }
    template <class P>
    PSAE_FN T load(P p) const {
        return start[p.col];
    }
};

}  // namespace detail

// out [n, out] = epilogue(x W^T). x: [n, in].
template <class T, class Shape, class WeightsShape, epilogue E>
void matmul(cpu& device, arena<>& scratch, view<T, Shape> out, const T* x, const packed_matrix<T, WeightsShape>& W,
            const E& e) {
    using tile = detail::register_tile<T>;
    // In the first-level cache: the weights of one tile and block, 48 KiB with AVX-512.
    constexpr std::size_t inner_block = 192, least_tasks_per_thread = 4;
    // In the second-level cache: the rows of x of one task, 590 KiB for 768 columns.
    constexpr std::size_t most_tiles = 33;
    const std::size_t n = out.rows(), in = W.cols();
    const std::size_t tiles = (n + tile::rows - 1) / tile::rows, panels = W.panels();
    if (n == 0 || panels == 0) return;
    const auto threads = static_cast<std::size_t>(device.threads);
    const std::size_t row_tasks = std::min(tiles, std::max((tiles + most_tiles - 1) / most_tiles,
                                                           (least_tasks_per_thread * threads + panels - 1) / panels));
    const std::size_t tiles_per_task = (tiles + row_tasks - 1) / row_tasks;
    // The last tile may have fewer rows than a tile: it works on a copy of them.
    const std::size_t whole = n / tile::rows * tile::rows;
    const auto mark = scratch.position();
    T* remainder = scratch.allocate<T>(tile::rows * in);
    std::copy(x + whole * in, x + n * in, remainder);
    std::fill(remainder + (n - whole) * in, remainder + tile::rows * in, T(0));

    const std::size_t sums_size = tiles_per_task * tile::rows * tile::columns;
    parallel_with_scratch<T>(device, scratch, row_tasks * panels, sums_size, [=, &W](std::size_t task, T* sums) {
        const std::size_t panel = task % panels, first_tile = task / panels * tiles_per_task,
                          last_tile = std::min(tiles, first_tile + tiles_per_task);
        const std::size_t first_column = panel * tile::columns,
                          last_column = std::min(out.cols(), first_column + tile::columns);
        for (std::size_t k = 0; k < in; k += inner_block) {
            const std::size_t inner = std::min(inner_block, in - k);
            const T* weights = W.panel(panel) + k * tile::columns;
            // What this thread reads next; of another task, the one it takes if all threads are equally fast.
            const T* next = k + inner < in ? weights + inner * tile::columns : W.panel((task + threads) % panels);
            for (std::size_t t = first_tile; t < last_tile; ++t, next += inner / 8 * (64 / sizeof(T))) {
                const std::size_t row = t * tile::rows;
                T* sum = sums + (t - first_tile) * tile::rows * tile::columns;
                const T* source = (row < whole ? x + row * in : remainder) + k;
                const auto product =
                    k == 0 ? tile::template product<tile::vectors, false> : tile::template product<tile::vectors, true>;
                product(sum, tile::columns, source, in, weights, tile::columns, inner, next);
                if (k + inner < in) continue;
                for (std::size_t r = row; r < std::min(n, row + tile::rows); ++r, sum += tile::columns) {
                    const auto result = e(detail::tile_row_node<T, Shape>{sum - first_column, out.shape()});
                    T* target = out.data + r * out.cols();
#pragma omp simd
                    for (std::size_t c = first_column; c < last_column; ++c) target[c] = result.load(position{r, c});
                }
            }
        }
    });
    scratch.release_to(mark);
}

// The same with weights as they are, [out, in]: a product, then one pass of the epilogue.
template <class T, class Shape, class W, epilogue E>
void matmul(cpu& device, arena<>&, view<T, Shape> out, const T* x, const W& weights, const E& e) {
    const std::size_t columns = weights.rows(), in = weights.cols();
    gemm(device, false, true, out.rows(), columns, in, T(1), x, in, static_cast<const T*>(weights.data), in, T(0),
         out.data, columns);
    if constexpr (!std::is_same_v<E, no_epilogue>) assign(device, out, e(view<const T, Shape>{out.data, out.shape()}));
}

// dx [n, in] (+)= g W, the adjoint with respect to x. g: [n, out].
template <class T, class W>
void matmul_adjoint_input(cpu& device, arena<>& scratch, T* dx, const T* g, std::size_t n, const W& weights,
                          write how) {
    const auto mark = scratch.position();
    const T* plain;
    if constexpr (requires { W::is_packed; }) plain = weights.unpacked(device, scratch);
    else plain = weights.data;
    const std::size_t out = weights.rows(), in = weights.cols();
    gemm(device, false, false, n, in, out, T(1), g, out, plain, in, how == write::add ? T(1) : T(0), dx, in);
    scratch.release_to(mark);
}

// dW [out, in] (+)= g^T x, the adjoint with respect to the weights. g: [n, out]; x: [n, in].
template <class T>
void matmul_adjoint_weights(cpu& device, T* dW, const T* g, const T* x, std::size_t n, std::size_t out, std::size_t in,
                            write how) {
    gemm(device, true, false, out, in, n, T(1), g, out, x, in, how == write::add ? T(1) : T(0), dW, in);
}

}  // namespace psae
