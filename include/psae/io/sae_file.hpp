#pragma once
// A trained SAE on disk, in SAELens' layout: sae_weights.safetensors with W_enc [d_in, d_sae], W_dec [d_sae, d_in],
// b_enc, b_dec, and cfg.json. In memory both matrices are [d_sae, d_in].

#include <filesystem>
#include <string>
#include <vector>

#include <psae/io/safetensors.hpp>

namespace psae {

struct sae_weights {
    std::string architecture = "standard";  // "standard" (ReLU) or "topk"
    std::size_t d_in = 0, d_sae = 0, k = 0;
    std::vector<float> W_enc, b_enc, W_dec, b_dec;
};

// x [rows, cols] as [cols, rows].
inline std::vector<float> transpose(const std::vector<float>& x, std::size_t rows, std::size_t cols) {
    std::vector<float> y(x.size());
    constexpr std::size_t tile = 32;
    for (std::size_t r0 = 0; r0 < rows; r0 += tile)
        for (std::size_t c0 = 0; c0 < cols; c0 += tile)
            for (std::size_t r = r0; r < std::min(rows, r0 + tile); ++r)
                for (std::size_t c = c0; c < std::min(cols, c0 + tile); ++c) y[c * rows + r] = x[r * cols + c];
    return y;
}

// Reads a directory, or its sae_weights.safetensors. Throws psae::error for architectures and options that are not
// supported.
inline sae_weights read_sae(const std::filesystem::path& given) {
    const auto directory = std::filesystem::is_directory(given) ? given : given.parent_path();
    const auto path = directory / "cfg.json";
    const auto json = read_json(path);
    const std::string where = path.string();
    sae_weights s;
    const auto extent = [&](const char* key) {
        const double v = json_number(json, key, -1, where);
        if (!(v >= 1 && v <= 1e9) || v != std::floor(v))
            throw error("configuration field is out of range", where + ", key " + key, "a positive integer");
        return static_cast<std::size_t>(v);
    };
    s.d_in = extent("d_in");
    s.d_sae = extent("d_sae");
    s.architecture = json_string(json, "architecture", "standard", where);
    if (s.architecture == "topk") s.k = extent("k");
    else if (s.architecture != "standard")
        throw error("SAE architecture is not supported", where + ", key architecture",
                    "standard or topk, found " + s.architecture);
    if (!json_bool(json, "apply_b_dec_to_input", true, where))
        throw error("SAE without a centred input is not supported", where + ", key apply_b_dec_to_input");
    if (json_string(json, "normalize_activations", "none", where) != "none")
        throw error("SAE with normalised activations is not supported", where + ", key normalize_activations");
    if (s.architecture == "topk" && json_bool(json, "rescale_acts_by_decoder_norm", false, where))
        throw error("SAE that rescales by the decoder norm is not supported",
                    where + ", key rescale_acts_by_decoder_norm");
    const safetensors_file file(directory / "sae_weights.safetensors");
    s.W_enc = transpose(file.read("W_enc", {s.d_in, s.d_sae}), s.d_in, s.d_sae);
    s.W_dec = file.read("W_dec", {s.d_sae, s.d_in});
    s.b_enc = file.read("b_enc", {s.d_sae});
    s.b_dec = file.read("b_dec", {s.d_in});
    return s;
}

inline void write_sae(const std::filesystem::path& directory, const sae_weights& s, const std::string& model,
                      long layer) {
    std::filesystem::create_directories(directory);
    const auto W_enc = transpose(s.W_enc, s.d_sae, s.d_in);
    write_safetensors(
        directory / "sae_weights.safetensors",
        {to_write("W_enc", {s.d_in, s.d_sae}, W_enc.data()), to_write("b_enc", {s.d_sae}, s.b_enc.data()),
         to_write("W_dec", {s.d_sae, s.d_in}, s.W_dec.data()), to_write("b_dec", {s.d_in}, s.b_dec.data())});
    rapidjson::Document json(rapidjson::kObjectType);
    auto& a = json.GetAllocator();
    json.AddMember("architecture", rapidjson::Value(s.architecture.c_str(), a), a);
    json.AddMember("d_in", rapidjson::Value(static_cast<std::uint64_t>(s.d_in)), a);
    json.AddMember("d_sae", rapidjson::Value(static_cast<std::uint64_t>(s.d_sae)), a);
    json.AddMember("dtype", "float32", a);
    json.AddMember("device", "cpu", a);
    json.AddMember("apply_b_dec_to_input", true, a);
    json.AddMember("normalize_activations", "none", a);
    json.AddMember("reshape_activations", "none", a);
    if (s.architecture == "topk") {
        json.AddMember("k", rapidjson::Value(static_cast<std::uint64_t>(s.k)), a);
        json.AddMember("rescale_acts_by_decoder_norm", false, a);
    }
    rapidjson::Value metadata(rapidjson::kObjectType);
    metadata.AddMember("model_name", rapidjson::Value(model.c_str(), a), a);
    metadata.AddMember("hook_name", rapidjson::Value(("hidden_states." + std::to_string(layer)).c_str(), a), a);
    json.AddMember("metadata", metadata, a);
    write_text(directory / "cfg.json", to_text(json));
}

}  // namespace psae
