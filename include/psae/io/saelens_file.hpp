#pragma once
// SAELens' layout: a directory with sae_weights.safetensors (W_enc [d_in, d_sae], W_dec [d_sae, d_out], b_enc, b_dec;
// jumprelu: threshold; gated: r_mag, b_mag, and b_gate for b_enc; skip transcoders: W_skip [d_out, d_in]) and cfg.json. It
// is also what training runs write.

#include <psae/io/sae_format.hpp>
#include <psae/io/safetensors.hpp>

namespace psae::detail {

struct saelens_format {
    static constexpr bool is_directory = true, has_rescaling = true;

    static bool recognise(const std::filesystem::path& given) {
        std::error_code ignored;
        if (!std::filesystem::is_directory(given, ignored)) return given.filename() == "sae_weights.safetensors";
        return std::filesystem::exists(given / "sae_weights.safetensors", ignored) ||
               (std::filesystem::exists(given / "cfg.json", ignored) &&
                !std::filesystem::exists(given / "sae.safetensors", ignored));
    }
    static std::optional<bool> centring(const sae_description& s) {
        return s.is_transcoder() ? std::optional(false) : std::nullopt;
    }

    // Codes of batch top-k SAEs in training become those of SAELens in use: jumprelu, with norms of decoder rows folded
    // into the weights.
    static sae_weights read(const std::filesystem::path& given) {
        const auto directory = sae_directory(given);
        sae_weights s;
        const bool batch = read_description(s, directory / "cfg.json");
        const safetensors_file file(directory / "sae_weights.safetensors");
        s.W_enc = psae::transpose(file.read("W_enc", {s.d_in, s.d_sae}).data(), s.d_in, s.d_sae);
        s.W_dec = file.read("W_dec", {s.d_sae, s.outputs()});
        s.b_enc = file.read(encoder_bias_name(s), {s.d_sae});
        s.b_dec = file.read("b_dec", {s.outputs()});
        if (batch) s.threshold.assign(s.d_sae, file.read("topk_threshold", {})[0]);
        else if (s.architecture == "jumprelu") s.threshold = file.read("threshold", {s.d_sae});
        if (s.architecture == "gated") {
            s.r_mag = file.read("r_mag", {s.d_sae});
            s.b_mag = file.read("b_mag", {s.d_sae});
        }
        if (!s.W_skip.empty()) s.W_skip = file.read("W_skip", {s.outputs(), s.d_in});
        if (s.rescaled) {
            sae_weights folded = s;  // which checks the norms
            fold_decoder_norms(folded, file.path() + ", tensor W_dec");
            if (batch) return folded;
        }
        return s;
    }

    static void write(const std::filesystem::path& directory, const sae_view& s) {
        const expressible can{sae_format::saelens, directory};
        if (s.is_transcoder()) {
            can.require_architecture(s, {"standard", "jumprelu"});
            can.require_centring(s, false);
            can.require_plain_input(s);
        } else {
            can.require_sae(s);
            can.require_architecture(s, {"standard", "topk", "jumprelu", "gated"});
            can.require_rectified(s);
        }
        std::filesystem::create_directories(directory);
        {
            const auto W_enc = psae::transpose(s.W_enc, s.d_sae, s.d_in);
            std::vector tensors{
                to_write("W_enc", {s.d_in, s.d_sae}, W_enc.data()), to_write(encoder_bias_name(s), {s.d_sae}, s.b_enc),
                to_write("W_dec", {s.d_sae, s.outputs()}, s.W_dec), to_write("b_dec", {s.outputs()}, s.b_dec)};
            if (s.architecture == "jumprelu") tensors.push_back(to_write("threshold", {s.d_sae}, s.threshold.data()));
            if (s.architecture == "gated") {
                tensors.push_back(to_write("r_mag", {s.d_sae}, s.r_mag.data()));
                tensors.push_back(to_write("b_mag", {s.d_sae}, s.b_mag.data()));
            }
            if (!s.W_skip.empty()) tensors.push_back(to_write("W_skip", {s.outputs(), s.d_in}, s.W_skip.data()));
            std::filesystem::remove(directory / "cfg.json");  // of an earlier SAE: it must not describe these weights
            write_safetensors(directory / "sae_weights.safetensors", tensors);
        }
        write_text(directory / "cfg.json", to_text(description(s)));
    }

private:
    static const char* encoder_bias_name(const sae_description& s) {
        return s.architecture == "gated" ? "b_gate" : "b_enc";
    }

    // cfg.json of version 6, and the flat one of version 3, which names the activation in activation_fn_str. Returns whether
    // the SAE is a batch top-k one in training. A W_skip that is to be read has one element.
    static bool read_description(sae_description& s, const std::filesystem::path& path) {
        const auto json = read_sae_json(path);
        const std::string where = path.string();
        s.d_in = sae_extent(json, "d_in", where);
        s.d_sae = sae_extent(json, "d_sae", where);
        const std::string architecture = json_string(json, "architecture", "standard", where);
        const std::string activation = json_string(json, "activation_fn_str", "relu", where);
        const bool batch = architecture == "batchtopk" || architecture == "matryoshka_batchtopk";
        std::string_view base = architecture;
        if (base.ends_with("transcoder")) {
            s.d_out = sae_extent(json, "d_out", where);
            if (base.ends_with("skip_transcoder")) s.W_skip.resize(1);
            base.remove_suffix(std::string_view(s.W_skip.empty() ? "transcoder" : "skip_transcoder").size());
            base = base == "jumprelu_" ? "jumprelu" : base.empty() ? "standard" : "unknown";
        }
        s.architecture = batch ? "jumprelu" : base;
        if (batch) {
            const double k = json_number(json, "k", 0, where);
            if (fits_integer<std::uint32_t>(k)) s.k = static_cast<std::size_t>(k);
        } else if (base == "topk") {
            s.k = sae_extent(json, "k", where);
            require_k(s, where);
        } else if (base == "standard" && activation == "topk") {
            const auto* arguments = find_member(json, "activation_fn_kwargs");
            if (arguments == nullptr || !arguments->IsObject())
                refuse_sae(where, "activation_fn_kwargs", "none", "an object with k");
            s.architecture = "topk";
            s.k = sae_extent(*arguments, "k", where);
            require_k(s, where);
        } else if (base != "standard" && base != "jumprelu" && base != "gated") {
            refuse_sae(
                where, "architecture", architecture,
                "standard, topk, jumprelu, gated, batchtopk, transcoder, skip_transcoder, jumprelu_transcoder or "
                "jumprelu_skip_transcoder");
        } else if (activation != "relu") {
            refuse_sae(where, "activation_fn_str", activation, "relu or topk");
        }
        s.centred_input = json_bool(json, "apply_b_dec_to_input", !s.is_transcoder(), where);
        if (s.is_transcoder() && s.centred_input) refuse_sae(where, "apply_b_dec_to_input", "true", "false");
        const std::string scaling = json_string(json, "normalize_activations", "none", where);
        if (s.is_transcoder() && scaling != "none") refuse_sae(where, "normalize_activations", scaling, "none");
        if (scaling == "layer_norm") s.scaling = input_scaling::layer_norm;
        else if (scaling == "constant_norm_rescale") s.scaling = input_scaling::constant_norm;
        else if (scaling != "none")
            refuse_sae(where, "normalize_activations", scaling, "none, layer_norm or constant_norm_rescale");
        if (const auto reshape = json_string(json, "reshape_activations", "none", where); reshape != "none")
            refuse_sae(where, "reshape_activations", reshape, "none");
        if (json_bool(json, "finetuning_scaling_factor", false, where))
            refuse_sae(where, "finetuning_scaling_factor", "true", "false");
        s.rescaled = json_bool(json, "rescale_acts_by_decoder_norm", false, where) && (batch || base == "topk");
        const auto* metadata = find_member(json, "metadata");
        if (metadata != nullptr && !metadata->IsObject()) refuse_sae(where, "metadata", "another type", "an object");
        const rapidjson::Value& about = metadata != nullptr ? *metadata : json;
        s.origin.model = json_string(about, "model_name", "", where);
        s.origin.hook = json_string(about, "hook_name", json_string(about, "hook_point", "", where), where);
        s.origin.layer = layer_of(s.origin.hook, where, "hook_name");
        if (s.is_transcoder()) {
            s.origin.target_hook = json_string(about, "hook_name_out", "", where);
            s.origin.target_layer = layer_of(s.origin.target_hook, where, "hook_name_out");
        }
        if (s.architecture == "jumprelu" && metadata != nullptr) s.k = json_size(*metadata, "k", s.k, where);
        return batch;
    }

    // Ours, and TransformerLens' names of the residual stream: block i puts out hidden state i + 1.
    static std::optional<long> layer_of(std::string_view hook, const std::string& where, const char* key) {
        constexpr std::string_view ours = "hidden_states.", block = "blocks.";
        if (hook.starts_with(ours)) {
            const auto layer = layer_number(hook.substr(ours.size()));
            if (!layer)
                throw error("hooked layer is not a number", where + ", key " + key, "found " + std::string(hook));
            return layer;
        }
        if (!hook.starts_with(block)) return std::nullopt;
        for (const auto& [name, behind] :
             {std::pair<std::string_view, long>{".hook_resid_pre", 0}, {".hook_resid_post", 1}})
            if (hook.ends_with(name) && hook.size() >= block.size() + name.size())
                if (const auto i = layer_number(hook.substr(block.size(), hook.size() - block.size() - name.size())))
                    return *i + behind;
        return std::nullopt;
    }

    static rapidjson::Document description(const sae_description& s) {
        rapidjson::Document json(rapidjson::kObjectType);
        auto& a = json.GetAllocator();
        const auto text = [&](const std::string& value) { return rapidjson::Value(value.c_str(), a); };
        const auto number = [](std::size_t n) { return rapidjson::Value(static_cast<std::uint64_t>(n)); };
        std::string architecture = s.architecture;
        if (s.is_transcoder())
            architecture = std::string(architecture == "jumprelu" ? "jumprelu_" : "") +
                           (s.W_skip.empty() ? "transcoder" : "skip_transcoder");
        json.AddMember("architecture", text(architecture), a);
        json.AddMember("d_in", number(s.d_in), a);
        json.AddMember("d_sae", number(s.d_sae), a);
        if (s.is_transcoder()) json.AddMember("d_out", number(s.d_out), a);
        json.AddMember("dtype", "float32", a);
        json.AddMember("device", "cpu", a);
        json.AddMember("apply_b_dec_to_input", s.centred_input, a);
        json.AddMember("normalize_activations",
                       text(s.scaling == input_scaling::layer_norm      ? "layer_norm"
                            : s.scaling == input_scaling::constant_norm ? "constant_norm_rescale"
                                                                        : "none"),
                       a);
        json.AddMember("reshape_activations", "none", a);
        if (s.architecture == "topk") {
            json.AddMember("k", number(s.k), a);
            json.AddMember("rescale_acts_by_decoder_norm", s.rescaled, a);
        }
        rapidjson::Value metadata(rapidjson::kObjectType);
        // Without it SAELens takes the file for one from before version 6, and the metadata for none.
        metadata.AddMember("sae_lens_version", "6.0.0", a);
        if (!s.origin.model.empty()) metadata.AddMember("model_name", text(s.origin.model), a);
        const auto add_hook = [&](const char* key, const std::string& hook, const std::optional<long>& layer) {
            if (hook.empty() && !layer) return;
            metadata.AddMember(rapidjson::StringRef(key),
                               text(hook.empty() ? "hidden_states." + std::to_string(*layer) : hook), a);
        };
        add_hook("hook_name", s.origin.hook, s.origin.layer);
        add_hook("hook_name_out", s.origin.target_hook, s.origin.target_layer);
        // SAELens has no place for the k of batch top-k in use; its metadata take any key.
        if (s.architecture == "jumprelu" && s.k > 0) metadata.AddMember("k", number(s.k), a);
        json.AddMember("metadata", metadata, a);
        return json;
    }
};

}  // namespace psae::detail
