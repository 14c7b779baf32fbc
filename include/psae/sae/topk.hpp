#pragma once
// TopK with aux-k (Gao et al., arXiv 2406.04093), in the form dictionary_learning trains it.

#include <psae/sae/parameters.hpp>

namespace psae {

template <std::size_t d_in = dyn, std::size_t d_sae = dyn, class T = float>
struct topk : sae_parameters<d_in, d_sae, T> {
    using sae_parameters<d_in, d_sae, T>::sae_parameters;
    static constexpr const char* name = "topk";
    static constexpr bool unit_norm_decoder = true;

    std::size_t k = 32;
    T aux_weight = T(1) / 32;

    // loss = S(x_hat, x) + aux_weight * S(a W_dec, r) / S(r, mean r), S(a, b) = mean over tokens of sum (a - b)^2, r
    // the residual held constant, a the top min(d_in / 2, number of dead) of the dead latents that stay silent in this
    // batch too.
    auto loss(auto x, const training_state& now) const {
        auto z = encode(x - this->b_dec, this->W_enc, this->b_enc, top_k{k});
        auto x_hat = decode(z, this->W_dec, this->b_dec);
        auto mse = term("mse", mean_over_tokens(sum(square(x_hat - x))));
        auto aux = now.any_dead ? term("aux", aux_weight * aux_term(x, x_hat, z, now)) : term("aux", zero_like(x));
        return mse + aux;
    }

private:
    auto aux_term(auto x, auto x_hat, auto z, const training_state& now) const {
        auto r = stop_gradient(x - x_hat);
        auto dead = silent(now.dead, z);
        auto a = encode(x - this->b_dec, this->W_enc, this->b_enc, top_k{this->inputs() / 2}, dead);
        auto revived = decode(a, this->W_dec);
        auto variance = stop_gradient(mean_over_tokens(sum(square(r - column_means(r)))));
        return map(minimum{}, size_of(dead, z), constant_node<T>{1}) * mean_over_tokens(sum(square(revived - r))) /
               variance;
    }
};

}  // namespace psae
