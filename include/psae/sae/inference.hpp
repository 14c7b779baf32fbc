#pragma once
// Trained SAEs in use: codes of activations, and activations from codes.
//
//   psae::arena<> scratch;
//   auto z = psae::encode_rows(device, scratch, sae, x, n);      // sae: sae_weights, as read_sae gives them
//   psae::decode_rows(device, sae, z, x, x_hat);
//
// On another device by the same names: sae/device_sae.hpp.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <psae/cpu/codes.hpp>
#include <psae/cpu/encode.hpp>
#include <psae/cpu/gemm.hpp>
#include <psae/cpu/pointwise.hpp>
#include <psae/expr/functors.hpp>
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
    // The same of what a transcoder puts out.
    std::optional<long> target_layer{};
    std::string target_hook{};
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
    // folds it into the weights.) The output of a transcoder, whose targets have a scale of their own, is divided by that.
    double activation_scale = 1, target_scale = 1;
    bool rectified = true;  // of topk
    // Of topk: h is multiplied by the norm of the latent's decoder row, and z divided by it before it is decoded.
    bool rescaled = false;
    std::vector<float> threshold;     // [d_sae], of jumprelu
    std::vector<float> r_mag, b_mag;  // [d_sae], of gated
    std::vector<float> W_skip;        // [d_out, d_in], of a linear skip connection; empty: there is none
    sae_origin origin;

    bool scales_tokens() const {
        return scaling != input_scaling::none || activation_scale != 1 || output_scale() != 1;
    }
    bool is_transcoder() const { return d_out > 0; }
    // The width of what is decoded.
    std::size_t outputs() const { return is_transcoder() ? d_out : d_in; }
    // What the output is divided by.
    double output_scale() const { return is_transcoder() ? target_scale : activation_scale; }
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

// Where these and the other numbers of an SAE are, in the memory of one backend. What it does not have is not read.
struct sae_arrays {
    const float *W_enc, *b_enc, *W_dec, *b_dec, *threshold, *r_mag, *b_mag, *W_skip;
};

class vision_tower;  // vit/vision_tower.hpp
class sae_in_place;  // sae/sae_in_place.hpp

// A trained SAE in use on another device than the CPU. All arrays are the host's; one call at a time.
class remote_sae {
public:
    virtual ~remote_sae() = default;
    // As the function of that name; null if the tower is not on the same device.
    virtual std::unique_ptr<sae_in_place> put_in_place(const vision_tower& tower, std::size_t layer) const = 0;
    // As encode_rows and decode_rows.
    virtual codes_view<float> encode(arena<>& scratch, const float* x, std::size_t n) const = 0;
    virtual void decode(const codes_view<float>& z, const float* x, float* x_hat) const = 0;
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

    sae_arrays arrays() const {
        return {W_enc, b_enc, W_dec, b_dec, threshold.data(), r_mag.data(), b_mag.data(), W_skip.data()};
    }

    const float *W_enc, *b_enc, *W_dec, *b_dec;
    std::shared_ptr<const remote_sae> remote{};  // encodes and decodes in place of the CPU; null: the CPU does
};

// Makes of an SAE one for tokens that have been multiplied by `scale`: h stays what it was. (SAELens folds the scale of
// activations away so, with 1 / scale.) target_scale: that of a transcoder's targets.
inline void scale_input(sae_weights& sae, double scale, double target_scale = 1) {
    const auto s = static_cast<float>(scale), out = sae.is_transcoder() ? static_cast<float>(target_scale) : s;
    for (float& w : sae.W_enc) w /= s;
    for (float& w : sae.W_dec) w *= out;
    for (float& b : sae.b_dec) b *= out;
    for (float& w : sae.W_skip) w *= out / s;
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
// otherwise than the variant does, or one of them is a transcoder and the other is not; `where` names the SAE in it.
template <class Variant>
void set_parameters(Variant& sae, const sae_weights& from, const std::string& where = {}) {
    const sae_view own(sae);
    if (!own.is_transcoder()) require_reconstruction(from, where);
    if (from.rescaled && !own.rescaled) {
        sae_weights plain = from;
        fold_decoder_norms(plain, where);
        return set_parameters(sae, plain, where);
    }
    const auto text = [](const sae_description& s) {
        return "d_in " + std::to_string(s.d_in) + " and d_sae " + std::to_string(s.d_sae) +
               (s.is_transcoder() ? " of a transcoder to d_out " + std::to_string(s.d_out) : "");
    };
    if (from.d_in != own.d_in || from.d_sae != own.d_sae || from.d_out != own.d_out)
        throw error("SAE has another size", where, "expected " + text(own) + ", found " + text(from));
    if (from.centred_input != own.centred_input || from.scales_tokens() || from.W_skip.empty() != own.W_skip.empty())
        throw error("SAE treats its input otherwise than the variant in training", where,
                    std::string("expected ") + (own.centred_input ? "one that is centred" : "one that is not centred") +
                        ", no normalisation of it and " + (own.W_skip.empty() ? "no" : "a") + " skip connection");
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
// How they follow from a token.
struct token_scaling {
    explicit token_scaling(const sae_description& sae)
        : scaling(sae.scaling), activation_scale(sae.activation_scale), output_scale(sae.output_scale()), d(sae.d_in) {}

    PSAE_FN token_scale of(const float* x) const {
        if (scaling == input_scaling::none) return {0, float(1 / activation_scale), float(1 / output_scale)};
        double sum = 0, squares = 0;
        for (std::size_t c = 0; c < d; ++c) sum += double(x[c]);
        const double shift = scaling == input_scaling::layer_norm ? sum / double(d) : 0.0;
        for (std::size_t c = 0; c < d; ++c) squares += (double(x[c]) - shift) * (double(x[c]) - shift);
        if (scaling == input_scaling::layer_norm) {
            const double deviation = d > 1 ? std::sqrt(squares / double(d - 1)) : 0.0;
            return {float(shift), float(deviation + 1e-5), float(deviation)};
        }
        const double scale = squares > 0 ? std::sqrt(squares / double(d)) : 1.0;
        return {0, float(scale), float(scale)};
    }

    input_scaling scaling;
    double activation_scale, output_scale;
    std::size_t d;
};
// One of these numbers for each token, as a column [n, 1]. (nvcc writes pointers to members so that g++ warns of them.)
enum class scale_number { shift, divisor, multiplier };
struct token_scale_node {
    using value_type = float;
    using shape_type = psae::shape<dyn, 1>;
    token_scaling scaling;
    scale_number number;
    const float* x;
    std::size_t tokens;

    PSAE_FN shape_type shape() const { return shape_type{tokens}; }
    template <class P>
    PSAE_FN float load(P p) const {
        const token_scale s = scaling.of(x + p.row * scaling.d);
        return number == scale_number::shift ? s.shift : number == scale_number::divisor ? s.divisor : s.multiplier;
    }
};
template <class Backend>
auto token_scales(Backend& device, arena<Backend::memory>& scratch, const sae_description& sae, scale_number number,
                  const float* x, std::size_t n) {
    using column = psae::shape<dyn, 1>;
    const view<float, column, Backend::memory> numbers{scratch.template allocate<float>(n), column{n}};
    assign(device, numbers, token_scale_node{token_scaling(sae), number, x, n});
    return numbers;
}

// Codes times their latents' norms, and divided by them. A decoder row of zeros adds nothing, whatever its code is.
struct times_norm {
    const float* norm;
    PSAE_FN float load(codes_position<float> p) const { return p.value * norm[p.col]; }
};
struct divided_by_norm {
    const float* norm;
    PSAE_FN float load(codes_position<float> p) const { return norm[p.col] > 0 ? p.value / norm[p.col] : p.value; }
};

// Whether all of x [rows, cols] are finite: what is not gives NaN when multiplied by 0.
template <class Backend>
bool all_finite(Backend& device, arena<Backend::memory>& scratch, const float* x, std::size_t rows, std::size_t cols) {
    using matrix = psae::shape<dyn, dyn>;
    const auto mark = scratch.position();
    float* sum = scratch.template allocate<float>(1);
    total(device, scratch, sum, const_view<float, matrix, Backend::memory>{x, matrix{rows, cols}} * 0, rows, cols);
    const float result = read(device, static_cast<const float*>(sum));
    scratch.release_to(mark);
    return result == 0;
}

// How many entries codes in a backend's memory have.
template <class Backend>
std::size_t count_entries(const Backend& device, const codes_view<float>& z) {
    return z.tokens == 0 ? 0 : read(device, z.offsets + z.tokens);
}

// Codes in a backend's memory, of some tokens among others, too, as codes of the host.
template <class Backend>
codes_view<float> download_codes(const Backend& device, arena<>& scratch, const codes_view<float>& z) {
    auto* offsets = scratch.allocate<std::size_t>(z.tokens + 1);
    offsets[0] = 0;
    if (z.tokens > 0) download(device, offsets, z.offsets, z.tokens + 1);
    const std::size_t first = offsets[0], entries = offsets[z.tokens] - first;
    for (std::size_t t = 0; t <= z.tokens; ++t) offsets[t] -= first;
    auto* latent = scratch.allocate<std::uint32_t>(entries);
    auto* value = scratch.allocate<float>(entries);
    download(device, latent, z.latent + first, entries);
    download(device, value, z.value + first, entries);
    codes_view<float> copy;
    copy.tokens = z.tokens, copy.latents = z.latents, copy.room = entries;
    copy.offsets = offsets, copy.latent = latent, copy.value = value;
    return copy;
}

template <class Backend>
void require_finite_tokens(Backend& device, arena<Backend::memory>& scratch, const float* x, std::size_t n,
                           std::size_t d) {
    if (all_finite(device, scratch, x, n, d)) return;
    std::vector<float> of_host(n * d);
    download(device, of_host.data(), x, n * d);
    const auto i = static_cast<std::size_t>(
        std::find_if(of_host.begin(), of_host.end(), [](float v) { return !std::isfinite(v); }) - of_host.begin());
    throw error("activation is not finite", "row " + std::to_string(i / d) + ", column " + std::to_string(i % d));
}
template <class Backend>
void require_finite_codes(Backend& device, arena<Backend::memory>& scratch, const codes_view<float>& z) {
    if (all_finite(device, scratch, z.value, 1, count_entries(device, z))) return;
    arena<> of_host;
    const codes_view<float> found = download_codes(device, of_host, z);
    std::size_t row = 0, i = 0;
    while (std::isfinite(found.value[i])) ++i;
    while (found.offsets[row + 1] <= i) ++row;
    throw error("code is not finite", "row " + std::to_string(row) + ", latent " + std::to_string(found.latent[i]), "",
                "the activations are too large for this SAE");
}

// What the encoder's product takes of rows x [n, d_in]: scaled and centred.
template <class Backend>
const float* encoder_input(Backend& device, arena<Backend::memory>& scratch, const sae_description& sae,
                           const sae_arrays& arrays, const float* x, std::size_t n) {
    using matrix = psae::shape<dyn, dyn>;
    using row = psae::shape<dyn>;
    const std::size_t d = sae.d_in;
    const_view<float, matrix, Backend::memory> tokens{x, matrix{n, d}};
    if (!sae.scales_tokens() && !sae.centred_input) return x;
    const view<float, matrix, Backend::memory> input{scratch.template allocate<float>(n * d), matrix{n, d}};
    if (sae.scales_tokens()) {
        const auto shift = token_scales(device, scratch, sae, scale_number::shift, x, n),
                   divisor = token_scales(device, scratch, sae, scale_number::divisor, x, n);
        assign(device, input, (tokens - shift) / divisor);
        tokens = input;
    }
    if (sae.centred_input)
        assign(device, input, tokens - const_view<float, row, Backend::memory>{arrays.b_dec, row{d}});
    return input.data;
}

// encode_rows and decode_rows for an SAE whose arrays are in the backend's memory, as are x, the codes and x_hat.
template <class Backend>
codes_view<float> encode_rows_with(Backend device, arena<Backend::memory>& scratch, const sae_description& sae,
                                   const sae_arrays& arrays, const float* x, std::size_t n) {
    using by_latent = psae::shape<dyn>;
    const std::size_t d = sae.d_in, F = sae.d_sae;
    require_finite_tokens(device, scratch, x, n, d);
    const float* input = encoder_input(device, scratch, sae, arrays, x, n);
    codes_view<float> z;
    const auto encode_with = [&](const auto& activation) {
        encode(device, scratch, z, input, n, d, arrays.W_enc, arrays.b_enc, F, activation, nullptr);
    };
    // Numbers by latent that follow from others.
    const auto numbers_of = [&](const auto& functor, const float* from) {
        const view<float, by_latent, Backend::memory> numbers{scratch.template allocate<float>(F), by_latent{F}};
        assign(device, numbers, map(functor, const_view<float, by_latent, Backend::memory>{from, by_latent{F}}));
        return static_cast<const float*>(numbers.data);
    };
    if (sae.architecture == "topk" && (sae.rescaled || !sae.rectified)) {
        float* weight = scratch.template allocate<float>(F);
        if (sae.rescaled) row_norms(device, weight, arrays.W_dec, F, sae.outputs());
        else fill(device, weight, F, 1.0f);
        encode_with(weighted_top_k<float>{{sae.k}, weight, sae.rectified});
        if (sae.rescaled) {
            float* value = scratch.template allocate<float>(z.room);
            codes_assign(device, value, z, times_norm{weight}, write::overwrite);
            z.value = value;
        }
    } else if (sae.architecture == "topk") {
        encode_with(top_k{sae.k});
    } else if (sae.architecture == "jumprelu") {
        encode_with(above<float>{numbers_of(rectifier{}, arrays.threshold)});
    } else if (sae.architecture == "gated") {
        encode_with(gate{arrays.b_enc, numbers_of(exponential{}, arrays.r_mag), arrays.b_mag});
    } else {
        encode_with(relu{});
    }
    require_finite_codes(device, scratch, z);
    return z;
}
template <class Backend>
void decode_rows_with(Backend device, arena<Backend::memory>& scratch, const sae_description& sae,
                      const sae_arrays& arrays, const codes_view<float>& z, const float* x, float* x_hat) {
    using matrix = psae::shape<dyn, dyn>;
    const std::size_t d = sae.d_in, d_out = sae.outputs(), n = z.tokens;
    const auto mark = scratch.position();
    const float* value = z.value;
    if (sae.rescaled) {
        float* norm = scratch.template allocate<float>(sae.d_sae);
        float* unscaled =
            scratch.template allocate<float>(Backend::memory == space::host ? count_entries(device, z) : z.room);
        row_norms(device, norm, arrays.W_dec, sae.d_sae, d_out);
        codes_assign(device, unscaled, z, divided_by_norm{norm}, write::overwrite);
        value = unscaled;
    }
    sparse_decode(device, x_hat, z, value, arrays.W_dec, arrays.b_dec, d_out);
    if (sae.scales_tokens()) {
        const auto multiplier = token_scales(device, scratch, sae, scale_number::multiplier, x, n),
                   shift = token_scales(device, scratch, sae, scale_number::shift, x, n);
        const view<float, matrix, Backend::memory> output{x_hat, matrix{n, d_out}};
        assign(device, output, output * multiplier + shift);
    }
    if (!sae.W_skip.empty())  // of scaled tokens, and scaled back
        gemm(device, false, true, n, d_out, d, float(sae.activation_scale / sae.output_scale()), x, d, arrays.W_skip, d,
             1.0f, x_hat, d_out);
    scratch.release_to(mark);
}

}  // namespace detail

// Codes of rows x [n, d_in], in memory of the arena. psae::error if a value or a code is not finite.
inline codes_view<float> encode_rows(const cpu& device, arena<>& scratch, const sae_view& sae, const float* x,
                                     std::size_t n) {
    if (sae.remote != nullptr) return sae.remote->encode(scratch, x, n);
    return detail::encode_rows_with(device, scratch, sae, sae.arrays(), x, n);
}

// Reconstructions x_hat [n, d_in] of rows x [n, d_in] from their codes z; the output y_hat [n, d_out] of a transcoder. (x
// is read for its scale and for the skip connection only.)
inline void decode_rows(const cpu& device, const sae_view& sae, const codes_view<float>& z, const float* x,
                        float* x_hat) {
    if (sae.remote != nullptr) return sae.remote->decode(z, x, x_hat);
    arena<> scratch;
    detail::decode_rows_with(device, scratch, sae, sae.arrays(), z, x, x_hat);
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

// Adds rows x [n, d_in] to the sums: their codes, what is decoded from them, and its errors as targets y [n, outputs()]
// have it. tokens_per_image: as of reconstruction_sums::add.
inline void evaluate_rows(const cpu& device, arena<>& scratch, const sae_view& sae, const float* x, const float* y,
                          std::size_t n, reconstruction_sums& sums, std::size_t tokens_per_image = 0) {
    encode_in_batches(device, scratch, sae, x, n, std::max<std::size_t>(tokens_per_image, 1),
                      [&](std::size_t first, const codes_view<float>& z) {
                          float* y_hat = scratch.allocate<float>(z.tokens * sae.outputs());
                          decode_rows(device, sae, z, x + first * sae.d_in, y_hat);
                          sums.add(y + first * sae.outputs(), z, y_hat, tokens_per_image);
                      });
}
// The same of an SAE, whose targets are its tokens. psae::error for a transcoder.
inline void evaluate_rows(const cpu& device, arena<>& scratch, const sae_view& sae, const float* x, std::size_t n,
                          reconstruction_sums& sums, std::size_t tokens_per_image = 0) {
    require_reconstruction(sae, "evaluation");
    evaluate_rows(device, scratch, sae, x, x, n, sums, tokens_per_image);
}

// How well an SAE explains rows x [n, d_in] it may never have seen; a transcoder, targets y [n, d_out] by them.
inline reconstruction_quality evaluate_sae(const cpu& device, arena<>& scratch, const sae_view& sae, const float* x,
                                           const float* y, std::size_t n) {
    reconstruction_sums sums(sae.outputs(), sae.d_sae);
    scratch.reset();
    evaluate_rows(device, scratch, sae, x, y, n, sums);
    return sums.result();
}
inline reconstruction_quality evaluate_sae(const cpu& device, arena<>& scratch, const sae_view& sae, const float* x,
                                           std::size_t n) {
    require_reconstruction(sae, "evaluation");
    return evaluate_sae(device, scratch, sae, x, x, n);
}

}  // namespace psae
