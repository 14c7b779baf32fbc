#pragma once
// sparsify's layout: a directory with sae.safetensors (encoder.weight [d_sae, d_in], encoder.bias, W_dec [d_sae, d_in],
// b_dec, W_skip [d_in, d_in] where there is a skip connection) and cfg.json. Its SAEs are top-k of ReLU and centred; its
// transcoders are as wide at both ends and not centred.

#include <psae/io/sae_format.hpp>
#include <psae/io/safetensors.hpp>

namespace psae::detail {

struct sparsify_format {
    static constexpr bool is_directory = true, has_rescaling = false;

    static bool recognise(const std::filesystem::path& given) {
        std::error_code ignored;
        return given.filename() == "sae.safetensors" || std::filesystem::exists(given / "sae.safetensors", ignored);
    }
    static std::optional<bool> centring(const sae_description& s) { return !s.is_transcoder(); }

    static sae_weights read(const std::filesystem::path& given) {
        const auto directory = sae_directory(given), path = directory / "cfg.json";
        const auto json = read_sae_json(path);
        const std::string where = path.string();
        sae_weights s;
        s.architecture = "topk";
        s.d_in = sae_extent(json, "d_in", where);
        s.d_sae = json_size(json, "num_latents", 0, where);
        if (s.d_sae == 0) s.d_sae = sae_extent(json, "expansion_factor", where) * s.d_in;
        s.k = sae_extent(json, "k", where);
        require_k(s, where);
        if (const auto activation = json_string(json, "activation", "topk", where); activation != "topk")
            refuse_sae(where, "activation", activation, "topk");
        if (json_bool(json, "signed", false, where)) refuse_sae(where, "signed", "true", "false");
        if (json_bool(json, "transcode", false, where)) {
            s.d_out = s.d_in;
            s.centred_input = false;
        }
        const safetensors_file file(directory / "sae.safetensors");
        s.W_enc = file.read("encoder.weight", {s.d_sae, s.d_in});
        s.b_enc = file.read("encoder.bias", {s.d_sae});
        s.W_dec = file.read("W_dec", {s.d_sae, s.d_in});
        s.b_dec = file.read("b_dec", {s.d_in});
        if (json_bool(json, "skip_connection", false, where)) s.W_skip = file.read("W_skip", {s.d_in, s.d_in});
        return s;
    }

    static void write(const std::filesystem::path& directory, const sae_view& s) {
        const expressible can{sae_format::sparsify, directory};
        can.require_architecture(s, {"topk"});
        can.require_rectified(s);
        can.require_not_rescaled(s);
        can.require_plain_input(s);
        can.require_centring(s, !s.is_transcoder());
        can.require(s.outputs() == s.d_in, "d_out " + std::to_string(s.outputs()), "d_in " + std::to_string(s.d_in));
        std::filesystem::create_directories(directory);
        std::vector tensors{to_write("encoder.weight", {s.d_sae, s.d_in}, s.W_enc),
                            to_write("encoder.bias", {s.d_sae}, s.b_enc), to_write("W_dec", {s.d_sae, s.d_in}, s.W_dec),
                            to_write("b_dec", {s.d_in}, s.b_dec)};
        if (!s.W_skip.empty()) tensors.push_back(to_write("W_skip", {s.d_in, s.d_in}, s.W_skip.data()));
        std::filesystem::remove(directory / "cfg.json");  // of an earlier SAE: it must not describe these weights
        write_safetensors(directory / "sae.safetensors", tensors);
        rapidjson::Document json(rapidjson::kObjectType);
        auto& a = json.GetAllocator();
        json.AddMember("activation", "topk", a);
        // Its own default, which num_latents overrides.
        json.AddMember("expansion_factor", 32, a);
        json.AddMember("normalize_decoder", true, a);
        json.AddMember("num_latents", rapidjson::Value(static_cast<std::uint64_t>(s.d_sae)), a);
        json.AddMember("k", rapidjson::Value(static_cast<std::uint64_t>(s.k)), a);
        json.AddMember("multi_topk", false, a);
        json.AddMember("skip_connection", !s.W_skip.empty(), a);
        json.AddMember("transcode", s.is_transcoder(), a);
        json.AddMember("d_in", rapidjson::Value(static_cast<std::uint64_t>(s.d_in)), a);
        write_text(directory / "cfg.json", to_text(json));
    }
};

}  // namespace psae::detail
