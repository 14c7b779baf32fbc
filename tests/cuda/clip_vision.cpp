// CLIP's vision tower on the GPU in all precisions of products: against transformers' hidden states, and against the tower
// in double on the CPU.
#include <span>

#include <psae/cuda.hpp>

#include <psae/io/numpy.hpp>
#include <psae/vit/load_clip.hpp>

#include "../golden_models.hpp"
#include "../vit/random_weights.hpp"
#include "device.hpp"

using namespace psae;

namespace {

psae::cuda device_of(precision products) {
    psae::cuda device;
    device.products = products;
    return device;
}

struct precision_bound {
    precision products;
    double most;   // relative difference from what fp32 gives
    double least;  // products are rounded indeed
};
// Operands of TF32 may be cut, as in the emulation: 2.4e-3 for the golden model, where rounding to nearest gives 7e-4.
constexpr precision_bound bounds[] = {
    {precision::fp32, 1e-5, 0}, {precision::tf32, 4e-3, 1e-5}, {precision::bf16, 1e-2, 1e-3}};

// A picture of one patch, heads of 4, rows that are not whole packs; and ViT-B/16's 197 tokens.
template <mlp_activation Activation>
struct odd_config : clip_vision_config<5, 5, 12, 3, 3, 20, 5, Activation> {
    static constexpr const char* name = "odd";
};
struct many_tokens : clip_vision_config<28, 2, 32, 1, 1, 64, 8> {
    static constexpr const char* name = "many tokens";
};

// The tower in double, stage by stage.
template <class Config>
struct tower_in_double {
    clip_vision<Config, double> model{random_weights{}};

    template <class Shape, class Stages>
    std::vector<double> infer(const std::vector<double>& x, const Shape& extents, const Stages& stages) const {
        cpu host(1);
        arena<> scratch;
        tape<cpu> t(host, scratch, mode::infer);
        const auto y = stages(t.input(const_view<double, Shape>{x.data(), extents}));
        return {y.data, y.data + y.size()};
    }
};

// times: the bounds. Rows of few columns average out less of the rounding.
template <class Config>
void check_against_double(std::size_t images, double times) {
    using model = clip_vision<Config, double>;
    const auto numbers = random_tensor<double>(matrix{images, 3 * Config::image * Config::image}, 5);
    std::vector<double> pixels(numbers.begin(), numbers.end());
    const std::vector<float> as_floats(pixels.begin(), pixels.end());
    pixels.assign(as_floats.begin(), as_floats.end());

    const tower_in_double<Config> plain;
    const shape<dyn, Config::width> rows{images * Config::tokens};
    auto state =
        plain.infer(pixels, typename model::pixels_shape{images}, [&](const auto& x) { return plain.model.embed(x); });
    for (std::size_t i = 0; i < Config::layers; ++i)
        state = plain.infer(state, rows, [&](const auto& x) { return plain.model.block(i, x); });
    const auto embeds = plain.infer(state, rows, [&](const auto& x) { return plain.model.project(x); });

    const cpu host(1);
    arena<> scratch;
    for (const auto& [products, most, least] : bounds) {
        INFO(Config::name << ", " << images << " pictures, products " << static_cast<int>(products));
        const clip_vision_tower<Config, psae::cuda> tower(random_weights{}, {}, device_of(products));
        std::vector<float> x(state.size()), e(embeds.size());
        tower.embed(host, scratch, as_floats.data(), images, x.data());
        tower.run(host, scratch, x.data(), images, 0, Config::layers);
        const double difference = relative_difference(x, state);
        CHECK(difference < times * most);
        CHECK(difference >= least);
        tower.project(host, scratch, x.data(), images, e.data(), false);
        CHECK(relative_difference(e, embeds) < times * most);
    }
}

}  // namespace

TEST_CASE("the tower on the GPU in fp32, TF32 and bf16 gives transformers' hidden states and embeddings") {
    const auto directory = std::filesystem::path(PSAE_GOLDEN_DIR) / "clip_tiny";
    const auto golden = [&](const char* name) { return to_floats(read_npz(directory / "expected.npz", name)); };
    const auto pixels = golden("pixel_values"), states = golden("hidden_states"), embeds = golden("image_embeds");
    const cpu host(1);
    arena<> scratch;
    for (const auto& [products, most, least] : bounds) {
        const auto tower = load_clip_vision(directory, golden_vision{}, nullptr, device_of(products));
        const std::size_t images = 3, size = images * tower->tokens() * tower->width();
        std::vector<float> x(size), e(images * tower->projection());
        tower->embed(host, scratch, pixels.data(), images, x.data());
        for (std::size_t layer = 0;; ++layer) {
            INFO("hidden state " << layer << ", products " << static_cast<int>(products));
            const double difference = relative_difference(x, std::span(states).subspan(layer * size, size));
            CHECK(difference < most);
            if (layer == tower->layers()) CHECK(difference >= least);
            if (layer == tower->layers()) break;
            tower->run(host, scratch, x.data(), images, layer, layer + 1);
        }
        tower->project(host, scratch, x.data(), images, e.data(), true);
        CHECK(relative_difference(e, embeds) < most);
        // All at once, or one picture alone: the same bits.
        std::vector<float> whole(size), alone(size / images);
        tower->embed(host, scratch, pixels.data(), images, whole.data());
        tower->run(host, scratch, whole.data(), images, 0, tower->layers());
        CHECK(whole == x);
        tower->embed(host, scratch, pixels.data(), 1, alone.data());
        tower->run(host, scratch, alone.data(), 1, 0, tower->layers());
        CHECK(relative_difference(alone, std::span(x).first(alone.size())) < 1e-6);
    }
}

TEST_CASE("the tower on the GPU in fp32, TF32 and bf16 against the tower in double") {
    check_against_double<odd_config<mlp_activation::quick_gelu>>(1, 2);
    check_against_double<odd_config<mlp_activation::gelu>>(3, 2);
    check_against_double<many_tokens>(1, 1);
}

TEST_CASE("a gradient through the tower on the GPU in bf16 is that of fp32 to the precision of bf16") {
    using config = odd_config<mlp_activation::quick_gelu>;
    const cpu host(1);
    arena<> scratch;
    const auto numbers = random_tensor<float>(matrix{config::tokens, config::width}, 1),
               direction = random_tensor<float>(matrix{1, config::projection}, 2);
    std::vector<float> gradients[2];
    for (const bool rounded : {false, true}) {
        const clip_vision_tower<config, psae::cuda> tower(random_weights{}, {},
                                                          device_of(rounded ? precision::bf16 : precision::fp32));
        auto& gradient = gradients[rounded];
        gradient.resize(numbers.size());
        tower.differentiate(host, scratch, numbers.data(), 0, direction.data(), gradient.data());
    }
    const double difference = relative_difference(gradients[1], gradients[0]);
    CHECK(difference < 3e-2);
    CHECK(difference > 1e-4);
}

TEST_CASE("activations in bf16 are refused on a tape that is to have gradients") {
    psae::cuda device;
    const clip_vision<clip_tiny_test, float, psae::cuda> model(random_weights{});
    arena<space::device> scratch;
    arena<> records;
    tape<psae::cuda> t(device, scratch, records, mode::train);
    const tensor<float, shape<dyn, 64>, space::device> x(shape<dyn, 64>{clip_tiny_test::tokens});
    CHECK_THROWS_AS(model.block<bf16>(0, t.input(x.view())), error);
}
