#pragma once
// Transcoder (Dunefsky, Chlenski, Nanda, arXiv 2406.11944): codes of the input of a part of the model explain its
// output, with an optional linear skip connection (Paulo et al., arXiv 2501.18823).

#include <algorithm>

#include <psae/cpu/matmul.hpp>
#include <psae/sae/inference.hpp>
#include <psae/sae/parameters.hpp>
#include <psae/stage/matmul.hpp>

namespace psae {

template <std::size_t d_in = dyn, std::size_t d_sae = dyn, class T = float, std::size_t d_out = d_in, bool skip = false>
struct transcoder : sae_parameters<d_in, d_sae, T, d_out> {
    using parameters = sae_parameters<d_in, d_sae, T, d_out>;
    static constexpr const char* name = "transcoder";
    static constexpr bool unit_norm_decoder = false;

    transcoder() requires(d_in != dyn && d_sae != dyn && d_out != dyn) = default;
    transcoder(std::size_t inputs, std::size_t latents, std::size_t outputs)
        : parameters(inputs, latents, outputs),
          W_skip(parameters::template make<shape<d_out, d_in>>(skip ? outputs : 0, skip ? inputs : 0)) {}

    T lambda = T(1e-3);
    std::size_t lambda_warmup_steps = 0;      // over which lambda grows from 0
    parameter<T, shape<d_out, d_in>> W_skip;  // without a skip connection not used, and empty where sizes are dyn

    template <class F>
    void each_parameter(F&& f) {
        parameters::each_parameter(f);
        if constexpr (skip) f("W_skip", W_skip);
    }

    // loss = S(y_hat, y) + lambda * mean over tokens of sum z_f ||W_dec[f]||, with z = ReLU(x W_enc + b_enc), not
    // centred, and y_hat = z W_dec + b_dec (+ x W_skip^T). x: [n, d_in]; y: [n, d_out].
    auto loss(auto x, auto y, const training_state& now) const {
        auto z = encode(x, this->W_enc, this->b_enc, relu{});
        auto mse = [&] {
            auto decoded = decode(z, this->W_dec, this->b_dec);
            if constexpr (skip) return term("mse", squared_error(reconstruction(decoded + matmul(x, W_skip)), y));
            else return term("mse", squared_error(decoded, y));
        }();
        const T weight = warmed_up(lambda, lambda_warmup_steps, now);
        return mse + term("l1", weight * mean_over_tokens(sum(z * row_norms(x, this->W_dec))));
    }
    void describe(sae_view& view) const {
        view.d_out = this->outputs();
        view.centred_input = false;
        if constexpr (skip) view.W_skip.assign(W_skip.value.begin(), W_skip.value.end());
    }
    void adopt(const sae_weights& from) requires(skip) {
        std::copy(from.W_skip.begin(), from.W_skip.end(), W_skip.data());
    }
};

}  // namespace psae
