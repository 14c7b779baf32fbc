#pragma once
// TopK (Gao et al., arXiv 2406.04093), in the three forms it is trained in, and Multi-TopK.

#include <psae/sae/dead_latents.hpp>
#include <psae/sae/inference.hpp>

namespace psae {

template <std::size_t d_in = dyn, std::size_t d_sae = dyn, class T = float,
          topk_form form = topk_form::dictionary_learning, class DeadLatents = aux_k<form>>
struct topk : sae_parameters<d_in, d_sae, T> {
    using sae_parameters<d_in, d_sae, T>::sae_parameters;
    static constexpr const char* name = "topk";
    static constexpr bool unit_norm_decoder = form != topk_form::saelens;

    std::size_t k = 32;
    std::size_t multi_k = 0;    // Multi-TopK: a second reconstruction, of so many latents; 0: none
    T multi_weight = T(1) / 8;  // of its error
    DeadLatents dead_latents{};

    // x: [n, d_in].
    auto loss(auto x, const training_state& now) const {
        const T* norms = norms_of(x);
        auto many = codes(x, std::max(k, multi_k), norms);
        auto z = multi_k > k ? strongest(many, k, norms) : many;
        auto x_hat = decode(z, this->W_dec, this->b_dec);
        auto mse = term("mse", error(x_hat, x));
        auto multi =
            multi_k > k ? term("multi", multi_weight * error(decode(many, this->W_dec, this->b_dec), x)) : zero_like(x);
        return mse + multi + dead_latents.loss(*this, x, x_hat, square(x_hat - x), z, now);
    }
    // h of the chosen latents (in the form of saelens, too, h without the norm).
    auto codes(auto x) const { return codes(x, k, norms_of(x)); }
    void describe(sae_view& view) const {
        view.architecture = "topk";
        view.k = k;
        view.rescaled = form == topk_form::saelens;
    }

private:
    static auto error(auto x_hat, auto x) {
        if constexpr (form == topk_form::openai) return normalised_error(x_hat, x);
        else return squared_error(x_hat, x);
    }
    const T* norms_of(auto x) const {
        if constexpr (form == topk_form::saelens) return row_norms(x, this->W_dec).data;
        else return nullptr;
    }
    auto codes(auto x, std::size_t count, const T* norms) const {
        if constexpr (form == topk_form::saelens)
            return encode(x - this->b_dec, this->W_enc, this->b_enc, weighted_top_k<T>{{count}, norms});
        else return encode(x - this->b_dec, this->W_enc, this->b_enc, top_k{count});
    }
};

}  // namespace psae
