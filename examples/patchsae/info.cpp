// What a model, SAE, run, result or set of pictures is, checked whole: every tensor there, of the right shape, finite.

#include <fstream>

#include <psae/io/reference_results.hpp>
#include <psae/vit/load_clip.hpp>

#include "activations.hpp"

namespace patchsae {

namespace {

namespace fs = std::filesystem;

// "2,0,7" for element i of a shape.
std::string index_text(std::size_t i, const std::vector<std::size_t>& shape) {
    std::string text;
    for (std::size_t axis = shape.size(); axis-- > 0; i /= shape[axis])
        text = std::to_string(i % shape[axis]) + (text.empty() ? "" : "," + text);
    return text;
}

void require_finite(const psae::array& a, const std::string& where) {
    if (!a.strings.empty()) return;
    const auto x = psae::values<double>(a);
    for (std::size_t i = 0; i < x.size(); ++i)
        if (!std::isfinite(x[i]))
            throw psae::error("array holds a value that is not finite", where + ", element " + index_text(i, a.shape));
}

// Reads every tensor, which checks it; returns the number of elements.
template <class File>
std::size_t check_tensors(const File& file) {
    std::size_t elements = 0;
    for (const auto& e : file.entries()) {
        stop_if_interrupted();
        elements += file.template read<double>(e.name, e.shape).size();
    }
    return elements;
}

template <class Numbers, class... Config>
bool is_compiled_in(const Numbers& n, psae::config_list<Config...>) {
    std::size_t count = 0;
    return ((psae::differences<Config>(n, count), count == 0) || ...);
}

// The tensors of a vision tower that is not compiled in, as loading it would want them.
void check_vision_tensors(const psae::clip_weights& weights, const psae::clip_numbers& n) {
    const std::size_t d = n.width, m = n.mlp, tokens = (n.image / n.patch) * (n.image / n.patch) + 1;
    const auto check = [&](const std::string& name, const std::vector<std::size_t>& shape) {
        weights.read("vision_model." + name, shape);
    };
    check("embeddings.class_embedding", {d});
    check("embeddings.patch_embedding.weight", {d, 3, n.patch, n.patch});
    check("embeddings.position_embedding.weight", {tokens, d});
    weights.read("visual_projection.weight", {n.projection, d});
    const auto check_pair = [&](const std::string& name, const std::vector<std::size_t>& shape) {
        check(name + ".weight", shape);
        check(name + ".bias", {shape[0]});
    };
    check_pair("pre_layrnorm", {d});
    check_pair("post_layernorm", {d});
    for (std::size_t i = 0; i < n.layers; ++i) {
        const std::string p = "encoder.layers." + std::to_string(i) + ".";
        for (const char* norm : {"layer_norm1", "layer_norm2"}) check_pair(p + norm, {d});
        for (const char* part : {"q_proj", "k_proj", "v_proj", "out_proj"}) check_pair(p + "self_attn." + part, {d, d});
        check_pair(p + "mlp.fc1", {m, d});
        check_pair(p + "mlp.fc2", {d, m});
    }
}

void describe_store(const fs::path& path, json_object& out) {
    const psae::activation_store store(path);
    progress bar("shards", store.shards());
    for (std::size_t s = 0; s < store.shards(); ++s) {
        stop_if_interrupted();
        store.check(s);
        bar.show(s + 1);
    }
    const auto& layout = store.layout();
    out.add("kind", "store")
        .add("model", layout.model)
        .add("layer", layout.layer)
        .add("images", store.pictures())
        .add("tokens", layout.tokens)
        .add("class_token", layout.class_token)
        .add("width", layout.width)
        .add("dtype", psae::detail::store_type_name(layout.type))
        .add("shards", store.shards())
        .add("bytes", store.bytes())
        .add("checksums", store.has_checksums());
}

std::string identifier(const std::string& prefix, const fs::path& directory) {
    std::string name = prefix;
    for (const char c : fs::weakly_canonical(directory).filename().string())
        name += std::isalnum(static_cast<unsigned char>(c)) ? c : '_';
    return name;
}

// The line that compiles such a tower in.
std::string model_line(const fs::path& directory, const psae::clip_numbers& n) {
    const std::string name = identifier("clip_", directory);
    return fmt::format("PSAE_CLIP_MODEL({}, {}, {}, {}, {}, {}, {}, {}, mlp_activation::{})", name, n.image, n.patch,
                       n.width, n.layers, n.heads, n.mlp, n.projection, n.activation);
}

std::string model_line(const fs::path& directory, const psae::clip_text_numbers& n) {
    return fmt::format("PSAE_CLIP_TEXT_MODEL({}, {}, {}, {}, {}, {}, {}, {}, mlp_activation::{})",
                       identifier("clip_text_", directory), n.vocabulary, n.context, n.width, n.layers, n.heads, n.mlp,
                       n.projection, n.activation);
}

// Refuses a tower that no line could compile in.
template <class Numbers>
void require_possible(const fs::path& directory, const Numbers& n) {
    const auto refuse = [&](const std::string& text) {
        throw psae::error("model cannot be compiled in", (directory / "config.json").string(), text);
    };
    if (n.width % n.heads != 0) refuse("expected a hidden_size that is a multiple of num_attention_heads");
    if (n.activation != "quick_gelu" && n.activation != "gelu")
        refuse("expected hidden_act quick_gelu or gelu, found " + n.activation);
    if (n.eps != 1e-5) refuse(fmt::format("expected layer_norm_eps 1e-05, found {}", n.eps));
}

// The text tower, if the configuration has one. Where it is compiled in and there is a tokenizer, both are loaded, which
// checks them.
void describe_text(const fs::path& directory, json_object& out, std::string& lines) {
    if (psae::find_member(psae::read_json(directory / "config.json"), "text_config") == nullptr) return;
    const auto n = psae::read_clip_text_numbers(directory / "config.json");
    const bool known = is_compiled_in(n, psae::known_clip_text_configs{});
    const bool tokenizer = fs::exists(directory / "tokenizer.json") || fs::exists(directory / "vocab.json");
    out.add("text_compiled_in", known)
        .add("tokenizer", tokenizer)
        .add("vocabulary", n.vocabulary)
        .add("context", n.context);
    if (known) {
        if (tokenizer) load_text_model(directory);
    } else {
        require_possible(directory, n);
        lines += (lines.empty() ? "" : "\n") + model_line(directory, n);
    }
}

void describe_model(const fs::path& directory, json_object& out, std::string& line) {
    const auto n = psae::read_clip_numbers(directory / "config.json");
    const psae::clip_weights weights(directory);
    const std::size_t elements = check_tensors(weights.files());
    const bool known = is_compiled_in(n, psae::known_clip_configs{});
    out.add("kind", "clip").add("compiled_in", known);
    if (known) {
        out.add("name", load_model(directory)->name());
    } else {
        if (n.image % n.patch != 0)
            throw psae::error("model cannot be compiled in", (directory / "config.json").string(),
                              "expected an image_size that is a multiple of patch_size");
        require_possible(directory, n);
        check_vision_tensors(weights, n);
        line = model_line(directory, n);
    }
    psae::read_preprocessing(directory, n.image);
    out.add("image", n.image)
        .add("patch", n.patch)
        .add("tokens", (n.image / n.patch) * (n.image / n.patch) + 1)
        .add("width", n.width)
        .add("layers", n.layers)
        .add("heads", n.heads)
        .add("mlp", n.mlp)
        .add("projection", n.projection)
        .add("activation", n.activation)
        .add("weights", weights.files().format())
        .add("names", weights.has_openai_names() ? "openai" : "huggingface")
        .add("tensors", weights.files().entries().size())
        .add("parameters", elements);
    describe_text(directory, out, line);
}

void describe_sae(const fs::path& path, json_object& out) {
    const auto directory = psae::sae_directory(path);
    const auto sae = load_sae(path);
    out.add("kind", fs::exists(directory / "metrics.jsonl") ? "run" : "sae")
        .add("format", psae::name_of(*psae::sae_format_of(path)))
        .add("architecture", sae.architecture)
        .add("d_in", sae.d_in)
        .add("d_sae", sae.d_sae);
    if (sae.is_transcoder()) out.add("d_out", sae.d_out);
    if (sae.k > 0) out.add("k", sae.k);
    if (sae.architecture == "topk") out.add("rectified", sae.rectified).add("rescaled", sae.rescaled);
    if (!sae.W_skip.empty()) out.add("skip_connection", true);
    if (!sae.origin.model.empty()) out.add("model", sae.origin.model);
    if (sae.origin.layer) out.add("layer", *sae.origin.layer);
    if (sae.origin.target_layer) out.add("target_layer", *sae.origin.target_layer);
    out.add("centred_input", sae.centred_input)
        .add("input_scaling", sae.scaling == psae::input_scaling::layer_norm      ? "layer_norm"
                              : sae.scaling == psae::input_scaling::constant_norm ? "constant_norm"
                                                                                  : "none");
    if (const auto metrics = directory / "metrics.jsonl"; fs::exists(metrics)) {
        std::ifstream in(metrics);
        std::size_t steps = 0;
        std::string line, last = "{}";
        // A last line without an end is what a killed run leaves.
        for (; std::getline(in, line) && !in.eof(); last = line) ++steps;
        out.add("steps", steps);
        const auto json = psae::parse_json(last, metrics.string() + ", last line");
        for (const char* key : {"loss", "l0", "explained_variance", "dead_fraction"})
            if (psae::find_member(json, key) != nullptr)
                out.add(key, psae::json_number(json, key, 0, metrics.string() + ", last line"));
    }
    if (const auto checkpoint = directory / "checkpoint" / "state.safetensors"; fs::exists(checkpoint)) {
        const psae::safetensors_file file(checkpoint);
        check_tensors(file);
        out.add("checkpoint_steps", file.read<std::uint64_t>("counters", {2})[0]);
    }
}

bool is_torch(const fs::path& path) {
    const auto name = psae::detail::lower_case(path.filename().string()), extension = path.extension().string();
    return extension == ".pt" || extension == ".pth" || extension == ".bin" || extension == ".ckpt" ||
           name.find(".pth.tar") != name.npos;
}

void describe_torch(const fs::path& path, json_object& out) {
    const psae::torch_file file(path);
    if (file.entries().empty()) throw psae::error("torch file holds no tensor", path.string());
    const bool adapter = psae::maple_adapter::is_in(file);
    out.add("kind", adapter ? "maple_adapter" : "tensors");
    if (adapter) {
        const psae::maple_adapter maple(path);
        out.add("prompts", maple.vision().count)
            .add("depth", maple.vision().depth())
            .add("vision_width", maple.vision().width)
            .add("text_width", maple.text().width);
    }
    out.add("form", file.form() == psae::torch_form::zip      ? "torch"
                    : file.form() == psae::torch_form::legacy ? "torch, legacy"
                                                              : "torchscript")
        .add("elements", check_tensors(file));
    for (const auto& e : file.entries()) out.add(e.name.empty() ? "tensor" : e.name.c_str(), e.shape);
}

void describe_reference_results(const fs::path& directory, json_object& out) {
    const auto results = psae::read_reference_results(directory);
    const auto& frequency = results.summary.image_frequency;
    out.add("kind", "reference_results")
        .add("d_sae", results.summary.latents)
        .add("top", results.summary.top)
        .add("alive", static_cast<std::size_t>(
                          std::count_if(frequency.begin(), frequency.end(), [](double f) { return f > 0; })))
        .add("classes", results.classes);
}

void check_codes(const std::map<std::string, psae::array>& arrays, const std::string& where) {
    const auto get = [&](const char* name) { return psae::values<std::int64_t>(arrays.at(name)); };
    const auto shape = get("shape"), indptr = get("indptr"), indices = get("indices");
    bool good = shape.size() == 2 && shape[0] >= 0 && shape[1] >= 0 && indptr.size() == std::size_t(shape[0]) + 1 &&
                indptr.front() == 0 && indptr.back() == std::int64_t(indices.size()) &&
                arrays.at("data").size() == indices.size() && std::is_sorted(indptr.begin(), indptr.end());
    for (std::size_t i = 0; good && i < indices.size(); ++i) good = indices[i] >= 0 && indices[i] < shape[1];
    if (!good) throw psae::error("arrays do not describe a CSR matrix", where);
}

// Results are known by their arrays.
void describe_arrays(const std::string& path, json_object& out) {
    const auto arrays = psae::read_npz(path);
    const auto has = [&](auto... names) { return (arrays.contains(names) && ...); };
    const bool summary = has("token_frequency", "top_images"), codes = has("indptr", "indices", "data", "shape");
    out.add("kind", codes                              ? "codes"
                    : summary                          ? "latents"
                    : has("tokens", "image_embeds")    ? "embeddings"
                    : has("pixels", "files")           ? "pixels"
                    : has("map") && arrays.size() == 1 ? "mask"
                                                       : "arrays");
    // Statistics that a latent which never fires, or pictures without labels, do not have are NaN.
    const std::vector<std::string> may_be_nan{"mean_activation", "mean_image_score", "label_entropy", "label_std"};
    std::size_t rows = 0;
    for (const auto& [name, a] : arrays) {
        const std::string where = path + ", array " + name;
        if (!summary || std::find(may_be_nan.begin(), may_be_nan.end(), name) == may_be_nan.end())
            require_finite(a, where);
        out.add(name.c_str(), a.shape);
        if (name != "pixels" && name != "tokens" && name != "image_embeds" && name != "files" && name != "labels")
            continue;
        const std::size_t n = a.shape.empty() ? 0 : a.shape[0];
        if (rows != 0 && n != rows)
            throw psae::error("arrays are of different numbers of pictures", where,
                              fmt::format("expected {}, found {}", rows, n));
        rows = n;
    }
    if (codes) check_codes(arrays, path);
}

void describe_pictures(const std::string& path, const common_options& common, json_object& out) {
    image_options options;
    options.images = {path};
    const auto list = list_images(options);
    const std::size_t skipped = each_batch(list, options, {}, psae::cpu(common.threads), 16, [](const auto&) {});
    out.add("kind", "images")
        .add("images", list.files.size())
        .add("unreadable", skipped)
        .add("classes", list.class_names.size());
}

void run(const std::string& given, const common_options& common) {
    const fs::path path(given);
    const char* known =
        "a model, an SAE, a run, a store of activations, results of the reference, .npy, .npz, .safetensors, a torch "
        "file, a picture, a folder of them, .csv or .tsv";
    if (!fs::exists(path)) throw psae::error("no such file or directory", given, fmt::format("expected {}", known));
    const auto extension = psae::detail::lower_case(path.extension().string());
    json_object out;
    std::string line;
    if (extension == ".npz") {
        describe_arrays(given, out);
    } else if (extension == ".npy") {
        const auto a = psae::read_npy(path);
        require_finite(a, given);
        out.add("kind", "array").add("shape", a.shape);
    } else if (is_store(path)) {
        describe_store(path, out);
    } else if (psae::is_reference_results(path)) {
        describe_reference_results(path, out);
    } else if (is_torch(path) && psae::is_reference_results(path.parent_path())) {
        describe_reference_results(path.parent_path(), out);  // some of them hold NaN and mean nothing alone
    } else if (psae::sae_format_of(path)) {
        describe_sae(path, out);
    } else if (fs::is_regular_file(path) && is_torch(path)) {
        describe_torch(path, out);
    } else if (fs::exists(path / "config.json")) {
        describe_model(path, out, line);
    } else if (extension == ".safetensors") {
        const psae::safetensors_file file(path);
        out.add("kind", "tensors").add("elements", check_tensors(file));
        for (const auto& e : file.entries()) out.add(e.name.c_str(), e.shape);
    } else if (fs::is_directory(path / "checkpoint")) {
        throw psae::error("run has no SAE yet", given, "expected cfg.json and sae_weights.safetensors",
                          "end the run, or go on with train --resume");
    } else if (fs::is_regular_file(path) && (extension == ".json" || extension == ".jsonl")) {
        throw psae::error("this kind of file is not known", given, fmt::format("expected {}", known));
    } else {
        describe_pictures(given, common, out);
    }
    if (!line.empty()) out.add("psae_models", line);
    if (common.json) return out.print();
    if (!line.starts_with("PSAE_CLIP_MODEL")) return out.print_lines();
    // As it stands this is a file for PSAE_MODELS.
    fmt::print("// {} is not compiled in; save this as FILE and build with cmake -DPSAE_MODELS=FILE\n{}\n", given,
               line);
}

}  // namespace

void add_info(CLI::App& app) {
    auto* sub = add_command(
        app, "info", "what a model, SAE, run, store of activations, result or set of pictures is; checks it whole",
        "data/tiny-clip");
    auto path = std::make_shared<std::string>();
    auto common = std::make_shared<common_options>();
    sub->add_option("path", *path, "directory or file")->required();
    common->add_to(*sub);
    sub->callback([path, common] { run(*path, *common); });
}

}  // namespace patchsae
