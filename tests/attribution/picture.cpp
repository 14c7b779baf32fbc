// Overlays, sheets of images and charts.
#include <catch2/catch.hpp>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <limits>
#include <string>
#include <vector>

#include <psae/attribution/chart.hpp>
#include <psae/attribution/picture.hpp>
#include <psae/io/numpy.hpp>

namespace {

psae::image gradient(std::size_t w, std::size_t h) {
    psae::image out{w, h, std::vector<std::uint8_t>(w * h * 3)};
    for (std::size_t y = 0; y < h; ++y)
        for (std::size_t x = 0; x < w; ++x) {
            std::uint8_t* p = out.rgb.data() + (y * w + x) * 3;
            p[0] = static_cast<std::uint8_t>(60 + 195 * x / w), p[1] = static_cast<std::uint8_t>(60 + 195 * y / h),
            p[2] = 120;
        }
    return out;
}
double brightness(const psae::image& in, std::size_t x, std::size_t y) {
    const std::uint8_t* p = in.rgb.data() + (y * in.width + x) * 3;
    return p[0] + p[1] + p[2];
}

}  // namespace

TEST_CASE("the heat overlay tells silent, weak and strong patches apart") {
    const auto picture = gradient(90, 60);
    const std::vector<float> map = {0, 0.1f, 1, -3, std::numeric_limits<float>::quiet_NaN(), 0.5f};
    const auto out = psae::heat_overlay(picture, map, 2, 3);
    CHECK(out.width == 90);
    CHECK(out.height == 60);
    CHECK(brightness(out, 15, 15) < 0.4 * brightness(picture, 15, 15));
    CHECK(brightness(out, 45, 15) > brightness(out, 15, 15) + 60);
    CHECK(brightness(out, 75, 15) > brightness(out, 45, 15) + 60);
    CHECK(brightness(out, 45, 45) < 0.4 * brightness(picture, 45, 45));
    CHECK(brightness(out, 29, 29) < brightness(out, 30, 29));  // the border is where floor(i * in / out) says
    CHECK_THROWS_AS(psae::heat_overlay(picture, map, 3, 3), psae::error);
    CHECK_NOTHROW(psae::heat_overlay(picture, std::vector<float>(6), 2, 3));
}

TEST_CASE("the signed overlay has colours for the sign only, stronger with the magnitude") {
    psae::image picture{60, 20, {}};
    for (std::size_t i = 0; i < 60 * 20; ++i) picture.rgb.insert(picture.rgb.end(), {250, 120, 0});  // itself orange
    const std::vector<float> map{2, -2, 0.5f, -0.02f, 0, NAN};
    const auto layer = psae::signed_layer(map);
    const auto out = psae::signed_overlay(picture, map, 1, 6);
    const auto at = [&](std::size_t patch) {
        const std::uint8_t* p = out.rgb.data() + (10 * 60 + patch * 10 + 5) * 3;
        return std::array<int, 3>{p[0], p[1], p[2]};
    };
    for (const std::size_t positive : {0, 2}) CHECK(at(positive)[0] > at(positive)[2] + 40);
    for (const std::size_t negative : {1, 3}) CHECK(at(negative)[2] > at(negative)[0] + 5);
    CHECK(at(0)[0] - at(0)[2] > at(2)[0] - at(2)[2] + 40);
    for (const std::size_t nothing : {4, 5}) {
        CHECK(at(nothing)[0] == at(nothing)[1]);
        CHECK(at(nothing)[1] == at(nothing)[2]);
        CHECK(layer[nothing * 4 + 3] == 0);
    }
    CHECK(layer[3] == 225);  // the square root of the magnitude over the largest
    CHECK(layer[7] == 225);
    CHECK(layer[11] == 113);
    CHECK(psae::signed_layer(map, 8)[3] == 113);
    CHECK_THROWS_AS(psae::signed_overlay(picture, map, 2, 6), psae::error);
}

TEST_CASE("an overlay covers what the model saw") {
    const psae::preprocessing how{.shortest_edge = 32, .crop = 32};
    const auto wide = psae::seen_by_model(90, 60, how);
    CHECK((wide.x == 15 && wide.y == 0 && wide.width == 60 && wide.height == 60));
    const auto small_crop = psae::seen_by_model(64, 96, {.shortest_edge = 32, .crop = 16});
    CHECK((small_crop.x == 16 && small_crop.y == 32 && small_crop.width == 32));
    const auto picture = gradient(90, 60);
    const auto out = psae::heat_overlay(picture, std::vector<float>{0, 1}, 1, 2, wide);
    CHECK(std::abs(brightness(out, 5, 20) - brightness(out, 85, 20)) < 120);  // both outside, nearly one gray
    CHECK(brightness(out, 20, 20) < 200);
    CHECK(brightness(out, 44, 20) < 200);
    CHECK(brightness(out, 45, 20) > 300);  // the border of the two patches is the middle of the crop
    CHECK(brightness(out, 74, 20) > 300);
    const auto part = psae::cut_out(picture, {-10, 20, 40, 50});
    CHECK((part.width == 40 && part.height == 50));
    CHECK(brightness(part, 9, 0) == 765);
    CHECK(brightness(part, 10, 0) == brightness(picture, 0, 20));
    CHECK(brightness(part, 39, 39) == brightness(picture, 29, 59));
    CHECK(brightness(part, 39, 40) == 765);
}

TEST_CASE("a sheet of images has captions and keeps shapes") {
    const std::vector<psae::image> images = {gradient(300, 100), gradient(20, 60), psae::image{}, gradient(1, 500)};
    const std::vector<std::string> captions = {"0.53 cat", "a caption that is much too long for its cell",
                                               "\xc3\xa4 unknown"};
    const auto out = psae::thumbnail_grid(images, captions, {.columns = 3, .cell = 90, .gap = 6, .title = "latent 7"});
    CHECK(out.width == 6 + 3 * 96);
    CHECK(out.height == 6 + 26 + 2 * (90 + 14 + 6));
    CHECK(brightness(out, 6 + 45, 32 + 10) == 3 * 236);  // above the wide picture
    CHECK_THROWS_AS(psae::thumbnail_grid({}, {}), psae::error);
    CHECK(psae::text_width("\xc3\xa4"
                           "b",
                           2) == 22);
}

TEST_CASE("charts hold any numbers") {
    const double nan = std::numeric_limits<double>::quiet_NaN(), infinite = std::numeric_limits<double>::infinity();
    for (const bool log : {false, true})
        for (const std::vector<double>& y : {std::vector<double>{},
                                             {0},
                                             {1, 1, 1},
                                             {nan, infinite, -infinite},
                                             {-5, 0, 1e-30},
                                             {1e300, -1e308, 1e299, -1e299, 3},
                                             {1, 1 + 1e-15, 1},
                                             {5, 7, 9}}) {
            std::vector<double> x(y.size());
            for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<double>(i);
            for (const auto& c : {psae::line_plot("t", "x", "y", {{"a", x, y}}, {log, log}),
                                  psae::scatter_plot("t", "x", "y", {{"a", x, y}}, {log, log})}) {
                CHECK(psae::to_svg(c).find("nan") == std::string::npos);
                CHECK(psae::to_image(c).width == 1440);
            }
        }
    CHECK_THROWS_AS(psae::to_svg(psae::line_plot("", "", "", {{"a", {1, 2}, {1}}})), psae::error);
    const auto escaped = psae::to_svg(psae::line_plot("a < b & c\x01", "", "", {}));
    CHECK(escaped.find("a &lt; b &amp; c </text>") != std::string::npos);
}

TEST_CASE("tick labels are short") {
    CHECK(psae::detail::number_text(0) == "0");
    CHECK(psae::detail::number_text(0.25) == "0.25");
    CHECK(psae::detail::number_text(-1200) == "-1200");
    CHECK(psae::detail::number_text(0.001) == "0.001");
    CHECK(psae::detail::number_text(1e-5) == "1e-5");
    CHECK(psae::detail::number_text(250000) == "2.5e5");
    CHECK(psae::detail::number_text(1e100) == "1e100");
}

// Written for the eye with PSAE_SHOW=folder.
TEST_CASE("examples to look at", "[.show]") {
    const char* folder = std::getenv("PSAE_SHOW");
    if (folder == nullptr) return;
    const std::filesystem::path to = folder;
    const auto picture = psae::read_image(std::filesystem::path(PSAE_GOLDEN_DIR) / "preprocess" / "baseline_444.jpg");
    std::vector<float> map(14 * 14);
    for (std::size_t i = 0; i < map.size(); ++i) {
        const double r = std::hypot(static_cast<double>(i / 14) - 5, static_cast<double>(i % 14) - 8);
        map[i] = static_cast<float>(std::max(0.0, 3 - r * 0.7));
    }
    psae::write_png(to / "overlay.png", psae::heat_overlay(picture, map, 14, 14));
    std::vector<psae::image> images(7, picture);
    images[1] = gradient(40, 90);
    images[2] = psae::heat_overlay(picture, map, 14, 14);
    psae::write_png(
        to / "grid.png",
        psae::thumbnail_grid(
            images,
            std::vector<std::string>{"0.531 cat", "0.52 !\"#$%&'()*+,-./0123456789", "ABCDEFGHIJKLMNOPQRSTUVWXY",
                                     "Z[\\]^_`abcdefghijklmnopq", "rstuvwxyz{|}~:;<=>?@"},
            {.columns = 4, .cell = 150, .gap = 10, .title = "latent 4711 - Reference images"}));
    psae::series a{"train", {}, {}}, b{"validation", {}, {}}, s{"", {}, {}};
    for (int i = 0; i <= 300; ++i) {
        a.x.push_back(i * 100), a.y.push_back(0.9 * std::exp(-i / 60.0) + 0.08 + 0.01 * std::sin(i * 1.7));
        if (i % 10 == 0) b.x.push_back(i * 100), b.y.push_back(0.9 * std::exp(-i / 60.0) + 0.11);
    }
    for (int i = 0; i < 3000; ++i)
        s.x.push_back(std::pow(10.0, -5 * std::abs(std::sin(i * 12.9898)))),
            s.y.push_back(std::pow(10.0, 2 * std::sin(i * 78.233) - 0.3 * std::log10(s.x.back())));
    const auto line = psae::line_plot("Reconstruction loss", "step", "mean squared error", {a, b});
    const auto scatter = psae::scatter_plot("Latents", "frequency of firing", "mean activation", {s}, {true, true});
    psae::write_png(to / "line.png", psae::to_image(line));
    psae::write_png(to / "scatter.png", psae::to_image(scatter));
    psae::write_text(to / "line.svg", psae::to_svg(line));
}
