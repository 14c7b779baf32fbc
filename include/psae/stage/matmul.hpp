#pragma once
// The matrix product x W^T as a stage, with an expression before it and an epilogue after it.

#include <psae/expr/epilogue.hpp>
#include <psae/stage/dense.hpp>

namespace psae {

// Frozen weights in a backend's own layout: they stand in a product and have no gradient.
template <class W>
concept packed_weights = requires(const W& w) {
    requires W::is_packed;
    typename W::shape_type;
    w.shape();
};

// What a backend packs frozen weights into: `packed<T, Shape>`, made from a view of the host; and the tensor of a frozen
// bias that is added to results in bf16, `bias<T, Shape>`.
template <class Backend>
struct weights_of;

namespace detail {

template <class X, class W>
struct matmul_shapes {
    static_assert(W::rank == 2, "psae: matmul: weights are a matrix, [out, in]");
    static_assert(X::static_cols == W::static_cols || X::static_cols == dyn || W::static_cols == dyn,
                  "psae: matmul: x [.., in] and W [out, in] differ in `in`");
    static constexpr std::size_t out = W::static_extent(0);
};

template <class E>
inline constexpr bool linear_step = true;
template <class F>
inline constexpr bool linear_step<function_step<F>> = is_linear<F>;
template <class A, class B>
inline constexpr bool linear_step<step_sequence<A, B>> = linear_step<A>&& linear_step<B>;

// W is a node, or a pointer to packed weights.
template <class X, class W, class E, class Out>
struct matmul_stage {
    using In = typename X::value_type;
    using T = typename Out::value_type;
    using out_shape = typename Out::shape_type;
    static constexpr bool rounded = std::is_same_v<In, bf16> || std::is_same_v<T, bf16>;
    X input;
    W weights;
    E epilogue;
    Out out;
    const In* x = nullptr;
    const T* product = nullptr;  // what the epilogue was applied to, where its derivative needs it

    template <class Tape>
    void forward(Tape& t) {
        x = dense_values(t, input);
        if constexpr (!rounded && !linear_step<E>)
            if (t.training()) {
                T* kept = t.arena().template allocate<T>(out.size());
                matmul(t.device(), t.arena(), view<T, out_shape, Tape::memory>{kept, out.shape()}, x, matrix(),
                       no_epilogue{});
                product = kept;
                assign(t.device(), out.result(),
                       epilogue(const_view<T, out_shape, Tape::memory>{product, out.shape()}));
                return;
            }
        matmul(t.device(), t.arena(), out.result(), x, matrix(), epilogue);
    }

    template <class Tape>
    void backward(Tape& t) requires(!rounded) {
        if (!out.adjoint->written) return;
        // The epilogue is differentiated as an expression of the product. A linear one needs no values: any will do.
        gradient<T> adjoint{};
        const Out result{{product == nullptr ? out.storage : product, out.shape()}, &t, &adjoint, nullptr};
        accumulate_gradients(t, epilogue(result), out.cotangent());
        const T* g = adjoint.data;
        if constexpr (requires { weights.adjoint; }) {
            if (weights.adjoint != nullptr) {
                T* dW = t.dense(*weights.adjoint, weights.size());
                matmul_adjoint_weights(t.device(), dW, g, x, out.rows(), weights.rows(), weights.cols(),
                                       weights.adjoint->written ? write::add : write::overwrite);
                weights.adjoint->written = true;
            }
        }
        add_input_gradient(t, input, [&](T* dx, write how) {
            matmul_adjoint_input(t.device(), t.arena(), dx, g, out.rows(), matrix(), how);
        });
    }

private:
    const auto& matrix() const {
        if constexpr (std::is_pointer_v<W>) return *weights;
        else return weights;
    }
};

template <class T, class X, class W, class E>
auto record_matmul(const X& input, const W& weights, const auto& extents, const E& e, T* place) {
    using weights_shape = std::remove_cvref_t<decltype(extents)>;
    auto& t = require_tape(input);
    if (input.shape().cols() != extents.cols())
        throw error("shapes do not fit", "matmul", "x " + to_string(input.shape()) + ", W " + to_string(extents));
    auto out = t.template result<T>(
        with_last_extent<matmul_shapes<typename X::shape_type, weights_shape>::out>(input.shape(), extents.rows()),
        place);
    const const_view<result_type_t<void, X>, typename decltype(out)::shape_type, decltype(out)::memory> computed{
        nullptr, out.shape()};
    const auto result = e(computed);
    require_same_shape(result.shape(), out.shape(), "epilogue of matmul");
    t.record(matmul_stage<X, W, E, decltype(out)>{input, weights, e, out});
    return out;
}

}  // namespace detail

// x W^T: [.., out]. x: [.., in], an expression is evaluated first; W: [out, in], a parameter (whose gradient is
// collected dense), a view, or packed weights (frozen). The epilogue is a pointwise function or steps joined by >>.
// Result: bf16 to have the result rounded (see detail::result_type). place: where it goes, in place of memory of the tape.
template <class Result = void, operand X, operand W, class E = no_epilogue>
requires(epilogue<E> || pointwise_function<E>) auto matmul(const X& x, const W& weights, const E& e = {},
                                                           detail::result_type_t<Result, X>* place = nullptr) {
    return detail::record_matmul(node_t<X>(as_node(x)), node_t<W>(as_node(weights)), as_node(weights).shape(),
                                 detail::as_epilogue(e), place);
}
template <class Result = void, operand X, packed_weights W, class E = no_epilogue>
requires(epilogue<E> || pointwise_function<E>) auto matmul(const X& x, const W& weights, const E& e = {},
                                                           detail::result_type_t<Result, X>* place = nullptr) {
    return detail::record_matmul(node_t<X>(as_node(x)), &weights, weights.shape(), detail::as_epilogue(e), place);
}

}  // namespace psae
