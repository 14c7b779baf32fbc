// Errors, exit codes, configuration files, --help, info.
#include "program.hpp"

#include <psae/io/sae_file.hpp>
#include <psae/vit/load_clip.hpp>  // with PSAE_MODELS=tests/program/models.txt

using namespace program;

namespace {

const std::vector<std::string> commands{"info",    "preprocess", "tokenize",  "embed",     "cache",
                                        "train",   "encode",     "evaluate",  "latents",   "mask",
                                        "classes", "classify",   "intervene", "attribute", "report"};

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("bad usage is one line and exit code 2") {
    const std::string model = golden / "clip_tiny", tokens = golden / "formats" / "numpy" / "f4.npy";
    const temporary_folder work;
    const std::vector<std::vector<std::string>> cases{
        {},
        {"no_such_command"},
        {"--no-such-option"},
        {"embed", "--no-such-option"},
        {"embed", "--model", model, "--images", "x"},
        {"embed", "--model", model, "--out", work / "x"},
        {"embed", "--model", model, "--images", "x", "--out", work / "x", "--layer", "two"},
        {"embed", "--model", model, "--images", "x", "--pixels", "y", "--out", work / "x"},
        {"tokenize", "--model", model, "--out", work / "x"},
        {"classify", "--model", model, "--out", work / "x"},
        {"classify", "--model", model, "--images", "x", "--out", work / "x", "--top", "0"},
        {"classes", "--model", model, "--images", "x", "--out", work / "x"},
        {"intervene", "--model", model, "--images", "x", "--sae", "x", "--out", work / "x"},
        {"attribute", "--model", model, "--sae", "x", "--out", work / "x"},
        {"train", "--out", work / "x"},
        {"train", "--activations", tokens, "--out", work / "x", "--variant", "no_such_variant"},
        {"train", "--activations", tokens, "--out", work / "x", "--steps", "-3"},
        {"train", "--activations", tokens, "--out", work / "x", "--steps", "99999999999999999999999"},
        {"train", "--activations", tokens, "--out", work / "x", "--lr", "nan"},
        {"train", "--activations", tokens, "--out", work / "x", "--lr", "0"},
        {"train", "--activations", tokens, "--out", work / "x", "--batch-tokens", "0"},
        {"train", "--activations", tokens, "--out", work / "x", "--variant", "topk", "--dead-latents", "ghost"},
        {"train", "--activations", tokens, "--out", work / "x", "--variant", "topk", "--loss", "patchsae"},
        {"train", "--model", model, "--images", "x", "--out", work / "x", "--order", "sequential"},
        {"train", "--images", "x", "--out", work / "x"},
        {"encode", "--sae", "x", "--out", work / "x"},
        {"encode", "--sae", "x", "--activations", tokens, "--model", model, "--images", "x", "--out", work / "x"},
        {"encode", "--sae", "x", "--images", "x", "--out", work / "x"},
        {"info", "x", "--device", "tpu"},
        {"info", "x", "--device", "cuda:"},
        {"embed", "--model", model, "--images", "x", "--out", work / "x", "--preprocess-on", "gpu"},
        {"preprocess", "--model", model, "--images", "x", "--out", work / "x", "--preprocess-on", "cpu"},
        {"info", "x", "--dtype", "fp8"},
        {"cache", "--model", model, "--images", "x", "--out", work / "x", "--precision", "fp16"},
        {"info", "x", "--threads", "-1"},
        {"info", "x", "--config", "no_such_file.json"},
    };
    for (const auto& c : cases) {
        std::string text;
        for (const auto& a : c) text += a + " ";
        INFO(text);
        refused(c, 2);
    }
    CHECK(fs::is_empty(work.path));
}

TEST_CASE("what is not there is said in one line with exit code 1") {
    const temporary_folder work;
    const auto refusal = refused({"info", "x", "--device", "cuda:999"});
    CHECK(contains(refusal, "CUDA device"));
    CHECK(contains(refusal, "use --device cpu"));
    for (const char* option : {"--dtype=bf16", "--precision=bf16", "--precision=tf32"})
        CHECK(contains(refused({"info", "x", "--device=cpu", option}), "the CPU does not compute in"));
    CHECK(contains(refused({"embed", "--model=x", "--images=x", "--out=x", "--device=cpu", "--preprocess-on=cuda"}),
                   "the tower runs on the CPU"));
    CHECK(contains(refused({"train", "--activations=x", "--out=x", "--device=cpu", "--precision=tf32"}),
                   "expected fp32 or bf16"));
    CHECK(contains(refused({"info", "no/such/path"}), "no such file or directory (no/such/path)"));
    CHECK(contains(refused({"info", "two\nlines"}), "two lines"));
    // More memory than there is, and extents that would overflow.
    write_npz(work / "rows.npz", "tokens", some_rows(64, 8), {64, 8});
    for (const char* option : {"--d-sae=100000000000", "--d-sae=2305843009213693952", "--expansion=2305843009213693952",
                               "--batch-tokens=4611686018427387904"})
        CHECK(contains(
            refused({"train", "--activations", work / "rows.npz", "--out", work / "run", "--steps", "1", option}),
            "does not fit into memory"));
    // Activations that are not finite, an SAE of another width, and one of another kind.
    fs::create_directories(work / "other");
    auto rows = some_rows(64, 8);
    rows[8 * 5 + 3] = INFINITY;
    write_npz(work / "bad.npz", "tokens", rows, {64, 8});
    const std::string sae = golden / "formats" / "saelens" / "standard";
    CHECK(contains(refused({"encode", "--sae", sae, "--activations", work / "bad.npz", "--out", work / "x.npz"}),
                   "row 5, column 3"));
    write_npz(work / "wide.npz", "tokens", some_rows(64, 9), {64, 9});
    CHECK(contains(refused({"encode", "--sae", sae, "--activations", work / "wide.npz", "--out", work / "x.npz"}),
                   "the SAE takes d_in 8, the activations have 9"));
    psae::write_text(work / "other" / "cfg.json", R"({"architecture": "other", "d_in": 8, "d_sae": 24})");
    CHECK(contains(
        refused({"encode", "--sae", work / "other", "--activations", work / "rows.npz", "--out", work / "x.npz"}),
        "found other"));
    CHECK_FALSE(fs::exists(work / "x.npz"));
}

TEST_CASE("a result that cannot be written is known before the work") {
    // The pictures do not exist: whoever looked at them first would say so.
    const temporary_folder work;
    const std::string model = golden / "clip_tiny", sae = golden / "formats" / "saelens" / "standard";
    psae::write_text(work / "file", "");
    for (const char* command : {"preprocess", "embed", "encode"}) {
        INFO(command);
        std::vector<std::string> arguments{command, "--model", model, "--images", "no/such/pictures"};
        if (std::string(command) == "encode") arguments.insert(arguments.end(), {"--sae", sae});
        const auto to = [&](const fs::path& out) {
            auto all = arguments;
            all.insert(all.end(), {"--out", out});
            return refused(all);
        };
        CHECK(contains(to(work / "file" / "below" / "x.npz"),
                       "file or folder cannot be used (" + (work / "file").string()));
        CHECK(contains(to(work.path), "found a folder"));
        CHECK(contains(to(work / "x.npz"), "no/such/pictures"));
    }
    write_npz(work / "rows.npz", "tokens", some_rows(64, 8), {64, 8});
    run_well({"encode", "--sae", sae, "--activations", work / "rows.npz", "--out", work / "new" / "folder" / "x.npz"});
    CHECK(fs::exists(work / "new" / "folder" / "x.npz"));
}

TEST_CASE("a preprocessor configuration that asks for something else is refused") {
    const temporary_folder work;
    const std::string picture = golden / "pipeline" / "images" / "0_cat" / "00.png";
    fs::create_directories(work / "model");
    fs::copy(golden / "clip_tiny" / "config.json", work / "model" / "config.json");
    const auto arguments = [&](const std::string& json) {
        psae::write_text(work / "model" / "preprocessor_config.json", json);
        return std::vector<std::string>{"preprocess", "--model", work / "model",  "--images",
                                        picture,      "--out",   work / "out.npz"};
    };
    const auto pixels = [&](const std::string& json) {
        run_well(arguments(json));
        return floats(work / "out.npz", "pixels");
    };
    const auto usual = pixels("{}");
    for (const char* same :
         {R"({"size": 32, "crop_size": 32, "resample": 3, "do_resize": true, "do_center_crop": true})",
          R"({"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}})",
          R"({"rescale_factor": 0.00392156862745098, "do_rescale": true, "do_normalize": true})",
          R"({"size": null, "resample": null})"}) {
        INFO(same);
        CHECK(pixels(same) == usual);
    }
    CHECK(pixels(R"({"size": 40})") != usual);
    for (const auto& [key, json] : std::vector<std::pair<std::string, std::string>>{
             {"resample", R"({"resample": 2})"},
             {"do_resize", R"({"do_resize": false})"},
             {"do_center_crop", R"({"do_center_crop": false})"},
             {"do_rescale", R"({"do_rescale": false})"},
             {"do_normalize", R"({"do_normalize": false})"},
             {"do_normalize", R"({"do_normalize": 1})"},
             {"rescale_factor", R"({"rescale_factor": 0.5})"},
             {"size", R"({"size": {"height": 32, "width": 32}})"},
             {"size", R"({"size": {"shortest_edge": 32, "longest_edge": 64}})"},
             {"size", R"({"size": 32.5})"},
             {"size", R"({"size": "32"})"},
             {"size", R"({"size": {}})"},
             {"crop_size", R"({"crop_size": {"height": 32, "width": 40}})"},
             {"crop_size", R"({"crop_size": {"shortest_edge": 32}})"},
             {"crop_size", R"({"crop_size": 40})"},
             {"image_std", R"({"image_std": [0.5, 0, 0.5]})"},
             {"image_std", R"({"image_std": [0.5, 1e-60, 0.5]})"},
             {"image_mean", R"({"image_mean": [0.5, 1e60, 0.5]})"}}) {
        INFO(json);
        CHECK(contains(refused(arguments(json)), "preprocessor_config.json, key " + key));
    }
    for (const auto& model : {golden / "clip_tiny", golden / "pipeline" / "model", data / "tiny-clip"})
        run_well({"info", model});
}

TEST_CASE("every command explains itself with an example") {
    for (const auto& command : commands) {
        INFO(command);
        const auto r = run_well({command, "--help"});
        CHECK(contains(r.out, "Example:\n  patchsae " + command + " "));
        CHECK(contains(r.out, "--threads"));
    }
    CHECK(contains(run_well({"--version"}).out, "0."));
}

TEST_CASE("configuration files give options, and flags beat them") {
    const temporary_folder work;
    write_npz(work / "rows.npz", "tokens", some_rows(400, 8), {400, 8});
    const auto config = [&](const std::string& text) {
        psae::write_text(work / "config.json", text);
        return (work / "config.json").string();
    };
    const std::string good = "{\"activations\": \"" + (work / "rows.npz").string() +
                             "\", \"d-sae\": 32, \"steps\": 7, \"batch-tokens\": 16, \"lr\": 1e-3, "
                             "\"normalise-decoder\": false, \"dead-latents\": \"none\"}";
    auto r = run_well({"train", "--config", config(good), "--out", work / "run", "--json"});
    CHECK(r.json()["steps"].GetUint64() == 7);
    r = run_well({"train", "--out", work / "run", "--steps=5", "--config=" + config(good), "--json"});
    CHECK(r.json()["steps"].GetUint64() == 5);
    // What was in force is saved, and is itself a configuration file.
    const auto saved = psae::read_json(work / "run" / "run_config.json");
    CHECK(saved["steps"].GetUint64() == 5);
    CHECK(saved["lr"].GetDouble() == 1e-3);
    CHECK(saved["normalise-decoder"].GetBool() == false);
    CHECK(saved["loss"].GetString() == std::string("patchsae"));
    const auto again = run_well({"train", "--config", work / "run" / "run_config.json", "--out", work / "again"});
    CHECK(!contains(again.err, "is not an option of"));  // though the file has those of other variants
    CHECK(read_text(work / "run" / "sae_weights.safetensors") == read_text(work / "again" / "sae_weights.safetensors"));
    // Lists.
    const std::string images = golden / "pipeline" / "images";
    psae::write_text(work / "list.json", "{\"images\": [\"" + images + "/0_cat\", \"" + images +
                                             "/1_tree\"], \"limit\": 8, \"model\": \"" +
                                             (golden / "clip_tiny").string() + "\"}");
    run_well({"preprocess", "--config", work / "list.json", "--out", work / "pixels.npz"});
    CHECK(strings(work / "pixels.npz", "files").size() == 8);
    CHECK(psae::read_json(work / "pixels.npz.config.json")["images"].Size() == 2);

    const auto refuse = [&](const std::string& text) {
        return refused({"train", "--config", config(text), "--out", work / "no"}, 2);
    };
    CHECK(contains(refuse("{\"step\": 7}"), "unknown key step"));
    CHECK(contains(refuse("{\"config\": \"x\"}"), "unknown key config"));
    for (const char* name : {"dtype", "precision"})  // of one option
        CHECK(contains(refuse("{\"" + std::string(name) + "\": \"fp33\"}"), "found fp33"));
    CHECK(contains(refuse("{\"no-normalise-decoder\": true}"), "unknown key no-normalise-decoder"));
    CHECK(contains(refuse("{\"steps\": \"7\"}"), "key steps: expected an integer not below 0, found \"7\""));
    CHECK(contains(refuse("{\"steps\": 7.5}"), "key steps"));
    CHECK(contains(refuse("{\"steps\": -7}"), "key steps"));
    CHECK(contains(refuse("{\"lr\": [1]}"), "key lr: expected a number"));
    CHECK(contains(refuse("{\"resume\": 1}"), "key resume: expected true or false"));
    CHECK(contains(refuse("{\"out\": 3}"), "key out: expected a string"));
    CHECK(contains(refuse("{\"images\": [3]}"), "key images"));
    CHECK(contains(refuse("{\"steps\": 7, \"steps\": 8}"), "key steps"));
    CHECK(contains(refuse("[1]"), "expected a JSON object"));
    CHECK(contains(refuse("{\"steps\": "), "not valid JSON"));
    CHECK(contains(refuse("{\"variant\": \"no\"}"), "--variant"));
}

TEST_CASE("info tells models, SAEs, runs, results and pictures apart, and checks them") {
    const temporary_folder work;
    const auto info = [](const fs::path& path) { return run_well({"info", path, "--json"}).json(); };
    const auto kind = [&](const fs::path& path) { return std::string(info(path)["kind"].GetString()); };
    const auto model = info(golden / "clip_tiny");
    CHECK(model["kind"].GetString() == std::string("clip"));
    CHECK(model["layers"].GetUint64() == 4);
    CHECK(model["tokens"].GetUint64() == 17);
    CHECK(info(data / "tiny-clip")["name"].GetString() == std::string("tiny-clip"));
    const auto sae = info(golden / "formats" / "saelens" / "topk");
    CHECK(sae["kind"].GetString() == std::string("sae"));
    CHECK(sae["k"].GetUint64() == 4);
    CHECK(info(golden / "formats" / "saelens" / "standard_layer_norm")["input_scaling"].GetString() ==
          std::string("layer_norm"));
    CHECK(kind(golden / "formats" / "everything.safetensors") == "tensors");
    CHECK(info(golden / "pipeline" / "images")["classes"].GetUint64() == 4);
    CHECK(kind(golden / "formats" / "numpy" / "f4.npy") == "array");

    write_npz(work / "rows.npz", "tokens", some_rows(200, 8), {200, 8});
    const auto saelens = golden / "formats" / "saelens" / "standard";
    run_well({"train", "--activations", work / "rows.npz", "--out", work / "run", "--d-sae", "16", "--steps", "5",
              "--batch-tokens", "8"});
    CHECK(kind(work / "run") == "run");
    CHECK(info(work / "run")["checkpoint_steps"].GetUint64() == 5);
    std::ofstream(work / "run" / "metrics.jsonl", std::ios::app) << "{\"step\": 6, \"lo";  // killed while it wrote
    CHECK(info(work / "run")["steps"].GetUint64() == 5);
    CHECK(info(work / "run").HasMember("loss"));
    run_well({"encode", "--sae", saelens, "--activations", work / "rows.npz", "--out", work / "codes.npz"});
    CHECK(kind(work / "codes.npz") == "codes");
    run_well({"embed", "--model", golden / "clip_tiny", "--images", golden / "pipeline" / "images" / "0_cat", "--out",
              work / "embed.npz"});
    CHECK(kind(work / "embed.npz") == "embeddings");

    // One bad number, named with its place; a missing and a misshapen tensor.
    const psae::safetensors_file weights(saelens / "sae_weights.safetensors");
    const auto write_broken = [&](const std::string& without, std::size_t nan_at) {
        fs::create_directories(work / "broken");
        fs::copy(saelens / "cfg.json", work / "broken" / "cfg.json", fs::copy_options::overwrite_existing);
        std::vector<float> W_dec = weights.read("W_dec", {24, 8});
        if (nan_at < W_dec.size()) W_dec[nan_at] = std::nanf("");
        std::vector<psae::tensor_to_write> tensors;
        for (const auto& e : weights.entries())
            if (e.name != without)
                tensors.push_back(e.name == "W_dec" ? psae::to_write(e.name, e.shape, W_dec.data())
                                                    : psae::tensor_to_write{e.name, e.type, e.shape, weights.data(e)});
        psae::write_safetensors(work / "broken" / "sae_weights.safetensors", tensors);
        return refused({"info", work / "broken"});
    };
    CHECK(contains(write_broken("", 17), "tensor W_dec, element 17"));
    CHECK(contains(write_broken("b_dec", ~std::size_t{0}), "tensor b_dec"));
    auto tokens = some_rows(6, 4);
    tokens[4 * 2 + 1] = std::nanf("");
    write_npz(work / "nan.npz", "anything", tokens, {6, 4});
    CHECK(contains(refused({"info", work / "nan.npz"}), "array anything, element 2,1"));
    // Codes whose shape is negative, also where the row count plus one wraps to the length of an empty indptr.
    for (const auto& [rows, cols, indptr] :
         std::vector<std::tuple<std::int64_t, std::int64_t, std::vector<std::int64_t>>>{
             {-1, 4, {}}, {-2, 4, {}}, {0, 4, {}}, {0, -4, {0}}, {1, 4, {0}}, {1, 4, {0, 1}}}) {
        INFO(rows << " x " << cols);
        psae::npz_writer npz(work / "hostile.npz");
        npz.add("shape", std::vector<std::int64_t>{rows, cols});
        npz.add("indptr", indptr);
        npz.add("indices", std::vector<std::int64_t>{});
        npz.add("data", std::vector<float>{});
        npz.close();
        CHECK(contains(refused({"info", work / "hostile.npz"}), "do not describe a CSR matrix"));
    }
}

TEST_CASE("a model that is not compiled in is described, and its description compiles it in") {
    const temporary_folder work;
    const auto model = work / "three layers";
    fs::create_directories(model);
    // The golden model with three layers only.
    std::string config = read_text(golden / "clip_tiny" / "config.json");
    const auto vision = config.find("\"vision_config\""), layers = config.find("\"num_hidden_layers\": 4", vision);
    REQUIRE(layers != std::string::npos);
    config.replace(layers, 22, "\"num_hidden_layers\": 3");
    const auto text = config.find("\"text_config\""), text_layers = config.find("\"num_hidden_layers\": 2", text);
    REQUIRE(text_layers != std::string::npos);
    config.replace(text_layers, 22, "\"num_hidden_layers\": 1");
    psae::write_text(model / "config.json", config);
    fs::copy(golden / "clip_tiny" / "model.safetensors", model / "model.safetensors");
    const auto error =
        refused({"embed", "--model", model, "--images", golden / "pipeline" / "images", "--out", work / "x.npz"});
    CHECK(contains(error, "num_hidden_layers 4 (file: 3)"));
    CHECK(contains(error, "patchsae info"));
    // This file is compiled with the line as PSAE_MODELS.
    const auto described = run_well({"info", model}).out;
    const auto compiled_in = read_text(fs::path(PSAE_MODELS));
    CHECK(described.substr(described.find('\n') + 1) == compiled_in);
    const auto tower = psae::load_clip_vision(model, psae::config_list<psae::clip_three_layers>{});
    CHECK(tower->layers() == 3);
    CHECK(tower->name() == std::string("clip_three_layers"));
    for (const char* file : {"vocab.json", "merges.txt"}) fs::copy(golden / "clip_tiny" / file, model / file);
    CHECK(psae::load_clip_text(model, psae::config_list<psae::clip_text_three_layers>{}).tower->layers() == 1);

    // Numbers that are none.
    const auto projection = config.find("\"projection_dim\": 24");
    REQUIRE(projection != std::string::npos);
    for (const char* wrong : {"-24", "0", "1e30", "24.5"}) {
        INFO(wrong);
        auto changed = config;
        changed.replace(projection, 20, std::string("\"projection_dim\": ") + wrong);
        psae::write_text(model / "config.json", changed);
        CHECK(contains(refused({"info", model}), "config.json, projection_dim): expected an integer"));
    }
    psae::write_text(model / "config.json", config);

    fs::remove(model / "model.safetensors");
    CHECK(contains(refused({"info", model}), "no weights found"));
}
