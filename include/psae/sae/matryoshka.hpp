#pragma once
// Matryoshka SAEs (Bussmann et al., arXiv 2503.17547): every prefix of the latents has to reconstruct the tokens, so the
// first latents learn the broadest concepts.

#include <vector>

#include <psae/sae/batch_topk.hpp>
#include <psae/sae/topk.hpp>
#include <psae/stage/decode_prefixes.hpp>

namespace psae {

// Over a TopK or BatchTopK SAE. With prefixes w_1 < .. < w_m = d_sae and S(w) the error of the reconstruction from the
// latents below w:
//   saelens (6.18)               S(w_m) + sum over the other prefixes of S(w) + aux
//   dictionary_learning (0.1.0)  mean over the prefixes of S(w) / m + aux
template <class Base, topk_form form = topk_form::dictionary_learning>
struct matryoshka : Base {
    using Base::Base;
    using T = typename Base::value_type;
    static constexpr const char* name = "matryoshka";

    std::vector<std::size_t> prefixes;  // ascending, each below d_sae; the last prefix, all latents, is not named
    // Prefixes drawn anew for each step, this many, in place of fixed ones: each is d_sae * u^2 for uniform u, so short
    // ones are likelier.
    std::size_t random_prefixes = 0;

    // x: [n, d_in].
    auto loss(auto x, const training_state& now) const {
        auto z = this->codes(x);
        const std::vector<std::size_t> widths = ends(now.random);
        const T share = form == topk_form::saelens ? T(1) : T(1) / static_cast<T>(widths.size() * widths.size());
        auto [x_hat, inner_errors] = decode_prefixes(z, this->W_dec, this->b_dec, x, widths);
        auto mse = term("mse", share * squared_error(x_hat, x));
        auto inner = term("inner", share * mean_over_tokens(inner_errors));
        return mse + inner + this->dead_latents.loss(*this, x, x_hat, square(x_hat - x), z, now);
    }

private:
    std::vector<std::size_t> ends(random_stream random) const {
        std::vector<std::size_t> widths = prefixes;
        for (std::size_t i = 0; i < random_prefixes; ++i) {
            const double u = static_cast<double>(random.uniform());
            widths.push_back(std::max<std::size_t>(1, static_cast<std::size_t>(u * u * double(this->latents()))));
        }
        widths.push_back(this->latents());
        std::sort(widths.begin(), widths.end());
        widths.erase(std::unique(widths.begin(), widths.end()), widths.end());
        return widths;
    }
};

}  // namespace psae
