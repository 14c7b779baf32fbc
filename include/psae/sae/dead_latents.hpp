#pragma once
// What a loss does for dead latents, as a policy that variants take as a template argument: a struct with
//   auto loss(const auto& sae, auto x, auto x_hat, auto M, auto z, const training_state& now) const
// for tokens x, their reconstruction x_hat from codes z, and the squared error M of each element, divided as the variant
// divides it. It gives a named term. (Resampling is no part of a loss: see sae/resample.hpp.)

#include <psae/sae/parameters.hpp>

namespace psae {

// They stay as they are.
struct no_revival {
    auto loss(const auto&, auto x, auto, auto, auto, const training_state&) const { return zero_like(x); }
};

// PatchSAE's ghost gradients: the dead latents, under exp instead of ReLU, explain what the living ones leave. r = x -
// x_hat is held constant, what they decode is scaled to half its length, and the term's value is scaled to that of the
// reconstruction error.
struct ghost_gradients {
    bool enabled = true;

    auto loss(const auto& sae, auto x, auto x_hat, auto M, auto, const training_state& now) const {
        return enabled && now.any_dead ? term("ghost", ghost_error(sae, x, x_hat, M, now))
                                       : term("ghost", zero_like(x));
    }

private:
    static auto ghost_error(const auto& sae, auto x, auto x_hat, auto M, const training_state& now) {
        using T = typename decltype(x)::value_type;
        auto r = stop_gradient(x - x_hat);
        auto e = encode(x - sae.b_dec, sae.W_enc, sae.b_enc, exponential_activation{}, now.dead);
        auto g = decode(e, sae.W_dec);
        auto length_of_r = stop_gradient(norm(r));
        auto scaled = g * stop_gradient(length_of_r / (T(1e-6) + 2 * norm(g)));
        auto G = square(scaled - r) / length_of_r;
        return mean(stop_gradient(M / (G + T(1e-6))) * G);
    }
};

// Whose loss a TopK SAE has. S(a, b) is squared_error, V(b) that of the mean row of b, h are the pre-activations, r = x
// - x_hat held constant, and a the codes of dead latents alone, which have to explain r:
//   dictionary_learning (0.1.0)  S(x_hat, x) + weight * min(dead, 1) * S(a W_dec, r) / V(r);
//                                a: top k of ReLU(h) among the dead latents that stay silent in this batch too.
//   saelens (6.18)               S(x_hat, x) + weight * min(dead / k, 1) * S(a W_dec + b_dec, r);
//                                a: top k of h, not rectified. Decoder rows are not normalised, and latents are
//                                chosen by h times the norm of their row.
//   openai (the paper's code)    S(x_hat, x) / V(x) + weight * S(a W_dec + b_dec, t) / V(t), t = r + b_dec held
//                                constant; a: top k of ReLU(h).
enum class topk_form { dictionary_learning, saelens, openai };

// The auxiliary loss of those forms (Gao et al., arXiv 2406.04093).
template <topk_form form>
struct aux_k {
    std::size_t k = 0;  // 0: d_in / 2
    double weight = form == topk_form::saelens ? 1.0 : 1.0 / 32;

    auto loss(const auto& sae, auto x, auto x_hat, auto, auto z, const training_state& now) const {
        using T = typename decltype(x)::value_type;
        return now.any_dead && weight != 0 ? term("aux", static_cast<T>(weight) * error(sae, x, x_hat, z, now))
                                           : term("aux", zero_like(x));
    }

private:
    auto error(const auto& sae, auto x, auto x_hat, auto z, const training_state& now) const {
        using T = typename decltype(x)::value_type;
        const std::size_t count = k > 0 ? k : sae.inputs() / 2;
        const constant_node<T> one{1};
        auto r = stop_gradient(x - x_hat);
        if constexpr (form == topk_form::dictionary_learning) {
            auto dead = silent(now.dead, z);
            auto a = encode(x - sae.b_dec, sae.W_enc, sae.b_enc, top_k{count}, dead);
            return map(minimum{}, size_of(dead, z), one) * normalised_error(decode(a, sae.W_dec), r);
        } else if constexpr (form == topk_form::saelens) {
            auto a = encode(x - sae.b_dec, sae.W_enc, sae.b_enc,
                            weighted_top_k<T>{{count}, row_norms(x, sae.W_dec).data, false}, now.dead);
            return map(minimum{}, size_of(now.dead, z) / count, one) *
                   squared_error(decode(a, sae.W_dec, sae.b_dec), r);
        } else {
            auto a = encode(x - sae.b_dec, sae.W_enc, sae.b_enc, top_k{count}, now.dead);
            return normalised_error(decode(a, sae.W_dec, sae.b_dec), r + stop_gradient(sae.b_dec));
        }
    }
};

}  // namespace psae
