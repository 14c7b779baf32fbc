#pragma once
// PatchSAE (arXiv 2412.05276): ReLU, L1, reconstruction error scaled by each token's norm, ghost gradients for dead
// latents.

#include <psae/sae/dead_latents.hpp>

namespace psae {

template <std::size_t d_in = dyn, std::size_t d_sae = dyn, class T = float, class DeadLatents = ghost_gradients>
struct patchsae : sae_parameters<d_in, d_sae, T> {
    using sae_parameters<d_in, d_sae, T>::sae_parameters;
    static constexpr const char* name = "relu";
    static constexpr bool unit_norm_decoder = true;

    T lambda = T(8e-5);
    std::size_t lambda_warmup_steps = 0;  // over which lambda grows from 0
    bool error_over_norm = true;          // PatchSAE's reconstruction error; otherwise the plain squared error
    DeadLatents dead_latents{};

    // loss = mean M + lambda * mean over tokens of sum z + ghost, with M = (x_hat - x)^2 / ||x|| elementwise (the norm
    // of the token, not its square), or M = (x_hat - x)^2. x: [n, d_in].
    auto loss(auto x, const training_state& now) const {
        auto z = encode(x - this->b_dec, this->W_enc, this->b_enc, relu{});
        auto x_hat = decode(z, this->W_dec, this->b_dec);
        auto M = square(x_hat - x) / stop_gradient(map(error_scale{error_over_norm}, norm(x)));
        auto mse = now.token_weights == nullptr ? term("mse", mean(M)) : term("mse", mean(M * weights(x, now)));
        auto l1 = term("l1", warmed_up(lambda, lambda_warmup_steps, now) * mean_over_tokens(sum(z)));
        return mse + l1 + dead_latents.loss(*this, x, x_hat, M, z, now);
    }

    // What the squared error of a token of norm a is divided by. (Not private: nvcc takes no private types into kernels.)
    struct error_scale {
        bool by_norm;
        template <class U>
        PSAE_FN U value(U a) const {
            return by_norm ? a : U(1);
        }
        template <class U>
        PSAE_FN partials<U, 1> derivative(U) const {
            return {{U(by_norm)}};
        }
    };

private:
    static auto weights(auto x, const training_state& now) {
        return const_view<float, shape<dyn, 1>, x.memory>{now.token_weights, shape<dyn, 1>{x.rows()}};
    }
};

}  // namespace psae
