// CLIP with MaPLe's deep prompts on both towers against MaPLe's own code.
#include <catch2/catch.hpp>

#include <fstream>
#include <limits>
#include <span>

#include <psae/io/numpy.hpp>
#include <psae/vit/load_clip.hpp>
#include <psae/vit/zero_shot.hpp>

#include "../backend.hpp"
#include "../difference.hpp"
#include "../temporary_folder.hpp"

using namespace psae;

namespace {

const std::filesystem::path golden_directory = std::filesystem::path(PSAE_GOLDEN_DIR) / "maple";
constexpr double tolerance = 4.0e-6;
const std::vector<std::string> names{"cat", "golden retriever", "rose", "car on the road"};

std::vector<float> golden(const char* name) { return to_floats(read_npz(golden_directory / "expected.npz", name)); }

struct maple_vision : clip_vision_config<32, 8, 128, 3, 2, 512, 32> {
    static constexpr const char* name = "MaPLe test";
};
struct maple_text : clip_text_config<610, 77, 64, 3, 1, 256, 32> {
    static constexpr const char* name = "MaPLe test text";
};

// The base model as a directory: its weights, the small vocabulary, and a config.json.
struct base_model : temporary_folder {
    base_model() {
        for (const char* file : {"clip_base_state.pt", "vocab.json", "merges.txt"})
            std::filesystem::copy_file(golden_directory / file, path / file);
        std::ofstream(path / "config.json") << R"({"projection_dim": 32,
 "vision_config": {"image_size": 32, "patch_size": 8, "hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 2,
                   "intermediate_size": 512},
 "text_config": {"vocab_size": 610, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 1,
                 "intermediate_size": 256, "eos_token_id": 2}})";
    }
    std::unique_ptr<vision_tower> vision(const maple_adapter* adapter) const {
        return load_clip_vision(path, config_list<maple_vision>{}, adapter, backend());
    }
    clip_text_model text(const maple_adapter* adapter) const {
        return load_clip_text(path, config_list<maple_text>{}, adapter);
    }
};

// The tensors of the golden adapter's prompts, to be changed and written again.
struct prompts_file {
    prompts_file() {
        const torch_file file(golden_directory / "model.pth.tar-5");
        for (const auto& t : file.entries())
            if (t.name.starts_with("state_dict.prompt_learner."))
                tensors.push_back(
                    {t.name.substr(std::string("state_dict.").size()), t.shape, file.read<float>(t.name, t.shape)});
    }
    struct named {
        std::string name;
        std::vector<std::size_t> shape;
        std::vector<float> values;
    };
    named& at(const std::string& name) {
        for (named& t : tensors)
            if (t.name == "prompt_learner." + name) return t;
        FAIL("no tensor " << name);
        return tensors[0];
    }
    void erase(const std::string& name) { tensors.erase(tensors.begin() + (&at(name) - tensors.data())); }
    std::filesystem::path write(const temporary_folder& folder) const {
        const auto path = folder / "model.pth.tar-1";
        std::vector<tensor_to_write> list;
        for (const named& t : tensors) list.push_back(to_write(t.name, t.shape, t.values.data()));
        write_torch(path, torch_value::dict{{"state_dict", torch_value::state_dict(list)}, {"epoch", 5}});
        return path;
    }
    std::vector<named> tensors;
};

std::string message_of(const auto& f) {
    try {
        f();
    } catch (const error& e) {
        return e.what();
    }
    return "";
}

}  // namespace

TEST_CASE("prompts of MaPLe's checkpoint are those of its code") {
    const maple_adapter adapter(golden_directory / "model.pth.tar-5");
    CHECK(adapter.text().count == 2);
    CHECK(adapter.text().width == 64);
    CHECK(adapter.vision().width == 128);
    REQUIRE(adapter.vision().depth() == 3);
    CHECK(relative_difference(adapter.vision().rows[0], golden("image_prompts_first")) < tolerance);
    const auto deep = golden("image_prompts_deep");
    for (std::size_t i = 0; i < 2; ++i)
        CHECK(relative_difference(adapter.vision().rows[i + 1], std::span(deep).subspan(i * 256, 256)) < tolerance);
}

TEST_CASE("hidden states and embeddings of pictures with MaPLe's prompts") {
    const base_model base;
    const maple_adapter adapter(golden_directory / "model.pth.tar-5");
    const auto tower = base.vision(&adapter);
    CHECK(tower->prompts() == 2);
    CHECK(tower->image_tokens() == 17);
    REQUIRE(tower->tokens() == 19);
    const cpu device;
    arena<> scratch;
    const auto pixels = golden("pixel_values"), states = golden("vision_hidden");
    const std::size_t images = 3, size = images * 19 * 128;
    std::vector<float> x(size), features(images * 32);
    tower->embed(device, scratch, pixels.data(), images, x.data());
    for (std::size_t layer = 0;; ++layer) {
        INFO("hidden state " << layer);
        CHECK(relative_difference(x, std::span(states).subspan(layer * size, size)) < tolerance);
        if (layer == tower->layers()) break;
        tower->run(device, scratch, x.data(), images, layer, layer + 1);
    }
    tower->project(device, scratch, x.data(), images, features.data(), true);
    CHECK(relative_difference(features, golden("image_features")) < tolerance);
    CHECK(relative_difference(features, golden("image_features_f64")) < tolerance);

    // Begun and finished, two batches under way where the tower is asynchronous: prompts take no wait.
    CHECK(tower->asynchronous() == (backend_memory == space::device));
    std::vector<float> all(size), first(size / images);
    tower->begin(device, scratch, pixels.data(), images, 3, all.data());
    tower->begin(device, scratch, pixels.data(), 1, 2, first.data());
    tower->finish(all.data());
    tower->finish(first.data());
    CHECK(relative_difference(all, std::span(states).subspan(3 * size, size)) < tolerance);
    CHECK(relative_difference(first, std::span(states).subspan(2 * size, first.size())) < tolerance);

    // In one go, and from tokens whose prompts are of no account: they are put in anew before the block.
    tower->embed(device, scratch, pixels.data(), images, x.data());
    tower->run(device, scratch, x.data(), images, 0, 1);
    for (std::size_t i = 0; i < images; ++i) std::fill_n(x.data() + (i * 19 + 17) * 128, 2 * 128, 100.0f);
    tower->run(device, scratch, x.data(), images, 1, 3);
    CHECK(relative_difference(x, std::span(states).subspan(3 * size, size)) < tolerance);
    std::copy_n(states.begin() + std::ptrdiff_t(size), size, x.begin());
    tower->embeddings(device, scratch, x.data(), images, 1, features.data());
    CHECK(relative_difference(features, golden("image_features")) < tolerance);
}

TEST_CASE("embeddings of classes with MaPLe's prompts, and its logits") {
    const base_model base;
    const maple_adapter adapter(golden_directory / "model.pth.tar-5");
    const auto model = base.text(&adapter);
    CHECK(model.tower->prompts() == 2);
    const cpu device;

    token_ids ids;
    ids.context = 77;
    for (const auto id : values<std::int64_t>(read_npz(golden_directory / "expected.npz", "tokenized_prompts")))
        ids.ids.push_back(static_cast<std::int32_t>(id));
    CHECK(relative_difference(embed_texts(device, *model.tower, ids), golden("text_features")) < tolerance);

    const auto classifier = make_zero_shot_classifier(device, model, names, {"a photo of a {}."});
    CHECK(relative_difference(classifier.embeddings, golden("text_features_f64")) < tolerance);
    CHECK(relative_difference(classifier.logits(golden("image_features"), 3), golden("logits")) < tolerance);

    // Block by block, the first 16 of 77 rows.
    const std::size_t n = 4, T = 16, d = 64, size = n * T * d;
    std::vector<float> x(size);
    arena<> scratch;
    for (std::size_t i = 0; i < n; ++i) model.tower->embed(ids.ids.data() + i * 77, T, x.data() + i * T * d);
    const auto states = golden("text_hidden");
    for (std::size_t layer = 0; layer < 3; ++layer) {
        INFO("block " << layer);
        model.tower->run(device, scratch, x.data(), n, T, layer, layer + 1);
        CHECK(relative_difference(x, std::span(states).subspan(layer * size, size)) < tolerance);
    }
}

TEST_CASE("the words that the learnt context takes the place of do not count, and must be there") {
    const base_model base;
    const maple_adapter adapter(golden_directory / "model.pth.tar-5");
    const auto model = base.text(&adapter);
    const auto with = [&](const char* pattern) {
        return make_zero_shot_classifier(cpu(), model, names, {pattern}).embeddings;
    };
    CHECK(with("a photo of a {}.") == with("x photo of a {}."));
    CHECK(relative_difference(with("a photo of a {}."), with("a photo of x {}.")) > 1e-3);
    const std::vector<std::string> too_short{"a"};
    CHECK_THROWS_WITH(embed_texts(cpu(), *model.tower, model.tokenize(too_short)),
                      Catch::Contains("shorter than the learnt context") && Catch::Contains("found 1"));
}

TEST_CASE("an adapter of prompts alone leaves the model's weights, a whole one brings its own") {
    const base_model base;
    prompts_file file;
    const maple_adapter whole(golden_directory / "model.pth.tar-5"), alone(file.write(base));
    CHECK(alone.vision().rows == whole.vision().rows);
    CHECK(alone.text().rows == whole.text().rows);
    const auto differ = [&](const maple_adapter* adapter, const std::string& name,
                            const std::vector<std::size_t>& shape) {
        const auto own = clip_weights(base.path).read(name, shape);
        return relative_difference(adapted_weights(base.path, adapter).read(name, shape), own);
    };
    // The golden checkpoint is the base model's weights but for rounding; one that is not, is what counts.
    for (const maple_adapter* adapter : {static_cast<const maple_adapter*>(nullptr), &alone})
        CHECK(differ(adapter, "visual_projection.weight", {32, 128}) == 0);
    std::vector<float> projection(128 * 32), queries(3 * 64 * 64);
    for (std::size_t i = 0; i < projection.size(); ++i) projection[i] = float(i);
    for (std::size_t i = 0; i < queries.size(); ++i) queries[i] = float(i);
    file.tensors.push_back({"image_encoder.proj", {128, 32}, projection});
    file.tensors.push_back({"text_encoder.transformer.resblocks.1.attn.in_proj_weight", {192, 64}, queries});
    const maple_adapter changed(file.write(base));
    const adapted_weights weights(base.path, &changed);
    CHECK(weights.read("visual_projection.weight", {32, 128})[1] == 32);  // transposed
    CHECK(weights.read("text_model.encoder.layers.1.self_attn.k_proj.weight", {64, 64})[0] == 64 * 64);
    CHECK(differ(&changed, "text_model.encoder.layers.0.self_attn.k_proj.weight", {64, 64}) == 0);
}

TEST_CASE("an adapter of another model, a damaged one and none at all are refused by name") {
    const base_model base;
    const auto loading = [&](const std::filesystem::path& path) {
        return message_of([&] {
            const maple_adapter adapter(path);
            base.vision(&adapter);
        });
    };
    {
        const maple_adapter adapter(golden_directory / "model.pth.tar-5");
        const auto tiny = std::filesystem::path(PSAE_GOLDEN_DIR) / "clip_tiny";
        for (const auto& message :
             {message_of([&] { load_clip_vision(tiny, config_list<clip_tiny_test>{}, &adapter); }),
              message_of([&] { load_clip_text(tiny, config_list<clip_text_tiny_test>{}, &adapter); })}) {
            CHECK_THAT(message, Catch::Contains("adapter and model do not fit"));
            CHECK_THAT(message, Catch::Contains("model.pth.tar-5") && Catch::Contains("clip_tiny"));
            CHECK_THAT(message, Catch::Contains("128 and 64") && Catch::Contains("64 and 48"));
        }
    }
    prompts_file file;
    file.at("ctx").values[70] = std::numeric_limits<float>::quiet_NaN();
    CHECK_THAT(loading(file.write(base)), Catch::Contains("prompt_learner.ctx") && Catch::Contains("finite"));
    file = {};
    file.erase("compound_prompt_projections.1.weight");
    CHECK_THAT(loading(file.write(base)),
               Catch::Contains("missing") && Catch::Contains("compound_prompt_projections.1.weight"));
    file = {};
    file.erase("compound_prompts_text.0");  // the next one is there
    CHECK_THAT(loading(file.write(base)), Catch::Contains("missing") && Catch::Contains("compound_prompts_text.0"));
    file = {};
    for (const std::string i : {"0", "1"}) file.erase("compound_prompts_text." + i);
    file.at("ctx").shape[0] = 76;
    file.at("ctx").values.assign(76 * file.at("ctx").shape[1], 0.5f);
    CHECK_THAT(loading(file.write(base)), Catch::Contains("expected at most") && Catch::Contains("found 76"));
    file = {};
    file.at("compound_prompts_text.0").shape = {4, 32};
    CHECK_THAT(loading(file.write(base)), Catch::Contains("compound_prompts_text.0") && Catch::Contains("[4, 32]"));
    file = {};
    file.erase("ctx");
    CHECK_THAT(loading(file.write(base)), Catch::Contains("not an adapter of MaPLe"));
    CHECK_THAT(loading(golden_directory / "clip_base_state.pt"), Catch::Contains("not an adapter of MaPLe"));
    // More depth than the model has blocks.
    file = {};
    for (const std::string name : {"compound_prompts_text.", "compound_prompt_projections."})
        for (const std::string part : {"", ".weight", ".bias"})
            if (part.empty() == name.starts_with("compound_prompts_")) {
                auto deeper = file.at(name + "1" + part);
                deeper.name = "prompt_learner." + name + "2" + part;
                file.tensors.push_back(deeper);
            }
    CHECK_THAT(loading(file.write(base)), Catch::Contains("4 blocks") && Catch::Contains("3 and 3 blocks"));
}
