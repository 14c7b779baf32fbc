#pragma once
// What a variant is built from: its parameters, and what the trainer tells its loss. A variant is a struct that derives
// from sae_parameters and has `auto loss(auto x) const` or `auto loss(auto x, const training_state& now) const`; one
// whose target is not its input has `auto loss(auto x, auto y, const training_state& now) const`. Optional members:
//   each_parameter(f)           where there are more parameters than those of sae_parameters
//   start_on(device, scratch, x, n)  start values that depend on tokens x [n, d_in], set after all others
//   restart(host, latents, x, n)  start values of resampled latents, where it has more by latent than W_enc, b_enc and
//                               W_dec; their rows of those are made, x [n, d_in] are tokens
//   after_step(step_codes)      learns of the codes of each step, such as a running threshold
//   each_state(f)               f(name, data, count) for what after_step keeps, so that checkpoints hold it
//   describe(sae_view&)         how the trained SAE encodes, where that is neither ReLU nor top-k (sae/inference.hpp)

#include <cmath>

#include <psae/core/norm.hpp>
#include <psae/core/random.hpp>
#include <psae/stage/decode.hpp>

namespace psae {

// W_enc [d_sae, d_in] and W_dec [d_sae, d_out] (rows are latents), b_enc [d_sae], b_dec [d_out]. d_out is d_in but for
// transcoders.
template <std::size_t d_in = dyn, std::size_t d_sae = dyn, class T = float, std::size_t d_out = d_in>
struct sae_parameters {
    using value_type = T;

    sae_parameters() requires(d_in != dyn && d_sae != dyn && d_out != dyn) = default;
    sae_parameters(std::size_t inputs, std::size_t latents) : sae_parameters(inputs, latents, inputs) {}
    sae_parameters(std::size_t inputs, std::size_t latents, std::size_t outputs)
        : W_enc(make<shape<d_sae, d_in>>(latents, inputs)),
          b_enc(make<shape<d_sae>>(latents)),
          W_dec(make<shape<d_sae, d_out>>(latents, outputs)),
          b_dec(make<shape<d_out>>(outputs)) {}

    parameter<T, shape<d_sae, d_in>> W_enc;
    parameter<T, shape<d_sae>> b_enc;
    parameter<T, shape<d_sae, d_out>> W_dec;
    parameter<T, shape<d_out>> b_dec;

    std::size_t inputs() const { return W_enc.shape().extent(1); }
    std::size_t latents() const { return W_enc.shape().extent(0); }
    std::size_t outputs() const { return W_dec.shape().extent(1); }

    // Calls f(name, parameter) for each, in the order files and optimisers keep.
    template <class F>
    void each_parameter(F&& f) {
        f("W_enc", W_enc);
        f("b_enc", b_enc);
        f("W_dec", W_dec);
        f("b_dec", b_dec);
    }

    // Both matrices uniform in +-sqrt(6 / fan) as kaiming_uniform_ draws them for [d_in, d_sae] and [d_sae, d_out],
    // decoder rows then scaled to unit norm; biases zero.
    void initialise(random_stream& random) {
        const auto fill = [&](auto& p, std::size_t fan) {
            const T bound = std::sqrt(T(6) / static_cast<T>(fan));
            for (T& w : p.value) w = bound * (2 * static_cast<T>(random.uniform()) - 1);
        };
        fill(W_enc, latents());
        fill(W_dec, outputs());
        for (std::size_t f = 0; f < latents(); ++f) normalise(W_dec.data() + f * outputs(), outputs());
    }

    // The Euclidean norm of decoder row f.
    T decoder_norm(std::size_t f) const { return euclidean_norm(W_dec.data() + f * outputs(), outputs()); }

protected:
    template <class S>
    static S make(std::size_t first, std::size_t second = 1) {
        const std::size_t extents[2] = {first, second};
        return S::from_extents(extents);
    }
};

// What a loss may want to know of the training run. Pointers are to memory of the device that trains.
struct training_state {
    latent_set dead;  // latents that have not fired for `dead_after` steps, before this batch
    bool any_dead = false;
    const float* token_weights = nullptr;  // [n] or null: weight of each token's reconstruction error
    std::size_t step = 0, steps = 0;       // steps done before this one, and the total where it is known
    random_stream random{0};               // the same for every evaluation of this step's loss
};

// What a trainer tells of the codes of a step that is done.
struct step_codes {
    std::size_t tokens = 0, active = 0;  // active latents over all tokens
    double least_rank = 0;               // of a top-k over the whole batch: the rank of the last entry that came in
};

// A coefficient that grows linearly over the first `steps` steps to its full value: min(1, (step + 1) / steps) times it.
template <class T>
T warmed_up(T coefficient, std::size_t steps, const training_state& now) {
    return now.step < steps ? coefficient * static_cast<T>(now.step + 1) / static_cast<T>(steps) : coefficient;
}

// The mean over tokens of the squared distance of their rows.
template <operand A, operand B>
auto squared_error(const A& a, const B& b) {
    return mean_over_tokens(sum(square(a - b)));
}
// The same beside that of the mean row, which is held constant.
template <operand A, operand B>
auto normalised_error(const A& a, const B& b) {
    return squared_error(a, b) / stop_gradient(squared_error(column_means(b), b));
}
// A parameter as a constant.
template <class T, class Shape>
parameter_node<T, Shape> frozen(const parameter<T, Shape>& p) {
    return {{p.data(), p.shape()}, nullptr};
}

namespace detail {

// The number 0 that knows its tape.
template <class T, class Tape>
struct zero_on_tape : constant_node<T> {
    Tape* owner;
};
struct first_argument {
    template <class T>
    PSAE_FN T value(T a, T) const {
        return a;
    }
    template <class T>
    PSAE_FN partials<T, 2> derivative(T, T) const {
        return {{T(1), T(0)}};
    }
};

}  // namespace detail

// A parameter (or an expression of parameters) as an operand on x's tape, so that reductions take it without a token in
// it: mean(square(on_tape_of(x, W_dec))) is a weight decay, norm(on_tape_of(x, W_dec)) the norms of the decoder rows.
template <operand X, operand P>
auto on_tape_of(const X& x, const P& p) {
    using T = typename node_t<P>::value_type;
    auto& t = detail::require_tape(as_node(x));
    return map(detail::first_argument{}, as_node(p),
               detail::zero_on_tape<T, std::remove_cvref_t<decltype(t)>>{{0}, &t});
}

// The scalar 0 on x's tape, for loss terms that are switched off.
template <operand X>
auto zero_like(const X& x) {
    return evaluate(on_tape_of(x, constant_node<typename node_t<X>::value_type>{0}));
}

}  // namespace psae
