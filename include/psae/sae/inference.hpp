#pragma once
// Trained SAEs in use: codes of activations, and activations from codes.
//
//   psae::arena<> scratch;
//   auto z = psae::encode_rows(device, scratch, sae, x, n);      // sae: sae_weights, as read_sae gives them
//   psae::decode_rows(device, sae, z, x, x_hat);

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include <psae/cpu/codes.hpp>
#include <psae/cpu/encode.hpp>
#include <psae/cpu/gemm.hpp>
#include <psae/sae/evaluation.hpp>
#include <psae/stage/encode.hpp>

namespace psae {

// What is done to each token x [d_in] before it is encoded, and undone after decoding (SAELens' normalize_activations):
//   layer_norm     (x - mean) / (std + 1e-5), std with 1 / (d_in - 1); back: y std + mean
//   constant_norm  x sqrt(d_in) / ||x||; back: y ||x|| / sqrt(d_in). A token of zeros stays as it is.
enum class input_scaling { none, layer_norm, constant_norm };

// Whose activations an SAE was trained on, as far as its file says.
struct sae_origin {
    std::string model;          // empty: nobody knows
    std::optional<long> layer;  // index into hidden_states, negative from the end
    std::string hook;           // SAELens' name of the place, where a file of it has one
};

// How the codes z follow from the pre-activations h = x W_enc + b_enc (x centred or not), by SAELens' names:
//   standard  ReLU(h)
//   topk      the k largest of h, of ReLU(h) if rectified
//   jumprelu  h where it is above 0 and above the latent's threshold
//   gated     ReLU(exp(r_mag) * (h - b_enc) + b_mag) where h > 0; b_enc is the bias of the gate
// What is decoded is z W_dec + b_dec (+ x W_skip^T).
struct sae_description {
    std::string architecture = "standard";
    std::size_t d_in = 0, d_sae = 0;
    std::size_t k = 0;      // of topk; of jumprelu the mean number of active latents that batch top-k aimed at, or 0
    std::size_t d_out = 0;  // of a transcoder, which does not give its input back; 0: an SAE
    bool centred_input = true;  // b_dec is taken off the input before it is encoded
    input_scaling scaling = input_scaling::none;
    // Of an SAE in training: tokens are multiplied by it before they are encoded, reconstructions divided. (write_sae
    // folds it into the weights.)
    double activation_scale = 1;
    bool rectified = true;  // of topk
    // Of topk: h is multiplied by the norm of the latent's decoder row, and z divided by it before it is decoded.
    bool rescaled = false;
    std::vector<float> threshold;     // [d_sae], of jumprelu
    std::vector<float> r_mag, b_mag;  // [d_sae], of gated
    std::vector<float> W_skip;        // [d_out, d_in], of a linear skip connection; empty: there is none
    sae_origin origin;

    bool scales_tokens() const { return scaling != input_scaling::none || activation_scale != 1; }
    bool is_transcoder() const { return d_out > 0; }
    // The width of what is decoded.
    std::size_t outputs() const { return is_transcoder() ? d_out : d_in; }
};

// psae::error for a transcoder: what it puts out cannot stand in place of its input. `where` names it.
inline void require_reconstruction(const sae_description& sae, const std::string& where) {
    if (sae.is_transcoder())
        throw error("transcoder does not give back its input", where,
                    "expected an SAE, found a transcoder from d_in " + std::to_string(sae.d_in) + " to d_out " +
                        std::to_string(sae.d_out));
}

// W_enc [d_sae, d_in], W_dec [d_sae, outputs()] (rows are latents), b_enc [d_sae], b_dec [outputs()].
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

// Makes of an SAE one for tokens that have been multiplied by `scale`: h stays what it was. (SAELens folds the scale of
// activations away so, with 1 / scale.)
inline void scale_input(sae_weights& sae, double scale) {
    const auto s = static_cast<float>(scale);
    for (float& w : sae.W_enc) w /= s;
    for (float& w : sae.W_dec) w *= s;
    for (float& b : sae.b_dec) b *= s;
}

// Makes of a rescaled SAE a plain one with the same codes: rows of W_enc, and b_enc, are multiplied by the norms of the
// decoder rows, rows of W_dec divided. psae::error for a decoder row of zeros; `where` names the SAE.
inline void fold_decoder_norms(sae_weights& sae, const std::string& where = {}) {
    const std::size_t d = sae.d_in, d_out = sae.outputs();
    for (std::size_t f = 0; f < sae.d_sae; ++f) {
        double squares = 0;
        for (std::size_t c = 0; c < d_out; ++c) squares += double(sae.W_dec[f * d_out + c]) * sae.W_dec[f * d_out + c];
        const auto norm = static_cast<float>(std::sqrt(squares));
        if (norm == 0)
            throw error("decoder row is zero, and codes are rescaled by its norm", where, "row " + std::to_string(f));
        for (std::size_t c = 0; c < d; ++c) sae.W_enc[f * d + c] *= norm;
        for (std::size_t c = 0; c < d_out; ++c) sae.W_dec[f * d_out + c] /= norm;
        sae.b_enc[f] *= norm;
    }
    sae.rescaled = false;
}

// Makes of an SAE one that centres its input or does not, with the same codes up to rounding: (x - b_dec) W_enc + b_enc =
// x W_enc + (b_enc - b_dec W_enc).
inline void fold_centring(sae_weights& sae, bool centred) {
    if (sae.centred_input == centred || sae.is_transcoder()) return;
    for (std::size_t f = 0; f < sae.d_sae; ++f) {
        double shift = 0;
        for (std::size_t c = 0; c < sae.d_in; ++c) shift += double(sae.b_dec[c]) * double(sae.W_enc[f * sae.d_in + c]);
        if (!centred) shift = -shift;
        sae.b_enc[f] = static_cast<float>(double(sae.b_enc[f]) + shift);
        if (sae.architecture == "gated")
            sae.b_mag[f] = static_cast<float>(double(sae.b_mag[f]) + std::exp(double(sae.r_mag[f])) * shift);
    }
    sae.centred_input = centred;
}

// Gives a variant in training the weights of a trained SAE. psae::error if the SAE has another size, treats its input
// otherwise than variants do, or is a transcoder; `where` names the SAE in it.
template <class Variant>
void set_parameters(Variant& sae, const sae_weights& from, const std::string& where = {}) {
    require_reconstruction(from, where);
    const sae_view own(sae);
    if (from.rescaled && !own.rescaled) {
        sae_weights plain = from;
        fold_decoder_norms(plain, where);
        return set_parameters(sae, plain, where);
    }
    const auto text = [](std::size_t d, std::size_t f) {
        return "d_in " + std::to_string(d) + " and d_sae " + std::to_string(f);
    };
    if (from.d_in != sae.inputs() || from.d_sae != sae.latents())
        throw error("SAE has another size", where,
                    "expected " + text(sae.inputs(), sae.latents()) + ", found " + text(from.d_in, from.d_sae));
    if (from.centred_input != own.centred_input || from.scales_tokens() || !from.W_skip.empty())
        throw error("SAE treats its input otherwise than the variant in training", where,
                    std::string("expected ") + (own.centred_input ? "one that is centred" : "one that is not centred") +
                        ", no normalisation of it and no skip connection");
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
    if (sae.architecture == "topk" && (sae.rescaled || !sae.rectified)) {
        float* weight = scratch.allocate<float>(sae.d_sae);
        if (sae.rescaled) row_norms(own, weight, sae.W_dec, sae.d_sae, sae.outputs());
        else std::fill_n(weight, sae.d_sae, 1.0f);
        encode_with(weighted_top_k<float>{{sae.k}, weight, sae.rectified});
        if (sae.rescaled) {
            float* value = scratch.allocate<float>(z.entries());
            for (std::size_t i = 0; i < z.entries(); ++i) value[i] = z.value[i] * weight[z.latent[i]];
            z.value = value;
        }
    } else if (sae.architecture == "topk") {
        encode_with(top_k{sae.k});
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

// Reconstructions x_hat [n, d_in] of rows x [n, d_in] from their codes z; the output y_hat [n, d_out] of a transcoder. (x
// is read for its scale and for the skip connection only.)
inline void decode_rows(const cpu& device, const sae_view& sae, const codes_view<float>& z, const float* x,
                        float* x_hat) {
    const std::size_t d = sae.d_in, d_out = sae.outputs();
    cpu own = device;
    std::vector<float> unscaled;
    if (sae.rescaled) {
        std::vector<float> norms(sae.d_sae);
        row_norms(own, norms.data(), sae.W_dec, sae.d_sae, d_out);
        unscaled.assign(z.value, z.value + z.entries());
        for (std::size_t i = 0; i < unscaled.size(); ++i)  // a row of zeros adds nothing, whatever its code is
            if (const float norm = norms[z.latent[i]]; norm > 0) unscaled[i] /= norm;
    }
    sparse_decode(own, x_hat, z, sae.rescaled ? unscaled.data() : z.value, sae.W_dec, sae.b_dec, d_out);
    if (sae.scales_tokens())
        device.parallel_for(z.tokens, [&](std::size_t r) {
            const detail::token_scale s = detail::scale_of(sae, x + r * d);
            for (std::size_t c = 0; c < d_out; ++c)
                x_hat[r * d_out + c] = x_hat[r * d_out + c] * s.multiplier + s.shift;
        });
    if (!sae.W_skip.empty())
        gemm(device, false, true, z.tokens, d_out, d, 1.0f, x, d, sae.W_skip.data(), d, 1.0f, x_hat, d_out);
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
// reconstruction_sums::add. psae::error for a transcoder.
inline void evaluate_rows(const cpu& device, arena<>& scratch, const sae_view& sae, const float* x, std::size_t n,
                          reconstruction_sums& sums, std::size_t tokens_per_image = 0) {
    require_reconstruction(sae, "evaluation");
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
