// Decoding and preprocessing against Pillow and transformers; pictures that must be refused.
#include <catch2/catch.hpp>

#include <psae/io/json.hpp>
#include <psae/io/numpy.hpp>
#include <psae/vit/preprocess.hpp>

using namespace psae;

namespace {
const std::filesystem::path pictures = std::filesystem::path(PSAE_GOLDEN_DIR) / "preprocess";

template <class A, class B>
std::pair<double, double> largest_and_mean(const A& a, const B& b) {
    REQUIRE(a.size() == b.size());
    double largest = 0, sum = 0;
    for (std::size_t i = 0; i < a.size(); ++i) {
        const double d = std::abs(double(a[i]) - double(b[i]));
        largest = std::max(largest, d);
        sum += d;
    }
    return {largest, sum / double(a.size())};
}
}  // namespace

TEST_CASE("every kind of picture is decoded and preprocessed as by transformers") {
    const auto index = read_json(pictures / "index.json");
    for (const auto& entry : index["images"].GetArray()) {
        const std::string file = entry["file"].GetString();
        INFO(file);
        auto expected = read_npz(pictures / (file + ".npz"));
        preprocessing p;
        p.shortest_edge = p.crop = entry["size"].GetUint64();
        const bool high_byte = expected.contains("cropped_u8_high_byte");  // 16-bit gray: we read the high byte
        const std::string suffix = high_byte ? "_high_byte" : "";
        const auto picture = read_image(pictures / file, alpha_mode::drop);
        const bool lossy = entry["lossy"].GetBool();
        if (expected.contains("decoded_rgb" + suffix)) {
            const auto [largest, mean] =
                largest_and_mean(picture.rgb, values<std::uint8_t>(expected.at("decoded_rgb" + suffix)));
            CHECK(largest <= (lossy ? 3 : 0));
            CHECK(mean <= 0.1);
        }
        const auto [largest, mean] =
            largest_and_mean(resize_and_crop(picture, p), values<std::uint8_t>(expected.at("cropped_u8" + suffix)));
        CHECK(largest <= entry["atol_cropped_u8"].GetDouble());
        CHECK(mean <= entry["mean_cropped_u8"].GetDouble());
        std::vector<float> pixels(3 * p.crop * p.crop);
        preprocess(picture, p, pixels.data());
        if (!lossy) CHECK(largest_and_mean(pixels, to_floats(expected.at("pixel_values" + suffix))).first <= 2e-6);
        const auto five = expected.find("pixel_values_transformers5");
        if (five != expected.end() && !lossy) {
            preprocess(read_image(pictures / file, alpha_mode::white), p, pixels.data());
            CHECK(largest_and_mean(pixels, to_floats(five->second)).first <= 1e-5);
        }
    }
}

TEST_CASE("damaged and hostile pictures are refused") {
    std::size_t refused = 0;
    for (const auto& entry : std::filesystem::directory_iterator(pictures / "refuse")) {
        INFO(entry.path());
        CHECK_THROWS_AS(read_image(entry.path()), error);
        ++refused;
    }
    CHECK(refused >= 15);
    CHECK_THROWS_AS(read_image(pictures / "no_such_file.png"), error);
}

TEST_CASE("a written PNG is read back") {
    image picture{5, 3, std::vector<std::uint8_t>(45)};
    for (std::size_t i = 0; i < 45; ++i) picture.rgb[i] = static_cast<std::uint8_t>(i * 37);
    const auto path = std::filesystem::temp_directory_path() / ("psae_png_" + std::to_string(getpid()) + ".png");
    write_png(path, picture);
    const auto back = read_image(path);
    CHECK(back.width == 5);
    CHECK(back.rgb == picture.rgb);
    std::filesystem::remove(path);
}
