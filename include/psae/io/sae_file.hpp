#pragma once
// A trained SAE on disk, in SAELens' layout: sae_weights.safetensors with W_enc [d_in, d_sae], W_dec [d_sae, d_in],
// b_enc, b_dec (jumprelu: threshold; gated: r_mag, b_mag, and b_gate for b_enc), and cfg.json. In memory both matrices are [d_sae, d_in].

#include <charconv>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include <psae/io/safetensors.hpp>
#include <psae/sae/inference.hpp>

namespace psae {

// x [rows, cols] as [cols, rows].
inline std::vector<float> transpose(const float* x, std::size_t rows, std::size_t cols) {
    std::vector<float> y(rows * cols);
    constexpr std::size_t tile = 32;
    for (std::size_t r0 = 0; r0 < rows; r0 += tile)
        for (std::size_t c0 = 0; c0 < cols; c0 += tile)
            for (std::size_t r = r0; r < std::min(rows, r0 + tile); ++r)
                for (std::size_t c = c0; c < std::min(cols, c0 + tile); ++c) y[c * rows + r] = x[r * cols + c];
    return y;
}

namespace detail {

inline const char* encoder_bias_name(const sae_description& s) {
    return s.architecture == "gated" ? "b_gate" : "b_enc";
}

// cfg.json of SAELens: version 6, and the flat one of version 3, which names the activation in activation_fn_str.
inline sae_description read_sae_description(const std::filesystem::path& path, bool& rescaled_by_decoder_norm) {
    const auto json = read_json(path);
    const std::string where = path.string();
    const auto refuse = [&](const char* key, const std::string& found, const std::string& expected) {
        throw error("SAE is of a kind that cannot be read", where + ", key " + key,
                    "expected " + expected + ", found " + found);
    };
    if (!json.IsObject()) throw error("not an SAE's configuration", where, "expected a JSON object");
    sae_description s;
    const auto extent = [&](const rapidjson::Value& object, const char* key) {
        const std::size_t n = json_size(object, key, where);
        if (n < 1 || n > 1'000'000'000)
            throw error("configuration field is out of range", where + ", key " + key, "1 to 1000000000");
        return n;
    };
    s.d_in = extent(json, "d_in");
    s.d_sae = extent(json, "d_sae");
    s.architecture = json_string(json, "architecture", "standard", where);
    const std::string activation = json_string(json, "activation_fn_str", "relu", where);
    if (s.architecture == "topk") {
        s.k = extent(json, "k");
    } else if (s.architecture == "standard" && activation == "topk") {
        const auto* arguments = find_member(json, "activation_fn_kwargs");
        if (arguments == nullptr || !arguments->IsObject()) refuse("activation_fn_kwargs", "none", "an object with k");
        s.architecture = "topk";
        s.k = extent(*arguments, "k");
    } else if (s.architecture != "standard" && s.architecture != "jumprelu" && s.architecture != "gated") {
        refuse("architecture", s.architecture, "standard, topk, jumprelu or gated");
    } else if (activation != "relu") {
        refuse("activation_fn_str", activation, "relu or topk");
    }
    if (s.k > s.d_sae)
        throw error("configuration field is out of range", where + ", key k",
                    "at most d_sae " + std::to_string(s.d_sae) + ", found " + std::to_string(s.k));
    s.centred_input = json_bool(json, "apply_b_dec_to_input", true, where);
    const std::string scaling = json_string(json, "normalize_activations", "none", where);
    if (scaling == "layer_norm") s.scaling = input_scaling::layer_norm;
    else if (scaling == "constant_norm_rescale") s.scaling = input_scaling::constant_norm;
    else if (scaling != "none") refuse("normalize_activations", scaling, "none, layer_norm or constant_norm_rescale");
    if (const auto reshape = json_string(json, "reshape_activations", "none", where); reshape != "none")
        refuse("reshape_activations", reshape, "none");
    if (json_bool(json, "finetuning_scaling_factor", false, where))
        refuse("finetuning_scaling_factor", "true", "false");
    rescaled_by_decoder_norm = json_bool(json, "rescale_acts_by_decoder_norm", false, where);
    return s;
}

}  // namespace detail

// The directory of an SAE that is given as one, or as its sae_weights.safetensors.
inline std::filesystem::path sae_directory(const std::filesystem::path& given) {
    if (std::filesystem::is_directory(given)) return given;
    if (given.filename() == "sae_weights.safetensors" && std::filesystem::exists(given)) return given.parent_path();
    throw error(std::filesystem::exists(given) ? "not an SAE" : "there is no SAE", given.string(),
                "expected a directory with cfg.json and sae_weights.safetensors");
}

// Whose activations an SAE was trained on, as far as its cfg.json says: `model` may be empty, `layer` (a hidden_states
// index) unknown.
struct sae_origin {
    std::string model;
    std::optional<long> layer;
};
inline sae_origin read_sae_origin(const std::filesystem::path& given) {
    const auto path = sae_directory(given) / "cfg.json";
    const auto json = read_json(path);
    sae_origin origin;
    const auto* metadata = json.IsObject() ? find_member(json, "metadata") : nullptr;
    if (metadata == nullptr || !metadata->IsObject()) return origin;
    origin.model = json_string(*metadata, "model_name", "", path.string());
    const std::string hook = json_string(*metadata, "hook_name", "", path.string()), prefix = "hidden_states.";
    if (!hook.starts_with(prefix)) return origin;
    const char *begin = hook.data() + prefix.size(), *end = hook.data() + hook.size();
    long layer = 0;
    if (std::from_chars(begin, end, layer).ptr != end)
        throw error("hooked layer is not a number", path.string() + ", key hook_name", "found " + hook);
    origin.layer = layer;
    return origin;
}

// Reads a directory, or its sae_weights.safetensors. Codes that are rescaled by the decoder's norms (topk's
// rescale_acts_by_decoder_norm) become plain ones: the encoder's rows are multiplied by the norms and the decoder's
// divided by them. psae::error for architectures and options that are not supported, and for weights that are missing,
// misshapen or not finite.
inline sae_weights read_sae(const std::filesystem::path& given) {
    const auto directory = sae_directory(given);
    bool rescaled = false;
    sae_weights s;
    static_cast<sae_description&>(s) = detail::read_sae_description(directory / "cfg.json", rescaled);
    const safetensors_file file(directory / "sae_weights.safetensors");
    s.W_enc = transpose(file.read("W_enc", {s.d_in, s.d_sae}).data(), s.d_in, s.d_sae);
    s.W_dec = file.read("W_dec", {s.d_sae, s.d_in});
    s.b_enc = file.read(detail::encoder_bias_name(s), {s.d_sae});
    if (s.architecture == "jumprelu") s.threshold = file.read("threshold", {s.d_sae});
    if (s.architecture == "gated") {
        s.r_mag = file.read("r_mag", {s.d_sae});
        s.b_mag = file.read("b_mag", {s.d_sae});
    }
    s.b_dec = file.read("b_dec", {s.d_in});
    if (!rescaled) return s;
    for (std::size_t f = 0; f < s.d_sae; ++f) {
        double squares = 0;
        for (std::size_t c = 0; c < s.d_in; ++c) squares += double(s.W_dec[f * s.d_in + c]) * s.W_dec[f * s.d_in + c];
        const auto norm = static_cast<float>(std::sqrt(squares));
        if (norm == 0)
            throw error("decoder row is zero, and codes are rescaled by its norm", file.path() + ", tensor W_dec",
                        "row " + std::to_string(f));
        for (std::size_t c = 0; c < s.d_in; ++c) {
            s.W_enc[f * s.d_in + c] *= norm;
            s.W_dec[f * s.d_in + c] /= norm;
        }
        s.b_enc[f] *= norm;
    }
    return s;
}

// Writes sae_weights.safetensors and cfg.json; `model` and `layer` say whose activations it was trained on (nobody
// knows where `model` is empty). An activation_scale s is folded into the weights, which become s W_enc, W_dec / s and
// b_dec / s; the codes are the same.
inline void write_sae(const std::filesystem::path& directory, const sae_view& s, const std::string& model, long layer) {
    std::filesystem::create_directories(directory);
    {
        auto W_enc = transpose(s.W_enc, s.d_sae, s.d_in);
        std::vector<float> W_dec, b_dec;
        if (s.activation_scale != 1) {
            const auto scale = static_cast<float>(s.activation_scale);
            for (float& w : W_enc) w *= scale;
            W_dec.assign(s.W_dec, s.W_dec + s.d_sae * s.d_in);
            b_dec.assign(s.b_dec, s.b_dec + s.d_in);
            for (float& w : W_dec) w /= scale;
            for (float& b : b_dec) b /= scale;
        }
        std::vector tensors{to_write("W_enc", {s.d_in, s.d_sae}, W_enc.data()),
                            to_write(detail::encoder_bias_name(s), {s.d_sae}, s.b_enc),
                            to_write("W_dec", {s.d_sae, s.d_in}, W_dec.empty() ? s.W_dec : W_dec.data()),
                            to_write("b_dec", {s.d_in}, b_dec.empty() ? s.b_dec : b_dec.data())};
        if (s.architecture == "jumprelu") tensors.push_back(to_write("threshold", {s.d_sae}, s.threshold.data()));
        if (s.architecture == "gated") {
            tensors.push_back(to_write("r_mag", {s.d_sae}, s.r_mag.data()));
            tensors.push_back(to_write("b_mag", {s.d_sae}, s.b_mag.data()));
        }
        write_safetensors(directory / "sae_weights.safetensors", tensors);
    }
    rapidjson::Document json(rapidjson::kObjectType);
    auto& a = json.GetAllocator();
    const char* scaling = s.scaling == input_scaling::layer_norm      ? "layer_norm"
                          : s.scaling == input_scaling::constant_norm ? "constant_norm_rescale"
                                                                      : "none";
    json.AddMember("architecture", rapidjson::Value(s.architecture.c_str(), a), a);
    json.AddMember("d_in", rapidjson::Value(static_cast<std::uint64_t>(s.d_in)), a);
    json.AddMember("d_sae", rapidjson::Value(static_cast<std::uint64_t>(s.d_sae)), a);
    json.AddMember("dtype", "float32", a);
    json.AddMember("device", "cpu", a);
    json.AddMember("apply_b_dec_to_input", s.centred_input, a);
    json.AddMember("normalize_activations", rapidjson::Value(scaling, a), a);
    json.AddMember("reshape_activations", "none", a);
    if (s.architecture == "topk") {
        json.AddMember("k", rapidjson::Value(static_cast<std::uint64_t>(s.k)), a);
        json.AddMember("rescale_acts_by_decoder_norm", s.rescaled, a);
    }
    if (!model.empty()) {
        rapidjson::Value metadata(rapidjson::kObjectType);
        metadata.AddMember("model_name", rapidjson::Value(std::filesystem::absolute(model).c_str(), a), a);
        metadata.AddMember("hook_name", rapidjson::Value(("hidden_states." + std::to_string(layer)).c_str(), a), a);
        json.AddMember("metadata", metadata, a);
    }
    write_text(directory / "cfg.json", to_text(json));
}

}  // namespace psae
