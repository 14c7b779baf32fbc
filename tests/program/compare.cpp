// compare through the program: a model with itself, with a MaPLe adapter, with changed weights.
#include <limits>
#include <map>

#include "adapted_model.hpp"

#include <psae/io/class_latents_file.hpp>

#include "../pipeline.hpp"

using namespace program;

namespace {

using arguments = std::vector<std::string>;

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

std::vector<std::map<std::string, std::string>> read_csv(const fs::path& path) {
    const auto table = psae::detail::parse_table(read_text(path), ',', path.string());
    std::vector<std::map<std::string, std::string>> rows;
    for (std::size_t r = 1; r < table.size(); ++r) {
        auto& row = rows.emplace_back();
        REQUIRE(table[r].second.size() == table[0].second.size());
        for (std::size_t c = 0; c < table[0].second.size(); ++c) row[table[0].second[c]] = table[r].second[c];
    }
    return rows;
}

struct bench : temporary_folder {
    bench() {
        psae::write_sae(*this / "sae", pipeline_sae(), "pipeline", -2);
        psae::write_text(*this / "classes.txt", "0_cat\tcat\n1_tree\ttree\n2_red_car\tred car\n3_house\thouse\n");
    }
    arguments command(const std::string& name, const fs::path& model, const arguments& more) const {
        arguments a{name,    "--model",    model,       "--images", pipeline / "images", "--sae", *this / "sae",
                    "--out", *this / name, "--threads", "1"};
        if (name != "classes") a.insert(a.end(), {"--classes", *this / "classes.txt"});
        a.insert(a.end(), more.begin(), more.end());
        return a;
    }
    rapidjson::Document compare(const fs::path& model, arguments more) const {
        more.push_back("--json");
        return run_well(command("compare", model, more)).json();
    }
};

// The row of metrics.csv.
const std::map<std::string, std::string>& metric(const std::vector<std::map<std::string, std::string>>& rows,
                                                 const std::string& model, const std::string& latents,
                                                 const std::string& k, const std::string& error_term) {
    for (const auto& row : rows)
        if (row.at("model") == model && row.at("latents") == latents && row.at("k") == k &&
            row.at("error_term") == error_term)
            return row;
    FAIL("no row " << model << " " << latents << " " << k);
    return rows[0];
}

}  // namespace

TEST_CASE("compare: a model with itself shares everything, and there is no gain to explain") {
    const bench work;
    const auto r = work.compare(pipeline / "model", {"--adapted-model", pipeline / "model", "--k", "4"});
    CHECK(r["images"].GetInt() == 24);
    CHECK(r["classes"].GetInt() == 4);
    CHECK(r["base_accuracy"].GetDouble() == 1);
    CHECK(r["adapted_accuracy"].GetDouble() == 1);
    CHECK(r["gain"].GetDouble() == 0);
    CHECK((r["gain_low"].GetDouble() < 0 && r["gain_high"].GetDouble() > 0));
    CHECK(r["jaccard"].GetDouble() == 1);
    CHECK(r["picture_jaccard"].GetDouble() == 1);
    CHECK(r["present_share"].GetDouble() == 1);
    CHECK(r["present_mass"].GetDouble() == 1);
    CHECK(r["association_correlation"].GetDouble() == Approx(1));
    CHECK(r["explained_share"].IsNull());
    const auto text =
        run_well(work.command("compare", pipeline / "model", {"--adapted-model", pipeline / "model"})).out;
    CHECK(contains(text, "there is no gain to explain"));

    const auto metrics = read_csv(work / "compare" / "metrics.csv");
    for (const auto& row : metrics) CHECK(row.at("explained").empty());
    for (const char* error_term : {"false", "true"})
        for (const char* set : {"base", "adapted", "shared"})
            CHECK(metric(metrics, "adapted", set, "5", error_term).at("accuracy") ==
                  metric(metrics, "base", "base", "5", error_term).at("accuracy"));
    CHECK(metric(metrics, "adapted", "new", "", "true").at("difference") == "0");
    for (const auto& row : read_csv(work / "compare" / "associations.csv")) CHECK(row.at("change") == "0");
    for (const char* file : {"association.png", "association.svg", "overlap.png", "accuracy.png",
                             "accuracy_with_error_term.svg", "comparison.csv", "images.csv", "run_config.json"})
        CHECK(fs::exists(work / "compare" / file));
}

TEST_CASE("compare: with a MaPLe adapter, what it says is what classes, classify and intervene say") {
    const bench work;
    write_adapter(work / "model.pth.tar-2", 5, 2);
    const arguments adapter{"--adapter", work / "model.pth.tar-2"};
    arguments more = adapter;
    more.insert(more.end(),
                {"--train-images", pipeline / "images", "--top", "6", "--k", "2", "8", "--count", "tokens"});
    const auto result = run_well(work.command("compare", pipeline / "model", more));
    CHECK(contains(result.err, "24 of the pictures are among those that chose the latents"));
    const auto totals = read_csv(work / "compare" / "comparison.csv");
    std::map<std::string, std::string> total;
    for (const auto& row : totals) total[row.at("measure")] = row.at("value");

    // The counts are those of classes.
    const auto base = psae::read_class_latents_npz(work / "compare" / "base_class_latents.npz"),
               adapted = psae::read_class_latents_npz(work / "compare" / "adapted_class_latents.npz");
    for (const bool with_adapter : {false, true}) {
        arguments own = with_adapter ? adapter : arguments{};
        own.insert(own.end(), {"--count", "tokens"});
        run_well(work.command("classes", pipeline / "model", own));
        CHECK(psae::read_class_latents_npz(work / "classes" / "class_latents.npz").counts.count ==
              (with_adapter ? adapted : base).counts.count);
    }
    CHECK(base.counts.count != adapted.counts.count);
    CHECK(base.classes == std::vector<std::string>{"0_cat", "1_tree", "2_red_car", "3_house"});

    // A row of classes.csv by hand.
    const auto classes = read_csv(work / "compare" / "classes.csv");
    REQUIRE(classes.size() == 4);
    double jaccards = 0;
    for (std::size_t k = 0; k < 4; ++k) {
        std::size_t before = 0, now = 0, both = 0;
        for (std::size_t f = 0; f < 96; ++f) {
            const bool b = base.counts.of_class(k)[f] > 0, a = adapted.counts.of_class(k)[f] > 0;
            before += b, now += a, both += a && b;
        }
        CHECK(classes[k].at("base_latents") == std::to_string(before));
        CHECK(classes[k].at("adapted_latents") == std::to_string(now));
        CHECK(classes[k].at("present") == std::to_string(both));
        const double shared = std::stod(classes[k].at("shared")), one = std::stod(classes[k].at("base_only")),
                     other = std::stod(classes[k].at("adapted_only"));
        CHECK(shared + one == 6);
        CHECK(shared + other == 6);
        CHECK(std::stod(classes[k].at("jaccard")) == Approx(shared / (shared + one + other)).epsilon(1e-4));
        jaccards += shared / (shared + one + other) / 4;
        CHECK(std::size_t(
                  std::count(classes[k].at("shared_latents").begin(), classes[k].at("shared_latents").end(), ' ')) +
                  1 ==
              std::max<std::size_t>(1, std::size_t(shared)));
    }
    CHECK(std::stod(total.at("jaccard")) == Approx(jaccards).epsilon(1e-4));

    // Accuracies are those of intervene, which keeps the first k by count.
    const auto metrics = read_csv(work / "compare" / "metrics.csv");
    for (const bool with_adapter : {false, true}) {
        arguments own = with_adapter ? adapter : arguments{};
        own.insert(own.end(),
                   {"--k", "2", "8", "--random", "0", "--class-latents",
                    work / "compare" / (with_adapter ? "adapted_class_latents.npz" : "base_class_latents.npz")});
        run_well(work.command("intervene", pipeline / "model", own));
        const std::string model = with_adapter ? "adapted" : "base";
        std::size_t compared = 0;
        for (const auto& row : read_csv(work / "intervene" / "metrics.csv")) {
            if (row.at("latents") == "none") {
                CHECK(metric(metrics, model, "none", "", "").at("accuracy") == row.at("accuracy"));
                CHECK(total.at(model + "_accuracy") == row.at("accuracy"));
            }
            if (row.at("latents") != "class" || row.at("action") != "keep") continue;
            const auto& same = metric(metrics, model, model, row.at("k"), row.at("error_term"));
            CHECK(same.at("accuracy") == row.at("accuracy"));
            CHECK(same.at("gained") == row.at("gained"));
            CHECK(same.at("difference_low") == row.at("difference_low"));
            ++compared;
        }
        CHECK(compared == 4);
    }
    // Pictures: predictions add up to the accuracies.
    std::size_t right = 0;
    const auto pictures = read_csv(work / "compare" / "images.csv");
    REQUIRE(pictures.size() == 24);
    for (const auto& row : pictures) right += row.at("label") == row.at("adapted_predicted");
    CHECK(double(right) / 24 == Approx(std::stod(total.at("adapted_accuracy"))).epsilon(1e-5));
}

TEST_CASE("compare: a gain that no new latent is part of is explained in full") {
    // The base model's embedding is turned round: it is wrong on everything, with the latents of the right model.
    const bench work;
    write_changed_model(work / "wrong", "visual_projection.weight", -1);
    const auto r = work.compare(work / "wrong", {"--adapted-model", pipeline / "model", "--k", "8"});
    CHECK(r["adapted_accuracy"].GetDouble() == 1);
    const double base = r["base_accuracy"].GetDouble();
    CHECK(base < 0.5);
    CHECK(r["gain"].GetDouble() == Approx(1 - base));
    CHECK(r["gained"].GetDouble() - r["lost"].GetDouble() == Approx(24 * (1 - base)));
    CHECK(r["gain_low"].GetDouble() > 0);
    CHECK(r["jaccard"].GetDouble() == 1);
    const double kept = r["accuracy_with_present"].GetDouble();
    CHECK(r["explained_share"].GetDouble() == Approx((kept - base) / (1 - base)));
    const auto metrics = read_csv(work / "compare" / "metrics.csv");
    CHECK(metric(metrics, "adapted", "new", "", "true").at("accuracy") == "1");
    CHECK(metric(metrics, "adapted", "new", "", "true").at("explained") == "1");
    CHECK(metric(metrics, "adapted", "base_fired", "", "true").at("accuracy") ==
          metric(metrics, "adapted", "adapted_fired", "", "true").at("accuracy"));
    CHECK(metric(metrics, "base", "new", "", "true").at("explained").empty());
}

TEST_CASE("compare: a linear probe in place of the texts, its rows by name") {
    const bench work;
    // The classes' text embeddings as a probe, in another order; the model's own texts are turned round.
    const auto rows = pipeline_array("masking.npz", "text_mean_corrected");
    const std::vector<std::string> names{"house", "red car", "tree", "cat"};
    const auto write_probe = [&](const std::vector<std::string>& classes, float bias) {
        std::vector<float> weight, shift{bias, 0, 0, 0};
        for (const std::size_t c : {3, 2, 1, 0})
            for (std::size_t i = 0; i < 24; ++i) weight.push_back(10 * rows[c * 24 + i]);
        psae::npz_writer npz(work / "probe.npz");
        npz.add("weight", weight.data(), {4, 24});
        npz.add("bias", shift.data(), {4});
        if (!classes.empty()) npz.add("classes", classes);
        npz.close();
    };
    const arguments probe{"--probe", work / "probe.npz", "--k", "8"};
    write_probe(names, 0);
    const auto r = work.compare(pipeline / "model", probe);
    CHECK(r["adapted_accuracy"].GetDouble() == 1);
    CHECK(r["jaccard"].GetDouble() == 1);
    write_probe(names, 1000);  // everything is a house
    CHECK(work.compare(pipeline / "model", probe)["adapted_accuracy"].GetDouble() == 0.25);
    write_probe({}, 0);
    CHECK(work.compare(pipeline / "model", probe)["adapted_accuracy"].GetDouble() == 0);
    write_probe({"house", "red car", "tree", "dog"}, 0);
    CHECK(contains(refused(work.command("compare", pipeline / "model", probe)), "expected cat"));
    write_probe(names, std::numeric_limits<float>::infinity());
    CHECK(contains(refused(work.command("compare", pipeline / "model", probe)), "not finite"));
}

TEST_CASE("compare: what it cannot do is refused in one line") {
    const bench work;
    refused(work.command("compare", pipeline / "model", {}), 2);
    refused(work.command("compare", pipeline / "model", {"--adapted-model", pipeline / "model", "--order", "name"}), 2);
    CHECK(contains(
        refused(work.command("compare", pipeline / "model", {"--adapted-model", pipeline / "model", "--k", "97"})),
        "--k at most 96"));
    CHECK(contains(refused(work.command("compare", pipeline / "model", {"--adapted-model", data / "tiny-clip"})),
                   "do not fit"));
    write_adapter(work / "wide.pth.tar-1", 1, 1, 80);
    CHECK(contains(refused(work.command("compare", pipeline / "model", {"--adapter", work / "wide.pth.tar-1"})),
                   "80 and 48"));
}
