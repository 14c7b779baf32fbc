#pragma once
// What the stages on dense rows share: the memory of their inputs, where the gradient of an input goes, and the shapes
// of their results.

#include <type_traits>
#include <utility>

#include <psae/core/element.hpp>
#include <psae/grad/differentiate.hpp>

namespace psae::detail {

// Shape with another last extent.
template <class Shape, std::size_t Last, class = std::make_index_sequence<Shape::rank - 1>>
struct replace_last_extent;
template <class Shape, std::size_t Last, std::size_t... I>
struct replace_last_extent<Shape, Last, std::index_sequence<I...>> {
    using type = shape<Shape::static_extent(I)..., Last>;
};
template <std::size_t Last, class Shape>
typename replace_last_extent<Shape, Last>::type with_last_extent(const Shape& s, std::size_t last) {
    std::size_t extents[Shape::rank];
    for (std::size_t i = 0; i + 1 < Shape::rank; ++i) extents[i] = s.extent(i);
    extents[Shape::rank - 1] = last;
    return replace_last_extent<Shape, Last>::type::from_extents(extents);
}

// True if Row is [d] and can be as long as the last extent of Shape.
template <class Shape, class Row>
inline constexpr bool row_fits = Row::rank == 1 && (Row::static_cols == Shape::static_cols || Row::static_cols == dyn ||
                                                    Shape::static_cols == dyn);

// The type of a stage's result: the one asked for or, for void, that of its input, which is computed in float where it is
// bf16. Activations that only products read may be asked for in bf16, where a backend has such products; what reads or
// makes them has no gradient.
template <class Asked, class Input>
struct result_type {
    using type = Asked;
};
template <class Input>
struct result_type<void, Input> {
    using type = std::conditional_t<std::is_same_v<Input, bf16>, float, Input>;
};
template <class Asked, class X>
using result_type_t = typename result_type<Asked, typename node_t<X>::value_type>::type;

// True if the node is dense memory, not an expression and not something that broadcasts.
template <class N>
inline constexpr bool is_dense = false;
template <class N>
requires requires(const N& n) { n.data; }
inline constexpr bool is_dense<N> = N::shape_type::rank >= 2;

// The values of a node [.., d] as memory: where they stand, or an expression evaluated into the arena.
template <class Tape, class N>
const typename N::value_type* dense_values(Tape& t, const N& n) {
    static_assert(N::shape_type::rank >= 2, "psae: a stage on rows takes [.., d]");
    if constexpr (is_dense<N>) {
        return n.data;
    } else {
        using T = typename N::value_type;
        T* values = t.arena().template allocate<T>(n.shape().size());
        assign(t.device(), view<T, typename N::shape_type, Tape::memory>{values, n.shape()}, n);
        return values;
    }
}

// Adds to the gradient of an input what `adjoint(dx, how)` writes to or adds to dx [.., d]; nothing runs where no
// gradient is wanted.
template <class Tape, class N, class Adjoint>
void add_input_gradient(Tape& t, const N& n, const Adjoint& adjoint) {
    if constexpr (!differentiable<N>) {
        return;
    } else if constexpr (is_dense<N>) {
        if (n.adjoint == nullptr) return;
        auto* dx = t.dense(*n.adjoint, n.shape().size());
        adjoint(dx, n.adjoint->written ? write::add : write::overwrite);
        n.adjoint->written = true;
    } else {
        using T = typename N::value_type;
        T* dx = t.arena().template allocate<T>(n.shape().size());
        adjoint(dx, write::overwrite);
        accumulate_gradients(t, n, const_view<T, typename N::shape_type, Tape::memory>{dx, n.shape()});
    }
}

}  // namespace psae::detail
