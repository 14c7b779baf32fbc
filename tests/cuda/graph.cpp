// Work that is recorded as a CUDA graph and replayed: by itself, and as training steps beside those of the CPU.
#include <catch2/catch.hpp>

#include <functional>
#include <type_traits>
#include <vector>

#include <psae/sae/batch_topk.hpp>
#include <psae/sae/gated.hpp>
#include <psae/sae/jump_relu.hpp>
#include <psae/sae/matryoshka.hpp>
#include <psae/sae/patchsae.hpp>
#include <psae/sae/topk.hpp>
#include <psae/sae/trainer.hpp>

#include "../backend.hpp"
#include "../difference.hpp"

using namespace psae;

namespace {

// Work that adds 1 to a number on the device, whatever its key.
struct counted_work {
    psae::cuda device;
    device_array<float, psae::cuda> number = on_device(device, std::vector<float>{0});
    repeated_work<psae::cuda> work;
    int given = 0;  // how often it was given by hand

    void run(int key) {
        work.run(
            device, [&](work_key& bytes) { bytes.push_back(static_cast<std::byte>(key)); },
            [&] {
                ++given;
                const view<float, shape<dyn>, space::device> one{number.data(), shape<dyn>{1}};
                assign(device, one, one + 1.0f);
            });
    }
    float done() { return read(device, number.data()); }
};

constexpr std::size_t d = 12, latents = 48, batch = 24;

std::vector<float> tokens_of_step(std::size_t step, float scale = 1) {
    random_stream random(step + 100);
    std::vector<float> x(batch * d);
    for (float& v : x) v = scale * (0.3f + random.normal());
    return x;
}

template <class Variant>
using setting = std::function<void(Variant&)>;

// Steps on the GPU and on the CPU, whose batches lie in two buffers by turns. `change(step, x)` may change a batch.
template <class Variant>
std::size_t replays_of_run(const std::type_identity_t<setting<Variant>>& set, training_options options,
                           std::size_t steps,
                           const std::function<void(std::size_t, std::vector<float>&)>& change = {}) {
    options.lr = 3e-3;
    options.warmup_steps = 4;
    Variant here(d, latents), there(d, latents);
    for (Variant* sae : {&here, &there}) {
        random_stream random(5);
        sae->initialise(random);
        set(*sae);
    }
    psae::cpu host(1);
    psae::cuda device;
    trainer<Variant> on_cpu(here, options, host);
    trainer<Variant, psae::cuda> on_gpu(there, options, device);
    device_array<float, psae::cuda> buffers[2] = {on_device(device, tokens_of_step(0)),
                                                  on_device(device, tokens_of_step(0))};
    const shape<dyn, dyn> extents{batch, d};
    for (std::size_t step = 0; step < steps; ++step) {
        INFO("step " << step);
        auto x = tokens_of_step(step);
        if (change) change(step, x);
        auto& buffer = buffers[step % 2];
        upload(device, buffer.data(), x.data(), x.size());
        const step_metrics a = on_cpu.step(const_view<float, shape<dyn, dyn>>{x.data(), extents});
        const step_metrics b = on_gpu.step(const_view<float, shape<dyn, dyn>, space::device>{buffer.data(), extents});
        CHECK(b.loss == Approx(a.loss).epsilon(1e-4));
        CHECK(b.l0 == a.l0);
        CHECK(b.dead_fraction == a.dead_fraction);
        CHECK(b.explained_variance == Approx(a.explained_variance).epsilon(1e-4));
        REQUIRE(b.terms.size() == a.terms.size());
        for (std::size_t i = 0; i < a.terms.size(); ++i)
            CHECK(b.terms[i].second == Approx(a.terms[i].second).epsilon(1e-4).margin(1e-7));
    }
    on_gpu.read_parameters();
    CHECK(relative_difference(there.W_enc.value, here.W_enc.value) < 1e-4);
    CHECK(relative_difference(there.W_dec.value, here.W_dec.value) < 1e-4);
    CHECK(on_gpu.activation_count() == on_cpu.activation_count());
    CHECK(on_gpu.since_fired() == on_cpu.since_fired());
    return on_gpu.replays();
}

constexpr auto as_it_is = [](auto&) {};
constexpr auto with_k_of_5 = [](auto& sae) { sae.k = 5; };

}  // namespace

TEST_CASE("repeated work is given once, recorded once and replayed from then on") {
    counted_work w;
    for (const int key : {1, 1, 1, 2, 1, 2, 2}) w.run(key);
    CHECK(w.given == 4);
    CHECK(w.work.replays() == 3);
    CHECK(w.done() == 7);
    for (const int key : {3, 4, 5, 6, 1}) w.run(key);  // the last few are kept
    CHECK(w.given == 9);
    CHECK(w.done() == 12);
    w.device.products = precision::tf32;  // other work
    w.run(1);
    CHECK(w.given == 10);
    CHECK(w.done() == 13);
}

TEST_CASE("work that fails while it is recorded leaves the device as it was") {
    counted_work w;
    w.run(1);
    const auto key = [](work_key& bytes) { bytes.push_back(std::byte{1}); };
    CHECK_THROWS_WITH(w.work.run(w.device, key, [] { throw error("no luck", "work"); }), Catch::Contains("no luck"));
    CHECK_THROWS_WITH(w.work.run(w.device, key, [&] { w.device.synchronise(); }), Catch::Contains("CUDA"));
    w.run(1);
    CHECK(w.done() == 2);
}

TEST_CASE("training steps on the GPU are replayed, and do what those of the CPU do") {
    // Two buffers: a step given by hand and one recorded for each, after the one that measures.
    CHECK(replays_of_run<patchsae<>>(as_it_is, {.codes = codes_form::entries}, 10) >= 4);
    CHECK(replays_of_run<patchsae<>>(as_it_is, {.codes = codes_form::tiles}, 10) >= 4);
    CHECK(replays_of_run<patchsae<>>(as_it_is, {}, 10) >= 4);
    CHECK(replays_of_run<patchsae<>>(as_it_is, {.clip_grad_norm = 0.05}, 10) >= 4);
    CHECK(replays_of_run<topk<>>(with_k_of_5, {}, 10) >= 4);
    CHECK(replays_of_run<batch_topk<>>(with_k_of_5, {}, 10) >= 4);
    CHECK(replays_of_run<gated<>>(as_it_is, {}, 10) >= 4);
    CHECK(replays_of_run<jump_relu<>>(as_it_is, {}, 10) >= 4);
    const auto two_prefixes = [](auto& sae) {
        sae.k = 5;
        sae.prefixes = {10, 20};
    };
    CHECK(replays_of_run<matryoshka<topk<>>>(two_prefixes, {}, 10) >= 4);
}

TEST_CASE("steps that differ by a number of the host are not replayed") {
    const auto warming_up = [](auto& sae) { sae.lambda_warmup_steps = 100; };
    CHECK(replays_of_run<patchsae<>>(warming_up, {}, 8) == 0);
    const auto drawing = [](auto& sae) {
        sae.k = 5;
        sae.random_prefixes = 2;
    };
    CHECK(replays_of_run<matryoshka<topk<>>>(drawing, {}, 8) <= 2);  // unless the same are drawn
}

TEST_CASE("dead latents come and go between replays") {
    const auto some_die = [](std::size_t step, std::vector<float>& x) {
        if (step >= 6 && step < 14)
            for (std::size_t i = 0; i < x.size(); ++i) x[i] = i % d < 2 ? x[i] : 0.01f;
    };
    training_options options;
    options.dead_after = 3;
    CHECK(replays_of_run<topk<>>([](auto& sae) { sae.k = 3; }, options, 40, some_die) > 0);
    CHECK(replays_of_run<patchsae<>>(as_it_is, options, 40, some_die) > 0);
    options.codes = codes_form::entries;
    CHECK(replays_of_run<patchsae<>>(as_it_is, options, 40, some_die) > 0);
}

TEST_CASE("a step whose codes need more room than those before is done again") {
    // Tokens of which few latents fire, and then one batch of which nearly all do.
    const auto rarely_firing = [](auto& sae) {
        for (float& b : sae.b_enc.value) b = -3;
    };
    const auto surge = [](std::size_t step, std::vector<float>& x) {
        if (step == 7)
            for (float& v : x) v *= 100;
    };
    CHECK(replays_of_run<patchsae<>>(rarely_firing, {.codes = codes_form::entries}, 20, surge) >= 6);
    CHECK(replays_of_run<patchsae<>>(rarely_firing, {}, 20, surge) >= 6);
    CHECK(replays_of_run<batch_topk<>>(
              [&](auto& sae) {
                  rarely_firing(sae);
                  sae.k = 2;
              },
              {}, 20, surge) >= 6);
}
