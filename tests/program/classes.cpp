// classes and intervene through the program: golden counts and accuracies, files written, errors.
#include <algorithm>
#include <map>

#include "program.hpp"

#include <psae/io/class_latents_file.hpp>

#include "../pipeline.hpp"

using namespace program;

namespace {

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

// Rows of a .csv by column name.
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

// A folder with the golden SAE and the names of the golden classes.
struct bench : temporary_folder {
    const std::vector<std::string> model{"--model", pipeline / "model", "--images", pipeline / "images",
                                         "--sae",   *this / "sae",      "--out",    *this / "out"};
    bench() {
        psae::write_sae(*this / "sae", pipeline_sae(), "pipeline", -2);
        psae::write_text(*this / "classes.txt", "0_cat\tcat\n1_tree\ttree\n2_red_car\tred car\n3_house\thouse\n");
    }
    std::vector<std::string> command(const std::string& name, std::vector<std::string> more) const {
        more.insert(more.begin(), model.begin(), model.end());
        if (name == "intervene") more.insert(more.begin(), {"--classes", *this / "classes.txt"});
        more.insert(more.begin(), name);
        return more;
    }
};

}  // namespace

TEST_CASE("classes: golden counts, a row for each class and latent") {
    const bench work;
    const auto r = run_well(work.command("classes", {"--count", "tokens", "--top", "16", "--json"}));
    CHECK(r.json()["images"].GetUint64() == 24);
    CHECK(r.json()["classes"].GetUint64() == 4);
    CHECK(r.json()["latents"].GetUint64() == 96);
    const auto l = psae::read_class_latents_npz(work / "out" / "class_latents.npz");
    CHECK(l.counts.count == psae::values<std::uint32_t>(psae::read_npz(pipeline / "masking.npz", "cls_sae_cnt")));
    CHECK(l.classes == std::vector<std::string>{"0_cat", "1_tree", "2_red_car", "3_house"});
    CHECK(l.counts.images == std::vector<std::uint32_t>(4, 6));
    CHECK(l.counts.tau == 0.2);
    const auto fires = l.counts.of_all();
    CHECK(r.json()["firing"].GetUint64() == 96 - std::size_t(std::count(fires.begin(), fires.end(), 0u)));

    const auto chosen = psae::values<std::uint32_t>(psae::read_npz(pipeline / "masking.npz", "chosen_latents"));
    const auto rows = read_csv(work / "out" / "class_latents.csv");
    REQUIRE(rows.size() == 64);
    for (std::size_t i = 0; i < 64; ++i) {
        const std::uint32_t f = chosen[i];
        CHECK(rows[i].at("class") == l.classes[i / 16]);
        CHECK(rows[i].at("rank") == std::to_string(i % 16 + 1));
        CHECK(rows[i].at("latent") == std::to_string(f));
        CHECK(std::stod(rows[i].at("count")) == l.counts.of_class(i / 16)[f]);
        CHECK(std::stod(rows[i].at("share")) ==
              Approx(double(l.counts.of_class(i / 16)[f]) / double(fires[f])).epsilon(1e-5));
        CHECK(std::stod(rows[i].at("class_share")) == 0.25);
    }
    CHECK(fs::exists(work / "out" / "run_config.json"));

    // The defaults count images by their mean activation.
    const auto text = run_well(work.command("classes", {})).out;
    CHECK(count_lines(text) == 6);
    CHECK(contains(text, "counted by images above 0.2"));
    const auto score = floats(pipeline / "statistics.npz", "image_score");
    std::size_t above = 0;
    for (const float v : score) above += v > 0.2f;
    const auto images = psae::read_class_latents_npz(work / "out" / "class_latents.npz");
    std::size_t counted = 0;
    for (const auto n : images.counts.count) counted += n;
    CHECK(counted == above);
    CHECK(images.counts.what == psae::class_count::images);
}

TEST_CASE("intervene: the accuracies of the reference, with its mistakes and without") {
    const std::string kind = GENERATE("reference", "corrected", "by_prediction");
    INFO(kind);
    const bench work;
    run_well({"classes", "--model", pipeline / "model", "--images", pipeline / "images", "--sae", work / "sae",
              "--count", "tokens", "--out", work / "counts"});
    std::vector<std::string> more{"--k", "1", "2", "4", "8", "16", "--json"};
    if (kind == "reference") more.insert(more.end(), {"--as-reference", "--train-images", pipeline / "images"});
    else more.insert(more.end(), {"--class-latents", work / "counts" / "class_latents.npz"});
    if (kind == "corrected") more.insert(more.end(), {"--by", "label"});
    const auto r = run_well(work.command("intervene", more));
    CHECK(contains(r.err, "24 of the pictures are among those that chose the latents") == (kind == "reference"));
    const auto json = r.json();
    CHECK(json["images"].GetUint64() == 24);
    CHECK(json["accuracy"].GetDouble() == 1);
    CHECK(json["layer"].GetUint64() == 3);
    const auto tpr = floats(pipeline / "masking.npz", "class_tpr_" + kind);
    const auto by_class = read_csv(work / "out" / "class_metrics.csv");
    const std::vector<std::string> names{"cat", "tree", "red car", "house"};
    std::size_t condition = 1;
    for (const char* k : {"1", "2", "4", "8", "16"})
        for (const char* action : {"keep", "remove"}) {
            INFO(action << " " << k);
            double mean = 0;
            for (std::size_t c = 0; c < 4; ++c) {
                mean += double(tpr[condition * 4 + c]) / 400;
                const auto row = std::find_if(by_class.begin(), by_class.end(), [&](const auto& r) {
                    return r.at("class") == names[c] && r.at("latents") == "class" && r.at("k") == k &&
                           r.at("action") == action && r.at("error_term") == "false";
                });
                REQUIRE(row != by_class.end());
                CHECK(100 * std::stod(row->at("accuracy")) == Approx(double(tpr[condition * 4 + c])).epsilon(1e-4));
                CHECK(row->at("pictures") == "6");
            }
            const auto all = json["interventions"].GetArray();
            const auto* row = std::find_if(all.begin(), all.end(), [&](const auto& r) {
                return r["latents"].GetString() == std::string("class") && r["k"].GetUint64() == std::stoul(k) &&
                       r["action"].GetString() == std::string(action) && !r["error_term"].GetBool();
            });
            REQUIRE(row != all.end());
            CHECK((*row)["accuracy"].GetDouble() == Approx(mean));  // as many pictures of each class
            CHECK((*row)["difference"].GetDouble() == Approx(mean - 1).margin(1e-9));
            CHECK((*row)["accuracy_low"].GetDouble() < mean + 1e-9);
            ++condition;
        }
    // Plain, five k twice and all twice; by default with and without the error term, and three random ones for each.
    const auto rows = read_csv(work / "out" / "metrics.csv");
    CHECK(rows.size() == 1 + (kind == "reference" ? 12 : 2 * (2 * 5 * 4 + 2)));
    CHECK(json["interventions"].Size() == rows.size() - 1);
    CHECK(rows[0].at("latents") == "none");
    std::size_t random = 0;
    for (const auto& row : rows) {
        random += row.at("latents") == "random";
        if (row.at("latents") == "all" && row.at("error_term") == "true" && row.at("action") == "keep") {
            CHECK(row.at("accuracy") == "1");  // nothing has changed
            CHECK(row.at("lost") == "0");
        }
        if (row.at("latents") != "none")
            CHECK(std::stod(row.at("difference")) * 24 ==
                  Approx(std::stod(row.at("gained")) - std::stod(row.at("lost"))).margin(1e-4));
    }
    CHECK(random == (kind == "reference" ? 0 : 60));
    for (const char* file : {"accuracy.png", "accuracy.svg", "run_config.json"}) CHECK(fs::exists(work / "out" / file));
    CHECK(fs::exists(work / "out" / "accuracy_with_error_term.png") == (kind != "reference"));

    // The options are a configuration file that gives the same again.
    const auto metrics = read_text(work / "out" / "metrics.csv");
    run_well({"intervene", "--config", work / "out" / "run_config.json", "--out", work / "again"});
    CHECK(read_text(work / "again" / "metrics.csv") == metrics);
}

TEST_CASE("intervene: a split for training, latents that are set, pictures without a class") {
    const bench work;
    std::string csv = "path,label,split\n";
    for (const std::string name : {"0_cat", "1_tree", "2_red_car", "3_house"})
        for (std::size_t i = 0; i < 6; ++i)
            csv += (pipeline / "images" / name / ("0" + std::to_string(i) + ".png")).string() + "," +
                   (i == 5 && name == "0_cat" ? "" : name) + "," + (i % 2 == 0 ? "train" : "test") + "\n";
    psae::write_text(work / "list.csv", csv);
    const auto arguments = [&](std::vector<std::string> more) {
        more.insert(more.begin(), {"intervene", "--model", pipeline / "model", "--images", work / "list.csv", "--sae",
                                   work / "sae", "--classes", work / "classes.txt", "--out", work / "out"});
        return more;
    };
    const auto r = run_well(arguments({"--split", "test", "--train-split", "train", "--random", "1", "--json"}));
    CHECK(r.err.empty());
    CHECK(r.json()["images"].GetUint64() == 11);
    CHECK(r.json()["without_class"].GetUint64() == 1);
    // The numbers of the paper up to d_sae 96, and all.
    CHECK(r.json()["interventions"].Size() == 2 * (2 * 5 * 2 + 2));
    CHECK(run_well(arguments({"--split", "test", "--train-split", "train", "--random", "1", "--json"})).out == r.out);

    // A latent that never fires changes nothing at 0; a strong push of all that fire does.
    const auto set = run_well(arguments({"--set", "0=0", "--error-term", "with", "--json"})).json();
    CHECK(set["interventions"].Size() == 3);
    const auto& last = set["interventions"][2];
    CHECK(last["action"].GetString() == std::string("set"));
    CHECK(last["k"].GetUint64() == 1);
    CHECK(last["lost"].GetUint64() == 0);
    std::vector<std::string> pushes{"--error-term", "with", "--json", "--set"};
    for (std::size_t f = 5; f < 20; ++f) pushes.push_back(std::to_string(f) + "=100");
    CHECK(run_well(arguments(pushes)).json()["interventions"][2]["lost"].GetUint64() > 5);
    const auto text = run_well(arguments({"--set", "7=2.5", "8=-1"})).out;
    CHECK(contains(text, "set 7=2.5 8=-1: "));
    CHECK(contains(text, "23 pictures, 4 classes"));
}

TEST_CASE("classes and intervene refuse what does not fit and leave nothing") {
    const bench work;
    const auto counts = (work / "counts").string();
    const auto file = [&](const std::vector<std::string>& classes, std::size_t d_sae,
                          const std::vector<std::uint32_t>& images) {
        psae::named_class_latents l{{}, classes};
        l.counts.classes = classes.size(), l.counts.latents = d_sae, l.counts.images = images;
        l.counts.count.assign(classes.size() * d_sae, 0);
        psae::write_class_latents_npz(work / "c.npz", l);
        return (work / "c.npz").string();
    };
    const auto refuse = [&](std::vector<std::string> more) { return refused(work.command("intervene", more)); };
    const std::vector<std::string> four{"0_cat", "1_tree", "2_red_car", "3_house"};
    const auto misfit = refuse({"--class-latents", file(four, 95, {1, 1, 1, 1})});
    for (const char* part : {"c.npz", "expected d_sae 96, found 95"}) CHECK(contains(misfit, part));
    const auto unknown = refuse({"--class-latents", file({"0_cat", "1_tree", "3_house"}, 96, {1, 1, 1})});
    for (const char* part : {"class red car", "c.npz"}) CHECK(contains(unknown, part));
    CHECK(contains(refuse({"--class-latents", file(four, 96, {1, 1, 1, 0})}), "class house"));
    const auto counted = file(four, 96, {1, 1, 1, 1});
    CHECK(contains(refuse({"--class-latents", counted, "--tau", "0.3"}), "c.npz): expected --tau 0.3, found 0.2"));
    for (const std::vector<std::string>& more : {std::vector<std::string>{"--count", "tokens"}, {"--as-reference"}}) {
        std::vector<std::string> arguments{"--class-latents", counted};
        arguments.insert(arguments.end(), more.begin(), more.end());
        CHECK(contains(refuse(arguments), "c.npz): expected --count tokens, found images"));
    }
    psae::write_text(work / "c.npz", read_text(work / "c.npz").substr(0, 300));
    CHECK(contains(refuse({"--class-latents", work / "c.npz"}), "c.npz"));
    CHECK(contains(refuse({"--class-latents", work / "none.npz"}), "none.npz"));
    CHECK(contains(refuse({"--train-images", pipeline / "images" / "0_cat"}), "no picture has a class"));
    CHECK(contains(refuse({"--train-images", pipeline / "images", "--k", "97"}), "at most 96, found 97"));
    CHECK(contains(refuse({"--train-split", "train"}), "no such split"));
    CHECK(contains(refuse({"--set", "96=1"}), "0 to 95"));
    CHECK(contains(refuse({"--set", "9=1", "9=2"}), "latent 9"));
    for (const char* command : {"classes", "intervene"}) {
        auto flat = work.command(command, {});
        *(std::find(flat.begin(), flat.end(), "--images") + 1) = (pipeline / "images" / "0_cat").string();
        if (command == std::string("intervene")) flat.insert(flat.end(), {"--set", "9=1"});
        CHECK(contains(refused(flat), "no picture has a class"));
    }
    auto narrow = pipeline_sae();
    narrow.d_in = 32;
    narrow.W_enc.resize(96 * 32);
    narrow.W_dec.resize(96 * 32);
    narrow.b_dec.resize(32);
    psae::write_sae(work / "narrow", narrow, "pipeline", -2);
    for (const char* command : {"classes", "intervene"}) {
        auto arguments = work.command(command, {});
        *(std::find(arguments.begin(), arguments.end(), "--sae") + 1) = (work / "narrow").string();
        if (command == std::string("intervene")) arguments.insert(arguments.end(), {"--set", "9=1"});
        CHECK(contains(refused(arguments), "d_in 32"));
    }
    for (const char* tau : {"nan", "-1", "inf"}) refused(work.command("classes", {"--tau", tau}), 2);
    refused(work.command("classes", {"--count", "pictures"}), 2);
    for (const std::vector<std::string>& usage :
         std::vector<std::vector<std::string>>{{},
                                               {"--class-latents", "x", "--train-images", "y"},
                                               {"--set", "9"},
                                               {"--set", "9=nan"},
                                               {"--set", "9=1x"},
                                               {"--set", "-9=1"},
                                               {"--set", "9=1", "--k", "0"},
                                               {"--set", "9=1", "--by", "chance"},
                                               {"--train-images", "x", "--tau", "nan"}})
        refused(work.command("intervene", usage), 2);
    for (const char* left : {"metrics.csv", "class_metrics.csv", "class_latents.npz", "class_latents.csv"})
        CHECK(!fs::exists(work / "out" / left));
    // Damaged counts whose order means nothing are used, but it is said.
    const auto silent =
        run_well(work.command("intervene", {"--class-latents", file(four, 96, {1, 1, 1, 1}), "--random", "0"}));
    CHECK(contains(silent.err, "no latent fires above tau 0.2 on 4 of 4 classes"));
}
