#pragma once
// Trained SAEs in use: codes of activations, and activations from codes.
//
//   psae::arena<> scratch;
//   auto z = psae::encode_rows(device, scratch, sae, x, n);      // sae: sae_weights, as read_sae gives them
//   psae::decode_rows(device, sae, z, x, x_hat);

#include <cmath>
#include <cstddef>
#include <string>
#include <vector>

#include <psae/cpu/codes.hpp>
#include <psae/cpu/encode.hpp>
#include <psae/sae/evaluation.hpp>
#include <psae/stage/encode.hpp>

namespace psae {

// What is done to each token x [d_in] before it is encoded, and undone after decoding (SAELens' normalize_activations):
//   layer_norm     (x - mean) / (std + 1e-5), std with 1 / (d_in - 1); back: y std + mean
//   constant_norm  x sqrt(d_in) / ||x||; back: y ||x|| / sqrt(d_in). A token of zeros stays as it is.
enum class input_scaling { none, layer_norm, constant_norm };

// How the codes z follow from the pre-activations h = x W_enc + b_enc (x centred or not), by SAELens' names:
//   standard  ReLU(h)
//   topk      ReLU(h), then the k largest (of h times the norm of the decoder row, if rescaled)
//   jumprelu  h where it is above 0 and above the latent's threshold
//   gated     ReLU(exp(r_mag) * (h - b_enc) + b_mag) where h > 0; b_enc is the bias of the gate
struct sae_description {
    std::string architecture = "standard";
    std::size_t d_in = 0, d_sae = 0, k = 0;
    bool centred_input = true;  // b_dec is taken off the input before it is encoded
    input_scaling scaling = input_scaling::none;
    // Of an SAE in training: tokens are multiplied by it before they are encoded, reconstructions divided. (write_sae
    // folds it into the weights.)
    double activation_scale = 1;
    bool rescaled = false;            // of topk
    std::vector<float> threshold;     // [d_sae], of jumprelu
    std::vector<float> r_mag, b_mag;  // [d_sae], of gated

    bool scales_tokens() const { return scaling != input_scaling::none || activation_scale != 1; }
};

// W_enc, W_dec [d_sae, d_in] (rows are latents), b_enc [d_sae], b_dec [d_in].
struct sae_weights : sae_description {
    std::vector<float> W_enc, b_enc, W_dec, b_dec;
};

// The same without owning them, such as the parameters of a variant in training.
struct sae_view : sae_description {
    sae_view(const sae_weights& s)
        : sae_description(s),
          W_enc(s.W_enc.data()),
          b_enc(s.b_enc.data()),
          W_dec(s.W_dec.data()),
          b_dec(s.b_dec.data()) {}
    // A variant, in its own description or else as a standard or topk SAE.
    template <class Variant>
    requires requires(const Variant& v) { v.inputs(), v.latents(), v.W_enc.data(); }
    explicit sae_view(const Variant& v)
        : W_enc(v.W_enc.data()), b_enc(v.b_enc.data()), W_dec(v.W_dec.data()), b_dec(v.b_dec.data()) {
        d_in = v.inputs();
        d_sae = v.latents();
        if constexpr (requires { v.describe(*this); }) v.describe(*this);
        else if constexpr (requires { v.k; }) architecture = "topk", k = v.k;
    }

    const float *W_enc, *b_enc, *W_dec, *b_dec;
};

// Makes of an SAE one for tokens that have been multiplied by `scale`: the codes stay what they were. (SAELens folds the
// scale of activations away so, with 1 / scale.)
inline void scale_input(sae_weights& sae, double scale) {
    const auto s = static_cast<float>(scale);
    for (float& w : sae.W_enc) w /= s;
    for (float& w : sae.W_dec) w *= s;
    for (float& b : sae.b_dec) b *= s;
}

// Gives a variant in training the weights of a trained SAE. psae::error if the SAE has another size or treats its input
// otherwise than variants do; `where` names the SAE in it.
template <class Variant>
void set_parameters(Variant& sae, const sae_weights& from, const std::string& where = {}) {
    const auto text = [](std::size_t d, std::size_t f) {
        return "d_in " + std::to_string(d) + " and d_sae " + std::to_string(f);
    };
    if (from.d_in != sae.inputs() || from.d_sae != sae.latents())
        throw error("SAE has another size", where,
                    "expected " + text(sae.inputs(), sae.latents()) + ", found " + text(from.d_in, from.d_sae));
    const bool centred = sae_view(sae).centred_input;
    if (from.centred_input != centred || from.scales_tokens())
        throw error("SAE treats its input otherwise than the variant in training", where,
                    std::string("expected ") + (centred ? "one that is centred" : "one that is not centred") +
                        " and no normalisation of it");
    std::copy(from.W_enc.begin(), from.W_enc.end(), sae.W_enc.data());
    std::copy(from.b_enc.begin(), from.b_enc.end(), sae.b_enc.data());
    std::copy(from.W_dec.begin(), from.W_dec.end(), sae.W_dec.data());
    std::copy(from.b_dec.begin(), from.b_dec.end(), sae.b_dec.data());
    if constexpr (requires { sae.adopt(from); }) sae.adopt(from);
}

namespace detail {

// The activation of a trained gated SAE.
struct gate {
    static constexpr bool rising = true;
    const float *gate_bias, *scale, *bias;
    PSAE_FN float value(float h, std::size_t f) const { return scale[f] * (h - gate_bias[f]) + bias[f]; }
    PSAE_FN bool active(float h, std::size_t f) const { return (h > 0) & (value(h, f) > 0); }
};

// x' = (x - shift) / divisor is what the SAE sees of a token; y' multiplier + shift takes its output back.
struct token_scale {
    float shift = 0, divisor = 1, multiplier = 1;
};
inline token_scale scale_of(const sae_description& sae, const float* x) {
    if (sae.scaling == input_scaling::none)
        return {0, float(1 / sae.activation_scale), float(1 / sae.activation_scale)};
    const std::size_t d = sae.d_in;
    double sum = 0, squares = 0;
    for (std::size_t c = 0; c < d; ++c) sum += double(x[c]);
    const double shift = sae.scaling == input_scaling::layer_norm ? sum / double(d) : 0.0;
    for (std::size_t c = 0; c < d; ++c) squares += (double(x[c]) - shift) * (double(x[c]) - shift);
    if (sae.scaling == input_scaling::layer_norm) {
        const double deviation = d > 1 ? std::sqrt(squares / double(d - 1)) : 0.0;
        return {float(shift), float(deviation + 1e-5), float(deviation)};
    }
    const double scale = squares > 0 ? std::sqrt(squares / double(d)) : 1.0;
    return {0, float(scale), float(scale)};
}

}  // namespace detail

// Codes of rows x [n, d_in], in memory of the arena. psae::error if a value or a code is not finite.
inline codes_view<float> encode_rows(const cpu& device, arena<>& scratch, const sae_view& sae, const float* x,
                                     std::size_t n) {
    const std::size_t d = sae.d_in;
    for (std::size_t i = 0; i < n * d; ++i)
        if (!std::isfinite(x[i]))
            throw error("activation is not finite",
                        "row " + std::to_string(i / d) + ", column " + std::to_string(i % d));
    float* input = scratch.allocate<float>(n * d);
    device.parallel_for(n, [&](std::size_t r) {
        const detail::token_scale s = detail::scale_of(sae, x + r * d);
        for (std::size_t c = 0; c < d; ++c) {
            const float scaled = (x[r * d + c] - s.shift) / s.divisor;
            input[r * d + c] = sae.centred_input ? scaled - sae.b_dec[c] : scaled;
        }
    });
    codes_view<float> z;
    cpu own = device;
    const auto encode_with = [&](const auto& activation) {
        encode(own, scratch, z, static_cast<const float*>(input), n, d, sae.W_enc, sae.b_enc, sae.d_sae, activation,
               nullptr);
    };
    if (sae.architecture == "topk") {
        if (sae.rescaled) {
            float* norms = scratch.allocate<float>(sae.d_sae);
            row_norms(own, norms, sae.W_dec, sae.d_sae, d);
            encode_with(weighted_top_k<float>{{sae.k}, norms});
        } else {
            encode_with(top_k{sae.k});
        }
    } else if (sae.architecture == "jumprelu") {
        float* floor = scratch.allocate<float>(sae.d_sae);
        for (std::size_t f = 0; f < sae.d_sae; ++f) floor[f] = std::max(sae.threshold[f], 0.0f);
        encode_with(above<float>{floor});
    } else if (sae.architecture == "gated") {
        float* scale = scratch.allocate<float>(sae.d_sae);
        for (std::size_t f = 0; f < sae.d_sae; ++f) scale[f] = std::exp(sae.r_mag[f]);
        encode_with(detail::gate{sae.b_enc, scale, sae.b_mag.data()});
    } else {
        encode_with(relu{});
    }
    for (std::size_t r = 0; r < n; ++r)
        for (std::size_t i = z.offsets[r]; i < z.offsets[r + 1]; ++i)
            if (!std::isfinite(z.value[i]))
                throw error("code is not finite",
                            "row " + std::to_string(r) + ", latent " + std::to_string(z.latent[i]), "",
                            "the activations are too large for this SAE");
    return z;
}

// Reconstructions x_hat [n, d_in] of rows x [n, d_in] from their codes z. (x is read for its scale only.)
inline void decode_rows(const cpu& device, const sae_view& sae, const codes_view<float>& z, const float* x,
                        float* x_hat) {
    const std::size_t d = sae.d_in;
    cpu own = device;
    sparse_decode(own, x_hat, z, z.value, sae.W_dec, sae.b_dec, d);
    if (!sae.scales_tokens()) return;
    device.parallel_for(z.tokens, [&](std::size_t r) {
        const detail::token_scale s = detail::scale_of(sae, x + r * d);
        for (std::size_t c = 0; c < d; ++c) x_hat[r * d + c] = x_hat[r * d + c] * s.multiplier + s.shift;
    });
}

// The codes of rows x [n, d_in], a few hundred rows at a time, since dense codes of more take much memory:
// f(first row, codes). unit: rows that stay together, the tokens of an image. The arena gets back what is taken.
// psae::error as encode_rows.
template <class F>
void encode_in_batches(const cpu& device, arena<>& scratch, const sae_view& sae, const float* x, std::size_t n,
                       std::size_t unit, F&& f) {
    const std::size_t batch = std::max<std::size_t>(1, 512 / unit) * unit;
    for (std::size_t first = 0; first < n; first += batch) {
        const auto mark = scratch.position();
        f(first, encode_rows(device, scratch, sae, x + first * sae.d_in, std::min(batch, n - first)));
        scratch.release_to(mark);
    }
}

// Adds rows x [n, d_in] to the sums: their codes, reconstructions and errors. tokens_per_image: as of
// reconstruction_sums::add.
inline void evaluate_rows(const cpu& device, arena<>& scratch, const sae_view& sae, const float* x, std::size_t n,
                          reconstruction_sums& sums, std::size_t tokens_per_image = 0) {
    encode_in_batches(device, scratch, sae, x, n, std::max<std::size_t>(tokens_per_image, 1),
                      [&](std::size_t first, const codes_view<float>& z) {
                          const float* rows = x + first * sae.d_in;
                          float* x_hat = scratch.allocate<float>(z.tokens * sae.d_in);
                          decode_rows(device, sae, z, rows, x_hat);
                          sums.add(rows, z, x_hat, tokens_per_image);
                      });
}

// How well an SAE explains rows x [n, d_in] it may never have seen.
inline reconstruction_quality evaluate_sae(const cpu& device, arena<>& scratch, const sae_view& sae, const float* x,
                                           std::size_t n) {
    reconstruction_sums sums(sae.d_in, sae.d_sae);
    scratch.reset();
    evaluate_rows(device, scratch, sae, x, n, sums);
    return sums.result();
}

}  // namespace psae
