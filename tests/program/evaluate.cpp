// evaluate through the program: golden numbers on pictures, stored activations, files written, errors.
#include <algorithm>

#include "program.hpp"

#include <psae/io/dataset.hpp>

#include "../pipeline.hpp"

using namespace program;

namespace {

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

// sum ||x - x_hat||^2 / sum ||x - mean x||^2 of the golden tokens with first <= t < last of each picture.
double golden_nmse(std::size_t first, std::size_t last) {
    const auto x = floats(pipeline / "codes.npz", "tap"), x_hat = floats(pipeline / "codes.npz", "x_hat");
    double residual = 0, variance = 0;
    for (std::size_t c = 0; c < 64; ++c) {
        double mean = 0;
        const auto each = [&](auto f) {
            for (std::size_t i = 0; i < 24; ++i)
                for (std::size_t t = first; t < last; ++t) f((i * 17 + t) * 64 + c);
        };
        each([&](std::size_t at) { mean += double(x[at]) / double(24 * (last - first)); });
        each([&](std::size_t at) {
            residual += (double(x[at]) - double(x_hat[at])) * (double(x[at]) - double(x_hat[at]));
            variance += (double(x[at]) - mean) * (double(x[at]) - mean);
        });
    }
    return residual / variance;
}

}  // namespace

TEST_CASE("evaluate: a row for each SAE, golden errors and accuracies") {
    const temporary_folder work;
    psae::write_sae(work / "sae", pipeline_sae(), "pipeline", -2);
    auto small = pipeline_sae();  // another one, on another layer
    small.architecture = "topk";
    small.k = 3;
    psae::write_sae(work / "small", small, "pipeline", 1);
    psae::write_text(work / "classes.txt", "0_cat\tcat\n1_tree\ttree\n2_red_car\tred car\n3_house\thouse\n");
    const std::vector<std::string> base{"evaluate",          "--model", pipeline / "model", "--images",
                                        pipeline / "images", "--sae",   work / "sae"};
    const auto with = [&](std::vector<std::string> more) {
        more.insert(more.begin(), base.begin(), base.end());
        return more;
    };
    const auto r =
        run_well(with({"--sae", work / "small", "--classes", work / "classes.txt", "--out", work / "out", "--json"}));
    const auto json = r.json();
    CHECK(json["images"].GetUint64() == 24);
    CHECK(json["labelled"].GetUint64() == 24);
    CHECK(json["templates"].GetUint64() == 80);
    REQUIRE(json["saes"].Size() == 2);
    const auto& first = json["saes"][0];
    const auto number = [](const rapidjson::Value& sae, const char* name) { return sae[name].GetDouble(); };
    CHECK(first["layer"].GetInt() == 3);
    CHECK(json["saes"][1]["layer"].GetInt() == 1);
    CHECK(first["tokens"].GetUint64() == 24 * 17);
    CHECK(number(first, "explained_variance") == Approx(0.8519).margin(5e-5));  // expected.json, centred
    CHECK(number(first, "nmse") == Approx(golden_nmse(0, 17)).epsilon(1e-4));
    CHECK(number(first, "nmse_cls") == Approx(golden_nmse(0, 1)).epsilon(1e-4));
    CHECK(number(first, "nmse_patches") == Approx(golden_nmse(1, 17)).epsilon(1e-4));
    const auto frequency = floats(pipeline / "statistics.npz", "token_frequency");
    double l0 = 0, dead = 0;
    for (const float f : frequency) l0 += double(f), dead += f == 0;
    CHECK(number(first, "l0") == Approx(l0).epsilon(1e-5));
    CHECK(number(first, "dead_fraction") == Approx(dead / 96));
    CHECK(number(first, "accuracy") == 1.0);
    CHECK(number(json["saes"][1], "l0") <= 3);

    // Purity: the top images of the golden statistics, with 6 pictures of each label.
    const auto tops = psae::values<std::int64_t>(psae::read_npz(pipeline / "statistics.npz", "top_indices_fixed")),
               labels = psae::values<std::int64_t>(psae::read_npz(pipeline / "codes.npz", "labels"));
    double purity = 0, alive = 0;
    for (std::size_t f = 0; f < 96; ++f) {
        std::vector<double> count(4);
        for (std::size_t j = f * 10; j < f * 10 + 10; ++j)
            if (tops[j] >= 0) ++count[std::size_t(labels[std::size_t(tops[j])])];
        const double all = count[0] + count[1] + count[2] + count[3];
        if (all > 0) ++alive, purity += *std::max_element(count.begin(), count.end()) / all;
    }
    CHECK(number(first, "label_purity") == Approx(purity / alive).epsilon(1e-3));
    CHECK(number(first, "chance_purity") > 0.3);
    CHECK(number(first, "chance_purity") < number(first, "label_purity"));

    // As classify has it, and as an SAE has it by itself.
    const auto classified =
        run_well({"classify", "--model", pipeline / "model", "--images", pipeline / "images", "--sae", work / "small",
                  "--classes", work / "classes.txt", "--out", work / "c.csv", "--json"});
    CHECK(number(json["saes"][1], "accuracy_with_sae") == classified.json()["accuracy_with_sae"].GetDouble());
    auto alone = base;
    alone.back() = work / "small";
    alone.insert(alone.end(), {"--classes", work / "classes.txt", "--json"});
    const auto single = run_well(alone).json();
    for (const char* name : {"nmse", "label_purity", "accuracy_with_sae", "cosine_similarity"})
        CHECK(number(single["saes"][0], name) == Approx(number(json["saes"][1], name)).epsilon(1e-5));

    CHECK(read_text(work / "out" / "evaluation.json") == r.out);
    CHECK(fs::exists(work / "out" / "run_config.json"));
    const auto table = psae::detail::parse_table(read_text(work / "out" / "evaluation.csv"), ',', "evaluation.csv");
    REQUIRE(table.size() == 3);
    for (std::size_t c = 2; c < table[0].second.size(); ++c)
        if (const auto& name = table[0].second[c]; name == "target_layer") CHECK(table[1].second[c].empty());
        else CHECK(std::stod(table[1].second[c]) == Approx(number(first, name.c_str())));

    // For people: as wide as it must be, and one line about what it was measured on.
    const auto text = run_well(with({"--classes", work / "classes.txt"})).out;
    CHECK(count_lines(text) == 3);
    CHECK(contains(text, "label purity"));
    CHECK(contains(text, "plain model 100.0% (24 pictures, 4 classes)"));
}

TEST_CASE("evaluate: columns that cannot be there are empty, and stderr says why") {
    const temporary_folder work;
    psae::write_sae(work / "sae", pipeline_sae(), "pipeline", -2);
    fs::create_directories(work / "flat");
    for (const auto& file : fs::recursive_directory_iterator(pipeline / "images"))
        if (file.is_regular_file())
            fs::copy(file,
                     work / "flat" / (file.path().parent_path().filename().string() + file.path().filename().string()));
    const auto r = run_well(
        {"evaluate", "--model", pipeline / "model", "--images", work / "flat", "--sae", work / "sae", "--json"});
    CHECK(count_lines(r.err) == 1);
    CHECK(contains(r.err, "the pictures have no labels"));
    CHECK(r.json()["saes"][0]["label_purity"].IsNull());
    CHECK(r.json()["saes"][0]["accuracy"].IsNull());
    CHECK(r.json()["saes"][0]["nmse_cls"].GetDouble() == Approx(golden_nmse(0, 1)).epsilon(1e-4));

    // A model directory without the tokenizer.
    fs::copy(pipeline / "model", work / "model");
    for (const char* file : {"tokenizer.json", "vocab.json", "merges.txt"}) fs::remove(work / "model" / file);
    std::vector<std::string> arguments{"evaluate",          "--model", work / "model", "--images",
                                       pipeline / "images", "--sae",   work / "sae",   "--json"};
    const auto silent = run_well(arguments);
    CHECK(count_lines(silent.err) == 1);
    CHECK(contains(silent.err, "no zero-shot accuracy"));
    CHECK(silent.json()["saes"][0]["accuracy_with_sae"].IsNull());
    CHECK(silent.json()["saes"][0]["label_purity"].IsNumber());
    psae::write_text(work / "classes.txt", "cat\n");
    arguments.insert(arguments.end(), {"--classes", work / "classes.txt"});
    refused(arguments);  // asked for by name
}

TEST_CASE("evaluate: stored activations give the same errors as pictures") {
    const temporary_folder work;
    psae::write_sae(work / "sae", pipeline_sae(), "pipeline", -2);
    run_well({"cache", "--model", pipeline / "model", "--images", pipeline / "images", "--out", work / "store",
              "--max-tokens-per-shard", "100"});
    write_npz(work / "tokens.npz", "tokens", floats(pipeline / "codes.npz", "tap"), {24, 17, 64});
    const auto on = [&](std::vector<std::string> more) {
        more.insert(more.begin(), {"evaluate", "--sae", work / "sae", "--json"});
        return run_well(more).json();
    };
    const auto pictures = on({"--model", pipeline / "model", "--images", pipeline / "images"}),
               store = on({"--activations", work / "store"}), file = on({"--activations", work / "tokens.npz"});
    for (const char* name : {"nmse_cls", "nmse_patches", "mse", "l0", "dead_fraction", "l2_ratio"})
        CHECK(store["saes"][0][name].GetDouble() == Approx(pictures["saes"][0][name].GetDouble()).epsilon(1e-5));
    CHECK(store["saes"][0]["layer"].GetInt() == 3);
    CHECK(store["saes"][0]["label_purity"].IsNull());
    CHECK(file["saes"][0]["mse"].GetDouble() == Approx(pictures["saes"][0]["mse"].GetDouble()).epsilon(1e-4));
    CHECK(file["saes"][0]["nmse_cls"].IsNull());
}

TEST_CASE("evaluate: what does not fit is refused and leaves nothing") {
    const temporary_folder work;
    auto sae = pipeline_sae();
    psae::write_sae(work / "sae", sae, "pipeline", -2);
    sae.d_in = 32;
    sae.W_enc.resize(96 * 32);
    sae.W_dec.resize(96 * 32);
    sae.b_dec.resize(32);
    psae::write_sae(work / "narrow", sae, "pipeline", -2);
    const auto arguments = [&](const std::string& which, const std::string& images) {
        return std::vector<std::string>{"evaluate",   "--model", pipeline / "model", "--images", images,      "--sae",
                                        work / "sae", "--sae",   work / which,       "--out",    work / "out"};
    };
    const auto misfit = refused(arguments("narrow", pipeline / "images"));
    for (const char* part : {"narrow", "d_in 32", "have 64", "model"}) CHECK(contains(misfit, part));
    CHECK(contains(refused(arguments("none", pipeline / "images")), "there is no SAE"));
    fs::create_directories(work / "empty");
    CHECK(contains(refused(arguments("sae", work / "empty")), (work / "empty").string()));
    write_npz(work / "tokens.npz", "tokens", some_rows(10, 32), {10, 32});
    CHECK(contains(refused({"evaluate", "--sae", work / "sae", "--activations", work / "tokens.npz"}), "d_in 64"));
    for (const char* file : {"evaluation.csv", "evaluation.json"}) CHECK(!fs::exists(work / "out" / file));
    refused({"evaluate", "--sae", work / "sae"}, 2);
    refused({"evaluate", "--sae", work / "sae", "--images", pipeline / "images"}, 2);
    refused({"evaluate", "--sae", work / "sae", "--activations", work / "tokens.npz", "--classes", work / "c"}, 2);
    refused({"evaluate", "--model", pipeline / "model", "--images", pipeline / "images"}, 2);
}
