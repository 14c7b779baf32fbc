#pragma once
// Reductions, and stages that give an expression an identity.

#include <array>

#include <psae/grad/differentiate.hpp>

namespace psae {

namespace detail {

template <class N, class Out>
struct evaluate_stage {
    N argument;
    Out out;
    template <class Tape>
    void forward(Tape& t) {
        assign(t.device(), out.result(), argument);
    }
    template <class Tape>
    void backward(Tape& t) {
        if (out.adjoint->written) accumulate_gradients(t, argument, out.cotangent());
    }
};

template <class N, class Out>
struct sum_stage {
    N argument;
    Out out;  // [n, 1]
    template <class Tape>
    void forward(Tape& t) {
        if constexpr (over_codes<N>)
            with_form(*codes_of(argument),
                      [&](const auto& codes) { codes_sums(t.device(), out.storage, codes, argument); });
        else row_sums(t.device(), out.storage, argument, argument.shape().rows(), argument.shape().cols());
    }
    template <class Tape>
    void backward(Tape& t) {
        if (out.adjoint->written) accumulate_gradients(t, argument, out.cotangent());
    }
};

template <class N, class Out>
struct mean_stage {
    N argument;
    Out out;  // []
    std::size_t count;
    template <class Tape>
    void forward(Tape& t) {
        const auto s = argument.shape();
        total(t.device(), t.arena(), out.storage, argument, s.rows(), s.cols(), 1 / static_cast<double>(count));
    }
    template <class Tape>
    void backward(Tape& t) {
        using T = typename N::value_type;
        if (out.adjoint->written)
            accumulate_gradients(t, argument,
                                 make_map(times{}, out.cotangent(), constant_node<T>{T(1) / static_cast<T>(count)}));
    }
};

template <class N, class Out>
struct column_mean_stage {
    N argument;
    Out out;  // [d]
    template <class Tape>
    void forward(Tape& t) {
        const std::size_t rows = argument.shape().rows(), cols = argument.shape().cols();
        using T = typename N::value_type;
        column_sums(t.device(), t.arena(), out.storage, argument, rows, cols);
        assign(t.device(), out.result(), make_map(divides{}, out, constant_node<T>{static_cast<T>(rows)}));
    }
    template <class Tape>
    void backward(Tape& t) {
        using T = typename N::value_type;
        const std::size_t rows = argument.shape().rows();
        if (out.adjoint->written)
            accumulate_gradients(t, argument,
                                 make_map(times{}, out.cotangent(), constant_node<T>{T(1) / static_cast<T>(rows)}));
    }
};

}  // namespace detail

// The expression computed once, as a variable of the same shape.
template <operand X>
requires(!over_codes<node_t<X>>) auto evaluate(const X& x) {
    const auto n = as_node(x);
    using N = std::remove_const_t<decltype(n)>;
    auto& t = detail::require_tape(n);
    auto out = t.template result<typename N::value_type>(n.shape());
    if constexpr (N::shape_type::rank <= 1) {
        out.stage = t.stages();
        t.record_row(detail::evaluate_stage<N, decltype(out)>{n, out});
    } else {
        t.record(detail::evaluate_stage<N, decltype(out)>{n, out});
    }
    return out;
}

// Sum over the last axis (over a token's active latents for codes): [n, 1], so that it broadcasts back over its rows.
template <operand X>
auto sum(const X& x) {
    const auto n = as_node(x);
    using N = std::remove_const_t<decltype(n)>;
    auto& t = detail::require_tape(n);
    auto out = t.template result<typename N::value_type>(shape<dyn, 1>{n.shape().rows()});
    const detail::sum_stage<N, decltype(out)> stage{n, out};
    if constexpr (over_codes<N>) t.record_reader(*detail::codes_of(n), detail::latest_stage(n), stage);
    else t.record(stage);
    return out;
}

// Mean over all elements: a scalar.
template <operand X>
auto mean(const X& x) {
    const auto n = as_node(x);
    using N = std::remove_const_t<decltype(n)>;
    static_assert(!over_codes<N>, "psae: the mean over codes is ambiguous; write mean_over_tokens(sum(...))");
    auto& t = detail::require_tape(n);
    auto out = t.template result<typename N::value_type>(shape<>{});
    t.record(detail::mean_stage<N, decltype(out)>{n, out, n.shape().size()});
    return out;
}

// Mean of one number per token, [n, 1]: a scalar.
template <operand X>
auto mean_over_tokens(const X& x) {
    static_assert(node_t<X>::shape_type::static_cols == 1,
                  "psae: mean_over_tokens takes one number per token, [n, 1]; sum(...) first");
    return mean(x);
}

// Mean over the rows: [d], which broadcasts over rows.
template <operand X>
auto column_means(const X& x) {
    const auto n = as_node(x);
    using N = std::remove_const_t<decltype(n)>;
    auto& t = detail::require_tape(n);
    auto out = t.template result<typename N::value_type>(
        shape<N::shape_type::static_cols>::from_extents(std::array<std::size_t, 1>{n.shape().cols()}.data()));
    t.record(detail::column_mean_stage<N, decltype(out)>{n, out});
    return out;
}

// Euclidean norm of each row: an expression of shape [n, 1].
template <operand X>
auto norm(const X& x) {
    return sqrt(sum(square(x)));
}

// x_hat as what metrics compare with the tokens, in place of what is decoded first.
template <operand X>
auto reconstruction(const X& x_hat) {
    auto value = evaluate(x_hat);
    value.owner->reconstruction = value.storage;
    return value;
}

// A part of the loss that metrics report by name: a scalar.
template <operand X>
auto term(const char* name, const X& x) {
    static_assert(node_t<X>::shape_type::rank == 0, "psae: a term of a loss is a scalar");
    auto value = evaluate(x);
    value.owner->add_term(name, value.storage);
    return value;
}

}  // namespace psae
