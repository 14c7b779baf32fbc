#pragma once
// dictionary_learning's layout: a directory with ae.pt, a state dict, and config.json, whose trainer names the class:
//   AutoEncoder          standard: encoder.weight [d_sae, d_in], encoder.bias, decoder.weight [d_in, d_sae], bias
//   AutoEncoderTopK      topk: the same with b_dec for bias, k, threshold (not used by top-k)
//   BatchTopKSAE         the same; in use jumprelu with the one threshold
//   JumpReluAutoEncoder  jumprelu, not centred: W_enc [d_in, d_sae], b_enc, W_dec [d_sae, d_in], b_dec, threshold
//   GatedAutoEncoder     gated: encoder.weight, gate_bias, mag_bias, r_mag, decoder.weight, decoder_bias

#include <psae/io/patchsae_file.hpp>

namespace psae::detail {

struct dictionary_learning_format {
    static constexpr bool is_directory = true, has_rescaling = false;

    static bool recognise(const std::filesystem::path& given) {
        const auto path = weights_path(given);
        if (path.filename() == "ae.pt") return std::filesystem::exists(path);
        if (!begins_as_torch(path) || !std::filesystem::exists(config_path(path))) return false;
        const torch_file file(path);
        return file.contains("encoder.weight") || (file.contains("W_enc") && file.contains("threshold"));
    }
    static std::optional<bool> centring(const sae_description& s) { return s.architecture != "jumprelu" || s.k > 0; }

    static sae_weights read(const std::filesystem::path& given) {
        const auto path = weights_path(given), config = config_path(path);
        const std::string where = config.string();
        const auto json = read_sae_json(config);
        const auto* trainer = find_member(json, "trainer");
        if (trainer == nullptr || !trainer->IsObject()) refuse_sae(where, "trainer", "none", "an object");
        sae_weights s;
        s.d_in = sae_extent(*trainer, "activation_dim", where);
        s.d_sae = sae_extent(*trainer, "dict_size", where);
        const std::string kind = json_string(*trainer, "dict_class", "", where);
        const torch_file file(path);
        if (kind == "JumpReluAutoEncoder") {
            s.architecture = "jumprelu";
            s.centred_input = false;
            read_torch_weights(file, "", s);
            s.threshold = file.read("threshold", {s.d_sae});
        } else {
            const auto* known = std::find_if(std::begin(linear_classes), std::end(linear_classes),
                                             [&](const auto& c) { return kind == c.name; });
            if (known == std::end(linear_classes))
                refuse_sae(where, "dict_class", kind,
                           "AutoEncoder, AutoEncoderTopK, BatchTopKSAE, JumpReluAutoEncoder or GatedAutoEncoder");
            s.architecture = known->architecture;
            s.W_enc = file.read("encoder.weight", {s.d_sae, s.d_in});
            s.b_enc = file.read(known->encoder_bias, {s.d_sae});
            s.W_dec = psae::transpose(file.read("decoder.weight", {s.d_in, s.d_sae}).data(), s.d_in, s.d_sae);
            s.b_dec = file.read(known->decoder_bias, {s.d_in});
            if (known->has_k) {
                s.k = file.read<std::uint32_t>("k", {})[0];
                require_k(s, file.path());
            }
            if (s.architecture == "jumprelu") s.threshold.assign(s.d_sae, file.read("threshold", {})[0]);
            if (s.architecture == "gated") {
                s.r_mag = file.read("r_mag", {s.d_sae});
                s.b_mag = file.read("mag_bias", {s.d_sae});
            }
        }
        s.origin.model = json_string(*trainer, "lm_name", "", where);
        // As its demonstration names places: block i puts out hidden state i + 1.
        const std::string place = json_string(*trainer, "submodule_name", "", where);
        for (const auto& [name, behind] :
             {std::pair<std::string_view, long>{"resid_post_layer_", 1}, {"hidden_states.", 0}})
            if (place.starts_with(name))
                if (const auto i = layer_number(std::string_view(place).substr(name.size())))
                    s.origin.layer = *i + behind;
        return s;
    }

    static void write(const std::filesystem::path& directory, const sae_view& s) {
        const expressible can{sae_format::dictionary_learning, directory};
        can.require_architecture(s, {"standard", "topk", "jumprelu", "gated"});
        can.require_sae(s);
        can.require_plain_input(s);
        can.require_not_rescaled(s);
        can.require_rectified(s);
        const bool batch = s.architecture == "jumprelu" && s.k > 0, jumprelu = s.architecture == "jumprelu" && !batch;
        can.require_centring(s, !jumprelu);
        if (batch)
            can.require(
                std::adjacent_find(s.threshold.begin(), s.threshold.end(), std::not_equal_to{}) == s.threshold.end(),
                "thresholds of a batch top-k SAE", "one for all latents");
        const auto* known = std::find_if(std::begin(linear_classes), std::end(linear_classes),
                                         [&](const auto& c) { return s.architecture == c.architecture; });
        std::filesystem::create_directories(directory);
        std::filesystem::remove(directory / "config.json");  // of an earlier SAE: it must not describe these weights
        if (jumprelu) {
            const auto W_enc = psae::transpose(s.W_enc, s.d_sae, s.d_in);
            auto tensors = torch_weights(s, W_enc);
            tensors.push_back(to_write("threshold", {s.d_sae}, s.threshold.data()));
            write_torch(directory / "ae.pt", torch_value::state_dict(tensors));
        } else {
            const auto W_dec = psae::transpose(s.W_dec, s.d_sae, s.d_in);
            const auto k = static_cast<std::int32_t>(s.k);
            const float threshold = batch ? s.threshold[0] : -1;  // dictionary_learning's own before it has learned one
            std::vector tensors{to_write("encoder.weight", {s.d_sae, s.d_in}, s.W_enc),
                                to_write(known->encoder_bias, {s.d_sae}, s.b_enc),
                                to_write("decoder.weight", {s.d_in, s.d_sae}, W_dec.data()),
                                to_write(known->decoder_bias, {s.d_in}, s.b_dec)};
            if (known->has_k) {
                tensors.push_back(to_write("k", {}, &k));
                tensors.push_back(to_write("threshold", {}, &threshold));
            }
            if (s.architecture == "gated") {
                tensors.push_back(to_write("r_mag", {s.d_sae}, s.r_mag.data()));
                tensors.push_back(to_write("mag_bias", {s.d_sae}, s.b_mag.data()));
            }
            write_torch(directory / "ae.pt", torch_value::state_dict(tensors));
        }
        rapidjson::Document json(rapidjson::kObjectType);
        auto& a = json.GetAllocator();
        const auto text = [&](const std::string& value) { return rapidjson::Value(value.c_str(), a); };
        rapidjson::Value trainer(rapidjson::kObjectType);
        trainer.AddMember("dict_class", text(jumprelu ? "JumpReluAutoEncoder" : known->name), a);
        trainer.AddMember("activation_dim", rapidjson::Value(static_cast<std::uint64_t>(s.d_in)), a);
        trainer.AddMember("dict_size", rapidjson::Value(static_cast<std::uint64_t>(s.d_sae)), a);
        if (s.k > 0) trainer.AddMember("k", rapidjson::Value(static_cast<std::uint64_t>(s.k)), a);
        if (!s.origin.model.empty()) trainer.AddMember("lm_name", text(s.origin.model), a);
        if (s.origin.layer) {
            const long layer = *s.origin.layer;
            if (layer >= 1) trainer.AddMember("layer", rapidjson::Value(static_cast<std::int64_t>(layer - 1)), a);
            trainer.AddMember("submodule_name",
                              text(layer >= 1 ? "resid_post_layer_" + std::to_string(layer - 1)
                                              : "hidden_states." + std::to_string(layer)),
                              a);
        }
        json.AddMember("trainer", trainer, a);
        write_text(directory / "config.json", to_text(json));
    }

private:
    struct linear_class {
        const char *name, *architecture, *encoder_bias, *decoder_bias;
        bool has_k;
    };
    static constexpr linear_class linear_classes[] = {
        {"AutoEncoder", "standard", "encoder.bias", "bias", false},
        {"AutoEncoderTopK", "topk", "encoder.bias", "b_dec", true},
        {"BatchTopKSAE", "jumprelu", "encoder.bias", "b_dec", true},
        {"GatedAutoEncoder", "gated", "gate_bias", "decoder_bias", false}};

    static std::filesystem::path weights_path(const std::filesystem::path& given) {
        return std::filesystem::is_directory(given) ? given / "ae.pt" : given;
    }
    static std::filesystem::path config_path(const std::filesystem::path& weights) {
        return weights.parent_path() / "config.json";
    }
};

}  // namespace psae::detail
