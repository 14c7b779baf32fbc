// preprocess, embed and encode against the reference's values; lists of pictures; hostile files.
#include "program.hpp"

#include <limits>
#include <map>
#include <span>

#include <psae/io/sae_file.hpp>
#include <psae/io/torch_file.hpp>

using namespace program;

namespace {

// A CLIP directory of which only the picture's size is read.
void write_size_only_model(const fs::path& directory, std::size_t size) {
    fs::create_directories(directory);
    psae::write_text(directory / "config.json",
                     "{\"vision_config\": {\"image_size\": " + std::to_string(size) + ", \"patch_size\": 8}}");
}

std::vector<float> dense(const fs::path& npz, std::size_t rows, std::size_t cols) {
    const auto values = floats(npz, "data");
    const auto indices = psae::values<std::int64_t>(psae::read_npz(npz, "indices")),
               indptr = psae::values<std::int64_t>(psae::read_npz(npz, "indptr")),
               shape = psae::values<std::int64_t>(psae::read_npz(npz, "shape"));
    REQUIRE(shape == std::vector<std::int64_t>{std::int64_t(rows), std::int64_t(cols)});
    REQUIRE(indptr.size() == rows + 1);
    std::vector<float> x(rows * cols);
    for (std::size_t r = 0; r < rows; ++r)
        for (auto i = std::size_t(indptr[r]); i < std::size_t(indptr[r + 1]); ++i)
            x[r * cols + std::size_t(indices[i])] = values[i];
    return x;
}

void write_pipeline_sae(const fs::path& directory) {
    const auto codes = golden / "pipeline" / "codes.npz";
    psae::sae_weights sae;
    sae.d_in = 64;
    sae.d_sae = 96;
    sae.W_enc = psae::transpose(floats(codes, "W_enc").data(), 64, 96);
    sae.b_enc = floats(codes, "b_enc");
    sae.W_dec = floats(codes, "W_dec");
    sae.b_dec = floats(codes, "b_dec");
    psae::write_sae(directory, sae, "pipeline", -2);
}

}  // namespace

TEST_CASE("preprocess gives every golden picture as transformers does") {
    const auto index = psae::read_json(golden / "preprocess" / "index.json");
    std::map<std::size_t, std::vector<const rapidjson::Value*>> by_size;
    for (const auto& entry : index["images"].GetArray()) by_size[entry["size"].GetUint64()].push_back(&entry);
    REQUIRE(by_size.size() == 3);
    const temporary_folder work;
    std::size_t compared = 0;
    for (const auto& [size, entries] : by_size) {
        const auto model = work / std::to_string(size);
        write_size_only_model(model, size);
        std::string table = "path,label\n";
        for (const auto* e : entries) table += (golden / "preprocess" / (*e)["file"].GetString()).string() + ",any\n";
        psae::write_text(work / "list.csv", table);
        for (const std::string alpha : {"drop", "white"}) {
            const auto out = work / "pixels.npz";
            run_well({"preprocess", "--model", model, "--images", work / "list.csv", "--alpha", alpha, "--out", out});
            const auto pixels = floats(out, "pixels");
            const std::size_t each = 3 * size * size;
            REQUIRE(pixels.size() == entries.size() * each);
            CHECK(strings(out, "files").size() == entries.size());
            for (std::size_t i = 0; i < entries.size(); ++i) {
                const std::string file = (*entries[i])["file"].GetString();
                INFO(file << ", alpha " << alpha);
                const auto arrays = psae::read_npz(golden / "preprocess" / (file + ".npz"));
                // 16-bit gray is read by its high byte. Version 5 of transformers blends transparent pictures.
                const std::string name = arrays.contains("pixel_values_high_byte") ? "pixel_values_high_byte"
                                         : alpha == "white" && arrays.contains("pixel_values_transformers5")
                                             ? "pixel_values_transformers5"
                                             : "pixel_values";
                const auto want = psae::to_floats(arrays.at(name));
                CHECK(largest_difference(std::span(pixels).subspan(i * each, each), want) <=
                      (name == "pixel_values_transformers5" ? 1e-5 : (*entries[i])["atol_pixel_values"].GetDouble()));
                ++compared;
            }
        }
    }
    CHECK(compared == 38);
}

TEST_CASE("embed gives every layer, the embeddings and the replaced pass as transformers does") {
    constexpr double tolerance = 6.8e-6;
    const temporary_folder work;
    const auto model = golden / "clip_tiny", expected = model / "expected.npz";
    write_npz(work / "pixels.npz", "pixels", floats(expected, "pixel_values"), {3, 3, 32, 32});
    write_npz(work / "tokens.npz", "tokens", floats(expected, "tap_replacement"), {3, 17, 64});
    const auto states = floats(expected, "hidden_states");
    const std::size_t size = 3 * 17 * 64;
    for (const int layer : {0, 1, 2, 3, 4, -1, -2, -3, -4, -5}) {
        INFO("layer " << layer);
        run_well({"embed", "--model", model, "--pixels", work / "pixels.npz", "--layer", std::to_string(layer), "--out",
                  work / "out.npz"});
        const auto first = states.begin() + std::ptrdiff_t(std::size_t(layer < 0 ? layer + 5 : layer) * size);
        CHECK(relative_difference(floats(work / "out.npz", "tokens"), std::vector<float>(first, first + size)) <
              tolerance);
        CHECK(relative_difference(floats(work / "out.npz", "image_embeds"), floats(expected, "image_embeds")) <
              tolerance);
    }
    run_well({"embed", "--model", model, "--pixels", work / "pixels.npz", "--replace", work / "tokens.npz", "--out",
              work / "out.npz"});
    CHECK(relative_difference(floats(work / "out.npz", "image_embeds"), floats(expected, "replaced_image_embeds")) <
          tolerance);
    CHECK(floats(work / "out.npz", "tokens") == floats(expected, "tap_replacement"));

    const auto error =
        refused({"embed", "--model", model, "--pixels", work / "pixels.npz", "--layer", "5", "--out", work / "no.npz"});
    CHECK(error.find("no such layer") != std::string::npos);
    write_npz(work / "two.npz", "tokens", std::vector<float>(2 * 17 * 64), {2, 17, 64});
    refused({"embed", "--model", model, "--pixels", work / "pixels.npz", "--replace", work / "two.npz", "--out",
             work / "no.npz"});
    auto pixels = floats(expected, "pixel_values");
    pixels[3 * 32 * 32 + 5] = std::nanf("");
    write_npz(work / "nan.npz", "pixels", pixels, {3, 3, 32, 32});
    CHECK(refused({"embed", "--model", model, "--pixels", work / "nan.npz", "--out", work / "no.npz"})
              .find("row 1, column 5") != std::string::npos);
    CHECK_FALSE(fs::exists(work / "no.npz"));
}

TEST_CASE("encode gives the pipeline's codes, from tokens and from pictures") {
    constexpr double tolerance = 2e-5;
    const temporary_folder work;
    const auto pipeline = golden / "pipeline", expected = pipeline / "codes.npz";
    write_pipeline_sae(work / "sae");
    const auto want = floats(expected, "codes");
    write_npz(work / "tokens.npz", "tokens", floats(expected, "tap"), {24, 17, 64});
    run_well({"encode", "--sae", work / "sae", "--activations", work / "tokens.npz", "--out", work / "codes.npz"});
    CHECK(relative_difference(dense(work / "codes.npz", 24 * 17, 96), want) < tolerance);

    // From the pictures: the golden order is that of expected.json, ours that of the folders.
    const auto out = run_well({"encode", "--sae", work / "sae", "--model", pipeline / "model", "--images",
                               pipeline / "images", "--out", work / "codes.npz", "--json"});
    CHECK(out.json()["rows"].GetUint64() == 24 * 17);
    run_well({"embed", "--model", pipeline / "model", "--images", pipeline / "images", "--out", work / "embed.npz"});
    const auto files = strings(work / "embed.npz", "files");
    const auto labels = psae::values<std::int64_t>(psae::read_npz(work / "embed.npz", "labels"));
    const auto got = dense(work / "codes.npz", 24 * 17, 96), tokens = floats(work / "embed.npz", "tokens"),
               embeds = floats(work / "embed.npz", "image_embeds");
    std::vector<float> codes, tap, image_embeds;
    const auto list = psae::read_json(pipeline / "expected.json");
    for (const auto& entry : list["files"].GetArray()) {
        const auto at = std::size_t(
            std::find(files.begin(), files.end(), (pipeline / entry["file"].GetString()).string()) - files.begin());
        REQUIRE(at < files.size());
        CHECK(labels[at] == entry["label"].GetInt64());
        const auto take = [&](const std::vector<float>& from, std::size_t size, std::vector<float>& to) {
            to.insert(to.end(), from.begin() + std::ptrdiff_t(at * size),
                      from.begin() + std::ptrdiff_t((at + 1) * size));
        };
        take(got, 17 * 96, codes);
        take(tokens, 17 * 64, tap);
        take(embeds, 24, image_embeds);
    }
    CHECK(relative_difference(tap, floats(expected, "tap")) < tolerance);
    CHECK(relative_difference(codes, want) < tolerance);
    CHECK(relative_difference(image_embeds, floats(expected, "image_embeds")) < 5e-5);

    // Five latents never fire: the summary's NaN for them are no damage.
    run_well({"latents", "--sae", work / "sae", "--model", pipeline / "model", "--images", pipeline / "images", "--out",
              work / "latents"});
    CHECK(run_well({"info", work / "latents" / "latents.npz", "--json"}).json()["kind"].GetString() ==
          std::string("latents"));
}

TEST_CASE("sharded models give what whole ones do") {
    const temporary_folder work;
    const auto model = golden / "clip_tiny", expected = model / "expected.npz";
    const psae::safetensors_file whole(model / "model.safetensors");
    fs::create_directories(work / "sharded");
    fs::copy(model / "config.json", work / "sharded" / "config.json");
    std::vector<psae::tensor_to_write> shards[2];
    std::string map;
    for (std::size_t i = 0; i < whole.entries().size(); ++i) {
        const auto& e = whole.entries()[i];
        shards[i % 2].push_back({e.name, e.type, e.shape, whole.data(e)});
        map += (i ? ", \"" : "\"") + e.name + "\": \"part" + std::to_string(i % 2) + ".safetensors\"";
    }
    for (const int i : {0, 1})
        psae::write_safetensors(work / "sharded" / ("part" + std::to_string(i) + ".safetensors"), shards[i]);
    psae::write_text(work / "sharded" / "model.safetensors.index.json", "{\"weight_map\": {" + map + "}}");
    write_npz(work / "pixels.npz", "pixels", floats(expected, "pixel_values"), {3, 3, 32, 32});
    run_well({"embed", "--model", work / "sharded", "--pixels", work / "pixels.npz", "--out", work / "out.npz"});
    CHECK(relative_difference(floats(work / "out.npz", "tokens"), floats(expected, "tap")) < 6.8e-6);
    const auto info = run_well({"info", work / "sharded", "--json"}).json();
    CHECK(info["tensors"].GetUint64() == whole.entries().size());
}

TEST_CASE("torch files are described, and a model whose weights are one gives what it gives from safetensors") {
    const temporary_folder work;
    const auto model = golden / "clip_tiny", expected = model / "expected.npz";
    const psae::safetensors_file whole(model / "model.safetensors");
    std::vector<psae::tensor_to_write> tensors;
    for (const auto& e : whole.entries()) tensors.push_back({e.name, e.type, e.shape, whole.data(e)});
    fs::create_directories(work / "model");
    fs::copy(model / "config.json", work / "model" / "config.json");
    psae::write_torch(work / "model" / "pytorch_model.bin", psae::torch_value::state_dict(tensors));
    write_npz(work / "pixels.npz", "pixels", floats(expected, "pixel_values"), {3, 3, 32, 32});
    run_well({"embed", "--model", work / "model", "--pixels", work / "pixels.npz", "--out", work / "out.npz"});
    CHECK(relative_difference(floats(work / "out.npz", "tokens"), floats(expected, "tap")) < 6.8e-6);
    const auto described = run_well({"info", work / "model", "--json"}).json();
    CHECK(described["kind"].GetString() == std::string("clip"));
    CHECK(described["weights"].GetString() == std::string("torch"));
    CHECK(described["names"].GetString() == std::string("huggingface"));
    CHECK(described["tensors"].GetUint64() == tensors.size());
    const auto of_file = run_well({"info", work / "model" / "pytorch_model.bin", "--json"}).json();
    CHECK(of_file["form"].GetString() == std::string("torch"));
    CHECK(of_file["visual_projection.weight"][1].GetUint64() == 64);

    const auto formats = golden / "formats";
    CHECK(run_well({"info", formats / "torchscript.pt", "--json"}).json()["form"].GetString() ==
          std::string("torchscript"));
    CHECK(run_well({"info", formats / "torch_single_tensor.pt", "--json"}).json()["tensor"][0].GetUint64() == 6);
    // One of the results alone holds NaN; all together they are described.
    for (const auto& path : {formats / "reference_results", formats / "reference_results" / "sae_mean_acts.pt"}) {
        const auto results = run_well({"info", path, "--json"}).json();
        CHECK(results["kind"].GetString() == std::string("reference_results"));
        CHECK(results["d_sae"].GetUint64() == 12);
        CHECK(results["classes"].GetUint64() == 3);
        CHECK(results["alive"].GetUint64() == 12);
    }
    // A weight that is not a number: one line with file and tensor, before anything is computed.
    auto broken = whole.read("visual_projection.weight", {24, 64});
    broken[65] = std::numeric_limits<float>::quiet_NaN();
    for (auto& t : tensors)
        if (t.name == "visual_projection.weight") t = psae::to_write(t.name, t.shape, broken.data());
    psae::write_torch(work / "model" / "pytorch_model.bin", psae::torch_value::state_dict(tensors));
    for (const auto& command :
         {std::vector<std::string>{"info", work / "model"},
          {"embed", "--model", work / "model", "--pixels", work / "pixels.npz", "--out", work / "not.npz"}})
        CHECK(refused(command).find("pytorch_model.bin, tensor visual_projection.weight, element 65") !=
              std::string::npos);
    CHECK_FALSE(fs::exists(work / "not.npz"));
}

TEST_CASE("pictures are listed, limited, split and skipped as the options say") {
    const temporary_folder work;
    const auto images = golden / "pipeline" / "images";
    write_size_only_model(work / "model", 32);
    const auto files_of = [&](std::vector<std::string> options) {
        options.insert(options.begin(), {"preprocess", "--model", work / "model", "--out", work / "out.npz"});
        run_well(options);
        return strings(work / "out.npz", "files");
    };
    CHECK(files_of({"--images", images}).size() == 24);
    CHECK(files_of({"--images", images, "--limit", "7"}).size() == 7);
    CHECK(files_of({"--images", images / "0_cat", "--images", images / "1_tree" / "00.png"}).size() == 7);
    psae::write_text(work / "list.tsv", "label\tpath\tsplit\ncat\t" + (images / "0_cat" / "00.png").string() +
                                            "\ttrain\ntree\t" + (images / "1_tree" / "01.png").string() + "\ttest\n");
    const auto one = files_of({"--images", work / "list.tsv", "--split", "test"});
    REQUIRE(one.size() == 1);
    CHECK(one[0].ends_with("1_tree/01.png"));

    // Unreadable pictures: one line each, counted; an error with --strict.
    const auto mixed = run_well({"preprocess", "--model", work / "model", "--images", golden / "preprocess" / "refuse",
                                 "--images", images / "0_cat", "--out", work / "out.npz", "--json"});
    CHECK(mixed.json()["images"].GetUint64() == 6);
    CHECK(mixed.json()["skipped"].GetUint64() == count_lines(mixed.err));
    CHECK(count_lines(mixed.err) >= 15);
    fs::remove(work / "out.npz");
    refused({"preprocess", "--model", work / "model", "--images", golden / "preprocess" / "refuse", "--images",
             images / "0_cat", "--out", work / "out.npz", "--strict"});
    CHECK_FALSE(fs::exists(work / "out.npz"));
}

TEST_CASE("hostile files are refused by the program in one line, with little memory") {
    const temporary_folder work;
    const limits little{.memory_bytes = std::size_t{1} << 30, .signal_when = {}};
    const auto refuse = golden / "formats" / "refuse";
    std::size_t count = 0;
    const auto list = psae::read_json(golden / "formats" / "refuse.json");
    for (const auto& entry : list["files"].GetArray()) {
        const fs::path path = golden / "formats" / entry["file"].GetString();
        const std::string kind = path.parent_path().filename().string();
        if (!fs::exists(path) || (kind != "safetensors" && kind != "numpy" && kind != "torch")) continue;
        INFO(path);
        if (entry["must_refuse"].GetBool()) {
            refused({"info", path, "--threads", "1"}, 1, little);
            if (kind == "numpy")
                refused({"encode", "--sae", golden / "formats" / "saelens" / "standard", "--activations", path, "--out",
                         work / "out.npz", "--threads", "1"},
                        1, little);
        } else {
            const int code = run({"info", path, "--threads", "1"}, little).code;
            CHECK((code == 0 || code == 1));
        }
        ++count;
    }
    for (const auto& entry : fs::directory_iterator(refuse / "json")) {
        INFO(entry.path());
        refused({"info", entry.path(), "--threads", "1"}, 1, little);
        ++count;
    }
    for (const auto& entry : fs::directory_iterator(refuse / "index")) {
        INFO(entry.path());
        const auto model = work / entry.path().filename().string();
        fs::copy(entry.path(), model);
        fs::copy(golden / "clip_tiny" / "config.json", model / "config.json");
        refused({"info", model, "--threads", "1"}, 1, little);
        ++count;
    }
    write_size_only_model(work / "model", 32);
    for (const auto& entry : fs::directory_iterator(golden / "preprocess" / "refuse")) {
        INFO(entry.path());
        refused({"preprocess", "--strict", "--model", work / "model", "--images", entry.path(), "--out",
                 work / "out.npz", "--threads", "1"},
                1, little);
        ++count;
    }
    CHECK(count > 120);
    CHECK_FALSE(fs::exists(work / "out.npz"));
}
