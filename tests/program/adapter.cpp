// --adapter: where a MaPLe checkpoint goes, and what is refused.
#include "adapted_model.hpp"

#include <psae/io/activation_store.hpp>
#include <psae/vit/load_clip.hpp>

#include "../pipeline.hpp"

using namespace program;

namespace {

using arguments = std::vector<std::string>;

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

struct bench : temporary_folder {
    const fs::path adapter = *this / "model.pth.tar-2", sae = *this / "sae";
    bench() {
        write_adapter(adapter, 1);
        psae::write_sae(sae, pipeline_sae(), "pipeline", -2);
    }
    arguments command(const std::string& name, const arguments& more) const {
        arguments a{name, "--model", pipeline / "model", "--adapter", adapter, "--threads", "1"};
        a.insert(a.end(), more.begin(), more.end());
        return a;
    }
    arguments with_images(const std::string& name, arguments more) const {
        more.insert(more.begin(), {"--images", pipeline / "images"});
        return command(name, more);
    }
};

}  // namespace

TEST_CASE("embed with an adapter: its prompts are tokens behind the patches, and texts have its context") {
    const bench work;
    const auto pixels = floats(pipeline / "codes.npz", "pixel_values");
    write_npz(work / "pixels.npz", "pixels", pixels, {24, 3, 32, 32});
    psae::write_text(work / "texts.txt", "a photo of a cat.\na photo of a tree.\n");
    run_well(work.command(
        "embed", {"--pixels", work / "pixels.npz", "--texts", work / "texts.txt", "--out", work / "embedded.npz"}));
    const psae::maple_adapter adapter(work.adapter);
    const auto tower = psae::load_clip_vision(pipeline / "model", psae::config_list<psae::clip_tiny_test>{}, &adapter);
    const auto text =
        psae::load_clip_text(pipeline / "model", psae::config_list<psae::clip_text_pipeline_test>{}, &adapter);
    const psae::cpu device;
    psae::arena<> scratch;
    std::vector<float> x(24 * 19 * 64), embeds(24 * 24);
    tower->embed(device, scratch, pixels.data(), 24, x.data());
    tower->run(device, scratch, x.data(), 24, 0, 3);
    const auto tokens = psae::read_npz(work / "embedded.npz", "tokens");
    CHECK(tokens.shape == std::vector<std::size_t>{24, 19, 64});
    CHECK(relative_difference(psae::to_floats(tokens), x) < 1e-5);
    tower->run(device, scratch, x.data(), 24, 3, 4);
    tower->project(device, scratch, x.data(), 24, embeds.data(), true);
    const auto own = floats(work / "embedded.npz", "image_embeds");
    CHECK(relative_difference(own, embeds) < 1e-5);
    CHECK(relative_difference(own, floats(pipeline / "codes.npz", "image_embeds")) > 0.01);
    const std::vector<std::string> texts{"a photo of a cat.", "a photo of a tree."};
    CHECK(relative_difference(floats(work / "embedded.npz", "text_embeds"),
                              psae::embed_texts(device, *text.tower, text.tokenize(texts))) < 1e-5);

    // encode, latents and masks: class token and patches only.
    run_well(work.with_images("encode", {"--sae", work.sae, "--out", work / "codes.npz"}));
    CHECK(psae::values<std::int64_t>(psae::read_npz(work / "codes.npz", "shape")) ==
          std::vector<std::int64_t>{408, 96});
    const auto mask =
        run_well(work.command("mask", {"--sae", work.sae, "--image", pipeline / "images" / "0_cat" / "00.png",
                                       "--latent", "20", "--out", work / "masks"}));
    CHECK(psae::read_npz(work / "masks" / "latent_20.npz", "map").shape == std::vector<std::size_t>{4, 4});
    run_well(work.with_images("latents", {"--sae", work.sae, "--grids", "1", "--out", work / "latents"}));
    CHECK(fs::exists(work / "latents" / "latents.npz"));
}

TEST_CASE("classify with an adapter uses MaPLe's template unless another is given") {
    const bench work;
    const auto r = run_well(work.with_images("classify", {"--json", "--sae", work.sae, "--out", work / "a.csv"}));
    CHECK(r.json()["templates"].GetInt() == 1);
    CHECK(r.json()["accuracy"].IsDouble());
    psae::write_text(work / "one.txt", "a photo of a {}.\n");
    run_well(
        work.with_images("classify", {"--sae", work.sae, "--templates", work / "one.txt", "--out", work / "b.csv"}));
    CHECK(read_text(work / "a.csv") == read_text(work / "b.csv"));
    CHECK(contains(read_text(work / "a.csv.config.json"), "model.pth.tar-2"));
    run_well({"classify", "--model", pipeline / "model", "--images", pipeline / "images", "--sae", work.sae,
              "--templates", work / "one.txt", "--out", work / "c.csv"});
    CHECK(read_text(work / "a.csv") != read_text(work / "c.csv"));
}

TEST_CASE("stores and runs of an adapted model: class token and patches, and no mixing with others") {
    const bench work;
    const arguments cache = work.with_images("cache", {"--out", work / "store"});
    run_well(cache);
    const psae::activation_store store(work / "store");
    CHECK(store.layout().tokens == 17);
    CHECK(store.pictures() == 24);
    // The same tokens as embed, without the prompts.
    run_well(work.with_images("embed", {"--out", work / "all.npz"}));
    const auto all = floats(work / "all.npz", "tokens");
    std::vector<float> expected;
    for (std::size_t i = 0; i < 24; ++i)
        expected.insert(expected.end(), all.begin() + std::ptrdiff_t(i * 19 * 64),
                        all.begin() + std::ptrdiff_t((i * 19 + 17) * 64));
    std::vector<std::size_t> pictures(24);
    std::iota(pictures.begin(), pictures.end(), std::size_t{0});
    CHECK(relative_difference(store.read_pictures(pictures, psae::token_kind::all), expected) < 1e-6);

    const std::string other = refused({"cache", "--model", pipeline / "model", "--images", pipeline / "images",
                                       "--threads", "1", "--out", work / "store"});
    CHECK(contains(other, "adapter crc32"));
    write_adapter(work / "other.pth.tar-1", 2);
    arguments changed = cache;
    *std::find(changed.begin(), changed.end(), work.adapter.string()) = work / "other.pth.tar-1";
    CHECK(contains(refused(changed), "adapter crc32"));

    // Training on pictures and on their store is training on the same rows; another model's checkpoint is refused.
    const arguments train = work.with_images("train", {"--expansion", "2", "--steps", "4", "--batch-tokens", "64",
                                                       "--checkpoint-every", "4", "--out", work / "run"});
    run_well(train);
    arguments resumed = train;
    resumed.push_back("--resume");
    *std::find(resumed.begin(), resumed.end(), "4") = "8";
    *std::find(resumed.begin(), resumed.end(), work.adapter.string()) = work / "other.pth.tar-1";
    CHECK(contains(refused(resumed), "adapter crc32"));
}

TEST_CASE("evaluate with an adapter: the tokens of pictures, accuracy with prompts replaced too") {
    const bench work;
    const auto r = run_well(work.with_images("evaluate", {"--sae", work.sae, "--json"})).json();
    CHECK(r["saes"][0]["tokens"].GetInt() == 24 * 17);
    const auto plain = run_well(work.with_images("classify", {"--json", "--sae", work.sae, "--out", work / "a.csv"}));
    CHECK(r["saes"][0]["accuracy_with_sae"].GetDouble() == plain.json()["accuracy_with_sae"].GetDouble());
}

TEST_CASE("attribute with an adapter: maps are of the patches, and a gradient does not pass prompts") {
    const bench work;
    const auto arguments = [&](const char* layer) {
        return std::vector<std::string>{
            "attribute", "--model",   pipeline / "model",   "--adapter",         work.adapter,
            "--sae",     work.sae,    "--images",           pipeline / "images", "--limit",
            "2",         "--classes", "cat, tree, red car", "--layer",           layer,
            "--out",     work / "why"};
    };
    run_well(arguments("-2"));
    const auto arrays = psae::read_npz(work / "why" / "attributions.npz");
    const auto& sums = arrays.at("sum_map");
    CHECK(sums.shape[0] == 2);
    CHECK(sums.shape[1] == sums.shape[2]);
    CHECK(arrays.at("maps").shape[2] == sums.shape[1]);
    const auto early = run(arguments("1"));
    CHECK(early.code == 1);
    CHECK(contains(early.err, "gradient does not pass prompts"));
}

TEST_CASE("adapters that cannot be used are named") {
    const bench work;
    const auto classify = [&](const fs::path& model, const fs::path& adapter) {
        return refused({"classify", "--model", model, "--adapter", adapter, "--images", pipeline / "images", "--out",
                        work / "a.csv"});
    };
    const std::string wrong = classify(data / "tiny-clip", work.adapter);
    CHECK(contains(wrong, "adapter and model do not fit"));
    CHECK((contains(wrong, "64 and 48") && contains(wrong, "192 and 128")));
    CHECK(contains(classify(pipeline / "model", work / "no.pth.tar"), "no.pth.tar"));
    psae::write_text(work / "text.pth.tar-1", "nothing");
    CHECK(contains(classify(pipeline / "model", work / "text.pth.tar-1"), "not a torch file"));
    write_adapter(work / "wide.pth.tar-1", 1, 1, 80);
    CHECK(contains(classify(pipeline / "model", work / "wide.pth.tar-1"), "80 and 48"));
    CHECK(!fs::exists(work / "a.csv"));
    refused({"encode", "--adapter", work.adapter, "--activations", work / "x.npy", "--sae", work.sae, "--out",
             work / "codes.npz"},
            2);
}
