#pragma once
// saev's checkpoints: a line of JSON (schema, cfg, commit, lib), then a torch archive of W_enc [d_in, d_sae], b_enc, W_dec
// [d_sae, d_in], b_dec. Its SAEs do not centre their input; they are standard, or top-k without ReLU. Schemas 1 to 5 are
// read, and files from before there were schemas; schema 5 is written.

#include <psae/io/patchsae_file.hpp>

namespace psae::detail {

struct saev_format {
    static constexpr bool is_directory = false, has_rescaling = false;

    static bool recognise(const std::filesystem::path& given) {
        const auto path = torch_path(given);
        if (!begins_with(path, "{")) return false;
        const file_bytes bytes(path);
        // A damaged one is still one by its name.
        return path.extension() == ".pt" || beginning(bytes).find("\nPK\3\4") != std::string_view::npos;
    }
    static std::optional<bool> centring(const sae_description&) { return false; }

    static sae_weights read(const std::filesystem::path& given) {
        const auto path = torch_path(given);
        const std::string where = path.string() + ", first line";
        std::size_t head = 0;
        sae_weights s;
        s.centred_input = false;
        {
            const file_bytes bytes(path);
            const std::string_view text = beginning(bytes);
            head = text.find('\n');
            if (head == text.npos) throw error("not a checkpoint of saev", where, "expected a line of JSON");
            const auto json = parse_json(text.substr(0, head), where);
            if (!json.IsObject()) throw error("not a checkpoint of saev", where, "expected a JSON object");
            read_description(s, json, where);
        }
        const torch_file file(path, head + 1);
        const std::size_t d_in = s.d_in, d_sae = s.d_sae;
        take_extents(file, "W_enc", s);
        if (s.d_in != d_in || s.d_sae != d_sae)
            throw error("tensor has another shape", file.path() + ", tensor W_enc",
                        "expected " + shape_text({d_in, d_sae}) + ", found " + shape_text({s.d_in, s.d_sae}));
        if (s.architecture == "topk") require_k(s, where);
        read_torch_weights(file, "", s);
        return s;
    }

    static void write(const std::filesystem::path& path, const sae_view& s) {
        const expressible can{sae_format::saev, path};
        can.require_architecture(s, {"standard", "topk"});
        can.require_sae(s);
        can.require_plain_input(s);
        can.require_not_rescaled(s);
        can.require(s.architecture != "topk" || !s.rectified, "top-k of ReLU", "top-k without ReLU");
        can.require_centring(s, false);
        rapidjson::Document json(rapidjson::kObjectType);
        auto& a = json.GetAllocator();
        rapidjson::Value cfg(rapidjson::kObjectType), activation(rapidjson::kObjectType),
            params(rapidjson::kObjectType);
        const auto number = [](std::size_t n) { return rapidjson::Value(static_cast<std::uint64_t>(n)); };
        if (s.architecture == "topk") params.AddMember("top_k", number(s.k), a);
        activation.AddMember("cls", rapidjson::StringRef(s.architecture == "topk" ? "TopK" : "Relu"), a);
        activation.AddMember("params", params, a);
        cfg.AddMember("d_model", number(s.d_in), a);
        cfg.AddMember("d_sae", number(s.d_sae), a);
        cfg.AddMember("activation", activation, a);
        json.AddMember("schema", 5, a);
        json.AddMember("cfg", cfg, a);
        json.AddMember("commit", "unknown", a);
        json.AddMember("lib", "psae", a);
        rapidjson::StringBuffer line;
        rapidjson::Writer<rapidjson::StringBuffer> writer(line);
        json.Accept(writer);
        const auto W_enc = psae::transpose(s.W_enc, s.d_sae, s.d_in);
        write_torch(path, torch_value::state_dict(torch_weights(s, W_enc)), std::string(line.GetString()) + "\n");
    }

private:
    // What the line of JSON must end in.
    static std::string_view beginning(const file_bytes& bytes) {
        constexpr std::size_t longest = std::size_t{1} << 20;
        return {reinterpret_cast<const char*>(bytes.data()), std::min(bytes.size(), longest)};
    }
    // Before schema 2 the activation may be the name of the configuration's class, and before there were schemas all were
    // ReLU; before schema 5 d_sae may be given as a multiple of d_in.
    static void read_description(sae_weights& s, const rapidjson::Value& json, const std::string& where) {
        const std::size_t schema = json_size(json, "schema", 0, where);
        if (schema > 5) refuse_sae(where, "schema", std::to_string(schema), "at most 5");
        const auto* cfg = schema == 0 ? &json : find_member(json, "cfg");
        if (cfg == nullptr || !cfg->IsObject()) refuse_sae(where, "cfg", "none", "an object");
        s.d_in = sae_extent(*cfg, find_member(*cfg, "d_model") != nullptr ? "d_model" : "d_vit", where);
        s.d_sae = find_member(*cfg, "d_sae") != nullptr ? sae_extent(*cfg, "d_sae", where)
                                                        : sae_extent(*cfg, "exp_factor", where) * s.d_in;
        std::string activation = "Relu";
        const auto* given = find_member(*cfg, "activation");
        if (given != nullptr) activation = json_string(*given, "cls", "", where);
        else if (schema == 1) activation = json_string(json, "cls", activation, where);
        else if (schema > 1) refuse_sae(where, "activation", "none", "an object");
        if (activation == "TopK") {
            s.architecture = "topk";
            s.rectified = false;
            const auto* params = given != nullptr ? find_member(*given, "params") : cfg;
            if (params == nullptr) refuse_sae(where, "params", "none", "an object with top_k");
            s.k = sae_extent(*params, "top_k", where);
        } else if (activation != "Relu") {
            refuse_sae(where, "activation", activation, "Relu or TopK");
        }
    }
};

}  // namespace psae::detail
