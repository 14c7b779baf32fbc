// What is encoded decodes again.
#include <catch2/catch.hpp>

#include <cmath>
#include <filesystem>
#include <fstream>

#include <psae/io/image.hpp>

#include "../temporary_folder.hpp"

namespace {

psae::image decoded(const std::string& bytes, psae::alpha_mode alpha = psae::alpha_mode::drop) {
    const temporary_folder folder;
    const auto path = folder / "picture";
    psae::write_text(path, bytes);
    return psae::read_image(path, alpha);
}

std::vector<std::uint8_t> smooth(std::size_t w, std::size_t h, std::size_t channels) {
    std::vector<std::uint8_t> out;
    for (std::size_t y = 0; y < h; ++y)
        for (std::size_t x = 0; x < w; ++x)
            for (std::size_t c = 0; c < channels; ++c)
                out.push_back(static_cast<std::uint8_t>(128 + 100 * std::sin(0.05 * double(x + 2 * y) + double(c))));
    return out;
}

}  // namespace

TEST_CASE("PNGs of three and four channels decode to what was encoded") {
    const auto rgb = smooth(37, 21, 3), rgba = smooth(5, 4, 4);
    CHECK(decoded(psae::encode_png(rgb, 37, 21, 3)).rgb == rgb);
    const auto dropped = decoded(psae::encode_png(rgba, 5, 4, 4));
    CHECK((dropped.width == 5 && dropped.height == 4));
    for (std::size_t i = 0; i < 20; ++i)
        for (std::size_t c = 0; c < 3; ++c) CHECK(dropped.rgb[i * 3 + c] == rgba[i * 4 + c]);
    const auto blended = decoded(psae::encode_png({0, 0, 0, 0, 0, 0, 0, 255}, 2, 1, 4), psae::alpha_mode::white);
    CHECK(blended.rgb == std::vector<std::uint8_t>{255, 255, 255, 0, 0, 0});
    CHECK_THROWS_AS(psae::encode_png(rgb, 37, 20, 3), psae::error);
    CHECK_THROWS_AS(psae::encode_png({}, 0, 0, 3), psae::error);
    CHECK_THROWS_AS(psae::encode_png({1, 2}, 1, 1, 2), psae::error);
}

TEST_CASE("JPEGs decode to nearly what was encoded") {
    const psae::image picture{67, 45, smooth(67, 45, 3)};
    const auto again = decoded(psae::encode_jpeg(picture, 95));
    REQUIRE((again.width == 67 && again.height == 45));
    double sum = 0;
    for (std::size_t i = 0; i < picture.rgb.size(); ++i) sum += std::abs(int(picture.rgb[i]) - int(again.rgb[i]));
    CHECK(sum / double(picture.rgb.size()) < 3);
    CHECK(psae::encode_jpeg(picture, 30).size() < psae::encode_jpeg(picture, 95).size());
    CHECK_THROWS_AS(psae::encode_jpeg(psae::image{}, 90), psae::error);
}
