// CLIP's vision tower against transformers.
#include <catch2/catch.hpp>

#include <span>

#include <psae/io/numpy.hpp>
#include <psae/vit/load_clip.hpp>

#include "../backend.hpp"
#include "../difference.hpp"
#include "../golden_models.hpp"
#include "../gradient_error.hpp"
#include "../temporary_folder.hpp"
#include "random_weights.hpp"

using namespace psae;

namespace {

const std::filesystem::path directory = std::filesystem::path(PSAE_GOLDEN_DIR) / "clip_tiny";

template <mlp_activation Activation>
void check_tower_gradients() {
    using config = clip_vision_config<8, 4, 12, 2, 3, 20, 5, Activation>;
    const either<clip_vision<config, double>, clip_vision<config, real, backend>> model{
        clip_vision<config, double>(random_weights{}), clip_vision<config, real, backend>(random_weights{})};
    const auto tokens = normal_parameter<double>(shape<dyn, 12>{2 * config::tokens}, 3);
    const auto pixels = normal_parameter<double>(shape<dyn, 3, 8, 8>{2}, 3);
    const auto check = [](const auto& stages, const auto& x) {
        CHECK(gradient_error([&](auto zero, auto& x) { return stages(evaluate(x + zero)); }, x) <
              gradient_tolerance<real>);
    };
    check([&](auto x) { return model.of(x).block(1, x); }, tokens);
    check([&](auto x) { return model.of(x).project(x); }, tokens);
    check(
        [&](auto x) {
            const auto& m = model.of(x);
            const auto e = m.project(m.block(1, m.block(0, m.embed(x))));
            return e / norm(e);
        },
        pixels);
}

// The golden model with its weights rounded to a shorter type, written in two shards; and the same numbers as floats.
template <class Short, class Round>
void check_short_weights(const Round& round, double tolerance) {
    const temporary_folder folder;
    const auto narrow = folder / "narrow", wide = folder / "wide";
    for (const auto& to : {narrow, wide}) {
        std::filesystem::create_directories(to);
        std::filesystem::copy_file(directory / "config.json", to / "config.json",
                                   std::filesystem::copy_options::overwrite_existing);
    }
    const safetensors_file golden(directory / "model.safetensors");
    std::vector<std::vector<Short>> rounded;
    std::vector<std::vector<float>> widened;
    std::vector<tensor_to_write> shards[2], all;
    std::string index = "{\"metadata\": {}, \"weight_map\": {";
    for (const tensor_entry& e : golden.entries()) {
        if (e.type != element_type::f32) continue;
        rounded.emplace_back();
        widened.emplace_back();
        for (const float v : golden.read(e.name, e.shape)) {
            rounded.back().push_back(round(v));
            widened.back().push_back(widen(rounded.back().back()));
        }
        const std::size_t shard = rounded.size() % 2;
        shards[shard].push_back(to_write(e.name, e.shape, rounded.back().data()));
        all.push_back(to_write(e.name, e.shape, widened.back().data()));
        index +=
            (rounded.size() == 1 ? "\"" : ", \"") + e.name + "\": \"shard" + std::to_string(shard) + ".safetensors\"";
    }
    for (const int shard : {0, 1})
        write_safetensors(narrow / ("shard" + std::to_string(shard) + ".safetensors"), shards[shard]);
    write_safetensors(wide / "model.safetensors", all);
    atomic_file file(narrow / "model.safetensors.index.json");
    file.write(index + "}}");
    file.commit();

    const cpu device;
    arena<> scratch;
    const auto pixels = to_floats(read_npz(directory / "expected.npz", "pixel_values"));
    const auto embeds = [&](const std::filesystem::path& path) {
        const auto tower = load_clip_vision(path, golden_vision{}, nullptr, backend());
        std::vector<float> x(3 * tower->tokens() * tower->width()), e(3 * tower->projection());
        tower->embed(device, scratch, pixels.data(), 3, x.data());
        tower->run(device, scratch, x.data(), 3, 0, tower->layers());
        tower->project(device, scratch, x.data(), 3, e.data(), true);
        return e;
    };
    const auto of_narrow = embeds(narrow);
    CHECK(of_narrow == embeds(wide));
    const double rounding =
        relative_difference(of_narrow, to_floats(read_npz(directory / "expected.npz", "image_embeds")));
    CHECK(rounding < tolerance);
    CHECK(rounding > 1e-5);  // the weights were rounded indeed
}

}  // namespace

TEST_CASE("hidden states, embeddings and replaced tokens equal transformers'") {
    constexpr double tolerance = 6.8e-6;
    const auto tower = load_clip_vision(directory, golden_vision{}, nullptr, backend());
    const cpu device;
    arena<> scratch;
    const auto golden = [&](const char* name) { return to_floats(read_npz(directory / "expected.npz", name)); };
    const auto pixels = golden("pixel_values"), states = golden("hidden_states");
    const std::size_t images = 3, size = images * tower->tokens() * tower->width();
    std::vector<float> x(size), embeds(images * tower->projection());
    tower->embed(device, scratch, pixels.data(), images, x.data());
    for (std::size_t layer = 0;; ++layer) {
        INFO("hidden state " << layer);
        CHECK(relative_difference(x, std::span(states).subspan(layer * size, size)) < tolerance);
        if (tower->hidden_index(-2) == layer) CHECK(relative_difference(x, golden("tap")) < tolerance);
        if (layer == tower->layers()) break;
        tower->run(device, scratch, x.data(), images, layer, layer + 1);
    }
    tower->project(device, scratch, x.data(), images, embeds.data(), false);
    CHECK(relative_difference(embeds, golden("image_embeds_raw")) < tolerance);
    tower->project(device, scratch, x.data(), images, embeds.data(), true);
    CHECK(relative_difference(embeds, golden("image_embeds")) < tolerance);

    auto replaced = golden("tap_replacement");
    tower->run(device, scratch, replaced.data(), images, tower->hidden_index(-2), tower->layers());
    CHECK(relative_difference(replaced, golden("replaced_last_hidden")) < tolerance);
    tower->project(device, scratch, replaced.data(), images, embeds.data(), true);
    CHECK(relative_difference(embeds, golden("replaced_image_embeds")) < tolerance);

    CHECK(tower->hidden_index(0) == 0);
    CHECK_THROWS_AS(tower->hidden_index(5), error);
    CHECK_THROWS_AS(tower->hidden_index(-6), error);
}

TEST_CASE("a second forward pass allocates nothing") {
    const auto tower = load_clip_vision(directory, golden_vision{}, nullptr, backend());
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

TEST_CASE("gradients through blocks, projection and embedding with respect to tokens and pixels") {
    check_tower_gradients<mlp_activation::quick_gelu>();
    check_tower_gradients<mlp_activation::gelu>();
}

TEST_CASE("a block in train mode gives what it gives in infer mode, and needs no memory after the first step") {
    const clip_vision<clip_tiny_test> model(random_weights{});
    cpu device;
    arena<> scratch;
    tensor<float, shape<dyn, 64>> x{shape<dyn, 64>{2 * clip_tiny_test::tokens}};
    random_stream random(1);
    for (float& v : x) v = random.normal();
    std::vector<float> inferred, trained;
    std::size_t after_two = 0;
    for (int step = 0; step < 4; ++step) {
        scratch.reset();
        tape<cpu> infer(device, scratch, mode::infer), train(device, scratch, mode::train);
        const auto a = model.block(0, infer.input(std::as_const(x).view()));
        inferred.assign(a.data, a.data + a.size());
        const auto v = train.variable_of(x.view());
        const auto b = model.block(0, v);
        const auto loss = mean(square(b));
        train.run();
        backward(train, loss);
        trained.assign(b.data, b.data + b.size());
        CHECK(v.adjoint->written);
        if (step == 1) after_two = scratch.allocations();
    }
    CHECK(relative_difference(trained, inferred) < 1e-6);
    CHECK(scratch.allocations() == after_two);
}

TEST_CASE("weights in half precision and in shards are widened exactly") {
    check_short_weights<psae::half>([](float v) { return to_half(v); }, 5e-3);
    check_short_weights<bf16>([](float v) { return to_bf16(v); }, 5e-2);
}
