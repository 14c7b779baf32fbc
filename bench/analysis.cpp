// What a pass over pictures costs after training: CLIP's ViT-B/16 up to hidden state -2 (random weights, batches of
// eight), encoding with 49152 latents, and with the codes the latent summary (ten top images a latent) and the counts of
// 1000 classes. The bench/peers/analysis.py beside it does the same as PatchSAE's scripts do.
#include <chrono>
#include <cmath>
#include <vector>

#include <benchmark/benchmark.h>

#include <psae/attribution/class_latents.hpp>
#include <psae/attribution/latent_summary.hpp>
#include <psae/sae/inference.hpp>
#include <psae/vit/clip_vision.hpp>

#include "random_weights.hpp"

using namespace psae;

namespace {

using config = clip_vit_b16;

constexpr std::size_t batch = 8, latents = 49152, classes = 1000;

sae_weights random_sae(std::size_t k) {
    sae_weights sae;
    sae.architecture = "topk";
    sae.k = k;
    sae.d_in = config::width;
    sae.d_sae = latents;
    random_stream random(3);
    for (auto* W : {&sae.W_enc, &sae.W_dec}) {
        W->resize(latents * config::width);
        for (float& w : *W) w = random.normal() / std::sqrt(float(config::width));
    }
    sae.b_enc.resize(latents);
    sae.b_dec.resize(config::width);
    return sae;
}

void analysis(benchmark::State& state) {
    const clip_vision_tower<config> tower(random_weights{});
    const sae_weights sae = random_sae(static_cast<std::size_t>(state.range(0)));
    const cpu device;
    arena<> scratch;
    std::vector<float> pixels(batch * 3 * config::image * config::image), x(batch * config::tokens * config::width);
    random_stream random(1);
    latent_summary_builder summary(latents, 10);
    class_latent_counter counter(classes, latents);
    double seconds[3] = {};  // the tower, encoding, what is counted
    const auto timed = [](double& sum, auto&& work) {
        const auto start = std::chrono::steady_clock::now();
        work();
        sum += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    };
    for (auto _ : state) {
        for (float& v : pixels) v = random.normal();
        std::vector<std::int32_t> labels(batch);
        for (std::int32_t& c : labels) c = static_cast<std::int32_t>(random.below(classes));
        scratch.reset();
        timed(seconds[0], [&] {
            tower.embed(device, scratch, pixels.data(), batch, x.data());
            tower.run(device, scratch, x.data(), batch, 0, config::layers - 1);
        });
        codes_view<float> z;
        timed(seconds[1], [&] { z = encode_rows(device, scratch, sae, x.data(), batch * config::tokens); });
        timed(seconds[2], [&] {
            summary.add(z, config::tokens);
            counter.add(z, config::tokens, labels);
        });
    }
    const double images = double(batch) * double(state.iterations());
    state.counters["tower_ms_per_image"] = 1e3 * seconds[0] / images;
    state.counters["encode_ms_per_image"] = 1e3 * seconds[1] / images;
    state.counters["summary_ms_per_image"] = 1e3 * seconds[2] / images;
    state.counters["summary_share"] = seconds[2] / (seconds[0] + seconds[1] + seconds[2]);
}
BENCHMARK(analysis)->ArgName("k")->Arg(64)->Unit(benchmark::kMillisecond)->UseRealTime()->Iterations(6);

}  // namespace

BENCHMARK_MAIN();
