#pragma once
// TopK with an auxiliary loss for dead latents (Gao et al., arXiv 2406.04093), in the three forms it is trained in.

#include <psae/sae/parameters.hpp>

namespace psae {

// Whose loss. S(a, b) is the mean over tokens of sum (a - b)^2, V(b) = S(mean of b, b), h are the pre-activations,
// r = x - x_hat held constant, and a the codes of dead latents alone, which have to explain r:
//   dictionary_learning (0.1.0)  S(x_hat, x) + aux_weight * min(dead, 1) * S(a W_dec, r) / V(r);
//                                a: top aux_k of ReLU(h) among the dead latents that stay silent in this batch too.
//   saelens (6.18)               S(x_hat, x) + aux_weight * min(dead / aux_k, 1) * S(a W_dec + b_dec, r);
//                                a: top aux_k of h, not rectified. Decoder rows are not normalised, and latents are
//                                chosen by h times the norm of their row.
//   openai (the paper's code)    S(x_hat, x) / V(x) + aux_weight * S(a W_dec + b_dec, t) / V(t), t = r + b_dec held
//                                constant; a: top aux_k of ReLU(h).
enum class topk_form { dictionary_learning, saelens, openai };

template <std::size_t d_in = dyn, std::size_t d_sae = dyn, class T = float,
          topk_form form = topk_form::dictionary_learning>
struct topk : sae_parameters<d_in, d_sae, T> {
    using sae_parameters<d_in, d_sae, T>::sae_parameters;
    static constexpr const char* name = "topk";
    static constexpr bool unit_norm_decoder = form != topk_form::saelens;

    std::size_t k = 32;
    std::size_t aux_k = 0;  // 0: d_in / 2
    T aux_weight = form == topk_form::saelens ? T(1) : T(1) / 32;

    // x: [n, d_in]. The codes hold h of the chosen latents (in the form of saelens, too, h without the norm).
    auto loss(auto x, const training_state& now) const {
        auto z = codes(x, k, true, {});
        auto x_hat = decode(z, this->W_dec, this->b_dec);
        auto mse = term("mse", fit(x_hat, x));
        auto aux = now.any_dead ? term("aux", aux_weight * aux_term(x, x_hat, z, now)) : term("aux", zero_like(x));
        return mse + aux;
    }

private:
    auto codes(auto x, std::size_t count, bool rectified, latent_set among) const {
        if constexpr (form == topk_form::saelens) {
            const T* norms = evaluate(norm(stop_gradient(on_tape_of(x, this->W_dec)))).data;
            return encode(x - this->b_dec, this->W_enc, this->b_enc, weighted_top_k<T>{{count}, norms, rectified},
                          among);
        } else {
            return encode(x - this->b_dec, this->W_enc, this->b_enc, top_k{count}, among);
        }
    }
    static auto squared_error(auto a, auto b) { return mean_over_tokens(sum(square(a - b))); }
    static auto normalised_error(auto a, auto b) {
        return squared_error(a, b) / stop_gradient(squared_error(column_means(b), b));
    }
    static auto fit(auto x_hat, auto x) {
        if constexpr (form == topk_form::openai) return normalised_error(x_hat, x);
        else return squared_error(x_hat, x);
    }
    auto aux_term(auto x, auto x_hat, auto z, const training_state& now) const {
        const std::size_t count = aux_k > 0 ? aux_k : this->inputs() / 2;
        const constant_node<T> one{1};
        auto r = stop_gradient(x - x_hat);
        if constexpr (form == topk_form::dictionary_learning) {
            auto dead = silent(now.dead, z);
            auto revived = decode(codes(x, count, true, dead), this->W_dec);
            return map(minimum{}, size_of(dead, z), one) * normalised_error(revived, r);
        } else if constexpr (form == topk_form::saelens) {
            auto revived = decode(codes(x, count, false, now.dead), this->W_dec, this->b_dec);
            return map(minimum{}, size_of(now.dead, z) / count, one) * squared_error(revived, r);
        } else {
            auto revived = decode(codes(x, count, true, now.dead), this->W_dec, this->b_dec);
            return normalised_error(revived, r + stop_gradient(this->b_dec));
        }
    }
};

}  // namespace psae
