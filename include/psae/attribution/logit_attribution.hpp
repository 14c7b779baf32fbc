#pragma once
// Attribution to the output: how much each latent of each token of an image adds to the logit of a class. The gradient
// of the logit flows back through the blocks behind the hooked layer to the tokens, and along the decoder's rows to the
// codes.
//
//   const auto direction = classifier.direction(cat);                            // or against other classes
//   const psae::explained_image image{*tower, layer, sae, z, x, direction};      // z: codes of its tokens x
//   const auto a = psae::attribute_logit(device, scratch, image, 16);            // integrated; 0 steps: gradient only
//   const auto map = psae::patch_map(a.codes(z), 0, tower->grid(), latent);      // where in the image
//   const auto sums = psae::attributed_latents(z, a, tower->image_tokens());      // over all tokens, the largest first
//   const auto effects = psae::removal_effects(device, scratch, image, latents); // what really happens without them

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <psae/sae/inference.hpp>
#include <psae/vit/clip_vision.hpp>

namespace psae {

// An image at hidden state `layer`, and which value is explained.
struct explained_image {
    const vision_tower& tower;
    std::size_t layer;
    const sae_view& sae;
    codes_view<float> z;               // of its tokens
    const float* x;                    // its tokens, [T, width]
    std::span<const float> direction;  // [projection]: <unit image embedding, direction> is explained
    // The tokens keep what the SAE leaves unexplained, x - x_hat, so that with all latents in place they are x. Without
    // it they are the reconstruction x_hat.
    bool error_term = true;
};

struct logit_attribution {
    std::vector<float> attribution;  // of each entry of the codes, in the places of z.value
    double value = 0, baseline = 0;  // the explained value with all latents, and with all of them at 0
    double total = 0;                // the sum of all attributions

    // The same as codes, on the entries of z.
    codes_view<float> codes(codes_view<float> z) const {
        z.value = attribution.data();
        return z;
    }
    // What is wrong with the sum: 0 if attributions account for all that the latents do.
    double completeness_error() const { return total - (value - baseline); }
};

namespace detail {

// An image's tokens with the codes scaled: all in place at `end`, none at `end` - `change`.
struct attribution_path {
    std::vector<float> end, change;  // [T, width]
    std::vector<float> slope;        // [T]: a code adds slope * value * its decoder row to its token
    std::vector<float> row_scale;    // [d_sae] of a rescaled SAE: that is divided by it; empty: by 1

    explicit attribution_path(const cpu& device, arena<>& scratch, const explained_image& image)
        : end(image.x, image.x + image.tower.tokens() * image.tower.width()), change(end.size()) {
        const sae_view& sae = image.sae;
        const std::size_t d = sae.d_in;
        require_reconstruction(sae, image.tower.name());
        if (d != image.tower.width() || image.z.tokens != image.tower.tokens() || image.z.latents != sae.d_sae ||
            image.direction.size() != image.tower.projection())
            throw error("parts of an attribution do not fit", image.tower.name(),
                        "expected codes of " + std::to_string(image.tower.tokens()) + " tokens, d_in " +
                            std::to_string(image.tower.width()) + " and a direction of " +
                            std::to_string(image.tower.projection()) + " numbers");
        const auto mark = scratch.position();
        codes_view<float> none = image.z;
        auto* offsets = scratch.allocate<std::size_t>(none.tokens + 1);
        std::fill_n(offsets, none.tokens + 1, std::size_t{0});
        none.offsets = offsets;
        std::vector<float> silent(end.size());
        decode_rows(device, sae, image.z, image.x, change.data());
        decode_rows(device, sae, none, image.x, silent.data());
        scratch.release_to(mark);
        if (!image.error_term) end = change;
        for (std::size_t i = 0; i < change.size(); ++i) change[i] -= silent[i];
        for (std::size_t t = 0; t < none.tokens; ++t)
            slope.push_back(token_scaling(sae).of(image.x + t * d).multiplier);
        if (sae.rescaled) {
            cpu own = device;
            row_scale.resize(sae.d_sae);
            row_norms(own, row_scale.data(), sae.W_dec, sae.d_sae, d);
        }
    }
    // By what entry i, of token t, multiplies its decoder row.
    float weight(const codes_view<float>& z, std::size_t t, std::size_t i) const {
        const float norm = row_scale.empty() ? 1 : row_scale[z.latent[i]];
        return norm > 0 ? z.value[i] * slope[t] / norm : 0;
    }
};

// The explained value of several versions of an image's tokens, [images, T, width], which are gone afterwards.
inline std::vector<double> explained_values(const cpu& device, arena<>& scratch, const explained_image& image,
                                            float* tokens, std::size_t images) {
    const std::size_t p = image.direction.size();
    std::vector<float> embeds(images * p);
    image.tower.embeddings(device, scratch, tokens, images, image.layer, embeds.data());
    std::vector<double> values(images);
    for (std::size_t i = 0; i < images; ++i)
        for (std::size_t k = 0; k < p; ++k) values[i] += double(embeds[i * p + k]) * double(image.direction[k]);
    return values;
}

}  // namespace detail

// The attribution of every entry of the codes to the explained value v.
//   steps 0: gradient times activation, z * dv/dz, at the image's tokens. Exact where v is linear.
//   steps m: integrated gradients (Sundararajan, Taly, Yan, Axiomatic attribution for deep networks, 2017) from all
//            latents at 0, on the straight path of the codes, by the midpoint rule: z times the mean of dv/dz at m
//            points. Their sum is value - baseline but for an error that falls as m grows.
// What an SAE does to its input before encoding (its scale) is held at the image's tokens. psae::error for parts that do
// not fit and for transcoders.
inline logit_attribution attribute_logit(const cpu& device, arena<>& scratch, const explained_image& image,
                                         std::size_t steps = 0) {
    const detail::attribution_path path(device, scratch, image);
    const codes_view<float>& z = image.z;
    const std::size_t size = path.end.size(), m = std::max<std::size_t>(steps, 1);
    std::vector<float> absent, tokens(2 * size), mean(size);
    for (std::size_t s = 0; s < m; ++s) absent.push_back(steps == 0 ? 0 : float(1 - (double(s) + 0.5) / double(m)));
    image.tower.differentiate_path(device, scratch, path.end.data(), path.change.data(), absent, image.layer,
                                   image.direction.data(), mean.data());
    for (std::size_t i = 0; i < size; ++i) {
        tokens[i] = path.end[i];
        tokens[size + i] = path.end[i] - path.change[i];
    }
    const auto values = detail::explained_values(device, scratch, image, tokens.data(), 2);
    logit_attribution out;
    out.value = values[0];
    out.baseline = values[1];
    out.attribution.resize(z.entries());
    cpu own = device;
    sparse_decode_adjoint(own, out.attribution.data(), z, mean.data(), image.sae.W_dec, image.sae.d_in,
                          write::overwrite);
    for (std::size_t t = 0; t < z.tokens; ++t)
        for (std::size_t i = z.offsets[t]; i < z.offsets[t + 1]; ++i)
            out.total += double(out.attribution[i] *= path.weight(z, t, i));
    return out;
}

// By how much the explained value falls when a latent is removed from all tokens, exactly: the blocks run again for each
// of them. psae::error as attribute_logit.
inline std::vector<double> removal_effects(const cpu& device, arena<>& scratch, const explained_image& image,
                                           std::span<const std::uint32_t> latents) {
    const detail::attribution_path path(device, scratch, image);
    const codes_view<float>& z = image.z;
    const std::size_t size = path.end.size(), d = image.sae.d_in;
    constexpr std::size_t at_once = 7;  // versions of the image that go through the blocks together, and the image
    std::vector<float> tokens((std::min(at_once, latents.size()) + 1) * size);
    std::vector<double> effects;
    for (std::size_t first = 0; first < latents.size(); first += at_once) {
        const std::size_t count = std::min(at_once, latents.size() - first);
        for (std::size_t j = 0; j <= count; ++j) {  // the last is the image with all latents
            float* version = tokens.data() + j * size;
            std::copy(path.end.begin(), path.end.end(), version);
            for (std::size_t t = 0; j < count && t < z.tokens; ++t) {
                const auto *begin = z.latent + z.offsets[t], *last = z.latent + z.offsets[t + 1],
                           *found = std::lower_bound(begin, last, latents[first + j]);
                if (found == last || *found != latents[first + j]) continue;
                const float weight = path.weight(z, t, static_cast<std::size_t>(found - z.latent));
                const float* row = image.sae.W_dec + *found * d;
                for (std::size_t c = 0; c < d; ++c) version[t * d + c] -= weight * row[c];
            }
        }
        const auto values = detail::explained_values(device, scratch, image, tokens.data(), count + 1);
        for (std::size_t j = 0; j < count; ++j) effects.push_back(values[count] - values[j]);
    }
    return effects;
}

// A latent over all tokens of an image.
struct attributed_latent {
    std::uint32_t latent;
    double attribution = 0;  // the sum
    double class_token = 0;  // the share of the class token in it
    double activation = 0;   // the mean over the image's tokens, the image-level activation of class-level latents
};

// The latents that fire, by attribution: the largest first, those against the value last. image_tokens: how many tokens
// are of the image, before those of prompts.
inline std::vector<attributed_latent> attributed_latents(const codes_view<float>& z, const logit_attribution& a,
                                                         std::size_t image_tokens) {
    std::vector<attributed_latent> all;
    std::vector<std::uint32_t> place(z.latents, ~std::uint32_t{0});
    for (std::size_t t = 0; t < z.tokens; ++t)
        for (std::size_t i = z.offsets[t]; i < z.offsets[t + 1]; ++i) {
            std::uint32_t& p = place[z.latent[i]];
            if (p == ~std::uint32_t{0}) {
                p = static_cast<std::uint32_t>(all.size());
                all.push_back({z.latent[i]});
            }
            const double share = double(a.attribution[i]);
            all[p].attribution += share;
            if (t == 0) all[p].class_token = share;
            if (t < image_tokens) all[p].activation += double(z.value[i]) / double(image_tokens);
        }
    std::sort(all.begin(), all.end(), [](const attributed_latent& l, const attributed_latent& r) {
        return l.attribution > r.attribution || (l.attribution == r.attribution && l.latent < r.latent);
    });
    return all;
}

// The sum over all latents of each token, [T], the class token first.
inline std::vector<float> attribution_of_tokens(const codes_view<float>& z, const logit_attribution& a) {
    std::vector<float> sums(z.tokens);
    for (std::size_t t = 0; t < z.tokens; ++t) {
        double sum = 0;
        for (std::size_t i = z.offsets[t]; i < z.offsets[t + 1]; ++i) sum += double(a.attribution[i]);
        sums[t] = static_cast<float>(sum);
    }
    return sums;
}

}  // namespace psae
