// attribute through the program: what is written agrees with itself, options choose what is explained, errors.
#include <algorithm>
#include <cmath>
#include <map>

#include "program.hpp"

#include <psae/io/dataset.hpp>
#include <psae/io/image.hpp>

#include "../pipeline.hpp"

using namespace program;

namespace {

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

// A folder with the golden SAE and three of the golden pictures.
struct bench : temporary_folder {
    bench() {
        psae::write_sae(*this / "sae", pipeline_sae(), "pipeline", -2);
        std::string csv = "path,label\n";
        for (const std::string name : {"0_cat", "1_tree", "2_red_car"})
            csv += (pipeline / "images" / name / "00.png").string() + "," + name + "\n";
        psae::write_text(*this / "list.csv", csv);
        psae::write_text(*this / "classes.txt", "0_cat\tcat\n1_tree\ttree\n2_red_car\tred car\n3_house\thouse\n");
        psae::write_text(*this / "templates.txt", "a photo of a {}.\n{}\n");
    }
    std::vector<std::string> command(const std::vector<std::string>& more) const {
        std::vector<std::string> all{"attribute",   "--model",     pipeline / "model",      "--sae",
                                     *this / "sae", "--templates", *this / "templates.txt", "--out",
                                     *this / "out"};
        all.insert(all.end(), more.begin(), more.end());
        if (std::find(more.begin(), more.end(), "--classes") == more.end())
            all.insert(all.end(), {"--classes", *this / "classes.txt"});
        if (std::find(more.begin(), more.end(), "--image") == more.end())
            all.insert(all.end(), {"--images", *this / "list.csv"});
        return all;
    }
    std::vector<float> array(const std::string& name) const { return floats(*this / "out" / "attributions.npz", name); }
};

}  // namespace

TEST_CASE("attribute: rows, arrays and overlays say the same") {
    const bench work;
    const auto r = run_well(work.command({"--method", "integrated", "--top", "3", "--overlays", "2", "--json"}));
    const auto json = r.json();
    CHECK(json["images"].GetUint64() == 3);
    CHECK(json["skipped"].GetUint64() == 0);
    CHECK(json["classes"].GetUint64() == 4);
    CHECK(json["templates"].GetUint64() == 2);
    CHECK(json["layer"].GetUint64() == 3);
    CHECK(json["correlation"].GetDouble() > 0.5);
    CHECK(json["same_sign"].GetDouble() > 0.5);
    CHECK(json["completeness_error"].GetDouble() < 0.02);

    const auto value = work.array("value"), baseline = work.array("baseline"), total = work.array("total"),
               latents = work.array("latents"), attribution = work.array("attribution"),
               class_token = work.array("class_token"), effect = work.array("effect_of_removal"),
               maps = work.array("maps"), sum_map = work.array("sum_map"), sum_class = work.array("sum_class_token");
    REQUIRE(maps.size() == 3 * 6 * 16);
    std::size_t used = 0;
    double missing = 0, change = 0;
    for (std::size_t i = 0; i < 3; ++i) {
        double sum = double(sum_class[i]);
        for (std::size_t p = 0; p < 16; ++p) sum += double(sum_map[i * 16 + p]);
        CHECK(sum == Approx(double(total[i])).margin(1e-4));
        missing += std::abs(double(total[i]) - double(value[i]) + double(baseline[i]));
        change += std::abs(double(value[i]) - double(baseline[i]));
    }
    CHECK(json["completeness_error"].GetDouble() == Approx(missing / change).margin(1e-4));
    const auto table = psae::detail::parse_table(read_text(work / "out" / "attributions.csv"), ',', "attributions.csv");
    CHECK(table[0].second == std::vector<std::string>{"file", "class", "latent", "attribution", "class_token",
                                                      "strongest_patch", "row", "column", "activation",
                                                      "effect_of_removal"});
    for (std::size_t place = 0; place < 18; ++place) {
        if (latents[place] < 0) {
            CHECK(attribution[place] == 0);
            continue;
        }
        double sum = double(class_token[place]), strongest = 0;
        for (std::size_t p = 0; p < 16; ++p) {
            sum += double(maps[place * 16 + p]);
            if (std::abs(maps[place * 16 + p]) > std::abs(strongest)) strongest = double(maps[place * 16 + p]);
        }
        CHECK(sum == Approx(double(attribution[place])).margin(1e-5));
        CHECK((attribution[place] > 0) == (place % 6 < 3));
        const auto& row = table.at(1 + used++).second;
        CHECK(contains(row[0], place < 6 ? "0_cat/00.png" : place < 12 ? "1_tree/00.png" : "2_red_car/00.png"));
        CHECK(std::stof(row[2]) == latents[place]);
        CHECK(std::stod(row[3]) == Approx(double(attribution[place])).epsilon(1e-4));
        CHECK(std::stod(row[4]) == Approx(double(class_token[place])).epsilon(1e-4).margin(1e-9));
        CHECK(std::stod(row[5]) == Approx(strongest).epsilon(1e-4).margin(1e-9));
        CHECK(double(maps[place * 16 + std::stoul(row[6]) * 4 + std::stoul(row[7])]) == Approx(strongest));
        CHECK(std::stod(row[8]) > 0);
        CHECK(std::stod(row[9]) == Approx(double(effect[place])).epsilon(1e-4).margin(1e-6));
    }
    CHECK(table.size() == 1 + used);
    CHECK(json["latents"].GetUint64() == used);
    CHECK(used >= 12);
    CHECK(fs::exists(work / "out" / "overlays" / "0000_00.png"));
    CHECK(fs::exists(work / "out" / "overlays" / "0001_00.png"));
    CHECK(!fs::exists(work / "out" / "overlays" / "0002_00.png"));
    const auto overlay = psae::read_image(work / "out" / "overlays" / "0000_00.png");
    CHECK(overlay.width > 5 * 176);

    // The options are a configuration file that gives the same again.
    run_well({"attribute", "--config", work / "out" / "run_config.json", "--out", work / "again"});
    CHECK(read_text(work / "again" / "attributions.csv") == read_text(work / "out" / "attributions.csv"));
    psae::write_text(work / "out" / "overlays" / "mine.png", "");
    const auto text = run_well(work.command({"--top", "3", "--overlays", "0"})).out;
    CHECK(count_lines(text) == 4 + 2);
    CHECK(contains(text, "3 pictures"));
    for (const auto& left : fs::directory_iterator(work / "out" / "overlays"))
        CHECK(left.path().filename() == "mine.png");
}

TEST_CASE("attribute: the class that is explained, contrasts, the error term, names of classes on the command line") {
    const bench work;
    const std::string picture = pipeline / "images" / "1_tree" / "03.png";
    const auto value = [&](std::vector<std::string> more) {
        run_well(work.command(more));
        return double(work.array("value").at(0));
    };
    const std::string names = "cat, tree,red car,house";
    const double tree = value({"--image", picture, "--classes", names, "--class", "tree"}),
                 house = value({"--image", picture, "--classes", names, "--class", "house"}),
                 cat = value({"--image", picture, "--classes", names, "--class", "cat"}),
                 car = value({"--image", picture, "--classes", names, "--class", "red car"});
    CHECK(value({"--image", picture, "--classes", names}) == Approx(std::max({tree, house, cat, car})));
    CHECK(value({"--image", picture, "--classes", names, "--class", "tree", "--contrast", "house"}) ==
          Approx(tree - house).margin(1e-4));
    CHECK(value({"--image", picture, "--classes", names, "--class", "tree", "--contrast", "others"}) ==
          Approx(tree - (house + cat + car) / 3).margin(1e-4));
    const double reconstructed =
        value({"--image", picture, "--classes", names, "--class", "tree", "--error-term", "without"});
    CHECK(std::abs(reconstructed - tree) > 1e-3);

    // By label, which may also be named; pictures without a class are left out.
    run_well(work.command({"--by", "label"}));
    CHECK(work.array("explained_class") == std::vector<float>{0, 1, 2});
    run_well(work.command({"--class", "2_red_car"}));
    CHECK(work.array("explained_class") == std::vector<float>{2, 2, 2});
    run_well({"attribute", "--config", work / "out" / "run_config.json", "--out", work / "again"});
    CHECK(floats(work / "again" / "attributions.npz", "explained_class") == std::vector<float>{2, 2, 2});
    CHECK(work.array("labels") == std::vector<float>{0, 1, 2});
}

TEST_CASE("attribute refuses what does not fit") {
    const bench work;
    const std::string picture = pipeline / "images" / "1_tree" / "03.png";
    const auto refuse = [&](std::vector<std::string> more, int code = 1) { return refused(work.command(more), code); };
    for (const char* option : {"--class", "--contrast"}) {
        const auto unknown = refuse({option, "dog"});
        for (const char* part : {"no such class", option, "dog", "cat, tree, red car, house"})
            CHECK(contains(unknown, part));
    }
    CHECK(contains(refuse({"--image", picture, "--by", "label"}), "no picture has a class"));
    CHECK(contains(refuse({"--classes", "cat,,tree"}), "class has no name"));
    CHECK(contains(refuse({"--classes", "cat,tree,Cat"}), "named twice"));
    CHECK(contains(refuse({"--image", work / "none.png"}), "none.png"));
    psae::write_text(work / "broken.png", "no picture");
    const auto broken = run(work.command({"--image", work / "broken.png"}));
    CHECK(broken.code == 1);
    CHECK(contains(broken.err, "no picture could be read"));
    auto narrow = pipeline_sae();
    narrow.d_in = 32;
    narrow.W_enc.resize(96 * 32);
    narrow.W_dec.resize(96 * 32);
    narrow.b_dec.resize(32);
    psae::write_sae(work / "sae", narrow, "pipeline", -2);
    CHECK(contains(refuse({}), "d_in 32"));
    for (const std::vector<std::string>& usage :
         std::vector<std::vector<std::string>>{{"--top", "0"},
                                               {"--steps-of-integration", "0"},
                                               {"--method", "guess"},
                                               {"--error-term", "both"},
                                               {"--class", "cat", "--by", "label"}})
        refuse(usage, 2);
    refused({"attribute", "--model", pipeline / "model", "--sae", work / "sae", "--out", work / "out"}, 2);
    for (const char* left : {"attributions.csv", "attributions.npz", "run_config.json"})
        CHECK(!fs::exists(work / "out" / left));
}

TEST_CASE("report: a part of its own for what attribute wrote") {
    const bench work;
    auto arguments = work.command({"--top", "4"});
    *(std::find(arguments.begin(), arguments.end(), "--out") + 1) = work / "sae" / "attributions";
    run_well(arguments);
    run_well({"report", "--sae", work / "sae", "--out", work / "report.html"});
    const auto page = read_text(work / "report.html");
    CHECK(contains(page, "What speaks for a class"));
    CHECK(contains(page, "<th>against 3</th>"));
    std::size_t pictures = 0;
    for (std::size_t at = page.find("data:image/jpeg"); at != page.npos; at = page.find("data:image/jpeg", at + 1))
        ++pictures;
    CHECK(pictures == 3);  // there is no summary of latents, and no other picture

    const auto csv = read_text(work / "sae" / "attributions" / "attributions.csv");
    psae::write_text(work / "sae" / "attributions" / "attributions.csv", csv + "x.png,cat,96,1,1,1,0,0,1,1\n");
    CHECK(contains(refused({"report", "--sae", work / "sae", "--out", work / "x.html"}), "another SAE"));
    psae::write_text(work / "sae" / "attributions" / "attributions.csv", csv + "x.png,cat,9,one,1,1,0,0,1,1\n");
    CHECK(contains(refused({"report", "--sae", work / "sae", "--out", work / "x.html"}), "attribution one"));
    psae::write_text(work / "sae" / "attributions" / "attributions.csv", "file,class\n");
    CHECK(contains(refused({"report", "--sae", work / "sae", "--out", work / "x.html"}), "no column latent"));
}
