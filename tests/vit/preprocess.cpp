// Decoding and preprocessing against Pillow and transformers; pictures that must be refused.
#include <catch2/catch.hpp>

#include <psae/io/json.hpp>
#include <psae/io/numpy.hpp>
#include <psae/vit/preprocess.hpp>

#include "../temporary_folder.hpp"

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

TEST_CASE("resampling equals the plain sums at awkward sizes") {
    std::uint32_t state = 1;
    const auto noise = [&] { return static_cast<std::uint8_t>((state = state * 1664525u + 1013904223u) >> 24); };
    const std::size_t sizes[][2] = {{1, 1},   {1, 40},  {40, 1},  {16, 16}, {17, 16}, {15, 33},
                                    {31, 64}, {64, 31}, {90, 20}, {20, 90}, {48, 47}, {5, 200}};
    for (const auto& size : sizes)
        for (const std::size_t edge : {8, 16, 21, 37})
            for (const std::size_t crop : {edge, edge + 5, edge - 3}) {
                INFO(size[0] << " x " << size[1] << " to " << edge << ", crop " << crop);
                image picture{size[0], size[1], std::vector<std::uint8_t>(size[0] * size[1] * 3)};
                for (auto& v : picture.rgb) v = noise() < 60 ? 0 : noise() < 60 ? 255 : noise();  // overshoots
                preprocessing p;
                p.shortest_edge = edge;
                p.crop = crop;
                const std::size_t w = size[0], h = size[1], new_w = w <= h ? edge : edge * w / h,
                                  new_h = w <= h ? edge * h / w : edge;
                const auto across = detail::bicubic_weights(w, new_w, 0, new_w),
                           down = detail::bicubic_weights(h, new_h, 0, new_h);
                const auto sum = [](const auto& weights, std::size_t i, const auto& byte) {
                    const auto& s = weights.spans[i];
                    long total = 1 << 21;
                    for (std::size_t j = 0; j < s.count; ++j)
                        total += long{byte(s.first + j)} * weights.weights[s.offset + j];
                    return static_cast<std::uint8_t>(std::clamp(total >> 22, 0L, 255L));
                };
                std::vector<std::uint8_t> narrow(h * new_w * 3), wanted(crop * crop * 3, 0);
                for (std::size_t r = 0; r < h; ++r)
                    for (std::size_t x = 0; x < new_w * 3; ++x)
                        narrow[r * new_w * 3 + x] =
                            sum(across, x / 3, [&](std::size_t i) { return picture.rgb[(r * w + i) * 3 + x % 3]; });
                const auto place = [&](std::size_t n, std::size_t i) {  // where pixel i of n goes; crop: nowhere
                    const auto at = n >= crop ? long(i) - long((n - crop) / 2) : long(i + (crop - n + 1) / 2);
                    return at < 0 || at >= long(crop) ? crop : std::size_t(at);
                };
                for (std::size_t y = 0; y < new_h; ++y)
                    for (std::size_t x = 0; x < new_w * 3; ++x)
                        if (place(new_h, y) < crop && place(new_w, x / 3) < crop)
                            wanted[(place(new_h, y) * crop + place(new_w, x / 3)) * 3 + x % 3] =
                                sum(down, y, [&](std::size_t i) { return narrow[i * new_w * 3 + x]; });
                CHECK(resize_and_crop(picture, p) == wanted);
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
    const temporary_folder folder;
    const auto path = folder / "picture.png";
    write_png(path, picture);
    const auto back = read_image(path);
    CHECK(back.width == 5);
    CHECK(back.rgb == picture.rgb);
}
