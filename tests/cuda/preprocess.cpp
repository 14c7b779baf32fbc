// Preprocessing on the GPU gives the numbers of the CPU, which tests/vit/preprocess.cpp compares with transformers'.
#include <catch2/catch.hpp>

#include <filesystem>

#include <psae/cuda/preprocess.hpp>

#include "device.hpp"

using namespace psae;

namespace {

void check_same(const cuda& device, staged_upload<std::uint8_t, cuda>& upload, const std::vector<image>& pictures,
                const preprocessing& p, std::size_t most_bytes = std::size_t{64} << 20) {
    const std::size_t each = 3 * p.crop * p.crop;
    spoilt_arena scratch(device);
    auto pixels = spoilt_tensor<float>(device, row{pictures.size() * each});
    preprocess(device, scratch, upload, pictures, p, pixels.data(), most_bytes);
    const auto found = on_host(device, pixels);
    std::vector<float> wanted(each);
    for (std::size_t i = 0; i < pictures.size(); ++i) {
        INFO(pictures[i].width << " x " << pictures[i].height << " to " << p.shortest_edge << ", crop " << p.crop);
        preprocess(pictures[i], p, wanted.data());
        CHECK(std::equal(wanted.begin(), wanted.end(), found.begin() + std::ptrdiff_t(i * each)));
    }
}

}  // namespace

TEST_CASE("golden pictures are preprocessed on the GPU to the bits of the CPU") {
    std::vector<image> pictures;
    for (const auto& entry : std::filesystem::directory_iterator(std::filesystem::path(PSAE_GOLDEN_DIR) / "preprocess"))
        if (entry.path().extension() == ".png" || entry.path().extension() == ".jpg")
            pictures.push_back(read_image(entry.path()));
    REQUIRE(pictures.size() >= 15);
    const cuda device;
    staged_upload<std::uint8_t, cuda> upload(device);
    for (const std::size_t side : {32, 45}) {
        preprocessing p;
        p.shortest_edge = p.crop = side;
        check_same(device, upload, pictures, p);
    }
}

TEST_CASE("awkward sizes, crops wider and narrower than the picture, and overshoots") {
    random_stream random(1);
    const auto picture_of = [&](std::size_t width, std::size_t height) {
        image picture{width, height, std::vector<std::uint8_t>(width * height * 3)};
        for (auto& v : picture.rgb) {
            const auto drawn = random.below(400);  // many black and white ones: bicubic weights go beyond both
            v = static_cast<std::uint8_t>(drawn < 70 ? 0 : drawn < 140 ? 255 : drawn % 256);
        }
        return picture;
    };
    std::vector<image> pictures;
    const std::size_t sizes[][2] = {{1, 1},   {1, 40},  {40, 1},  {16, 16}, {17, 16},
                                    {15, 33}, {64, 31}, {90, 20}, {5, 70}};
    for (const auto& size : sizes) pictures.push_back(picture_of(size[0], size[1]));
    const cuda device;
    staged_upload<std::uint8_t, cuda> upload(device);
    for (const std::size_t edge : {8, 16, 21})
        for (const std::size_t crop : {edge, edge + 5, edge - 3}) {
            preprocessing p;
            p.shortest_edge = edge;
            p.crop = crop;
            check_same(device, upload, pictures, p);
            check_same(device, upload, {}, p);
            for (const std::size_t most_bytes : {1, 2000, 6000})  // in parts; some pictures are larger than a part
                check_same(device, upload, pictures, p, most_bytes);
        }
}
