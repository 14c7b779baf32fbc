#pragma once
// The decoder: x_hat = z W_dec + b_dec from codes, reading only the rows of active latents.

#include <psae/stage/codes.hpp>

namespace psae {

namespace detail {

struct no_bias {};

template <class Codes, class W, class B, class Out>
struct decode_stage {
    using T = typename Codes::value_type;
    using tape_type = std::remove_pointer_t<decltype(Codes::owner)>;
    Codes z;
    W weights;
    B bias;
    latent_range range;
    Out out;
    decltype(operand_of_products(std::declval<tape_type&>().device(), std::declval<tape_type&>().arena(),
                                 std::declval<const T*>(), 0)) all_g = nullptr;  // of all tiles' products

    template <class Tape>
    void forward(Tape& t) {
        const T* b = nullptr;
        if constexpr (!std::is_same_v<B, no_bias>) b = bias.data;
        const std::size_t d = weights.cols(), stride = bias_stride();
        if (!z.codes->dense()) {
            const codes_view<T>& codes = z.codes->entries;
            sparse_decode(t.device(), out.storage, codes, codes.value, weights.data, b, d, range, stride);
            return;
        }
        const codes_tile<T>& tile = z.codes->tile;
        if (tile.first == 0) decode_start(t.device(), out.storage, tile.tokens, d, b, stride);
        product(t.device(), t.arena(), false, false, tile.tokens, d, tile.count, tile.value,
                weights.data + tile.first * d, write::add, out.storage);
    }
    template <class Tape>
    void backward(Tape& t) {
        if (!out.adjoint->written) return;
        const T* g = out.adjoint->data;
        const write how = z.adjoint->written ? write::add : write::overwrite;
        T* dz = z.gradient_data();
        if (z.codes->dense()) {
            backward_of_tile(t, dz, g, how);
        } else {
            const codes_view<T>& codes = z.codes->entries;
            sparse_decode_adjoint(t.device(), dz, codes, g, weights.data, weights.cols(), how, range);
            add_product(t, weights, codes, codes.value, g, weights.cols(), range);
        }
        z.adjoint->written = true;
        if constexpr (!std::is_same_v<B, no_bias>)
            if (!z.codes->dense() || z.codes->tile.first == 0) accumulate_gradients(t, bias, out.cotangent());
    }

private:
    // Of one row that all tokens share it is 0.
    std::size_t bias_stride() const {
        if constexpr (std::is_same_v<B, no_bias>) return 0;
        else return bias.size() == weights.cols() ? 0 : weights.cols();
    }
    // dz (+)= g W_dec^T and the rows z^T g of W_dec's gradient, for the latents of the tile at hand.
    template <class Tape>
    void backward_of_tile(Tape& t, T* dz, const T* g, write how) {
        const codes_tile<T>& tile = z.codes->tile;
        const std::size_t d = weights.cols(), n = tile.tokens, count = tile.count;
        if (tile.first == 0) all_g = operand_of_products(t.device(), t.arena(), g, n * d);
        product(t.device(), t.arena(), false, true, n, count, d, all_g, weights.data + tile.first * d, how, dz);
        if (weights.adjoint == nullptr) return;
        T* rows = chunk_rows(t, *z.codes->support, *weights.adjoint, d);
        product(t.device(), t.arena(), true, false, count, d, n, tile.value, all_g,
                weights.adjoint->chunk.written ? write::add : write::overwrite, rows);
        weights.adjoint->chunk.written = true;
    }
};

// Memory for what codes decode to, [n, d]: what metrics speak of, if it is decoded first.
template <class T, class Tape, class W>
auto decoded(const codes_variable<T, Tape>& z, const W& weights) {
    if (weights.rows() != z.latents)
        throw error("shapes do not fit", "decode",
                    "codes over " + std::to_string(z.latents) + " latents, W_dec " + to_string(weights.shape()));
    using out_shape = shape<dyn, W::shape_type::static_cols>;
    const std::size_t extents[2] = {z.tokens, weights.cols()};
    auto out = z.owner->template result<T>(out_shape::from_extents(extents));
    if (z.owner->main_codes == nullptr) {
        z.owner->main_codes = z.codes;
        z.owner->reconstruction = out.storage;
    }
    return out;
}

template <class T, class Tape, class W, class B>
auto record_decode(const codes_variable<T, Tape>& z, const W& weights, const B& bias, latent_range range = {}) {
    if (!range.is_everything()) z.codes->support->entries_needed = true;
    auto out = decoded(z, weights);
    std::size_t latest = 0;
    if constexpr (!std::is_same_v<B, no_bias>) {
        latest = latest_stage(bias);
        if (bias.size() != weights.cols() && bias.size() != z.tokens * weights.cols())
            throw error("shapes do not fit", "decode",
                        "W_dec " + to_string(weights.shape()) + ", b_dec " + to_string(bias.shape()));
    }
    z.owner->record_reader(*z.codes, latest,
                           decode_stage<codes_variable<T, Tape>, W, B, decltype(out)>{z, weights, bias, range, out});
    return out;
}

}  // namespace detail

// x_hat [n, d_in] from codes, W_dec [d_sae, d_in] and b_dec [d_in]; from the latents of a range only. b_dec may also be a
// reconstruction [n, d_in] that the latents are added to.
template <class T, class Tape, operand W, operand B>
auto decode(const codes_variable<T, Tape>& z, const W& W_dec, const B& b_dec, latent_range range = {}) {
    static_assert(detail::merge_extents(node_t<W>::shape_type::static_cols, node_t<B>::shape_type::static_cols) != 0,
                  "psae: decode: W_dec and b_dec have different d_in");
    return detail::record_decode(z, as_node(W_dec), as_node(b_dec), range);
}
// The same without a bias.
template <class T, class Tape, operand W>
auto decode(const codes_variable<T, Tape>& z, const W& W_dec, latent_range range = {}) {
    return detail::record_decode(z, as_node(W_dec), detail::no_bias{}, range);
}

}  // namespace psae
