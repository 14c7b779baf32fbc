// CLIP's weights from torch files and under OpenAI's names.
#include <catch2/catch.hpp>

#include <algorithm>
#include <limits>
#include <map>

#include <psae/io/numpy.hpp>
#include <psae/vit/load_clip.hpp>

#include "../difference.hpp"
#include "../golden_models.hpp"
#include "../temporary_folder.hpp"

using namespace psae;

namespace {

const std::filesystem::path golden = std::filesystem::path(PSAE_GOLDEN_DIR), tiny = golden / "clip_tiny";

// A model's directory without weights, which goes with the test.
struct model_folder : temporary_folder {
    model_folder() {
        for (const char* name : {"config.json", "vocab.json", "merges.txt", "tokenizer_config.json"})
            std::filesystem::copy(tiny / name, path / name);
    }
};

// The tensors of the golden model, which may be changed before they are written.
struct golden_model {
    std::map<std::string, std::pair<std::vector<std::size_t>, std::vector<float>>> tensors;
    golden_model() {
        const safetensors_file file(tiny / "model.safetensors");
        for (const auto& e : file.entries())
            if (e.type == element_type::f32) tensors[e.name] = {e.shape, file.read(e.name, e.shape)};
    }
    void write(const std::filesystem::path& path, const std::string& prefix = "") const {
        std::vector<tensor_to_write> all;
        for (const auto& [name, t] : tensors)
            if (name.starts_with(prefix)) all.push_back(to_write(name, t.first, t.second.data()));
        write_torch(path, torch_value::state_dict(all));
    }
    // Renamed, transposed and stacked as OpenAI has them: what clip_weights undoes, written here by hand.
    golden_model with_openai_names() const {
        golden_model other;
        other.tensors.clear();
        const auto replace = [](std::string& name, const std::string& from, const std::string& to) {
            if (const auto at = name.find(from); at != name.npos) name.replace(at, from.size(), to);
        };
        for (const auto& [hf, t] : tensors) {
            std::string name = hf;
            auto [shape, values] = t;
            const bool stacked =
                hf.find("q_proj") != hf.npos || hf.find("k_proj") != hf.npos || hf.find("v_proj") != hf.npos;
            if (hf == "visual_projection.weight" || hf == "text_projection.weight") {
                name = hf == "text_projection.weight" ? "text_projection" : "visual.proj";
                for (std::size_t i = 0; i < shape[0]; ++i)
                    for (std::size_t j = 0; j < shape[1]; ++j) values[j * shape[0] + i] = t.second[i * shape[1] + j];
                std::swap(shape[0], shape[1]);
            }
            replace(name, "vision_model.embeddings.patch_embedding", "visual.conv1");
            replace(name, "vision_model.embeddings.position_embedding.weight", "visual.positional_embedding");
            replace(name, "vision_model.embeddings.", "visual.");
            replace(name, "vision_model.encoder.layers", "visual.transformer.resblocks");
            replace(name, "vision_model.pre_layrnorm", "visual.ln_pre");
            replace(name, "vision_model.post_layernorm", "visual.ln_post");
            replace(name, "text_model.embeddings.position_embedding.weight", "positional_embedding");
            replace(name, "text_model.embeddings.", "");
            replace(name, "text_model.encoder.layers", "transformer.resblocks");
            replace(name, "text_model.final_layer_norm", "ln_final");
            replace(name, "layer_norm", "ln_");
            replace(name, "fc1", "c_fc");
            replace(name, "fc2", "c_proj");
            replace(name, "self_attn.", "attn.");
            for (const char* third : {"q_proj.", "k_proj.", "v_proj."}) replace(name, third, "in_proj_");
            auto& to = other.tensors[name];
            if (!stacked) {
                to = {shape, values};
            } else {
                if (to.first.empty()) {
                    shape[0] *= 3;
                    to = {shape, std::vector<float>(3 * values.size())};
                }
                const std::size_t at = hf.find("q_proj") != hf.npos ? 0 : hf.find("k_proj") != hf.npos ? 1 : 2;
                std::copy(values.begin(), values.end(), to.second.begin() + std::ptrdiff_t(at * values.size()));
            }
        }
        return other;
    }
};

// The last hidden state and the image embeddings of a directory's model.
std::vector<float> results(const std::filesystem::path& directory) {
    const cpu device;
    arena<> scratch;
    const auto pixels = to_floats(read_npz(tiny / "expected.npz", "pixel_values"));
    const auto tower = load_clip_vision(directory, golden_vision{});
    std::vector<float> x(3 * tower->tokens() * tower->width()), e(3 * tower->projection());
    tower->embed(device, scratch, pixels.data(), 3, x.data());
    tower->run(device, scratch, x.data(), 3, 0, tower->layers());
    tower->project(device, scratch, x.data(), 3, e.data(), true);
    x.insert(x.end(), e.begin(), e.end());
    return x;
}

template <class F>
std::string message_of(F&& f) {
    try {
        f();
    } catch (const error& e) {
        return e.what();
    }
    return "";
}

struct maple_base : clip_vision_config<32, 8, 128, 3, 2, 512, 32> {
    static constexpr const char* name = "MaPLe base";
};
struct maple_base_text : clip_text_config<610, 77, 64, 3, 1, 256, 32> {
    static constexpr const char* name = "MaPLe base text";
};

}  // namespace

TEST_CASE("the golden model gives the same from pytorch_model.bin, from its shards and under OpenAI's names") {
    const auto expected = results(tiny);
    const golden_model model;
    {
        const model_folder folder;
        model.write(folder.path / "pytorch_model.bin");
        CHECK(results(folder.path) == expected);
        const auto text = load_clip_text(folder.path, golden_text{});
        CHECK(text.scale == load_clip_text(tiny, golden_text{}).scale);
    }
    {
        const model_folder folder;
        std::string map;
        const std::vector<std::string> prefixes{"vision_model.", "text_", "visual_", "logit_scale"};
        for (std::size_t i = 0; i < prefixes.size(); ++i) {
            model.write(folder.path / ("shard" + std::to_string(i) + ".bin"), prefixes[i]);
            for (const auto& [name, t] : model.tensors)
                if (name.starts_with(prefixes[i]))
                    map += (map.empty() ? "\"" : ", \"") + name + "\": \"shard" + std::to_string(i) + ".bin\"";
        }
        write_text(folder.path / "pytorch_model.bin.index.json", "{\"weight_map\": {" + map + "}}");
        CHECK(results(folder.path) == expected);
    }
    {
        const model_folder folder;
        model.with_openai_names().write(folder.path / "ViT-tiny.pt");
        CHECK(clip_weights(folder.path).has_openai_names());
        CHECK(results(folder.path) == expected);
        const clip_weights ours(folder.path), theirs(tiny);
        for (const auto& [name, t] : model.tensors) {
            INFO(name);
            CHECK(ours.read(name, t.first) == t.second);
            CHECK(theirs.read(name, t.first) == t.second);
        }
    }
}

TEST_CASE("OpenAI's state dict of the MaPLe reference: hidden state 0 is the reference's") {
    const model_folder folder;
    std::filesystem::copy(golden / "maple" / "clip_base_state.pt", folder.path / "base.pt");
    const clip_weights weights(folder.path);
    const clip_text_tower<maple_base_text> text(weights);  // every tensor is there
    const clip_vision_tower<maple_base> tower(weights);
    const auto expected = read_npz(golden / "maple" / "expected.npz");
    const auto pixels = to_floats(expected.at("pixel_values")), states = to_floats(expected.at("vision_hidden"));
    const cpu device;
    arena<> scratch;
    std::vector<float> got(3 * 17 * 128), want;
    tower.embed(device, scratch, pixels.data(), 3, got.data());
    for (std::size_t image = 0; image < 3; ++image)  // its last two of 19 tokens are prompts
        want.insert(want.end(), states.begin() + std::ptrdiff_t(image * 19 * 128),
                    states.begin() + std::ptrdiff_t((image * 19 + 17) * 128));
    CHECK(relative_difference(got, want) < 4e-6);
}

TEST_CASE("a bad weight of a torch file is named with its file") {
    const model_folder folder;
    const golden_model model;
    const auto refusal = [&](const golden_model& m) {
        m.write(folder.path / "pytorch_model.bin");
        return message_of([&] { load_clip_vision(folder.path, golden_vision{}); });
    };
    CHECK(refusal(model).empty());
    golden_model bad = model;
    bad.tensors["vision_model.post_layernorm.bias"].second[3] = std::numeric_limits<float>::quiet_NaN();
    CHECK(refusal(bad).find("pytorch_model.bin, tensor vision_model.post_layernorm.bias, element 3") !=
          std::string::npos);
    bad = model;
    bad.tensors.erase("vision_model.encoder.layers.2.mlp.fc1.bias");
    CHECK(refusal(bad).find("tensor vision_model.encoder.layers.2.mlp.fc1.bias") != std::string::npos);
    bad = model;
    std::swap(bad.tensors["visual_projection.weight"].first[0], bad.tensors["visual_projection.weight"].first[1]);
    CHECK(refusal(bad).find("expected [24, 64], found [64, 24]") != std::string::npos);
    bad = model.with_openai_names();
    bad.tensors["visual.transformer.resblocks.1.attn.in_proj_weight"].first = {64, 192};
    CHECK(refusal(bad).find("resblocks.1.attn.in_proj_weight): expected [192, 64], found [64, 192]") !=
          std::string::npos);
    bad = model.with_openai_names();
    bad.tensors.erase("visual.proj");
    CHECK(refusal(bad).find("tensor visual.proj") != std::string::npos);
}
