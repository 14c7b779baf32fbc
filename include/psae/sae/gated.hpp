#pragma once
// Gated SAE (Rajamanoharan et al., arXiv 2404.16014): one path decides which latents fire, another how strongly, with
// shared encoder rows.

#include <span>

#include <psae/sae/inference.hpp>
#include <psae/sae/parameters.hpp>

namespace psae {

// pi = (x - b_dec) W_enc + b_gate, z = [pi > 0] ReLU(exp(r_mag) * (x - b_dec) W_enc + b_mag), and the loss is S(x_hat, x)
// + lambda * mean over tokens of sum ReLU(pi) + S(ReLU(pi) W_dec + b_dec, x).
//   saelens (6.18)  ReLU(pi) is penalised times the norm of its decoder row, and nothing is held constant
//   paper           unit rows, not weighted; W_dec and b_dec are constants in the last term
enum class gated_form { saelens, paper };

template <std::size_t d_in = dyn, std::size_t d_sae = dyn, class T = float, gated_form form = gated_form::saelens>
struct gated : sae_parameters<d_in, d_sae, T> {
    using parameters = sae_parameters<d_in, d_sae, T>;
    static constexpr const char* name = "gated";
    static constexpr bool unit_norm_decoder = form == gated_form::paper;

    gated() requires(d_in != dyn && d_sae != dyn) = default;
    gated(std::size_t inputs, std::size_t latents)
        : parameters(inputs, latents),
          r_mag(parameters::template make<shape<d_sae>>(latents)),
          b_mag(parameters::template make<shape<d_sae>>(latents)) {}

    T lambda = T(1e-3);
    std::size_t lambda_warmup_steps = 0;      // over which lambda grows from 0
    parameter<T, shape<d_sae>> r_mag, b_mag;  // b_enc is the bias of the gate

    template <class F>
    void each_parameter(F&& f) {
        f("W_enc", this->W_enc);
        f("b_gate", this->b_enc);
        f("r_mag", r_mag);
        f("b_mag", b_mag);
        f("W_dec", this->W_dec);
        f("b_dec", this->b_dec);
    }

    // Resampled latents fire as strongly as the gate says, as all do at the start.
    void restart(const cpu&, std::span<const std::uint32_t> latents, const T*, std::size_t) {
        for (const std::uint32_t f : latents) r_mag.data()[f] = b_mag.data()[f] = 0;
    }

    // x: [n, d_in].
    auto loss(auto x, const training_state& now) const {
        const T weight = warmed_up(lambda, lambda_warmup_steps, now);
        auto scale = evaluate(on_tape_of(x, exp(r_mag)));
        auto pi = encode(x - this->b_dec, this->W_enc, this->b_enc, relu{});
        auto z = evaluate(map(rectifier{}, scale * (pi - this->b_enc) + b_mag));
        auto x_hat = decode(z, this->W_dec, this->b_dec);
        auto mse = term("mse", squared_error(x_hat, x));
        if constexpr (form == gated_form::saelens) {
            auto l1 = term("l1", weight * mean_over_tokens(sum(pi * row_norms(x, this->W_dec))));
            return mse + l1 + term("aux", squared_error(decode(pi, this->W_dec, this->b_dec), x));
        } else {
            auto l1 = term("l1", weight * mean_over_tokens(sum(pi)));
            return mse + l1 + term("aux", squared_error(decode(pi, frozen(this->W_dec), frozen(this->b_dec)), x));
        }
    }
    void describe(sae_view& view) const {
        view.architecture = "gated";
        view.r_mag.assign(r_mag.value.begin(), r_mag.value.end());
        view.b_mag.assign(b_mag.value.begin(), b_mag.value.end());
    }
    // Of a trained SAE of another kind nothing: its latents then fire as strongly as the gate says.
    void adopt(const sae_description& from) {
        std::copy(from.r_mag.begin(), from.r_mag.end(), r_mag.data());
        std::copy(from.b_mag.begin(), from.b_mag.end(), b_mag.data());
        if (from.b_mag.empty()) std::copy(this->b_enc.value.begin(), this->b_enc.value.end(), b_mag.data());
    }
};

}  // namespace psae
