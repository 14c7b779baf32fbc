#pragma once
// JumpReLU (Rajamanoharan et al., arXiv 2407.14435): a threshold per latent, learned through pseudo-derivatives in a
// window around it, and a penalty on L0 itself or on a tanh of the codes.

#include <psae/sae/jump_relu_derivatives.hpp>
#include <psae/sae/latent_thresholds.hpp>

namespace psae {

// Whose loss; theta are the thresholds, S squared_error, n_f the norm of decoder row f:
//   saelens_step (6.18)          S + lambda * mean L0 + pre_act; theta = exp(log_threshold)
//   saelens_tanh                 S + lambda * mean over tokens of sum tanh(tanh_scale z_f n_f) + pre_act
//   dictionary_learning (0.1.0)  S + lambda * (mean L0 / target_l0 - 1)^2; the threshold itself is the parameter, tokens
//                                are not centred, and the window of L0 is around z, after the jump
// pre_act = pre_act_weight * mean over tokens of sum over dead latents of ReLU(theta - h) n_f.
enum class jump_relu_form { saelens_step, saelens_tanh, dictionary_learning };

template <std::size_t d_in = dyn, std::size_t d_sae = dyn, class T = float,
          jump_relu_form form = jump_relu_form::saelens_step>
struct jump_relu : latent_thresholds<d_in, d_sae, T, form != jump_relu_form::dictionary_learning> {
    static constexpr const char* name = "jump_relu";
    static constexpr bool is_saelens = form != jump_relu_form::dictionary_learning, unit_norm_decoder = !is_saelens;
    using latent_thresholds<d_in, d_sae, T, is_saelens>::latent_thresholds;

    T lambda = T(1e-3), pre_act_weight = T(0), target_l0 = T(20);
    std::size_t lambda_warmup_steps = 0;  // over which lambda grows from 0
    double tanh_scale = 4, window = is_saelens ? 0.05 : 0.001;

    // x: [n, d_in].
    auto loss(auto x, const training_state& now) const {
        auto theta = evaluate(this->thresholds(x));
        auto h = encode(input(x), this->W_enc, this->b_enc,
                        above<T>{values_of(x, map(detail::window_floor{window, !is_saelens}, this->thresholds(x)))});
        auto z = evaluate(map(detail::jump{window}, h, theta));
        auto x_hat = decode(z, this->W_dec, this->b_dec);
        auto mse = term("mse", squared_error(x_hat, x));
        return mse + sparsity(x, h, z, theta, warmed_up(lambda, lambda_warmup_steps, now)) + pre_act(x, theta, now);
    }

private:
    auto input(auto x) const {
        if constexpr (is_saelens) return x - this->b_dec;
        else return x;
    }
    auto sparsity(auto x, auto h, auto z, auto theta, T weight) const {
        if constexpr (form == jump_relu_form::saelens_step) {
            return term("l0", weight * mean_over_tokens(sum(map(detail::step_above{window}, h, theta))));
        } else if constexpr (form == jump_relu_form::saelens_tanh) {
            return term("l0", weight * mean_over_tokens(
                                           sum(map(hyperbolic_tangent{tanh_scale}, z * row_norms(x, this->W_dec)))));
        } else {
            auto mean_l0 = term("mean_l0", mean_over_tokens(sum(map(detail::step_above{window}, z, theta))));
            return term("sparsity", weight * square(mean_l0 / target_l0 - 1));
        }
    }
    auto pre_act(auto x, auto theta, const training_state& now) const {
        if (pre_act_weight == 0 || !now.any_dead) return term("pre_act", zero_like(x));
        auto h = encode(input(x), this->W_enc, this->b_enc, below<T>{theta.data}, now.dead);
        return term("pre_act", pre_act_weight * mean_over_tokens(sum((theta - h) * row_norms(x, this->W_dec))));
    }
};

}  // namespace psae
