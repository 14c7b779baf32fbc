// CLIP's text tower and zero-shot classification against transformers; causal attention against plain sums.
#include <catch2/catch.hpp>

#include <numeric>
#include <span>

#include <psae/io/numpy.hpp>
#include <psae/vit/load_clip.hpp>
#include <psae/vit/zero_shot.hpp>

#include "../difference.hpp"
#include "../golden_models.hpp"
#include "../gradient_error.hpp"
#include "random_weights.hpp"

using namespace psae;

namespace {

const std::filesystem::path golden_directory = PSAE_GOLDEN_DIR, directory = golden_directory / "clip_tiny",
                            pipeline = golden_directory / "pipeline";
constexpr double tolerance = 6.8e-6;

std::vector<float> golden(const char* name) { return to_floats(read_npz(directory / "expected.npz", name)); }

token_ids golden_ids(const char* name) {
    token_ids t;
    t.context = 17;
    for (const std::int64_t id : values<std::int64_t>(read_npz(directory / "expected.npz", name)))
        t.ids.push_back(static_cast<std::int32_t>(id));
    return t;
}

struct small_text : clip_text_config<11, 7, 12, 2, 3, 20, 5, mlp_activation::gelu> {};

// softmax(Q K^T / sqrt(width)) V with later keys left out, element by element.
std::vector<double> plain_causal_attention(const std::vector<double>& qkv, std::size_t sequences, std::size_t tokens,
                                           std::size_t d, std::size_t heads) {
    const std::size_t width = d / heads;
    std::vector<double> out(sequences * tokens * d);
    for (std::size_t s = 0; s < sequences; ++s)
        for (std::size_t h = 0; h < heads; ++h)
            for (std::size_t t = 0; t < tokens; ++t) {
                const auto at = [&](std::size_t token, std::size_t part, std::size_t c) {
                    return qkv[((s * tokens + token) * 3 + part) * d + h * width + c];
                };
                std::vector<double> weight(t + 1);
                for (std::size_t u = 0; u <= t; ++u) {
                    double dot = 0;
                    for (std::size_t c = 0; c < width; ++c) dot += at(t, 0, c) * at(u, 1, c);
                    weight[u] = std::exp(dot / std::sqrt(double(width)));
                }
                const double sum = std::accumulate(weight.begin(), weight.end(), 0.0);
                for (std::size_t u = 0; u <= t; ++u)
                    for (std::size_t c = 0; c < width; ++c)
                        out[(s * tokens + t) * d + h * width + c] += weight[u] / sum * at(u, 2, c);
            }
    return out;
}

template <class T>
std::vector<T> causal_attention(const std::vector<double>& qkv, std::size_t sequences, std::size_t tokens,
                                std::size_t d, std::size_t heads) {
    cpu device;
    arena<> scratch;
    const std::vector<T> input(qkv.begin(), qkv.end());
    std::vector<T> out(sequences * tokens * d);
    attention(device, scratch, out.data(), input.data(), sequences, tokens, d, heads, true);
    return out;
}

}  // namespace

TEST_CASE("causal attention equals plain sums, and a token does not see what follows it") {
    for (const std::size_t tokens : {1, 2, 7, 16, 17, 33, 77}) {
        INFO(tokens << " tokens");
        constexpr std::size_t sequences = 2, d = 24, heads = 3;
        random_stream random(tokens);
        std::vector<double> qkv(sequences * tokens * 3 * d);
        for (double& v : qkv) v = 2 * random.normal();
        const auto plain = plain_causal_attention(qkv, sequences, tokens, d, heads);
        CHECK(relative_difference(causal_attention<float>(qkv, sequences, tokens, d, heads), plain) < 2e-6);
        const auto before = causal_attention<double>(qkv, sequences, tokens, d, heads);
        CHECK(relative_difference(before, plain) < 1e-9);
        // Later tokens of enormous size leave earlier ones as they are, to the bit.
        const std::size_t seen = tokens / 2;
        for (std::size_t i = seen * 3 * d; i < tokens * 3 * d; ++i) qkv[i] = 1e30;
        const auto after = causal_attention<double>(qkv, sequences, tokens, d, heads);
        CHECK(std::equal(before.begin(), before.begin() + std::ptrdiff_t(seen * d), after.begin()));
    }
}

TEST_CASE("gradients through text blocks and projection") {
    const clip_text<small_text, double> model(random_weights{});
    const auto tokens = normal_parameter<double>(shape<dyn, 12>{2 * 5}, 3);
    CHECK(gradient_error([&](auto zero, auto& x) { return model.block(0, evaluate(x + zero), 5); }, tokens) <
          gradient_tolerance<real>);
    CHECK(gradient_error([&](auto zero, auto& x) { return model.project(evaluate(x + zero)); }, tokens) <
          gradient_tolerance<real>);
}

TEST_CASE("hidden states, pooled rows and embeddings of texts equal transformers'") {
    const auto model = load_clip_text(directory, golden_text{});
    const text_tower& tower = *model.tower;
    const cpu device;
    arena<> scratch;
    const auto ids = golden_ids("input_ids");
    const std::size_t n = 4, T = 17, d = tower.width();
    std::vector<float> x(n * T * d), rows(n * d), embeds(n * tower.projection());
    for (std::size_t i = 0; i < n; ++i) tower.embed(ids.ids.data() + i * T, T, x.data() + i * T * d);
    tower.run(device, scratch, x.data(), n, T, 0, tower.layers());
    for (std::size_t i = 0; i < n; ++i)
        std::copy_n(x.data() + (i * T + tower.end_position(ids.ids.data() + i * T, T)) * d, d, rows.data() + i * d);
    tower.project(device, scratch, rows.data(), n, embeds.data(), false);
    CHECK(relative_difference(embeds, golden("text_embeds_raw")) < tolerance);
    tower.final_norm(device, scratch, rows.data(), n);
    CHECK(relative_difference(rows, golden("text_pooled")) < tolerance);
    tower.final_norm(device, scratch, x.data(), n * T);
    // The reference kept padding out of the rows behind the end tokens; up to them the mask changes nothing.
    const auto expected = golden("text_last_hidden"), mask = golden("attention_mask");
    std::vector<float> own_rows, expected_rows;
    for (std::size_t r = 0; r < n * T; ++r)
        if (mask[r] != 0)
            for (std::size_t c = 0; c < d; ++c) {
                own_rows.push_back(x[r * d + c]);
                expected_rows.push_back(expected[r * d + c]);
            }
    CHECK(own_rows.size() > 4 * 3 * d);
    CHECK(relative_difference(own_rows, expected_rows) < tolerance);

    CHECK(relative_difference(embed_texts(device, tower, ids), golden("text_embeds")) < tolerance);
    CHECK(relative_difference(embed_texts(device, tower, ids, false), golden("text_embeds_raw")) < tolerance);
    CHECK(relative_difference(embed_texts(device, tower, golden_ids("input_ids_zero_padded")),
                              golden("text_embeds_zero_padded")) < tolerance);
}

TEST_CASE("the golden texts through the tokenizer give the golden logits") {
    const auto model = load_clip_text(directory, golden_text{});
    const std::vector<std::string> texts{"a photo of a cat", "the other one, isn't it?", "a",
                                         "red roses in the rain and the night"};
    const auto ids = model.tokenize(texts);
    CHECK(ids.context == 20);
    const auto expected = golden_ids("input_ids");
    for (std::size_t i = 0; i < 4; ++i)
        CHECK(std::equal(expected.ids.begin() + std::ptrdiff_t(i * 17),
                         expected.ids.begin() + std::ptrdiff_t(i * 17 + 17), ids.ids.begin() + std::ptrdiff_t(i * 20)));
    const zero_shot_classifier classifier{texts, embed_texts(cpu(), *model.tower, ids), model.scale};
    CHECK(relative_difference(classifier.logits(golden("image_embeds"), 3), golden("logits_per_image")) < tolerance);
}

TEST_CASE("the end token: the largest id where the configuration says 2, its own id otherwise") {
    auto model = load_clip_text(directory, golden_text{});
    text_tower& tower = *model.tower;
    CHECK(tower.eos_token_id == 2);
    const std::int32_t ids[] = {608, 5, 2, 609, 7, 609, 609};
    CHECK(tower.end_position(ids, 7) == 3);
    CHECK(tower.end_position(ids, 2) == 0);
    tower.eos_token_id = 609;
    CHECK(tower.end_position(ids, 7) == 3);
    tower.eos_token_id = 7;
    CHECK(tower.end_position(ids, 7) == 4);
    tower.eos_token_id = 100;
    CHECK_THROWS_WITH(tower.end_position(ids, 7), Catch::Contains("no end token"));
}

TEST_CASE("texts together give what they give alone") {
    const auto model = load_clip_text(directory, golden_text{});
    std::vector<std::string> texts;
    for (int i = 0; i < 150; ++i)
        texts.push_back(std::string("a ") + (i % 3 ? "red" : "the rain and the night") +
                        std::string(std::size_t(i % 7), 'n'));
    const auto all = embed_texts(cpu(), *model.tower, model.tokenize(texts));
    const std::size_t p = model.tower->projection();
    for (const std::size_t i : {0, 1, 63, 64, 149}) {
        const auto one = embed_texts(cpu(), *model.tower, model.tokenize(std::span(&texts[i], 1)));
        CHECK(relative_difference(one, std::span(all).subspan(i * p, p)) < 1e-6);
    }
}

TEST_CASE("token ids and texts that do not fit the tower are refused") {
    const auto model = load_clip_text(directory, golden_text{});
    token_ids t{3, {608, 610, 609}, {}};
    CHECK_THROWS_WITH(embed_texts(cpu(), *model.tower, t), Catch::Contains("position 1") && Catch::Contains("610"));
    t.ids[1] = -1;
    CHECK_THROWS_WITH(embed_texts(cpu(), *model.tower, t), Catch::Contains("out of range"));
    t = {21, std::vector<std::int32_t>(21, 609), {}};
    CHECK_THROWS_WITH(embed_texts(cpu(), *model.tower, t), Catch::Contains("at most 20"));
    using only_large = config_list<clip_text_large>;
    CHECK_THROWS_WITH(load_clip_text(directory, only_large{}), Catch::Contains("vocab_size 49408 (file: 610)"));
}

TEST_CASE("prompt ensembles and zero-shot logits equal the corrected reference") {
    const auto model = load_clip_text(pipeline / "model", golden_text{});
    const auto templates = read_lines(std::filesystem::path(PSAE_DATA_DIR) / "imagenet_templates.txt");
    REQUIRE(templates.size() == 80);
    const std::vector<std::string> classes{"cat", "tree", "red car", "house"};
    const auto classifier = make_zero_shot_classifier(cpu(), model, classes, templates);
    CHECK(relative_difference(classifier.embeddings,
                              to_floats(read_npz(pipeline / "masking.npz", "text_mean_corrected"))) < 5e-5);
    const auto logits = classifier.logits(to_floats(read_npz(pipeline / "codes.npz", "image_embeds")), 24);
    const auto expected = to_floats(read_npz(pipeline / "masking.npz", "logits_corrected"));
    CHECK(relative_difference(logits, std::span(expected).first(24 * 4)) < 5e-5);
}

TEST_CASE("templates and labels") {
    CHECK(fill_template("a {} and a {}.", "cat") == "a cat and a cat.");
    CHECK_THROWS_WITH(fill_template("a cat", "cat"), Catch::Contains("{}"));
    CHECK(class_name_of_folder("golden_retriever") == "golden retriever");

    const std::vector<std::string> folders{"n01440764", "n01443537"};
    // Lines with a label and a name, by a tab or by the first word.
    auto named = name_classes({"n01443537 goldfish", "n01440764 tench", "n9 white shark"}, folders, "f");
    CHECK(named.names == std::vector<std::string>{"goldfish", "tench", "white shark"});
    CHECK(named.of_label == std::vector<std::int32_t>{1, 0});
    named = name_classes({"0_x\ta red car"}, std::vector<std::string>{"0_x", "1_y"}, "f");
    CHECK(named.names == std::vector<std::string>{"a red car"});
    CHECK(named.of_label == std::vector<std::int32_t>{0, -1});
    // Names alone, compared without case and with underscores as blanks.
    named = name_classes({"red car", "Cat"}, std::vector<std::string>{"cat", "dog", "red_car"}, "f");
    CHECK(named.names == std::vector<std::string>{"red car", "Cat"});
    CHECK(named.of_label == std::vector<std::int32_t>{1, -1, 0});
    // What the lines are is decided once: by one label that is a first word, as long as none is a whole line.
    named = name_classes({"n1 goldfish", "n2 tench"}, std::vector<std::string>{"n2", "unlisted"}, "f");
    CHECK(named.names == std::vector<std::string>{"goldfish", "tench"});
    CHECK(named.of_label == std::vector<std::int32_t>{1, -1});
    CHECK(named.classes_of({"other", "n1"}) == std::vector<std::int32_t>{-1, 0});
    named = name_classes({"red car", "blue sky"}, std::vector<std::string>{"red", "Blue_sky"}, "f");
    CHECK(named.of_label == std::vector<std::int32_t>{-1, 1});
    CHECK(named.classes_of({"RED_CAR"}) == std::vector<std::int32_t>{0});
    CHECK_THROWS_WITH(name_classes({"cat", "cat"}, folders, "f"), Catch::Contains("twice"));
    CHECK_THROWS_WITH(name_classes({"a\tcat", "a\tdog"}, folders, "f"), Catch::Contains("twice"));
    CHECK_THROWS_WITH(name_classes({"a\tcat", "dog"}, folders, "f"), Catch::Contains("line 2"));
    CHECK_THROWS_WITH(name_classes({}, folders, "f"), Catch::Contains("no class"));
}
