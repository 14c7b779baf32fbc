// train --sweep through the program: each SAE is the one that is trained alone, also after a kill; what fails, fails alone.
#include "training_runs.hpp"

using namespace program;

namespace {

fs::path write_sweep(const temporary_folder& work, const std::string& json) {
    psae::write_text(work / "sweep.json", json);
    return work / "sweep.json";
}
std::vector<std::string> sweep_arguments(const temporary_folder& work, const std::string& json,
                                         const std::string& steps) {
    return with(train_arguments(work, "sweep", steps), {"--sweep=" + write_sweep(work, json).string()});
}
std::vector<std::string> lines_of(const fs::path& file) {
    std::vector<std::string> lines;
    std::ifstream in(file);
    for (std::string line; std::getline(in, line);) lines.push_back(line);
    return lines;
}

}  // namespace

TEST_CASE("an SAE of a sweep has the bytes of the one trained alone") {
    const temporary_folder work;
    const auto result = run_well(sweep_arguments(work, R"([
        {"variant": ["topk", "relu"], "k": [4, 8]},
        {"variant": "matryoshka", "k": 5, "random-prefixes": 3},
        {"variant": ["batch_topk", "gated"], "d-sae": 64, "normalise-activations": "expected_average_only_in"},
        {"name": "jump", "variant": "jump_relu", "target-l0": 6, "threshold-init": 0.1, "bandwidth": 0.1, "lr": 0.003}
    ])",
                                                 "60"));
    const std::vector<std::pair<std::string, std::vector<std::string>>> alone{
        {"topk_k=4", {"--variant=topk", "--k=4"}},
        {"topk_k=8", {"--variant=topk", "--k=8"}},
        {"relu", {}},
        {"matryoshka_k=5_random-prefixes=3", {"--variant=matryoshka", "--k=5", "--random-prefixes=3"}},
        {"batch_topk_d-sae=64_normalise-activations=expected_average_only_in",
         {"--variant=batch_topk", "--d-sae=64", "--normalise-activations=expected_average_only_in"}},
        {"gated_d-sae=64_normalise-activations=expected_average_only_in", {"--variant=gated", "--d-sae=64"}},
        {"jump", {"--variant=jump_relu", "--target-l0=6", "--threshold-init=0.1", "--bandwidth=0.1", "--lr=0.003"}}};
    // The table has a line for each, in the order of the file; so has the .csv.
    const auto csv = lines_of(work / "sweep" / "sweep.csv");
    REQUIRE(csv.size() == 1 + alone.size());
    CHECK(count_lines(result.out) == 1 + alone.size());
    for (std::size_t i = 0; i < alone.size(); ++i) {
        const auto& [name, options] = alone[i];
        INFO(name);
        run_well(with(train_arguments(work, "alone", "60"), options));
        check_same_run(work / "alone", work / "sweep" / name);
        CHECK(csv[1 + i].starts_with(name + ","));
        fs::remove_all(work / "alone");
    }
    CHECK(csv[1].starts_with("topk_k=4,topk,,,96,k,4,60,4,"));  // L0 is k on the held-out rows
    CHECK(read_text(work / "sweep" / "pareto.png").starts_with("\x89PNG"));
    // Its saved options train it once more.
    run_well({"train", "--config", work / "sweep" / "jump" / "run_config.json", "--out", work / "again"});
    check_same_run(work / "again", work / "sweep" / "jump");
}

TEST_CASE("SAEs on several layers share one pass of the tower") {
    const temporary_folder work;
    const std::vector<std::string> arguments{"train",
                                             "--model",
                                             golden / "pipeline" / "model",
                                             "--images",
                                             golden / "pipeline" / "images",
                                             "--steps",
                                             "30",
                                             "--d-sae",
                                             "48",
                                             "--batch-tokens",
                                             "64",
                                             "--threads",
                                             "1",
                                             "--variant",
                                             "topk",
                                             "--k",
                                             "6",
                                             "--eval-every",
                                             "10"};
    auto sweep = with(arguments, {"--sweep=" + write_sweep(work, R"({"layer": [-1, 1, -2]})").string(),
                                  "--out=" + (work / "sweep").string(), "--json"});
    const auto json = run_well(sweep).json();
    REQUIRE(json["runs"].Size() == 3);
    for (const std::string layer : {"-1", "1", "-2"}) {
        INFO(layer);
        run_well(with(arguments, {"--layer=" + layer, "--out=" + (work / ("alone" + layer)).string()}));
        check_same_run(work / ("alone" + layer), work / "sweep" / ("topk_layer=" + layer));
    }
    for (const auto& [i, layer] : {std::pair{0, 4}, {1, 1}, {2, 3}})
        CHECK(json["runs"][rapidjson::SizeType(i)]["layer"].GetInt() == layer);
    CHECK(json["runs"][1]["l0"].GetDouble() == Approx(6));
    // The table is of the held-out part, as the last line of the metrics.
    const auto metrics = lines_of(work / "sweep" / "topk_layer=1" / "metrics.jsonl");
    CHECK(json["runs"][1]["explained_variance"].GetDouble() ==
          psae::parse_json(metrics.back(), "metrics")["eval_explained_variance"].GetDouble());
}

TEST_CASE("a killed sweep resumes to the same bytes") {
    const temporary_folder work;
    const std::string json = R"([{"variant": "topk", "k": 4}, {"variant": "jump_relu", "d-sae": 48}])";
    auto arguments = sweep_arguments(work, json, "400");
    run_well(arguments);
    fs::rename(work / "sweep", work / "whole");
    arguments.push_back("--resume");
    const auto killed_at = [&](std::size_t lines, const std::vector<std::string>& how) {
        const auto killed = run(how, at_line(work / "sweep" / "jump_relu_d-sae=48", lines, SIGKILL));
        INFO(killed.err);
        CHECK(killed.code == 128 + SIGKILL);
    };
    CHECK(refused(arguments).find("there is no checkpoint") != std::string::npos);
    killed_at(130, sweep_arguments(work, json, "400"));
    // One of them is behind the other, as if killed between two checkpoints; one has none, as if killed before its first.
    fs::copy_file(work / "sweep" / "topk_k=4" / "checkpoint" / "state.safetensors", work / "early");
    killed_at(230, arguments);
    fs::copy_file(work / "early", work / "sweep" / "topk_k=4" / "checkpoint" / "state.safetensors",
                  fs::copy_options::overwrite_existing);
    killed_at(330, arguments);
    fs::remove(work / "sweep" / "jump_relu_d-sae=48" / "checkpoint" / "state.safetensors");
    run_well(arguments);
    for (const char* name : {"topk_k=4", "jump_relu_d-sae=48"})
        check_same_run(work / "whole" / name, work / "sweep" / name);
    // Done before, it makes the same table again, but for the times.
    const auto columns = [&](const fs::path& csv) {
        std::vector<std::string> texts;
        for (std::string line : lines_of(csv)) {
            line.erase(line.rfind(','));
            texts.push_back(line.substr(0, line.rfind(',')));
        }
        return texts;
    };
    run_well(arguments);
    CHECK(columns(work / "whole" / "sweep.csv") == columns(work / "sweep" / "sweep.csv"));
}

TEST_CASE("an SAE that diverges stops, and the others go on") {
    const temporary_folder work;
    const auto result = run(sweep_arguments(work, R"({"variant": "topk", "k": 4, "lr": [0.001, 1e38]})", "40"));
    CHECK(result.code == 1);
    CHECK(result.err.find("1 of 2 SAEs could not be trained to the end") != std::string::npos);
    CHECK(result.out.find("failed: the loss is not finite") != std::string::npos);
    CHECK(fs::exists(work / "sweep" / "topk_k=4_lr=0.001" / "sae_weights.safetensors"));
    CHECK(!fs::exists(work / "sweep" / "topk_k=4_lr=1e+38" / "sae_weights.safetensors"));
    CHECK(count_lines(read_text(work / "sweep" / "topk_k=4_lr=0.001" / "metrics.jsonl")) == 40);
    const auto csv = lines_of(work / "sweep" / "sweep.csv");
    REQUIRE(csv.size() == 3);
    CHECK(csv[2].find("the loss is not finite") != std::string::npos);
}

TEST_CASE("sweeps that are not what train takes are refused before anything is written") {
    const temporary_folder work;
    const auto refuse = [&](const std::string& json, const std::string& expected, int code = 2) {
        INFO(json);
        const auto text = refused(sweep_arguments(work, json, "5"), code);
        INFO(text);
        CHECK(text.find(expected) != std::string::npos);
        CHECK(!fs::exists(work / "sweep"));
    };
    refuse(R"({"k": )", "not valid JSON");
    refuse("3", "expected an object");
    refuse("[]", "at least one SAE");
    refuse(R"([{"variant": "topk"}, 4])", "object 2");
    refuse(R"({"kk": 3})", "unknown key kk");
    refuse(R"({"variant": "topk", "k": [3, "4"]})", "key k: expected an integer");
    refuse(R"({"variant": "topk", "k": -3})", "key k: expected an integer");
    refuse(R"({"variant": "topk", "k": []})", "at least one value");
    refuse(R"({"variant": "topk", "k": 3, "k": 4})", "twice");
    refuse(R"({"variant": ["topk", "top"]})", "--variant");
    refuse(R"({"variant": "relu", "k": 3})", "key k is not of this variant");
    refuse(R"({"variant": "topk", "lr": 0})", "--lr");
    refuse(R"({"variant": "topk", "dead-latents": "ghost"})", "ghost goes with relu");
    refuse(R"({"layer": [1, 2]})", "key layer goes with pictures");
    for (const char* shared : {R"({"batch-tokens": [32, 64]})", R"({"adapter": "x"})", R"({"preprocess-on": "cpu"})"})
        refuse(shared, "is the same for all SAEs");
    refuse(R"([{"variant": "topk", "k": 3}, {"variant": "topk", "k": 3}])", "two SAEs are topk_k=3");
    refuse(R"([{"name": "a", "l1": 1}, {"name": "a", "l1": 2}])", "two SAEs are a");
    refuse(R"({"name": "a", "l1": [1, 2]})", "several SAEs");
    refuse(R"({"name": "../a"})", "key name");
    refuse(R"({"name": 3})", "key name");
    for (const std::string file : {"sweep.csv", "pareto.png", "run_config.json"})
        refuse(R"({"name": ")" + file + "\"}", "is a file of the sweep");
    refuse(R"({"variant": "topk", "k": 97})", "k is larger", 1);
    CHECK(refused(with(train_arguments(work, "sweep", "5"), {"--sweep=" + (work / "none.json").string()}), 2)
              .find("none.json") != std::string::npos);
    // Each would fit, both do not.
    const double memory = double(sysconf(_SC_PHYS_PAGES)) * double(sysconf(_SC_PAGESIZE));
    const auto latents = std::to_string(std::size_t(0.6 * memory / (4.0 * 6 * 24)));
    refuse(R"({"variant": "topk", "d-sae": )" + latents + R"(, "k": [3, 4]})", "the runs do not fit into memory", 1);
}
