// Pictures on their way through an asynchronous tower: the tokens are those of one pass after the other, wherever the
// pictures are preprocessed.
#include <catch2/catch.hpp>

#include <psae/cuda.hpp>
#include <psae/io/image_activations.hpp>
#include <psae/vit/load_clip.hpp>

#include "../difference.hpp"
#include "../golden_models.hpp"

using namespace psae;

namespace {

const std::filesystem::path golden(PSAE_GOLDEN_DIR), model = golden / "clip_tiny";

// Passes of four pictures, so that a few pictures are several.
struct tower_of_four : clip_vision_tower<clip_tiny_test, psae::cuda> {
    tower_of_four() : clip_vision_tower(clip_weights(model)) {}
    std::size_t pictures_of_pass() const override { return 4; }
};

// With some that cannot be read between them.
picture_reader read_pictures(std::size_t limit, preprocessed_by by = preprocessed_by::reader) {
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
    return picture_reader(
        some, how, alpha_mode::white, [](const error&) {}, by);
}

// Hidden state `layer` of one picture, with a pass of its own.
std::vector<float> tokens_of(const vision_tower& tower, picture_reader& pictures, std::size_t which,
                             std::size_t layer) {
    const cpu host(1);
    arena<> scratch;
    picture_batch batch;
    std::vector<float> tokens(tower.tokens() * tower.width());
    pictures.read(host, std::span(&which, 1), batch);
    REQUIRE(batch.indices.size() == 1);
    tower.embed(host, scratch, batch.pixels.data(), 1, tokens.data());
    tower.run(host, scratch, tokens.data(), 1, 0, layer);
    return tokens;
}

// The tokens of all pictures at the layers, one after the other.
std::vector<float> all_tokens(const vision_tower& tower, preprocessed_by by, std::span<const std::size_t> layers) {
    auto pictures = read_pictures(13, by);
    std::vector<float> all;
    each_hooked(
        cpu(2), tower, pictures, layers,
        [&](arena<>&, const hooked_tokens& h) {
            all.insert(all.end(), h.tokens, h.tokens + h.pictures.size() * tower.tokens() * tower.width());
        },
        [](std::size_t) {});
    return all;
}

}  // namespace

TEST_CASE("each batch of pictures comes to each layer as it does alone, though the next one is begun before") {
    const tower_of_four tower;
    REQUIRE(tower.asynchronous());
    auto pictures = read_pictures(13);
    const std::size_t layers[] = {1, 3}, size = tower.tokens() * tower.width();
    std::size_t seen = 0, last_done = 0;
    std::vector<std::size_t> at_layer;
    each_hooked(
        cpu(2), tower, pictures, layers,
        [&](arena<>&, const hooked_tokens& h) {
            at_layer.push_back(h.layer);
            for (std::size_t i = 0; i < h.pictures.size(); ++i, ++seen) {
                INFO("picture " << h.pictures[i] << ", layer " << h.layer);
                const auto wanted = tokens_of(tower, pictures, h.pictures[i], h.layer);
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
    CHECK(at_layer.size() == 6);  // of the four passes one has no picture that can be read
    for (std::size_t i = 0; i < at_layer.size(); ++i) CHECK(at_layer[i] == layers[i % 2]);
}

TEST_CASE("tokens are the same to the bit where the tower preprocesses the pictures, on the GPU or on the CPU") {
    const std::size_t layers[] = {0, 2};
    const tower_of_four there;
    CHECK(all_tokens(there, preprocessed_by::tower, layers) == all_tokens(there, preprocessed_by::reader, layers));
    const auto here = load_clip_vision(model, golden_vision{});
    CHECK(all_tokens(*here, preprocessed_by::tower, layers) == all_tokens(*here, preprocessed_by::reader, layers));
}

TEST_CASE("a tower refuses pictures that are cropped to another size") {
    const cpu host(1);
    arena<> scratch;
    const std::vector<image> pictures{{4, 4, std::vector<std::uint8_t>(48)}};
    const tower_of_four there;
    const auto here = load_clip_vision(model, golden_vision{});
    std::vector<float> tokens(there.tokens() * there.width());
    for (const vision_tower* tower : std::initializer_list<const vision_tower*>{&there, here.get()})
        CHECK_THROWS_WITH(tower->begin(host, scratch, pictures, preprocessing{}, 0, tokens.data()),
                          Catch::Contains("expected 32, found 224"));
}

TEST_CASE("rows to train on are those of a tower that is not asynchronous, wherever reading begins") {
    const tower_of_four there;
    const auto here = load_clip_vision(model, golden_vision{});
    CHECK(!here->asynchronous());
    for (const auto by : {preprocessed_by::reader, preprocessed_by::tower}) {
        const std::vector<std::size_t> layers =
            by == preprocessed_by::reader ? std::vector<std::size_t>{2} : std::vector<std::size_t>{0, 2};
        auto pictures = read_pictures(11, by), same_pictures = read_pictures(11);
        image_activations rows(there, pictures, layers, cpu(2), 3), wanted(*here, same_pictures, layers, cpu(2), 3);
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

TEST_CASE("the place of a picture that cannot be read is taken by the next of the list that can") {
    const auto tower = load_clip_vision(model, golden_vision{});
    const std::size_t each = tower->image_tokens() * tower->width();
    for (std::uint64_t seed = 1; seed <= 6; ++seed) {
        auto pictures = read_pictures(11), alone = read_pictures(11);
        image_activations source(*tower, pictures, {1}, cpu(2), seed);
        std::vector<float> rows(pictures.size() * each);
        source.read(0, source.rows(), rows.data());
        REQUIRE(pictures.unreadable() > 0);
        epoch_order order(pictures.size(), seed);
        picture_batch batch;
        for (std::size_t i = 0; i < pictures.size(); ++i) {
            std::size_t which = order.at(i);
            for (;; which = (which + 1) % pictures.size()) {
                alone.read(cpu(1), std::span(&which, 1), batch);
                if (!batch.indices.empty()) break;
            }
            INFO("seed " << seed << ", place " << i << ", picture " << which);
            CHECK(relative_difference(std::span(rows).subspan(i * each, each), tokens_of(*tower, alone, which, 1)) <
                  1e-6);
        }
    }
}
