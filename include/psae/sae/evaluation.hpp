#pragma once
// How well an SAE does on tokens, summed over batches: memory is 2 d_in numbers and a byte a latent, whatever the number
// of tokens. Of a transcoder x are the targets, d_in their width and x_hat its output.
//
//   psae::reconstruction_sums sums(d_in, d_sae);
//   sums.add(x, z, x_hat, tower.tokens());       // batch by batch; z and x_hat as encode_rows and decode_rows give them
//   sums.result().patches.nmse

#include <cmath>
#include <cstddef>
#include <limits>
#include <string>
#include <vector>

#include <psae/core/error.hpp>
#include <psae/sparse/codes.hpp>

namespace psae {

// Errors of the reconstructions x_hat of tokens x [n, d_in] of one kind.
struct token_errors {
    static constexpr double nan = std::numeric_limits<double>::quiet_NaN();
    std::size_t tokens = 0;
    double mse = nan;  // mean of (x - x_hat)^2 over all elements; NaN without tokens
    // sum ||x - x_hat||^2 / sum ||x - mean x||^2, the mean taken over the tokens of this kind (saev's normalized MSE, also
    // called the fraction of variance unexplained). NaN where all tokens are equal.
    double nmse = nan;
};

struct reconstruction_quality {
    double mse = 0;                 // of all tokens
    double l0 = 0;                  // mean number of active latents per token
    double explained_variance = 0;  // centred: 1 - nmse of all tokens; 0 where those are equal
    double dead_fraction = 0;       // share of the latents that fire on none of the tokens
    // Means over tokens that are not 0, as SAELens takes them: x . x_hat / (||x|| ||x_hat||), and ||x_hat|| / ||x||.
    double cosine_similarity = 0, l2_ratio = 0;
    token_errors all{}, cls{}, patches{};  // cls, patches: where tokens come by the image
};

class reconstruction_sums {
public:
    reconstruction_sums(std::size_t d_in, std::size_t d_sae)
        : d_(d_in), origin_(d_in), cls_{0, 0, 0, std::vector<double>(d_in)}, others_(cls_), fired_(d_sae, 0) {}

    // Tokens x [n, d_in], their codes, their reconstructions x_hat [n, d_in]. tokens_per_image: they are whole images, of
    // which the first token is the class token; 0: nobody knows. psae::error for codes of another number of latents, and
    // for images that are not whole.
    void add(const float* x, const codes_view<float>& z, const float* x_hat, std::size_t tokens_per_image = 0) {
        if (z.latents != fired_.size() || (tokens_per_image > 0 && z.tokens % tokens_per_image != 0))
            throw error("codes do not fit the evaluation", "reconstruction_sums::add",
                        "expected whole images of " + std::to_string(tokens_per_image) + " tokens and " +
                            std::to_string(fired_.size()) + " latents, found " + std::to_string(z.tokens) +
                            " tokens and " + std::to_string(z.latents) + " latents");
        // Variances are taken about the first token, so that what all tokens share does not cancel: many dimensions of
        // a ViT have a mean far larger than their spread.
        if (cls_.tokens + others_.tokens == 0 && z.tokens > 0) origin_.assign(x, x + d_);
        for (std::size_t t = 0; t < z.tokens; ++t)
            add_token(x + t * d_, x_hat + t * d_, tokens_per_image > 0 && t % tokens_per_image == 0 ? cls_ : others_);
        for (std::size_t i = z.tokens == 0 ? 0 : z.offsets[0]; i < z.entries(); ++i) {
            if (!(z.value[i] > 0)) continue;
            ++active_;
            fired_[z.latent[i]] = 1;
        }
        by_image_ = by_image_ && tokens_per_image > 0;
    }

    // Everything is 0 or NaN without tokens.
    reconstruction_quality result() const {
        reconstruction_quality q;
        kind both = cls_;
        both.tokens += others_.tokens;
        both.residual += others_.residual;
        both.squares += others_.squares;
        for (std::size_t c = 0; c < d_; ++c) both.sum[c] += others_.sum[c];
        q.all = errors_of(both);
        if (both.tokens == 0) return q;
        if (by_image_) {
            q.cls = errors_of(cls_);
            q.patches = errors_of(others_);
        }
        q.mse = q.all.mse;
        q.explained_variance = std::isnan(q.all.nmse) ? 0 : 1 - q.all.nmse;
        q.l0 = double(active_) / double(both.tokens);
        std::size_t dead = 0;
        for (const char f : fired_) dead += f == 0;
        q.dead_fraction = double(dead) / double(fired_.size());
        if (nonzero_ > 0) {
            q.cosine_similarity = cosines_ / double(nonzero_);
            q.l2_ratio = ratios_ / double(nonzero_);
        }
        return q;
    }

private:
    // Sums over tokens x: ||x - x_hat||^2, ||x - origin||^2 and x - origin.
    struct kind {
        std::size_t tokens;
        double residual, squares;
        std::vector<double> sum;  // [d_in]
    };

    void add_token(const float* x, const float* x_hat, kind& k) {
        double residual = 0, squares = 0, inner = 0, x_norm = 0, x_hat_norm = 0;
        for (std::size_t c = 0; c < d_; ++c) {
            const double v = double(x[c]), w = double(x_hat[c]), centred = v - double(origin_[c]);
            residual += (v - w) * (v - w);
            squares += centred * centred;
            inner += v * w;
            x_norm += v * v;
            x_hat_norm += w * w;
            k.sum[c] += centred;
        }
        ++k.tokens;
        k.residual += residual;
        k.squares += squares;
        if (!(x_norm > 0)) return;
        ++nonzero_;
        if (x_hat_norm > 0) cosines_ += inner / std::sqrt(x_norm * x_hat_norm);
        ratios_ += std::sqrt(x_hat_norm / x_norm);
    }

    token_errors errors_of(const kind& k) const {
        token_errors e;
        e.tokens = k.tokens;
        if (k.tokens == 0) return e;
        e.mse = k.residual / double(k.tokens * d_);
        double variance = k.squares;
        for (const double s : k.sum) variance -= s * s / double(k.tokens);
        if (variance > 0) e.nmse = k.residual / variance;
        return e;
    }

    std::size_t d_;
    std::vector<float> origin_;
    kind cls_, others_;
    bool by_image_ = true;  // as long as every batch was
    std::size_t active_ = 0, nonzero_ = 0;
    double cosines_ = 0, ratios_ = 0;
    std::vector<char> fired_;  // [d_sae]
};

}  // namespace psae
