// CLIP's vision tower against transformers.
#include <catch2/catch.hpp>

#include <psae/io/numpy.hpp>
#include <psae/vit/load_clip.hpp>

using namespace psae;

namespace {

const std::filesystem::path directory = std::filesystem::path(PSAE_GOLDEN_DIR) / "clip_tiny";

double difference(const std::vector<float>& got, const std::vector<float>& want) {
    double worst = 0, largest = 0;
    REQUIRE(got.size() == want.size());
    for (std::size_t i = 0; i < got.size(); ++i) {
        const double d = std::abs(double(got[i]) - double(want[i]));
        worst = d <= worst ? worst : d;
        largest = std::max(largest, std::abs(double(want[i])));
    }
    return worst / largest;
}

}  // namespace

TEST_CASE("hidden states, embeddings and replaced tokens equal transformers'") {
    constexpr double tolerance = 6.8e-6;
    const auto tower = load_clip_vision(directory);
    const cpu device;
    arena<> scratch;
    const auto golden = [&](const char* name) { return to_floats(read_npz(directory / "expected.npz", name)); };
    const auto pixels = golden("pixel_values"), states = golden("hidden_states");
    const std::size_t images = 3, size = images * tower->tokens() * tower->width();
    std::vector<float> x(size), embeds(images * tower->projection());
    tower->embed(device, scratch, pixels.data(), images, x.data());
    for (std::size_t layer = 0;; ++layer) {
        INFO("hidden state " << layer);
        CHECK(difference(x, {states.begin() + std::ptrdiff_t(layer * size),
                             states.begin() + std::ptrdiff_t((layer + 1) * size)}) < tolerance);
        if (tower->hidden_index(-2) == layer) CHECK(difference(x, golden("tap")) < tolerance);
        if (layer == tower->layers()) break;
        tower->run(device, scratch, x.data(), images, layer, layer + 1);
    }
    tower->project(device, scratch, x.data(), images, embeds.data(), false);
    CHECK(difference(embeds, golden("image_embeds_raw")) < tolerance);
    tower->project(device, scratch, x.data(), images, embeds.data(), true);
    CHECK(difference(embeds, golden("image_embeds")) < tolerance);

    auto replaced = golden("tap_replacement");
    tower->run(device, scratch, replaced.data(), images, tower->hidden_index(-2), tower->layers());
    CHECK(difference(replaced, golden("replaced_last_hidden")) < tolerance);
    tower->project(device, scratch, replaced.data(), images, embeds.data(), true);
    CHECK(difference(embeds, golden("replaced_image_embeds")) < tolerance);

    CHECK(tower->hidden_index(0) == 0);
    CHECK_THROWS_AS(tower->hidden_index(5), error);
    CHECK_THROWS_AS(tower->hidden_index(-6), error);
}

TEST_CASE("a second forward pass allocates nothing") {
    const auto tower = load_clip_vision(directory);
    const cpu device;
    arena<> scratch;
    std::vector<float> pixels(2 * 3 * 32 * 32, 0.5f), x(2 * tower->tokens() * tower->width());
    std::size_t after_two = 0;
    for (int i = 0; i < 4; ++i) {
        scratch.reset();
        tower->embed(device, scratch, pixels.data(), 2, x.data());
        tower->run(device, scratch, x.data(), 2, 0, tower->layers());
        if (i == 1) after_two = scratch.allocations();
    }
    CHECK(scratch.allocations() == after_two);
}

TEST_CASE("a model that is not compiled in is named with its differences") {
    using only_large = config_list<clip_vit_l14>;
    try {
        load_clip_vision(directory, only_large{});
        FAIL("expected an error");
    } catch (const error& e) {
        CHECK(std::string(e.what()).find("hidden_size 1024 (file: 64)") != std::string::npos);
    }
}
