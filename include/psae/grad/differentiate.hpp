#pragma once
// Derivatives of expressions. The cotangent of each leaf is itself an expression (the cotangent of the whole times the
// partial derivatives on the way down), so the kernels that evaluate and reduce expressions compute gradients too.

#include <psae/grad/tape.hpp>

namespace psae {

namespace detail {

// The I-th partial derivative of a functor, as a functor of the same arguments.
template <class F, std::size_t I>
struct partial_functor : F {
    template <class T, class... More>
    PSAE_FN T value(T first, More... more) const {
        return F::derivative(first, more...).d[I];
    }
};

template <class N>
inline constexpr bool is_map = false;
template <class F, class... A>
inline constexpr bool is_map<map_node<F, A...>> = true;

template <class F>
inline constexpr bool is_linear = std::is_same_v<F, plus> || std::is_same_v<F, minus> || std::is_same_v<F, negate>;

// True if the gradients of all leaves follow from the column sums of the cotangent: the differentiable leaves are rows
// that are the same for every token, and enter linearly with constant coefficients. (x - b_dec is the case that
// matters: the encoder's input gradient is then a matrix-vector product instead of a GEMM.)
template <class N>
struct column_sums_suffice : std::bool_constant<!differentiable<N> || N::shape_type::rank <= 1> {};
template <class F, class... A>
struct column_sums_suffice<map_node<F, A...>>
    : std::bool_constant<!(differentiable<A> || ...) || (is_linear<F> && (column_sums_suffice<A>::value && ...))> {};

}  // namespace detail

// Adds `cotangent` (an expression) to the gradient of a dense leaf with these extents, summing over what the leaf
// broadcasts.
template <class Tape, class T, class Shape, class G>
void add_to_gradient(Tape& t, gradient<T>& adjoint, const Shape& extents, const G& cotangent) {
    using from = typename G::shape_type;
    if (adjoint.used_up)
        throw error(
            "a share of a gradient comes when the optimiser has used the others", "backward",
            to_string(extents) + ", such as the norms of W_dec's rows in an expression evaluated before encode()",
            "evaluate it after the encoder, or set clip_grad_norm, which collects gradients first");
    const write how = adjoint.written ? write::add : write::overwrite;
    T* data = t.dense(adjoint, extents.size());
    adjoint.written = true;
    const std::size_t rows = cotangent.shape().rows(), cols = cotangent.shape().cols();
    if constexpr ((Shape::rank == 0 && from::rank > 0) ||
                  (Shape::rank == 1 && Shape::static_cols == 1 && from::static_cols != 1)) {
        total(t.device(), t.arena(), data, cotangent, rows, cols, 1.0, how);
    } else if constexpr (Shape::rank == 1 && from::rank > 1) {
        column_sums(t.device(), t.arena(), data, cotangent, rows, cols, how);
    } else if constexpr (Shape::rank > 1 && Shape::static_cols == 1 && from::rank > 1 && from::static_cols != 1) {
        row_sums(t.device(), data, cotangent, rows, cols, how);
    } else {
        assign(t.device(), view<T, Shape, Tape::memory>{data, extents}, cotangent, how);
    }
}

// Adds cotangent * d n / d leaf to the gradient of every differentiable leaf of a dense expression n.
template <class Tape, class N, class G>
void accumulate_gradients(Tape& t, const N& n, const G& cotangent) {
    if constexpr (!differentiable<N>) {
        return;
    } else if constexpr (detail::is_map<N>) {
        [&]<class F, class... A>(const map_node<F, A...>& m) {
            [&]<std::size_t... I>(std::index_sequence<I...>) {
                (..., [&] {
                    if constexpr (differentiable<A>) {
                        const auto partial = map_node<detail::partial_functor<F, I>, A...>{
                            detail::partial_functor<F, I>{m.functor()}, m.arguments, m.shape()};
                        accumulate_gradients(t, detail::get<I>(m.arguments),
                                             detail::make_map(times{}, cotangent, partial));
                    }
                }());
            }
            (std::index_sequence_for<A...>{});
        }(n);
    } else if (n.adjoint != nullptr) {
        const write how = n.adjoint->written ? write::add : write::overwrite;
        if constexpr (over_codes<N>) {
            auto* data = n.gradient_data();
            with_form(*n.codes, [&](const auto& codes) { codes_assign(t.device(), data, codes, cotangent, how); });
            n.adjoint->written = true;
        } else if constexpr (over_codes<G>) {
            using S = typename N::shape_type;
            auto* leaf = t.dense(*n.adjoint, n.size());
            using T = typename N::value_type;
            if (how == write::overwrite) fill(t.device(), leaf, n.size(), T(0));
            with_form(*detail::codes_of(cotangent), [&](const auto& codes) {
                if constexpr (S::rank == 1 && S::static_cols != 1)
                    add_latent_sums(t.device(), t.arena(), leaf, codes, cotangent);
                else add_to_leaf<S>(t.device(), t.arena(), leaf, n.cols(), codes, cotangent);
            });
            n.adjoint->written = true;
        } else {
            add_to_gradient(t, *n.adjoint, n.shape(), cotangent);
        }
    }
}

// The same from the column sums of the cotangent, where they suffice.
template <class Tape, class N, class G>
void accumulate_column_sums(Tape& t, const N& n, const G& sums) {
    if constexpr (!differentiable<N>) {
        return;
    } else if constexpr (detail::is_map<N>) {
        using T = typename N::value_type;
        [&]<class F, class... A>(const map_node<F, A...>& m) {
            [&]<std::size_t... I>(std::index_sequence<I...>) {
                const auto slopes = m.functor().derivative(static_cast<T>(I * 0)...);
                (..., accumulate_column_sums(t, detail::get<I>(m.arguments),
                                             detail::make_map(times{}, sums, constant_node<T>{slopes.d[I]})));
            }
            (std::index_sequence_for<A...>{});
        }(n);
    } else {
        if (n.adjoint != nullptr) add_to_gradient(t, *n.adjoint, n.shape(), sums);
    }
}

// The value of a scalar expression after tape.run(), and its gradients after backward().
template <class Tape, class N>
void backward(Tape& t, const N& loss) {
    static_assert(N::shape_type::rank == 0, "psae: gradients start from a scalar loss");
    accumulate_gradients(t, loss, constant_node<typename N::value_type>{1});
    t.run_adjoints();
}

}  // namespace psae
