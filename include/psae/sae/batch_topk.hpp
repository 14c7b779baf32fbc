#pragma once
// BatchTopK (Bussmann et al., arXiv 2412.06410): k latents per token on average over a batch, and a threshold, learned
// on the way, for tokens that come without a batch.

#include <psae/sae/dead_latents.hpp>
#include <psae/sae/inference.hpp>

namespace psae {

template <std::size_t d_in = dyn, std::size_t d_sae = dyn, class T = float,
          topk_form form = topk_form::dictionary_learning, class DeadLatents = aux_k<form>>
struct batch_topk : sae_parameters<d_in, d_sae, T> {
    static_assert(form != topk_form::openai, "psae: BatchTopK has the forms of dictionary_learning and saelens");
    using sae_parameters<d_in, d_sae, T>::sae_parameters;
    static constexpr const char* name = "batch_topk";
    static constexpr bool unit_norm_decoder = form != topk_form::saelens;

    double k = 32;  // the mean number of active latents; need not be whole
    DeadLatents dead_latents{};
    // The mean over past batches, weighted so, of the least pre-activation that was kept (in the form of saelens, times
    // the norm of its decoder row). dictionary_learning starts from the first batch, saelens from 0.
    double threshold = form == topk_form::saelens ? 0 : -1;
    double threshold_rate = form == topk_form::saelens ? 0.01 : 0.001;

    // x: [n, d_in].
    auto loss(auto x, const training_state& now) const {
        auto z = codes(x);
        auto x_hat = decode(z, this->W_dec, this->b_dec);
        auto mse = term("mse", squared_error(x_hat, x));
        return mse + dead_latents.loss(*this, x, x_hat, square(x_hat - x), z, now);
    }
    // h of the chosen latents (in the form of saelens, too, h without the norm).
    auto codes(auto x) const {
        if constexpr (form == topk_form::saelens)
            return encode(x - this->b_dec, this->W_enc, this->b_enc,
                          weighted_batch_top_k<T>{{k}, row_norms(x, this->W_dec).data});
        else return encode(x - this->b_dec, this->W_enc, this->b_enc, batch_top_k{k});
    }

    void after_step(const step_codes& z) {
        if (z.active == 0) return;
        threshold = threshold < 0 ? z.least_rank : (1 - threshold_rate) * threshold + threshold_rate * z.least_rank;
    }
    template <class F>
    void each_state(F&& f) {
        f("threshold", &threshold, std::size_t{1});
    }
    // In use: a latent is active above the threshold, whatever the others do.
    void describe(sae_view& view) const {
        view.architecture = "jumprelu";
        if (k >= 1 && k == std::floor(k)) view.k = static_cast<std::size_t>(k);
        view.threshold.assign(this->latents(), static_cast<float>(threshold));
        if constexpr (form == topk_form::saelens)
            for (std::size_t f = 0; f < this->latents(); ++f)
                view.threshold[f] /= static_cast<float>(this->decoder_norm(f));
    }
};

}  // namespace psae
