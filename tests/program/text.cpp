// tokenize, embed --texts and classify against the reference's values; texts and files that do not fit.
#include "program.hpp"

#include <map>
#include <span>
#include <sstream>

#include <psae/io/dataset.hpp>

#include "../pipeline.hpp"

using namespace program;

namespace {

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

// The rows of a .csv by the names of their columns.
std::vector<std::map<std::string, std::string>> read_csv(const fs::path& path) {
    const auto table = psae::detail::parse_table(read_text(path), ',', path.string());
    std::vector<std::map<std::string, std::string>> rows;
    for (std::size_t r = 1; r < table.size(); ++r) {
        REQUIRE(table[r].second.size() == table[0].second.size());
        auto& row = rows.emplace_back();
        for (std::size_t c = 0; c < table[r].second.size(); ++c) row[table[0].second[c]] = table[r].second[c];
    }
    return rows;
}

const std::string pipeline_classes = "0_cat\tcat\n1_tree\ttree\n2_red_car\tred car\n3_house\thouse\n";

}  // namespace

TEST_CASE("tokenize gives the golden ids") {
    const temporary_folder work;
    // The published tokenizer with the golden tower's configuration and weights cannot go together: 49408 ids for 610.
    fs::copy(golden / "tokenizer", work / "mixed");
    for (const char* file : {"config.json", "model.safetensors"})
        fs::copy(golden / "clip_tiny" / file, work / "mixed" / file);
    psae::write_text(work / "texts.txt",
                     "a photo of a cat\nthe other one, isn't it?\r\na\n"
                     "red roses in the rain and the night");
    CHECK(contains(refused({"tokenize", "--model", work / "mixed", "--text", work / "texts.txt", "--out", work / "x"}),
                   "the model has 610 token ids, the tokenizer's largest is 49407"));

    const auto model = golden / "clip_tiny", expected = model / "expected.npz";
    const auto r =
        run_well({"tokenize", "--model", model, "--text", work / "texts.txt", "--out", work / "ids.npz", "--json"});
    CHECK(r.json()["texts"].GetUint64() == 4);
    CHECK(r.json()["truncated"].GetUint64() == 0);
    CHECK(r.err.empty());
    const auto ids = psae::read_npz(work / "ids.npz", "ids");
    CHECK(ids.shape == std::vector<std::size_t>{4, 20});
    const auto own = psae::values<std::int64_t>(ids),
               wanted = psae::values<std::int64_t>(psae::read_npz(expected, "input_ids"));
    for (std::size_t i = 0; i < 4; ++i)
        for (std::size_t t = 0; t < 20; ++t) CHECK(own[i * 20 + t] == (t < 17 ? wanted[i * 17 + t] : 609));

    run_well({"embed", "--model", model, "--texts", work / "texts.txt", "--out", work / "embeds.npz"});
    CHECK(relative_difference(floats(work / "embeds.npz", "text_embeds"), floats(expected, "text_embeds")) < 6.8e-6);
    CHECK(psae::read_npz(work / "embeds.npz").size() == 1);
    write_npz(work / "pixels.npz", "pixels", floats(expected, "pixel_values"), {3, 3, 32, 32});
    run_well({"embed", "--model", model, "--pixels", work / "pixels.npz", "--texts", work / "texts.txt", "--out",
              work / "both.npz"});
    CHECK(floats(work / "both.npz", "text_embeds") == floats(work / "embeds.npz", "text_embeds"));
    CHECK(relative_difference(floats(work / "both.npz", "image_embeds"), floats(expected, "image_embeds")) < 6.8e-6);
}

TEST_CASE("texts that are too long are cut and reported, and those that are no texts are refused") {
    const temporary_folder work;
    const auto arguments = [&](const char* command, const char* option) {
        return std::vector<std::string>{command, "--model",       golden / "clip_tiny", option, work / "texts.txt",
                                        "--out", work / "out.npz"};
    };
    std::string text = "short\n";
    for (int i = 0; i < 30; ++i) text += "the rain ";
    psae::write_text(work / "texts.txt", text + "\n\n");
    const auto r = run_well(arguments("tokenize", "--text"));
    CHECK(contains(r.out, "3 texts of 20 token ids, 1 truncated"));
    CHECK(count_lines(r.err) == 1);
    CHECK(contains(r.err, "texts.txt, line 2"));
    const auto ids = psae::values<std::int64_t>(psae::read_npz(work / "out.npz", "ids"));
    CHECK(ids[20] == 608);
    CHECK(ids[39] == 609);
    fs::remove(work / "out.npz");
    for (const auto& command : {arguments("tokenize", "--text"), arguments("embed", "--texts")}) {
        psae::write_text(work / "texts.txt",
                         "good\nb\xff"
                         "d\n");
        const auto error = refused(command);
        CHECK(contains(error, "texts.txt"));
        CHECK(contains(error, "text 2"));
        CHECK(contains(error, "UTF-8"));
        psae::write_text(work / "texts.txt", "");
        CHECK(contains(refused(command), "holds no text"));
    }
    CHECK(!fs::exists(work / "out.npz"));
}

TEST_CASE("classify: golden predictions and probabilities, accuracy with and without an SAE") {
    const temporary_folder work;
    auto sae = pipeline_sae();
    psae::write_sae(work / "sae", sae, "pipeline", -2);
    psae::write_text(work / "classes.txt", pipeline_classes);
    const std::vector<std::string> base{"classify",           "--model",   pipeline / "model",   "--images",
                                        pipeline / "images",  "--classes", work / "classes.txt", "--out",
                                        work / "classes.csv", "--json"};
    const auto with = [&](std::vector<std::string> more) {
        auto all = base;
        all.insert(all.end(), more.begin(), more.end());
        return all;
    };
    auto r = run_well(base);  // the 80 templates are the default
    CHECK(r.json()["accuracy"].GetDouble() == 1.0);
    CHECK(r.json()["templates"].GetUint64() == 80);
    CHECK(r.json()["labelled"].GetUint64() == 24);
    CHECK(!r.json().HasMember("accuracy_with_sae"));
    auto rows = read_csv(work / "classes.csv");
    REQUIRE(rows.size() == 24);
    const auto logits = floats(pipeline / "masking.npz", "logits_corrected");  // the first condition: no SAE
    const std::vector<std::string> names{"cat", "tree", "red car", "house"};
    for (std::size_t i = 0; i < 24; ++i) {
        const std::span<const float> own = std::span(logits).subspan((i % 6 * 4 + i / 6) * 4, 4);
        double sum = 0;
        for (const float v : own) sum += std::exp(double(v));
        const auto best = std::max_element(own.begin(), own.end());
        CHECK(rows[i].at("label") == names[i / 6]);
        CHECK(rows[i].at("predicted") == names[std::size_t(best - own.begin())]);
        CHECK(std::stod(rows[i].at("score")) == Approx(std::exp(double(*best)) / sum).epsilon(2e-3));
        double all = 0;
        for (const char* score : {"score", "score_2", "score_3", "score_4"}) all += std::stod(rows[i].at(score));
        CHECK(all == Approx(1).epsilon(1e-4));
    }
    r = run_well(with({"--sae", work / "sae", "--top", "1"}));
    CHECK(r.json()["accuracy"].GetDouble() == 1.0);
    CHECK(r.json()["layer"].GetUint64() == 3);
    rows = read_csv(work / "classes.csv");
    CHECK(rows[0].size() == 6);
    std::size_t right = 0;
    for (const auto& row : rows) right += row.at("predicted_with_sae") == row.at("label");
    CHECK(r.json()["accuracy_with_sae"].GetDouble() == Approx(double(right) / 24));

    // Names of folders as classes and labels; one's own templates.
    psae::write_text(work / "templates.txt", "a photo of a {}.\n\nthe {}\n");
    auto own = base;
    own.erase(own.begin() + 5, own.begin() + 7);
    own.insert(own.end(), {"--templates", work / "templates.txt"});
    r = run_well(own);
    CHECK(r.json()["templates"].GetUint64() == 2);
    CHECK(r.json()["labelled"].GetUint64() == 24);
    CHECK(read_csv(work / "classes.csv")[12].at("label") == "2 red car");

    // Labels without a class: said, and not counted.
    psae::write_text(work / "classes.txt", "0_cat\tcat\n9_x\tdog\n");
    r = run_well(base);
    CHECK(r.json()["labelled"].GetUint64() == 6);
    CHECK(count_lines(r.err) == 3);
    CHECK(contains(r.err, "no class for the label 1_tree"));
    psae::write_text(work / "classes.txt", "dog\n");
    CHECK(!run_well(base).json().HasMember("accuracy"));
    fs::remove(work / "classes.csv");

    const std::pair<const char*, const char*> wrong[] = {
        {"", "names no class"}, {"cat\ncat\n", "twice"}, {"c\xff\n", "UTF-8"}};
    for (const auto& [text, part] : wrong) {
        psae::write_text(work / "classes.txt", text);
        CHECK(contains(refused(base), part));
    }
    psae::write_text(work / "classes.txt", pipeline_classes);
    psae::write_text(work / "templates.txt", "no place\n");
    CHECK(contains(refused(with({"--templates", work / "templates.txt"})), "no place for the class name"));
    psae::write_text(work / "templates.txt", "\n");
    CHECK(contains(refused(with({"--templates", work / "templates.txt"})), "at least one"));
    sae.d_in = 32;
    sae.W_enc.resize(96 * 32);
    sae.W_dec.resize(96 * 32);
    sae.b_dec.resize(32);
    psae::write_sae(work / "narrow", sae, "pipeline", -2);
    CHECK(contains(refused(with({"--sae", work / "narrow"})), "d_in 32"));
    CHECK(!fs::exists(work / "classes.csv"));
}
