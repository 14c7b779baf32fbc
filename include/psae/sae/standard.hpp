#pragma once
// The standard SAE: ReLU and a penalty on the codes: L1, L1 times the norms of the decoder rows, tanh, or L_p.

#include <psae/sae/dead_latents.hpp>

namespace psae {

// Penalties: at(now) gives the functor of a code that is summed, as it stands at that step.

// |z|.
struct l1_penalty {
    absolute at(const training_state&) const { return {}; }
};
// tanh(scale z), which large codes do not feel.
struct tanh_penalty {
    double scale = 1;
    hyperbolic_tangent at(const training_state&) const { return {scale}; }
};
// z^p, with p falling from 1 to p_end over the steps from_step .. until_step (Karvonen et al., arXiv 2408.00113, who
// call it p-annealing and scale lambda up on the way; here lambda stays). The derivative is taken at z >= 1e-6, since it
// has no bound at 0.
struct power_penalty {
    double p_end = 0.5;
    std::size_t from_step = 0, until_step = 0;  // equal: p_end from the start
    struct functor {
        double p;
        template <class T>
        PSAE_FN T value(T z) const {
            return z > 0 ? std::pow(z, T(p)) : T(0);
        }
        template <class T>
        PSAE_FN partials<T, 1> derivative(T z) const {
            return {{T(p) * std::pow(z > T(1e-6) ? z : T(1e-6), T(p - 1))}};
        }
    };
    functor at(const training_state& now) const {
        if (now.step >= until_step) return {p_end};
        const double done = now.step <= from_step ? 0.0 : double(now.step - from_step) / double(until_step - from_step);
        return {1 + (p_end - 1) * done};
    }
};

template <std::size_t d_in = dyn, std::size_t d_sae = dyn, class T = float, class Penalty = l1_penalty,
          class DeadLatents = no_revival>
struct standard : sae_parameters<d_in, d_sae, T> {
    using sae_parameters<d_in, d_sae, T>::sae_parameters;
    static constexpr const char* name = "standard";
    static constexpr bool unit_norm_decoder = false;

    T lambda = T(1e-3);
    std::size_t lambda_warmup_steps = 0;  // over which lambda grows from 0
    bool norm_weighted = true;  // codes are penalised times the norm of their decoder row (Conerly et al., 2024)
    Penalty penalty{};
    DeadLatents dead_latents{};

    // loss = S(x_hat, x) + lambda * mean over tokens of sum penalty(z_f ||W_dec[f]||). x: [n, d_in].
    auto loss(auto x, const training_state& now) const {
        auto z = encode(x - this->b_dec, this->W_enc, this->b_enc, relu{});
        auto x_hat = decode(z, this->W_dec, this->b_dec);
        auto mse = term("mse", squared_error(x_hat, x));
        const auto functor = penalty.at(now);
        const T weight = warmed_up(lambda, lambda_warmup_steps, now);
        auto sparsity = norm_weighted
                            ? term("l1", weight * mean_over_tokens(sum(map(functor, z * row_norms(x, this->W_dec)))))
                            : term("l1", weight * mean_over_tokens(sum(map(functor, z))));
        return mse + sparsity + dead_latents.loss(*this, x, x_hat, square(x_hat - x), z, now);
    }
};

}  // namespace psae
