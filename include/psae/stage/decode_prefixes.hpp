#pragma once
// The decoder prefix by prefix of the latents, with the errors on the way: what Matryoshka SAEs are trained on. However
// many prefixes there are, one reconstruction and one gradient of it are in memory.

#include <vector>

#include <psae/stage/decode.hpp>

namespace psae {

// What codes decode to from all latents, [n, d_in], and the sum of the squared errors, by token, of what they decode to
// from the latents below each of the other ends, [n, 1].
template <class XHat, class Errors>
struct decoded_prefixes {
    XHat x_hat;
    Errors inner_errors;
};

namespace detail {

template <class Codes, class W, class B, class X, class Out, class Errors>
struct decode_prefixes_stage {
    using T = typename Codes::value_type;
    Codes z;
    W weights;
    B bias;
    X x;
    const latent_range* bands;  // by which each prefix is longer than the one before
    std::size_t count;
    Out out;
    Errors errors;

    template <class Tape>
    void forward(Tape& t) {
        fill(t.device(), errors.storage, z.tokens, T(0));
        for (std::size_t i = 0; i < count; ++i) {
            if (i == 0) add_band(t, out.storage, bias.data, 0, bands[i]);
            else add_band(t, out.storage, out.storage, weights.cols(), bands[i]);
            if (i + 1 < count)
                row_sums(t.device(), errors.storage, square(out - x), z.tokens, weights.cols(), write::add);
        }
    }

    // From the last band to the first. The gradient of what is decoded up to a band goes to the band's codes and rows of
    // W_dec; then the error of the prefix before it joins. x - x_hat of that prefix is the one at hand and what the band
    // decodes to.
    template <class Tape>
    void backward(Tape& t) {
        if (!out.adjoint->written && !errors.adjoint->written) return;
        const std::size_t d = weights.cols();
        const auto matrix = [&](T* data) { return view<T, typename Out::shape_type, Tape::memory>{data, out.shape()}; };
        start_from_zero(t, *out.adjoint, out.size());
        start_from_zero(t, *errors.adjoint, errors.size());
        T *g = out.adjoint->data, *left = t.arena().template allocate<T>(out.size());
        assign(t.device(), matrix(left), x - out);
        for (std::size_t i = count; i-- > 0;) {
            const codes_view<T>& codes = z.codes->entries;
            sparse_decode_adjoint(t.device(), z.gradient_data(), codes, static_cast<const T*>(g), weights.data, d,
                                  z.adjoint->written ? write::add : write::overwrite, bands[i]);
            z.adjoint->written = true;
            if (i > 0) add_band(t, left, left, d, bands[i]);
            add_product(t, weights, codes, codes.value, static_cast<const T*>(g), d, bands[i]);
            const bool complete = rows_are_complete();
            if (complete) hand_on(*weights.adjoint, bands[i]);
            if (i == 0) break;
            T* next = complete ? g : t.arena().template allocate<T>(out.size());
            assign(t.device(), matrix(next), matrix(g) - T(2) * errors.cotangent() * matrix(left));
            g = next;
        }
        if (rows_are_complete()) all_rows_taken(*weights.adjoint);
        accumulate_gradients(t, bias, matrix(g));
    }

private:
    // to = from + what the band decodes to. Rows of `from` are stride apart.
    template <class Tape>
    void add_band(Tape& t, T* to, const T* from, std::size_t stride, latent_range band) {
        const codes_view<T>& codes = z.codes->entries;
        sparse_decode(t.device(), to, codes, codes.value, weights.data, from, weights.cols(), band, stride);
    }
    template <class Tape>
    static void start_from_zero(Tape& t, gradient<T>& g, std::size_t count) {
        if (std::exchange(g.written, true)) return;
        fill(t.device(), t.dense(g, count), count, T(0));
    }
    // The gradient's rows are complete when only the encoder's adjoint is still to run. Otherwise each band's g is kept.
    bool rows_are_complete() const {
        return weights.adjoint != nullptr && weights.adjoint->taker != nullptr && z.codes->support->stage == 1 &&
               out.stage == 2 && z.codes->support->weights != weights.adjoint;
    }
    static void hand_on(const parameter_gradient<T>& of, latent_range band) {
        of.taker->take(of.taker->self, of, band.first, band.end - band.first, nullptr);
    }
};

}  // namespace detail

// Codes decoded with W_dec [d_sae, d_in] and b_dec [d_in] from the latents below each of the ascending ends, of which
// the last is d_sae, beside x [n, d_in], a constant.
template <class T, class Tape, operand W, operand B, operand X>
auto decode_prefixes(const codes_variable<T, Tape>& z, const W& W_dec, const B& b_dec, const X& x,
                     const std::vector<std::size_t>& ends) {
    const auto weights = as_node(W_dec);
    const auto bias = as_node(b_dec);
    const auto target = as_node(x);
    using Target = std::remove_const_t<decltype(target)>;
    static_assert(!differentiable<Target>, "psae: decode_prefixes: x is a constant; write stop_gradient(x)");
    z.codes->support->entries_needed = true;
    const auto out = detail::decoded(z, weights);
    if (bias.size() != weights.cols() || target.shape().rows() != z.tokens || target.shape().cols() != weights.cols())
        throw error("shapes do not fit", "decode_prefixes",
                    "W_dec " + to_string(weights.shape()) + ", b_dec " + to_string(bias.shape()) + ", x " +
                        to_string(target.shape()));
    std::vector<latent_range> bands;
    for (const std::size_t end : ends) {
        const std::size_t first = bands.empty() ? 0 : bands.back().end;
        if (end <= first)
            throw error("prefixes have to grow", "decode_prefixes",
                        "expected more than " + std::to_string(first) + " latents, found " + std::to_string(end));
        bands.push_back({first, end});
    }
    if (bands.empty() || bands.back().end != z.latents)
        throw error("the last prefix is not all latents", "decode_prefixes",
                    "expected " + std::to_string(z.latents) + ", found " +
                        std::to_string(bands.empty() ? 0 : bands.back().end));
    auto& t = *z.owner;
    const auto errors = t.template result<T>(shape<dyn, 1>{z.tokens});
    using Z = codes_variable<T, Tape>;
    using Weights = std::remove_const_t<decltype(weights)>;
    using Bias = std::remove_const_t<decltype(bias)>;
    using Out = std::remove_const_t<decltype(out)>;
    using Errors = std::remove_const_t<decltype(errors)>;
    t.record(detail::decode_prefixes_stage<Z, Weights, Bias, Target, Out, Errors>{
        z, weights, bias, target, t.make_array(bands), bands.size(), out, errors});
    return decoded_prefixes<Out, Errors>{out, errors};
}

}  // namespace psae
