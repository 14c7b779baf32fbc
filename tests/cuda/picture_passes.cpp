// Pictures on their way through an asynchronous tower: the tokens are those of one pass after the other.
#include <catch2/catch.hpp>

#include <psae/cuda.hpp>
#include <psae/io/image_activations.hpp>
#include <psae/vit/load_clip.hpp>

#include "../golden_models.hpp"

using namespace psae;

namespace {

const std::filesystem::path golden(PSAE_GOLDEN_DIR), model = golden / "clip_tiny";

// With some that cannot be read between them.
picture_reader read_pictures(std::size_t limit) {
    const std::filesystem::path folders[] = {golden / "preprocess" / "refuse", golden / "pipeline" / "images"};
    const auto list = read_image_list(folders);
    image_list some;
    for (std::size_t i = 0; i < limit; ++i) {
        const std::size_t at = i * (list.files.size() - 1) / (limit - 1);
        some.files.push_back(list.files[at]);
        some.labels.push_back(list.labels[at]);
    }
    preprocessing how;
    how.shortest_edge = how.crop = 32;
    return picture_reader(some, how, alpha_mode::white, [](const error&) {});
}

// Hidden state `layer` of one picture, with a pass of its own.
std::vector<float> tokens_of(const vision_tower& tower, picture_reader& pictures, std::size_t which,
                             std::size_t layer) {
    const cpu host(1);
    arena<> scratch;
    std::vector<float> pixels(pictures.pixels()), tokens(tower.tokens() * tower.width());
    REQUIRE(pictures.read(host, std::span(&which, 1), pixels.data())[0]);
    tower.embed(host, scratch, pixels.data(), 1, tokens.data());
    tower.run(host, scratch, tokens.data(), 1, 0, layer);
    return tokens;
}

}  // namespace

TEST_CASE("each batch of pictures comes to each layer as it does alone, though the next one is begun before") {
    const auto tower = load_clip_vision(model, golden_vision{}, nullptr, psae::cuda());
    REQUIRE(tower->asynchronous());
    auto pictures = read_pictures(13);
    const std::size_t layers[] = {1, 3}, size = tower->tokens() * tower->width();
    std::size_t seen = 0, last_done = 0;
    std::vector<std::size_t> at_layer;
    each_hooked(
        cpu(2), *tower, pictures, layers, 4,
        [&](arena<>&, const hooked_tokens& h) {
            at_layer.push_back(h.layer);
            for (std::size_t i = 0; i < h.pictures.size(); ++i, ++seen) {
                INFO("picture " << h.pictures[i] << ", layer " << h.layer);
                const auto wanted = tokens_of(*tower, pictures, h.pictures[i], h.layer);
                CHECK(std::equal(wanted.begin(), wanted.end(), h.tokens + i * size));
            }
        },
        [&](std::size_t done) {
            CHECK(done > last_done);
            last_done = done;
        });
    CHECK(last_done == 13);
    CHECK(pictures.unreadable() > 0);
    CHECK(seen == 2 * (13 - pictures.unreadable()));
    for (std::size_t i = 0; i < at_layer.size(); ++i) CHECK(at_layer[i] == layers[i % 2]);
}

TEST_CASE("rows to train on are those of a tower that is not asynchronous, wherever reading begins") {
    const auto there = load_clip_vision(model, golden_vision{}, nullptr, psae::cuda()),
               here = load_clip_vision(model, golden_vision{});
    CHECK(!here->asynchronous());
    for (const auto& layers : {std::vector<std::size_t>{2}, std::vector<std::size_t>{0, 2}}) {
        auto pictures = read_pictures(11), same_pictures = read_pictures(11);
        image_activations rows(*there, pictures, layers, cpu(2), 3), wanted(*here, same_pictures, layers, cpu(2), 3);
        const std::size_t d = rows.columns(), each = here->image_tokens();
        const auto check = [&](std::uint64_t first, std::size_t count) {
            INFO("rows " << first << " to " << first + count);
            std::vector<float> a(count * d), b(count * d);
            rows.read(first, count, a.data());
            wanted.read(first, count, b.data());
            double largest = 0;
            for (std::size_t i = 0; i < a.size(); ++i) largest = std::max(largest, double(std::abs(a[i] - b[i])));
            CHECK(largest < 1e-4);
        };
        check(0, 5);
        check(5, 9 * each);  // into the second pass
        check(14 * each + 3, 6 * each);
        check(40 * each, 3);  // a run that is resumed
        CHECK(rows.sample(20, 10).size() == 20 * d);
        check(40 * each + 3, 10 * each);
        check(2, 2);  // and back
    }
}
