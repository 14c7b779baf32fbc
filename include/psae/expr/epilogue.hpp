#pragma once
// Epilogues: what a stage does to its result before writing it, step by step.
//
//   matmul(x, W, bias(b) >> quick_gelu{})   // quick_gelu(x W^T + b)
//   matmul(x, W, bias(b) >> add(y))         // x W^T + b + y
//
// A step turns the node of the result so far into an expression, so an epilogue as a whole is one pointwise expression
// of the result: it is differentiated like any other, and a backend fuses the steps it knows into its kernel.

#include <psae/expr/functors.hpp>

namespace psae {

// result + b, b [out].
template <node B>
struct bias_step {
    static constexpr bool is_epilogue = true;
    B b;
    template <node N>
    auto operator()(const N& result) const {
        return detail::make_map(plus{}, result, b);
    }
};
// result + r, r of the result's shape.
template <node R>
struct add_step {
    static constexpr bool is_epilogue = true;
    R r;
    template <node N>
    auto operator()(const N& result) const {
        return detail::make_map(plus{}, result, r);
    }
};
// f(result).
template <class F>
struct function_step {
    static constexpr bool is_epilogue = true;
    [[no_unique_address]] F f;
    template <node N>
    auto operator()(const N& result) const {
        return detail::make_map(f, result);
    }
};
// First, then Second.
template <class First, class Second>
struct step_sequence {
    static constexpr bool is_epilogue = true;
    [[no_unique_address]] First first;
    [[no_unique_address]] Second second;
    template <node N>
    auto operator()(const N& result) const {
        return second(first(result));
    }
};
// The result as it is.
struct no_epilogue {
    static constexpr bool is_epilogue = true;
    template <node N>
    const N& operator()(const N& result) const {
        return result;
    }
};

template <class E>
concept epilogue = requires {
    requires E::is_epilogue;
};
// A pointwise function of one argument.
template <class F>
concept pointwise_function = std::is_trivially_copyable_v<F> && requires(const F& f) {
    f.value(1.0f);
    f.derivative(1.0f).d[0];
};

namespace detail {

template <epilogue E>
const E& as_epilogue(const E& e) {
    return e;
}
template <pointwise_function F>
function_step<F> as_epilogue(const F& f) {
    return {f};
}
template <epilogue A, epilogue B>
step_sequence<A, B> sequence(const A& a, const B& b) {
    return {a, b};
}

}  // namespace detail

// The row b [out] added to every row of the result.
template <class B>
requires operand<std::remove_cvref_t<B>>
auto bias(B&& b) {
    detail::refuse_temporary_owner<B&&>();
    using node_type = node_t<std::remove_cvref_t<B>>;
    static_assert(node_type::shape_type::rank == 1, "psae: a bias is a row, [out]");
    return bias_step<node_type>{as_node(b)};
}
// r added to the result, element by element: a residual connection. An expression is evaluated on the way.
template <class R>
requires operand<std::remove_cvref_t<R>>
auto add(R&& r) {
    detail::refuse_temporary_owner<R&&>();
    return add_step<node_t<std::remove_cvref_t<R>>>{as_node(r)};
}

// One step after the other; a pointwise function is a step.
template <class A, class B>
requires((epilogue<A> || epilogue<B>)&&(epilogue<A> || pointwise_function<A>)&&(epilogue<B> ||
                                                                                pointwise_function<B>)) auto
operator>>(const A& a, const B& b) {
    return detail::sequence(detail::as_epilogue(a), detail::as_epilogue(b));
}

}  // namespace psae
