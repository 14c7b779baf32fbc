#pragma once
// Multi-head self-attention as a stage.

#include <psae/stage/dense.hpp>

namespace psae {

namespace detail {

template <class X, class Out>
struct attention_stage {
    using T = typename Out::value_type;
    X input;
    Out out;
    std::size_t tokens, heads;
    bool causal;
    const T* qkv = nullptr;

    template <class Tape>
    void forward(Tape& t) {
        qkv = dense_values(t, input);
        attention(t.device(), t.arena(), out.storage, qkv, out.rows() / tokens, tokens, out.cols(), heads, causal);
    }
    template <class Tape>
    void backward(Tape& t) requires(!std::is_same_v<T, bf16>) {
        if (!out.adjoint->written) return;
        add_input_gradient(t, input, [&](T* dqkv, write how) {
            attention_adjoint(t.device(), t.arena(), dqkv, static_cast<const T*>(out.adjoint->data), qkv,
                              out.rows() / tokens, tokens, out.cols(), heads, how, causal);
        });
    }
};

}  // namespace detail

// softmax(Q K^T / sqrt(d / heads)) V for each sequence and head: [.., d]. qkv: [.., 3 d], rows in sequences of
// `tokens`, queries, keys and values side by side, heads within each. Every token attends to its whole sequence or, if causal, to
// itself and the tokens before it. Of qkv in bf16 the result is rounded too.
template <operand X>
auto attention(const X& qkv, std::size_t tokens, std::size_t heads, bool causal = false) {
    using Input = node_t<X>;
    constexpr std::size_t columns = Input::shape_type::static_cols;
    static_assert(columns == dyn || columns % 3 == 0,
                  "psae: attention: queries, keys and values lie side by side, [.., 3 d]");
    const Input input = as_node(qkv);
    auto& t = detail::require_tape(input);
    const std::size_t d = input.shape().cols() / 3;
    if (tokens == 0 || heads == 0 || input.shape().cols() % 3 != 0 || d % heads != 0 ||
        input.shape().rows() % tokens != 0)
        throw error("shapes do not fit", "attention",
                    "qkv " + to_string(input.shape()) + ", sequences of " + std::to_string(tokens) + " tokens, " +
                        std::to_string(heads) + " heads",
                    "the rows are whole sequences, a third of the columns whole heads");
    auto out = t.template result<typename Input::value_type>(
        detail::with_last_extent < columns == dyn ? dyn : columns / 3 > (input.shape(), d));
    t.record(detail::attention_stage<Input, decltype(out)>{input, out, tokens, heads, causal});
    return out;
}

}  // namespace psae
