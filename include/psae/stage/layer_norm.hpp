#pragma once
// Layer normalisation as a stage.

#include <psae/stage/dense.hpp>

namespace psae {

namespace detail {

// (x - mean) * scale as an expression, for the gradient of the gain.
struct centred_and_scaled {
    template <class T>
    PSAE_FN T value(T x, T mean, T scale) const {
        return (x - mean) * scale;
    }
};

template <class X, class Gain, class Bias, class Out>
struct layer_norm_stage {
    using T = typename X::value_type;
    X input;
    Gain gain;
    Bias bias;
    T eps;
    Out out;
    const T* x = nullptr;
    T *means = nullptr, *scales = nullptr;

    template <class Tape>
    void forward(Tape& t) {
        x = dense_values(t, input);
        const std::size_t n = out.rows();
        if (t.training()) {
            means = t.arena().template allocate<T>(n);
            scales = t.arena().template allocate<T>(n);
        }
        layer_norm(t.device(), out.storage, x, gain.data, bias.data, n, out.cols(), eps, means, scales);
    }

    template <class Tape>
    void backward(Tape& t) requires std::is_same_v<typename Out::value_type, T> {
        if (!out.adjoint->written) return;
        const std::size_t n = out.rows();
        const auto g = out.cotangent();
        accumulate_gradients(t, bias, g);
        using column = const_view<T, shape<dyn, 1>, Tape::memory>;
        const auto normalised =
            make_map(centred_and_scaled{}, const_view<T, typename Out::shape_type, Tape::memory>{x, out.shape()},
                     column{means, shape<dyn, 1>{n}}, column{scales, shape<dyn, 1>{n}});
        accumulate_gradients(t, gain, make_map(times{}, g, normalised));
        add_input_gradient(t, input, [&](T* dx, write how) {
            layer_norm_adjoint_input(t.device(), dx, g.data, x, gain.data, means, scales, n, out.cols(), how);
        });
    }
};

}  // namespace detail

// (x - mean) / sqrt(variance + eps) * gain + bias over the last axis, the variance with 1/d.
// x: [.., d], an expression is evaluated first; gain, bias: [d]; eps > 0. Result: bf16 to have the result rounded (see
// detail::result_type).
template <class Result = void, operand X, operand Gain, operand Bias>
auto layer_norm(const X& x, const Gain& gain, const Bias& bias, double eps) {
    using Input = node_t<X>;
    using T = typename Input::value_type;
    static_assert(detail::row_fits<typename Input::shape_type, typename node_t<Gain>::shape_type> &&
                      detail::row_fits<typename Input::shape_type, typename node_t<Bias>::shape_type>,
                  "psae: layer_norm: gain and bias are rows of x's last extent");
    const Input input = as_node(x);
    const auto gain_node = as_node(gain);
    const auto bias_node = as_node(bias);
    auto& t = detail::require_tape(input);
    if (gain_node.size() != input.shape().cols() || bias_node.size() != input.shape().cols())
        throw error("shapes do not fit", "layer_norm",
                    "x " + to_string(input.shape()) + ", gain " + to_string(gain_node.shape()) + ", bias " +
                        to_string(bias_node.shape()));
    auto out = t.template result<detail::result_type_t<Result, X>>(input.shape());
    t.record(detail::layer_norm_stage<Input, node_t<Gain>, node_t<Bias>, decltype(out)>{input, gain_node, bias_node,
                                                                                        static_cast<T>(eps), out});
    return out;
}

}  // namespace psae
