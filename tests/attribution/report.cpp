// Training curves, the choice of latents, the page, and the program's latents, mask and report against golden/pipeline.
#include <catch2/catch.hpp>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include <sys/wait.h>
#include <psae/attribution/report.hpp>
#include <psae/io/class_latents_file.hpp>
#include <psae/io/json.hpp>
#include <psae/io/latents_file.hpp>
#include <psae/io/sae_file.hpp>
#include <psae/io/safetensors.hpp>
#include <psae/io/training_curves.hpp>

#include "../difference.hpp"
#include "../temporary_folder.hpp"

namespace {

namespace fs = std::filesystem;

const fs::path pipeline = fs::path(PSAE_GOLDEN_DIR) / "pipeline";

std::string contents(const fs::path& path) {
    std::ifstream in(path, std::ios::binary);
    std::ostringstream out;
    out << in.rdbuf();
    return out.str();
}

struct outcome {
    int code;
    std::string out, err;
};

// Runs the program with arguments that hold no single quote.
outcome run(const fs::path& folder, const std::vector<std::string>& arguments) {
    std::string line = "'" PSAE_PROGRAM "'";
    for (const auto& a : arguments) line += " '" + a + "'";
    line += " >'" + (folder / "stdout").string() + "' 2>'" + (folder / "stderr").string() + "'";
    const int status = std::system(line.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, contents(folder / "stdout"), contents(folder / "stderr")};
}

// The golden SAE in SAELens' layout, as a run directory.
void write_golden_sae(const fs::path& folder) {
    fs::create_directories(folder);
    const auto codes = psae::read_npz(pipeline / "codes.npz");
    std::vector<psae::tensor_to_write> tensors;
    std::map<std::string, std::vector<float>> values;
    for (const char* name : {"W_enc", "b_enc", "W_dec", "b_dec"}) {
        values[name] = psae::to_floats(codes.at(name));
        tensors.push_back(psae::to_write(name, codes.at(name).shape, values[name].data()));
    }
    psae::write_safetensors(folder / "sae_weights.safetensors", tensors);
    psae::write_text(folder / "cfg.json",
                     R"({"architecture": "standard", "d_in": 64, "d_sae": 96, "dtype": "float32", "device": "cpu",
                         "apply_b_dec_to_input": true, "normalize_activations": "none",
                         "metadata": {"model_name": ")" +
                         (pipeline / "model").string() + R"(", "hook_name": "hidden_states.-2"}})");
}

// The golden images in the golden order, with their labels.
void write_golden_list(const fs::path& table) {
    const auto expected = psae::read_json(pipeline / "expected.json");
    std::string csv = "path,label\n";
    for (const auto& f : expected["files"].GetArray())
        csv += (pipeline / f["file"].GetString()).string() + "," + std::to_string(f["label"].GetInt()) + "\n";
    psae::write_text(table, csv);
}

double difference(const psae::array& a, const psae::array& golden) {
    const auto x = psae::values<double>(a), y = psae::values<double>(golden);
    REQUIRE(x.size() == y.size());
    double largest = 0, worst = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
        if (std::isnan(x[i]) != std::isnan(y[i])) return 1;
        if (std::isnan(x[i])) continue;
        largest = std::max(largest, std::abs(y[i]));
        worst = worse(worst, std::abs(x[i] - y[i]));
    }
    return worst / largest;
}

// Every start tag has its end tag, in order; attributes are quoted. Returns what is wrong, or nothing.
std::string malformed(const std::string& html) {
    const std::set<std::string> empty = {"meta", "img", "input"};
    std::vector<std::string> open;
    for (std::size_t i = 0; i < html.size();) {
        if (html[i] == '>') return "stray > at " + html.substr(i - std::min<std::size_t>(i, 40), 80);
        if (html[i] != '<') {
            ++i;
            continue;
        }
        std::size_t end = i + 1;
        bool quoted = false;
        for (; end < html.size() && (quoted || html[end] != '>'); ++end) {
            if (html[end] == '"') quoted = !quoted;
            else if (html[end] == '<') return "tag in a tag: " + html.substr(i, 80);
        }
        if (end == html.size()) return "tag does not end: " + html.substr(i, 80);
        const std::string tag = html.substr(i + 1, end - i - 1);
        i = end + 1;
        if (tag.starts_with("!doctype")) continue;
        const std::string name = tag.substr(tag[0] == '/', tag.find_first_of(" \n/", 1) - (tag[0] == '/'));
        if (tag[0] == '/') {
            if (open.empty() || open.back() != tag.substr(1)) return "unexpected end tag " + tag;
            open.pop_back();
        } else if (tag.back() != '/' && !empty.contains(name)) {
            open.push_back(name);
            if (name == "style" || name == "script") i = html.find("</" + name + ">", i);
            if (i == std::string::npos) return name + " does not end";
        }
    }
    return open.empty() ? "" : "not closed: " + open.back();
}

std::size_t count(const std::string& text, const std::string& what) {
    std::size_t n = 0;
    for (std::size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + 1)) ++n;
    return n;
}

}  // namespace

TEST_CASE("training curves come from metrics.jsonl") {
    const temporary_folder folder;
    const auto path = folder.path / "metrics.jsonl";
    psae::write_text(path,
                     "{\"step\": 1, \"loss\": 4, \"mse\": 3, \"l1\": 1, \"l0\": 7, \"dead_fraction\": 0}\n"
                     "{\"step\": 2, \"loss\": 2, \"mse\": 1.5, \"l1\": 0.5, \"l0\": 6, \"eval_l0\": 5, \"lr\": null}\n"
                     "{\"step\": 3, \"loss\": 1, \"ms");
    const auto curves = psae::read_training_curves(path);
    CHECK(curves.at("step") == std::vector<double>{1, 2});
    CHECK(curves.at("loss") == std::vector<double>{4, 2});
    CHECK(std::isnan(curves.at("eval_l0")[0]));
    CHECK(std::isnan(curves.at("dead_fraction")[1]));
    const auto charts = psae::charts_of(curves);
    REQUIRE(charts.size() == 3);  // loss, L0, dead
    CHECK(charts[0].drawing.data.size() == 3);
    CHECK(charts[1].drawing.data[1].x == std::vector<double>{2});
    psae::write_training_curves(folder.path);
    for (const char* name : {"loss.png", "l0.png", "dead.png"})
        CHECK(psae::read_image(folder.path / name).width == 2 * 440);
    psae::write_text(path, "");
    CHECK(psae::charts_of(psae::read_training_curves(path)).empty());
    for (const char* bad : {"{\"loss\": 1}\n", "[1]\n", "nonsense\n", "{\"step\": \"1\"}\n"}) {
        psae::write_text(path, bad);
        CHECK_THROWS_AS(psae::read_training_curves(path), psae::error);
    }
}

TEST_CASE("a line of many points keeps its extremes") {
    psae::series s{"", {}, {}};
    for (int i = 0; i < 100000; ++i) s.x.push_back(i), s.y.push_back(i == 54321 ? 9 : std::sin(i * 0.37));
    const auto svg = psae::to_svg(psae::line_plot("", "", "", {s}));
    CHECK(svg.size() < 60000);
    std::vector<psae::detail::plot_point> points;
    for (std::size_t i = 0; i < s.x.size(); ++i) points.push_back({s.x[i] / 200, s.y[i]});
    const auto thin = psae::detail::thinned_line(points, 1);
    CHECK(thin.size() <= 4 * 501);
    CHECK(std::any_of(thin.begin(), thin.end(), [](const auto& p) { return p.y == 9; }));
    CHECK((thin.front().x == points.front().x && thin.back().x == points.back().x));
}

TEST_CASE("the interesting latents are strong, selective, and not the same twice") {
    // 40 images of one token, two labels. Latent 0 is dead, 1 fires everywhere, 2 strongly on images 0 to 5, 3 the same
    // but weaker, 4 on images 20 to 25, 5 once.
    constexpr std::size_t images = 40, latents = 6;
    std::vector<std::size_t> offsets{0};
    std::vector<std::uint32_t> latent;
    std::vector<float> value;
    std::vector<std::int64_t> labels;
    for (std::size_t i = 0; i < images; ++i) {
        const float on[latents] = {
            0, 9, i < 6 ? 8.0f : 0.0f, i < 6 ? 4.0f : 0.0f, i >= 20 && i < 26 ? 2.0f : 0.0f, i == 30 ? 1.0f : 0.0f};
        for (std::size_t f = 0; f < latents; ++f)
            if (on[f] > 0) latent.push_back(static_cast<std::uint32_t>(f)), value.push_back(on[f]);
        offsets.push_back(latent.size());
        labels.push_back(i < 20 ? 0 : 1);
    }
    psae::codes_view<float> z;
    z.tokens = images, z.latents = latents;
    z.offsets = offsets.data(), z.latent = latent.data(), z.value = value.data();
    psae::latent_summary_builder builder(latents, 10);
    builder.add(z, 1);
    for (const bool labelled : {false, true}) {
        const auto s = labelled ? builder.finish(labels) : builder.finish();
        const auto given = labelled ? labels : std::vector<std::int64_t>{};
        CHECK(psae::interesting_latents(s, given, 2) == std::vector<std::size_t>{2, 4});
        const auto all = psae::interesting_latents(s, given, 99);
        CHECK(all.size() == 5);  // all that fire
        CHECK(std::find(all.begin(), all.end(), 0) == all.end());
        CHECK(psae::interesting_latents(s, given, 0).empty());
    }
}

TEST_CASE("text of a page is escaped and UTF-8") {
    CHECK(psae::detail::html_text("<a href=\"x\">&'") == "&lt;a href=&quot;x&quot;&gt;&amp;&#39;");
    CHECK(psae::detail::html_text("\xc3\xa4 \xe2\x82\xac \xf0\x9f\x98\x80") ==
          "\xc3\xa4 \xe2\x82\xac \xf0\x9f\x98\x80");
    for (const char* bad : {"\xff", "\xc3", "\xed\xa0\x80", "\xc0\xaf", "\xf4\x90\x80\x80", "\x01"})
        CHECK(psae::detail::html_text(bad).find("\xef\xbf\xbd") == 0);
    CHECK(psae::detail::base64("") == "");
    CHECK(psae::detail::base64("f") == "Zg==");
    CHECK(psae::detail::base64("fo") == "Zm8=");
    CHECK(psae::detail::base64("foobar") == "Zm9vYmFy");
    CHECK(psae::detail::base64(std::string("\0\xff\x80", 3)) == "AP+A");
}

TEST_CASE("a page of nothing is a page") {
    psae::report page;
    page.title = "</title><script>alert(1)</script>";
    page.notes = {"no <latents>"};
    const auto html = psae::to_html(page);
    CHECK(malformed(html) == "");
    for (const char* bad : {"<p><b></p></b>", "<p>", "</p>", "<p title=\"a>", "<p>a > b</p>", "<img src=\"a\"></img>"})
        CHECK(malformed(bad) != "");
    CHECK(count(html, "<script>") == 1);
    CHECK(html.find("no &lt;latents&gt;") != std::string::npos);
}

TEST_CASE("the program's latents equal the reference's statistics", "[program]") {
    if (std::string(PSAE_PROGRAM).empty()) return;
    const temporary_folder folder;
    write_golden_sae(folder.path / "sae");
    write_golden_list(folder.path / "images.csv");
    const auto out = folder.path / "summary";
    const auto done =
        run(folder.path,
            {"latents", "--model", (pipeline / "model").string(), "--sae", (folder.path / "sae").string(), "--images",
             (folder.path / "images.csv").string(), "--grids", "3", "--latent", "90", "0", "--out", out.string()});
    INFO(done.err);
    REQUIRE(done.code == 0);
    const auto arrays = psae::read_npz(out / "latents.npz"), golden = psae::read_npz(pipeline / "statistics.npz");
    using shape = std::vector<std::size_t>;
    for (const char* name : {"token_frequency", "mean_activation", "max_activation", "label_entropy", "label_std"}) {
        INFO(name);
        CHECK(arrays.at(name).type == psae::element_type::f32);
        CHECK(arrays.at(name).shape == shape{96});
    }
    CHECK(arrays.at("top_images").type == psae::element_type::i32);
    CHECK(arrays.at("top_images").shape == shape{96, 10});
    CHECK(arrays.at("top_values").type == psae::element_type::f32);
    CHECK(arrays.at("top_values").shape == shape{96, 10});
    CHECK(arrays.at("labels").shape == shape{24});
    REQUIRE(arrays.at("files").strings.size() == 24);
    CHECK(arrays.at("files").strings[1].ends_with("images/1_tree/00.png"));
    CHECK(arrays.at("class_names").strings == std::vector<std::string>{"0", "1", "2", "3"});
    // The codes themselves are within 2e-5 of the reference's.
    for (const auto& [mine, reference] : {std::pair{"token_frequency", "token_frequency"},
                                          {"mean_activation", "mean_positive_token_activation"},
                                          {"max_activation", "max_token_activation"},
                                          {"image_frequency", "sae_sparsity"},
                                          {"mean_image_score", "sae_mean_acts"},
                                          {"top_values", "max_activating_image_values"},
                                          {"label_entropy", "label_entropy_fixed"},
                                          {"label_std", "label_std_population"}}) {
        INFO(mine);
        CHECK(difference(arrays.at(mine), golden.at(reference)) < 2e-5);
    }
    CHECK(psae::values<std::int64_t>(arrays.at("top_images")) ==
          psae::values<std::int64_t>(golden.at("top_indices_fixed")));
    CHECK(count(contents(out / "latents.csv"), "\n") == 97);
    for (const char* name : {"scatter_label_entropy.png", "scatter_label_std.png", "grids/latent_90.png"})
        CHECK(psae::read_image(out / name).width > 100);
    CHECK(!fs::exists(out / "grids" / "latent_0.png"));  // it never fires
    const auto again = psae::read_latents_npz(out / "latents.npz");
    CHECK(again.summary.images == 24);
    CHECK(again.labels[2] == 2);

    const auto refused =
        run(folder.path,
            {"latents", "--model", (pipeline / "model").string(), "--sae", (folder.path / "sae").string(), "--images",
             (folder.path / "images.csv").string(), "--latent", "96", "--out", (folder.path / "refused").string()});
    CHECK(refused.code == 1);
    CHECK(refused.err.starts_with("patchsae: error: no such latent"));
    CHECK(!fs::exists(folder.path / "refused"));
}

TEST_CASE("a table's pictures may have names of any ending", "[program]") {
    if (std::string(PSAE_PROGRAM).empty()) return;
    const temporary_folder folder;
    write_golden_sae(folder.path / "run");
    std::string table = "path,label\n";
    for (int i = 0; i < 3; ++i) {
        const std::string name = "picture" + std::to_string(i) + (i == 0 ? "" : ".data");
        fs::copy_file(pipeline / "images" / "1_tree" / ("0" + std::to_string(i) + ".png"), folder.path / name);
        table += name + ",tree\n";
    }
    psae::write_text(folder.path / "images.csv", table);
    const std::string model = (pipeline / "model").string(), sae = (folder.path / "run").string(),
                      latents = (folder.path / "latents").string();
    auto done = run(folder.path, {"latents", "--model", model, "--sae", sae, "--images",
                                  (folder.path / "images.csv").string(), "--grids", "2", "--out", latents});
    INFO(done.err);
    REQUIRE(done.code == 0);
    CHECK(std::distance(fs::directory_iterator(folder.path / "latents" / "grids"), fs::directory_iterator()) == 2);
    done = run(folder.path, {"report", "--model", model, "--sae", sae, "--latents", latents, "--out",
                             (folder.path / "report.html").string()});
    INFO(done.err);
    REQUIRE(done.code == 0);
    CHECK(count(contents(folder.path / "report.html"), "class=\"map\"") > 0);
    CHECK(contents(folder.path / "report.html").find("could not be read") == std::string::npos);
}

TEST_CASE("the program's masks equal the reference's", "[program]") {
    if (std::string(PSAE_PROGRAM).empty()) return;
    const temporary_folder folder;
    write_golden_sae(folder.path / "sae");
    const auto golden = psae::read_npz(pipeline / "masks.npz"), codes = psae::read_npz(pipeline / "codes.npz");
    const auto expected = psae::read_json(pipeline / "expected.json");
    const auto pairs = psae::values<std::int64_t>(golden.at("pairs"));
    const auto z = psae::to_floats(codes.at("codes"));
    for (std::size_t i = 0; i < pairs.size() / 2; ++i) {
        const auto image = static_cast<std::size_t>(pairs[2 * i]);
        const std::string latent = std::to_string(pairs[2 * i + 1]);
        const fs::path file =
            pipeline / expected["files"].GetArray()[static_cast<rapidjson::SizeType>(image)]["file"].GetString();
        INFO("pair " << i << ", " << file);
        for (const std::string style : {"heat", "darken"}) {
            const auto out = folder.path / style;
            const auto done =
                run(folder.path, {"mask", "--model", (pipeline / "model").string(), "--sae",
                                  (folder.path / "sae").string(), "--image", file.string(), "--latent", latent,
                                  "--patch", "2,1", "--top", "3", "--style", style, "--out", out.string()});
            INFO(done.err);
            REQUIRE(done.code == 0);
            const auto stem = out / ("latent_" + latent);
            const auto map = psae::read_npz(stem.string() + ".npz", "map");
            CHECK(map.type == psae::element_type::f32);
            CHECK(map.shape == std::vector<std::size_t>{4, 4});
            const auto reference = psae::to_floats(golden.at("grid_" + std::to_string(i)));
            if (*std::max_element(reference.begin(), reference.end()) > 0)
                CHECK(difference(map, golden.at("grid_" + std::to_string(i))) < 2e-5);
            const auto drawn = psae::read_image(stem.string() + ".png"), picture = psae::read_image(file);
            REQUIRE((drawn.width == picture.width && drawn.height == picture.height));
            if (style == "darken") {
                const auto normalised = psae::to_floats(golden.at("normalised_" + std::to_string(i)));
                std::size_t wrong = 0;
                for (std::size_t p = 0; p < normalised.size() * 3; ++p)
                    wrong += drawn.rgb[p] != (normalised[p / 3] == 0 ? picture.rgb[p] * 30 / 255 : picture.rgb[p]);
                CHECK(wrong == 0);
            }
            // The strongest latents of patch (2, 1): token 1 + 2 * 4 + 1.
            std::vector<std::pair<float, std::size_t>> order;
            for (std::size_t f = 0; f < 96; ++f) order.emplace_back(-z[(image * 17 + 10) * 96 + f], f);
            std::sort(order.begin(), order.end());
            std::istringstream lines(done.out.substr(done.out.find('\n') + 1));
            for (std::size_t j = 0; j < 3 && order[j].first < 0; ++j) {
                std::size_t f = 0;
                float v = 0;
                lines >> f >> v;
                CHECK(f == order[j].second);
                CHECK(v == Approx(-order[j].first).epsilon(1e-4));
            }
        }
    }
    for (const char* patch : {"4,0", "0", "0,4", "-1,0", "0,0x", "a,b", ""}) {
        const auto refused =
            run(folder.path, {"mask", "--model", (pipeline / "model").string(), "--sae", (folder.path / "sae").string(),
                              "--image", (pipeline / "images/0_cat/00.png").string(), "--patch=" + std::string(patch),
                              "--out", (folder.path / "refused").string()});
        INFO(patch);
        CHECK(refused.code != 0);
        CHECK(!fs::exists(folder.path / "refused"));
    }
}

TEST_CASE("the program's report holds everything and trusts no name", "[program]") {
    if (std::string(PSAE_PROGRAM).empty()) return;
    const temporary_folder folder;
    const std::string hostile = "x\"><img src=q onerror=alert(1)>&", hostile_class = "<script>alert(2)<script>";
    write_golden_sae(folder.path / "run");
    for (const char* c : {"0_cat", "1_tree", "2_red_car"})
        for (const auto& entry : fs::directory_iterator(pipeline / "images" / c)) {
            fs::create_directories(folder.path / "images" / hostile_class);
            fs::copy_file(entry.path(),
                          folder.path / "images" / hostile_class / (hostile + c + entry.path().filename().string()));
        }
    fs::create_directories(folder.path / "images" / "house");
    for (const auto& entry : fs::directory_iterator(pipeline / "images" / "3_house"))
        fs::copy_file(entry.path(), folder.path / "images" / "house" / entry.path().filename());
    psae::write_text(folder.path / "run" / "metrics.jsonl",
                     "{\"step\": 1, \"loss\": 4, \"l0\": 7, \"explained_variance\": 0.5, \"dead_fraction\": 0.25}\n"
                     "{\"step\": 2, \"loss\": 3, \"l0\": 6, \"explained_variance\": 0.75, \"dead_fraction\": 0.125}\n");
    const auto page = folder.path / "report.html";
    const auto report = [&](std::vector<std::string> more = {}) {
        std::vector<std::string> all = {
            "report", "--sae", (folder.path / "run").string(), "--count", "7", "--top", "4", "--out", page.string()};
        all.insert(all.end(), more.begin(), more.end());
        const auto done = run(folder.path, all);
        INFO(done.err);
        REQUIRE(done.code == 0);
        const auto html = contents(page);
        CHECK(malformed(html) == "");
        // Nothing from elsewhere: the only address is SVG's name.
        CHECK(count(html, "http") == count(html, "xmlns=\"http://www.w3.org/2000/svg\""));
        CHECK(count(html, "src=\"") == count(html, "src=\"data:image/"));
        CHECK(count(html, "url(") == 0);
        CHECK(count(html, "<script>") == 1);
        CHECK(html.find("<img src=q") == std::string::npos);
        return html;
    };

    auto html = report();
    CHECK(count(html, "class=\"note\"") == 1);  // no latents yet
    CHECK(count(html, "<svg") == 4);
    CHECK(html.find("0.750") != std::string::npos);
    CHECK(html.find("metadata.hook_name") != std::string::npos);

    const auto done = run(folder.path, {"latents", "--model", (pipeline / "model").string(), "--sae",
                                        (folder.path / "run").string(), "--images", (folder.path / "images").string(),
                                        "--grids", "0", "--out", (folder.path / "run" / "latents").string()});
    INFO(done.err);
    REQUIRE(done.code == 0);
    html = report({"--latent", "3"});  // latent 3 never fires
    CHECK(count(html, "class=\"note\"") == 0);
    CHECK(count(html, "<svg") == 6);
    CHECK(count(html, "<article") == 8);
    CHECK(html.find("id=\"latent-3\"") != std::string::npos);
    const auto latents = psae::read_latents_npz(folder.path / "run" / "latents" / "latents.npz");
    std::size_t pictures = 0;
    for (std::size_t f = 0; f < 96; ++f)
        if (html.find("id=\"latent-" + std::to_string(f) + "\"") != std::string::npos)
            for (std::size_t j = 0; j < 4; ++j) pictures += latents.summary.top_images[f * 10 + j] >= 0;
    CHECK(pictures > 12);
    CHECK(count(html, "data:image/jpeg;base64,") == pictures);
    CHECK(count(html, "class=\"map\"") == pictures);
    CHECK(html.find("x&quot;&gt;&lt;img src=q onerror=alert(1)&gt;&amp;") != std::string::npos);
    CHECK(html.find("&lt;script&gt;alert(2)&lt;script&gt;") != std::string::npos);

    // What classes and intervene found, from their folders in the run's.
    const auto in_run = [&](std::vector<std::string> arguments, const char* out) {
        for (const std::string& more :
             {std::string("--model"), (pipeline / "model").string(), std::string("--sae"),
              (folder.path / "run").string(), std::string("--images"), (folder.path / "images").string(),
              std::string("--out"), (folder.path / "run" / out).string()})
            arguments.push_back(more);
        const auto r = run(folder.path, arguments);
        INFO(r.err);
        REQUIRE(r.code == 0);
    };
    in_run({"classes", "--tau", "0.05"}, "classes");
    const auto counts = (folder.path / "run" / "classes" / "class_latents.npz").string();
    in_run({"intervene", "--class-latents", counts, "--k", "1", "4", "--random", "2"}, "interventions");
    html = report();
    CHECK(count(html, "<svg") == 6);
    CHECK(count(html, "data:image/svg+xml;base64,") == 2);
    CHECK(count(html, "<tr><th>") == 2);
    const auto l = psae::read_class_latents_npz(counts);
    const auto first = psae::specific_latents(l.counts, 1, 1, l.counts.of_all())[0].first;
    CHECK(l.classes[1] == "house");
    CHECK(html.find("<td>house</td><td>6</td><td><a href=\"#latent-" + std::to_string(first) + "\">") !=
          std::string::npos);
    CHECK(count(html, "<td>without</td>") == 3);  // k 1, 4 and all
    CHECK(count(html, "<td>with</td>") == 3);
    // Each row has all six fields but for random ones of all latents: the mean of the two repeats is one of them.
    const auto metrics =
        psae::detail::parse_table(contents(folder.path / "run" / "interventions" / "metrics.csv"), ',', "");
    double sum = 0;
    for (const auto& [line, f] : metrics)
        if (f[0] == "random" && f[2] == "remove" && f[3] == "4" && f[4] == "false") sum += std::stod(f[6]);
    char mean[32];
    std::snprintf(mean, sizeof mean, "<td>%.1f%%</td></tr>", 100 * sum / 2);
    CHECK(html.find(mean) != std::string::npos);
    psae::write_text(folder.path / "run" / "interventions" / "metrics.csv", "latents,k\n");
    const auto refused = run(folder.path, {"report", "--sae", (folder.path / "run").string()});
    CHECK(refused.code == 1);
    CHECK(refused.err.find("table has no column action") != std::string::npos);
    fs::remove_all(folder.path / "run" / "interventions");
    fs::remove_all(folder.path / "run" / "classes");

    // A model that is named here has to be there; one that the SAE came from may have gone.
    CHECK(run(folder.path, {"report", "--sae", (folder.path / "run").string(), "--model", "gone"}).code == 1);
    CHECK(run(folder.path, {"report", "--sae", (folder.path / "run").string(), "--latents", "gone"}).code == 1);
    psae::write_sae(folder.path / "run", psae::read_sae(folder.path / "run"), "gone", -2);
    html = report();
    CHECK(count(html, "class=\"note\"") == 1);
    CHECK(count(html, "class=\"map\"") == 0);
    CHECK(count(html, "data:image/jpeg;base64,") > 0);

    // Top images that are there and cannot be read: a note, with and without a model.
    write_golden_sae(folder.path / "run");
    for (const auto& entry : fs::recursive_directory_iterator(folder.path / "images"))
        if (entry.is_regular_file()) psae::write_text(entry.path(), "no picture");
    for (const auto& more : {std::vector<std::string>{}, {"--model", (pipeline / "model").string()}}) {
        html = report(more);
        CHECK(count(html, "class=\"note\"") == 1);
        CHECK(html.find("top images could not be read") != std::string::npos);
        CHECK(count(html, "data:image/jpeg;base64,") == 0);
    }

    fs::remove_all(folder.path / "images");
    fs::remove(folder.path / "run" / "metrics.jsonl");
    html = report();
    CHECK(count(html, "class=\"note\"") == 2);
    CHECK(count(html, "data:image/jpeg;base64,") == 0);
}
