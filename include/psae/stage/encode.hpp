#pragma once
// The encoder: z = activation(x W_enc^T + b_enc), as codes.

#include <cmath>

#include <psae/stage/reduce.hpp>

namespace psae {

// Activations of an encoder: which pre-activations are kept, with which value, and d value / d pre from the value.
struct relu {
    template <class T>
    PSAE_FN bool active(T h) const {
        return h > 0;
    }
    template <class T>
    PSAE_FN T value(T h) const {
        return h;
    }
    template <class T>
    PSAE_FN T derivative(T) const {
        return T(1);
    }
};
// exp(h) for every latent: what ghost gradients use on dead latents.
struct exponential_activation {
    template <class T>
    PSAE_FN bool active(T) const {
        return true;
    }
    template <class T>
    PSAE_FN T value(T h) const {
        return std::exp(h);
    }
    template <class T>
    PSAE_FN T derivative(T z) const {
        return z;
    }
};
// The k largest ReLU(h) of each token; fewer where fewer are positive. (Top-k of h and then ReLU is the same.)
struct top_k {
    std::size_t k;
    template <class T>
    PSAE_FN bool active(T h) const {
        return h > 0;
    }
    template <class T>
    PSAE_FN T value(T h) const {
        return h;
    }
    template <class T>
    PSAE_FN T derivative(T) const {
        return T(1);
    }
};
// Top-k by weight[f] * h (or its ReLU), for weights above zero: the entries with the largest are kept, and their value
// is h itself. weight: [d_sae], read when the encoder runs. (SAELens' rescale_acts_by_decoder_norm multiplies by the
// norms of the decoder rows before the selection and divides by them before decoding. What is decoded, and its
// gradient, is h: the norms only choose.)
template <class T>
struct weighted_top_k : top_k {
    const T* weight;
    bool rectified = true;  // false: negative values may be among the largest
    PSAE_FN bool active(T h) const { return !rectified || h > 0; }
    PSAE_FN T rank(T value, std::uint32_t latent) const { return weight[latent] * value; }
};

namespace detail {

// Adds a share in outer-product form to the gradient of a parameter.
template <class Tape, class P, class T>
void add_product(Tape& t, const P& p, const codes_view<T>& codes, const T* weights, const T* rows,
                 std::size_t columns) {
    if (p.adjoint == nullptr) return;
    static_assert(
        requires { p.adjoint->products; }, "psae: weights of encode and decode are parameters");
    auto* product = new (t.arena().template allocate<outer_product<T>>(1))
        outer_product<T>{&codes, weights, rows, columns, nullptr};
    auto** last = &p.adjoint->products;
    while (*last != nullptr) last = &(*last)->next;
    *last = product;
}

template <class Input, class W, class B, class Activation, class Codes>
struct encode_stage {
    using T = typename Codes::value_type;
    Input input;
    W weights;
    B bias;
    Activation activation;
    latent_set among;
    Codes z;
    T* x = nullptr;  // the input as the GEMM reads it, [n, d]

    template <class Tape>
    void forward(Tape& t) {
        const std::size_t n = z.tokens, d = weights.cols();
        T* own = t.arena().template allocate<T>(n * d);
        assign(t.device(), view<T, shape<dyn, dyn>>{own, shape<dyn, dyn>{n, d}}, input);
        x = own;
        encode(t.device(), t.arena(), *z.codes, static_cast<const T*>(x), n, d, weights.data, bias.data, z.latents,
               activation, among.count == nullptr ? nullptr : &among);
        if (t.training()) add_latent_view(t.arena(), *z.codes);
    }

    template <class Tape>
    void backward(Tape& t) {
        if (!z.adjoint->written) return;
        const codes_view<T>& codes = *z.codes;
        const std::size_t n = codes.tokens, d = weights.cols();
        T* g = z.adjoint->data;  // becomes the gradient of the pre-activations
        multiply_by_derivative(t.device(), g, codes, activation);
        add_product(t, weights, codes, g, static_cast<const T*>(x), d);
        add_product(t, bias, codes, g, static_cast<const T*>(nullptr), 1);
        if constexpr (differentiable<Input>) {
            if constexpr (column_sums_suffice<Input>::value) {
                T* per_latent = t.arena().template allocate<T>(codes.latents);
                T* sums = t.arena().template allocate<T>(d);
                latent_sums(t.device(), per_latent, codes, g);
                weighted_row_sum(t.device(), t.arena(), sums, per_latent, weights.data, codes.latents, d);
                accumulate_column_sums(t, input,
                                       view<const T, shape<W::shape_type::static_cols>>{
                                           sums, shape<W::shape_type::static_cols>::from_extents(&d)});
            } else {
                T* dx = t.arena().template allocate<T>(n * d);
                sparse_decode(t.device(), dx, codes, static_cast<const T*>(g), weights.data,
                              static_cast<const T*>(nullptr), d);
                using row_shape = shape<dyn, W::shape_type::static_cols>;
                const std::size_t extents[2] = {n, d};
                accumulate_gradients(t, input, view<const T, row_shape>{dx, row_shape::from_extents(extents)});
            }
        }
    }
};

}  // namespace detail

// Codes of the tokens x [n, d_in] with W_enc [d_sae, d_in] and b_enc [d_sae]; with `among`, only of those latents.
template <operand X, operand W, operand B, class Activation>
auto encode(const X& x, const W& W_enc, const B& b_enc, const Activation& activation, latent_set among = {}) {
    const auto input = as_node(x);
    const auto weights = as_node(W_enc);
    const auto bias = as_node(b_enc);
    using Input = std::remove_const_t<decltype(input)>;
    using Weights = std::remove_const_t<decltype(weights)>;
    using Bias = std::remove_const_t<decltype(bias)>;
    using T = typename Input::value_type;
    static_assert(detail::merge_extents(Input::shape_type::static_cols, Weights::shape_type::static_cols) != 0,
                  "psae: encode: the tokens and W_enc have different d_in");
    auto& t = detail::require_tape(input);
    using Tape = std::remove_cvref_t<decltype(t)>;
    if (input.shape().cols() != weights.cols() || bias.size() != weights.rows())
        throw error("shapes do not fit", "encode",
                    "x " + to_string(input.shape()) + ", W_enc " + to_string(weights.shape()) + ", b_enc " +
                        to_string(bias.shape()));
    auto* codes = new (t.arena().template allocate<codes_view<T>>(1)) codes_view<T>{};
    auto* adjoint = new (t.arena().template allocate<gradient<T>>(1)) gradient<T>{};
    const codes_variable<T, Tape> z{&t, codes, adjoint, input.shape().rows(), weights.rows()};
    if (t.main_codes == nullptr) t.main_codes = codes;
    t.record(detail::encode_stage<Input, Weights, Bias, Activation, codes_variable<T, Tape>>{input, weights, bias,
                                                                                             activation, among, z});
    return z;
}

namespace detail {

template <class Codes>
struct silent_stage {
    latent_set set;
    Codes z;
    std::uint32_t* index;
    std::size_t* count;
    template <class Tape>
    void forward(Tape&) {
        std::size_t kept = 0;
        for (std::size_t j = 0; j < *set.count; ++j) {
            const std::uint32_t f = set.index[j];
            if (z.codes->latent_offsets[f] == z.codes->latent_offsets[f + 1]) index[kept++] = f;
        }
        *count = kept;
    }
    template <class Tape>
    void backward(Tape&) {}
};

template <class Out>
struct size_stage {
    latent_set set;
    Out out;
    template <class Tape>
    void forward(Tape&) {
        *out.storage = static_cast<typename Out::value_type>(*set.count);
    }
    template <class Tape>
    void backward(Tape&) {}
};

}  // namespace detail

// The latents of the set that are active for no token of z.
template <class T, class Tape>
latent_set silent(latent_set set, const codes_variable<T, Tape>& z) {
    auto& t = *z.owner;
    auto* index = t.arena().template allocate<std::uint32_t>(*set.count);
    auto* count = t.arena().template allocate<std::size_t>(1);
    t.record(detail::silent_stage<codes_variable<T, Tape>>{set, z, index, count});
    return {index, count};
}

// The number of latents of the set: a scalar without a gradient.
template <class T, class Tape>
auto size_of(latent_set set, const codes_variable<T, Tape>& z) {
    auto out = z.owner->template result<T>(shape<>{});
    z.owner->record(detail::size_stage<decltype(out)>{set, out});
    return stop_gradient(out);
}

}  // namespace psae
