#pragma once
// PatchSAE's checkpoints: a torch file with a dict of `cfg` (an object of its configuration class) or `config` (a dict),
// and `state_dict` with W_enc [d_in, d_sae], b_enc, W_dec [d_sae, d_in], b_dec. Its SAEs are standard and centred.

#include <psae/io/sae_format.hpp>
#include <psae/io/torch_file.hpp>

namespace psae::detail {

// The tensors of torch files under the names that PatchSAE and saev have for them; `prefix` stands before each.
inline void read_torch_weights(const torch_file& file, const std::string& prefix, sae_weights& s) {
    s.W_enc = psae::transpose(file.read(prefix + "W_enc", {s.d_in, s.d_sae}).data(), s.d_in, s.d_sae);
    s.b_enc = file.read(prefix + "b_enc", {s.d_sae});
    s.W_dec = file.read(prefix + "W_dec", {s.d_sae, s.d_in});
    s.b_dec = file.read(prefix + "b_dec", {s.d_in});
}
// W_enc_transposed [d_in, d_sae] must stay as long as what is returned.
inline std::vector<tensor_to_write> torch_weights(const sae_view& s, const std::vector<float>& W_enc_transposed) {
    return {to_write("W_enc", {s.d_in, s.d_sae}, W_enc_transposed.data()), to_write("b_enc", {s.d_sae}, s.b_enc),
            to_write("W_dec", {s.d_sae, s.d_in}, s.W_dec), to_write("b_dec", {s.d_in}, s.b_dec)};
}
// d_in and d_sae as the shape of W_enc [d_in, d_sae] has them.
inline void take_extents(const torch_file& file, const std::string& name, sae_weights& s) {
    const auto& shape = file.at(name).shape;
    if (shape.size() != 2 || shape[0] < 1 || shape[1] < 1)
        throw error("tensor has another shape", file.path() + ", tensor " + name,
                    "expected [d_in, d_sae], found " + shape_text(shape));
    s.d_in = shape[0];
    s.d_sae = shape[1];
}

// A folder stands for the sae.pt in it.
inline std::filesystem::path torch_path(const std::filesystem::path& given) {
    return std::filesystem::is_directory(given) ? given / "sae.pt" : given;
}
// Whether a regular file begins with these bytes.
inline bool begins_with(const std::filesystem::path& path, std::string_view start) {
    std::error_code ignored;
    if (!std::filesystem::is_regular_file(path, ignored)) return false;
    const file_bytes bytes(path);
    return bytes.size() >= start.size() && std::memcmp(bytes.data(), start.data(), start.size()) == 0;
}
// Whether a file begins as those of torch.save do: as an archive, or as the pickle of a magic number.
inline bool begins_as_torch(const std::filesystem::path& path) {
    return begins_with(path, "PK\3\4") || begins_with(path, "\x80\2\x8a\n");
}

struct patchsae_format {
    static constexpr bool is_directory = false, has_rescaling = false;

    static bool recognise(const std::filesystem::path& given) {
        const auto path = torch_path(given);
        if (!begins_as_torch(path)) return false;
        const torch_file file(path);
        return file.root().is(pickle_kind::dict) && file.root().find("state_dict") && configuration(file.root());
    }
    static std::optional<bool> centring(const sae_description&) { return true; }

    static sae_weights read(const std::filesystem::path& given) {
        const torch_file file(torch_path(given));
        const auto cfg = *configuration(file.root());
        const auto get = [&](const char* key, pickle_kind kind) -> std::optional<pickle_value> {
            if (!cfg.is(pickle_kind::dict) && !cfg.is(pickle_kind::object)) return std::nullopt;
            auto value = cfg.find(key);
            return value && value->is(kind) ? value : std::nullopt;
        };
        if (const auto gated = get("gated_sae", pickle_kind::boolean); gated && gated->boolean())
            refuse_sae(file.path(), "gated_sae", "True", "False");
        sae_weights s;
        take_extents(file, "state_dict.W_enc", s);
        read_torch_weights(file, "state_dict.", s);
        if (const auto model = get("model_name", pickle_kind::string)) s.origin.model = model->text();
        const auto module = get("module_name", pickle_kind::string);
        const auto layer = get("block_layer", pickle_kind::integer);
        if (layer && (!module || module->text() == "resid")) s.origin.layer = static_cast<long>(layer->integer());
        return s;
    }

    // The configuration is written as a dict (a pickled object would need PatchSAE's class) of what is known of the SAE and
    // what PatchSAE asks for when it loads one; the coefficient is that of its training, which nothing uses then.
    static void write(const std::filesystem::path& path, const sae_view& s) {
        const expressible can{sae_format::patchsae, path};
        can.require_architecture(s, {"standard"});
        can.require_sae(s);
        can.require_plain_input(s);
        can.require_centring(s, true);
        torch_value::dict config{{"d_in", s.d_in},
                                 {"d_sae", s.d_sae},
                                 {"gated_sae", {}},
                                 {"dtype", torch_value::constant{"float32"}},
                                 {"l1_coefficient", 8e-5}};
        if (s.d_sae % s.d_in == 0) config.emplace_back("expansion_factor", s.d_sae / s.d_in);
        if (!s.origin.model.empty()) config.emplace_back("model_name", s.origin.model);
        if (s.origin.layer) {
            config.emplace_back("module_name", "resid");
            config.emplace_back("block_layer", *s.origin.layer);
        }
        const auto W_enc = psae::transpose(s.W_enc, s.d_sae, s.d_in);
        write_torch(path, torch_value::dict{{"config", std::move(config)},
                                            {"state_dict", torch_value::state_dict(torch_weights(s, W_enc))}});
    }

private:
    static std::optional<pickle_value> configuration(const pickle_value& root) {
        auto cfg = root.find("cfg");
        return cfg ? cfg : root.find("config");
    }
};

}  // namespace psae::detail
