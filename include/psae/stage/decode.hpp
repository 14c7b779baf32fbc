#pragma once
// The decoder: x_hat = z W_dec + b_dec from codes, reading only the rows of active latents.

#include <psae/stage/encode.hpp>

namespace psae {

namespace detail {

struct no_bias {};

template <class Codes, class W, class B, class Out>
struct decode_stage {
    using T = typename Codes::value_type;
    Codes z;
    W weights;
    B bias;
    Out out;

    template <class Tape>
    void forward(Tape& t) {
        const T* b = nullptr;
        if constexpr (!std::is_same_v<B, no_bias>) b = bias.data;
        sparse_decode(t.device(), out.storage, *z.codes, z.codes->value, weights.data, b, weights.cols());
    }
    template <class Tape>
    void backward(Tape& t) {
        if (!out.adjoint->written) return;
        const codes_view<T>& codes = *z.codes;
        const T* g = out.adjoint->data;
        T* dz = t.dense(*z.adjoint, codes.entries());
        sparse_decode_adjoint(t.device(), dz, codes, g, weights.data, weights.cols(),
                              z.adjoint->written ? write::add : write::overwrite);
        z.adjoint->written = true;
        add_product(t, weights, codes, codes.value, g, weights.cols());
        if constexpr (!std::is_same_v<B, no_bias>)
            accumulate_gradients(t, bias, view<const T, typename Out::shape_type>{g, out.shape()});
    }
};

template <class T, class Tape, class W, class B>
auto record_decode(const codes_variable<T, Tape>& z, const W& weights, const B& bias) {
    if (weights.rows() != z.latents)
        throw error("shapes do not fit", "decode",
                    "codes over " + std::to_string(z.latents) + " latents, W_dec " + to_string(weights.shape()));
    using out_shape = shape<dyn, W::shape_type::static_cols>;
    const std::size_t extents[2] = {z.tokens, weights.cols()};
    auto out = z.owner->template result<T>(out_shape::from_extents(extents));
    if (z.owner->main_codes == z.codes && z.owner->reconstruction == nullptr) z.owner->reconstruction = out.storage;
    z.owner->record(decode_stage<codes_variable<T, Tape>, W, B, decltype(out)>{z, weights, bias, out});
    return out;
}

}  // namespace detail

// x_hat [n, d_in] from codes, W_dec [d_sae, d_in] and b_dec [d_in].
template <class T, class Tape, operand W, operand B>
auto decode(const codes_variable<T, Tape>& z, const W& W_dec, const B& b_dec) {
    static_assert(detail::merge_extents(node_t<W>::shape_type::static_cols, node_t<B>::shape_type::static_cols) != 0,
                  "psae: decode: W_dec and b_dec have different d_in");
    return detail::record_decode(z, as_node(W_dec), as_node(b_dec));
}
// The same without a bias.
template <class T, class Tape, operand W>
auto decode(const codes_variable<T, Tape>& z, const W& W_dec) {
    return detail::record_decode(z, as_node(W_dec), detail::no_bias{});
}

}  // namespace psae
