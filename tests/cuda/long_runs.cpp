// What only runs of many steps show: that equal runs give equal bits, and that memory stays what it is.
#include <catch2/catch.hpp>

#include <cstring>
#include <vector>

#include <psae/sae/batch_topk.hpp>
#include <psae/sae/patchsae.hpp>
#include <psae/sae/topk.hpp>
#include <psae/sae/trainer.hpp>

#include "../backend.hpp"

using namespace psae;

namespace {

// Odd sizes: rows that are not whole packs, tokens and latents that do not fill their last blocks.
constexpr std::size_t d = 13, latents = 133, batch = 97;
using batch_view = const_view<float, shape<dyn, dyn>, backend_memory>;

// A batch of a step, the same for every run.
std::vector<float> rows_of_step(std::size_t step) {
    random_stream random(step + 7);
    std::vector<float> x(batch * d);
    for (float& v : x) v = 0.3f + random.normal();
    return x;
}

template <class Variant>
Variant fresh_sae() {
    Variant sae(d, latents);
    random_stream random(3);
    sae.initialise(random);
    if constexpr (requires { sae.k; }) sae.k = 9;
    return sae;
}

// All numbers that a run of `steps` steps leaves behind, moments and counters too.
template <class Variant>
std::vector<std::byte> state_after(std::size_t steps, training_options training, precision products) {
    training.lr = 1e-2;
    training.warmup_steps = 0;
    training.dead_after = 2;
    backend device;
    device.products = products;
    Variant sae = fresh_sae<Variant>();
    trainer<Variant, backend> run(sae, training, device);
    for (std::size_t step = 0; step < steps; ++step) {
        const auto x = on_device(device, rows_of_step(step));
        run.step(batch_view{x.data(), shape<dyn, dyn>{batch, d}});
    }
    run.read_parameters();
    std::vector<std::byte> bytes;
    const auto add = [&](const auto&, const auto* data, std::size_t count) {
        const auto* first = reinterpret_cast<const std::byte*>(data);
        bytes.insert(bytes.end(), first, first + count * sizeof(*data));
    };
    sae.each_parameter([&](const char* name, auto& p) { add(name, p.value.data(), p.size()); });
    run.each_state(add);
    return bytes;
}

template <class Variant>
void check_equal_runs(const training_options& training = {}) {
    for (const precision products : {precision::fp32, precision::bf16})
        CHECK(state_after<Variant>(4, training, products) == state_after<Variant>(4, training, products));
    CHECK(state_after<Variant>(3, training, precision::fp32) != state_after<Variant>(4, training, precision::fp32));
}

}  // namespace

TEST_CASE("equal runs on the GPU give equal bits") {
    check_equal_runs<patchsae<>>({.codes = codes_form::entries});
    check_equal_runs<patchsae<>>({.clip_grad_norm = 0.05, .codes = codes_form::tiles});
    check_equal_runs<topk<>>();
    check_equal_runs<batch_topk<>>();
}

TEST_CASE("a thousand steps on the GPU take no more memory than the first few") {
    backend device;
    topk<> sae = fresh_sae<topk<>>();
    const auto x = on_device(device, rows_of_step(0));
    trainer<topk<>, backend> run(sae, {.lr = 1e-3, .dead_after = 2}, device);
    const auto steps = [&](std::size_t count) {
        for (std::size_t i = 0; i < count; ++i) run.step(batch_view{x.data(), shape<dyn, dyn>{batch, d}});
        return memory_space<backend_memory>::in_use();
    };
    const auto early = steps(5);
    memory_space<backend_memory>::restart_peak();
    // The emulation takes a second for a few dozen.
    const auto late = steps(std::strcmp(device.name(), "emulation") == 0 ? 20 : 1000);
    CHECK(late.now == early.now);
    CHECK(late.most == early.now);
}

TEST_CASE("what has trained on the GPU gives its memory back") {
    using device_memory = memory_space<backend_memory>;
    const backend device;  // or an error that names what is missing
    const std::size_t before = device_memory::in_use().now;
    for (int i = 0; i < 3; ++i) state_after<patchsae<>>(2, {}, precision::bf16);
    CHECK(device_memory::in_use().now == before);
}
