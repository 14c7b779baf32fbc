// CLIP's ViT-B/16 image tower (random weights, fp32). full: 12 blocks and the image embedding; tap: hidden state -2,
// that is 11 blocks and nothing after. Beside each time, its rate and that rate over the bare product's, from the same
// run.
#include <chrono>
#include <cmath>
#include <vector>

#include <benchmark/benchmark.h>

#include <psae/core/random.hpp>
#include <psae/vit/clip_vision.hpp>

#include "random_weights.hpp"

using namespace psae;

namespace {

using config = clip_vit_b16;

double gflop(std::size_t images, std::size_t blocks) {
    constexpr double n = config::tokens, d = config::width, m = config::mlp;
    const double block = 4 * n * d * d + 2 * n * d * m + 2 * n * n * d;
    return 2e-9 * double(images) * (double(blocks) * block + (n - 1) * 3 * config::patch * config::patch * d);
}

// The best rate of the bare product x W^T of the perceptron's first layer, in GFLOP/s.
double bare_product_rate(std::size_t images) {
    cpu device;
    arena<> scratch;
    const std::size_t n = images * config::tokens;
    tensor<float, shape<dyn, config::width>> x{shape<dyn, config::width>{n}};
    tensor<float, shape<config::mlp, config::width>> W;
    tensor<float, shape<dyn, config::mlp>> y{shape<dyn, config::mlp>{n}};
    random_stream random(1);
    for (float& v : x) v = random.uniform() - 0.5f;
    for (float& v : W) v = random.uniform() - 0.5f;
    const packed_matrix packed(std::as_const(W).view());
    double best = 1e30;
    for (int i = 0; i < 10; ++i) {
        const auto start = std::chrono::steady_clock::now();
        matmul(device, scratch, y.view(), std::as_const(x).data(), packed, no_epilogue{});
        const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
        if (i > 0) best = std::min(best, time.count());
    }
    return 2e-9 * double(n) * config::width * config::mlp / best;
}

void run(benchmark::State& state, std::size_t blocks) {
    static const clip_vision_tower<config> tower(random_weights{});
    static const double ceiling = bare_product_rate(8);
    const auto images = static_cast<std::size_t>(state.range(0));
    const cpu device;
    arena<> scratch;
    std::vector<float> pixels(images * 3 * config::image * config::image), x(images * config::tokens * config::width),
        embeddings(images * config::projection);
    random_stream random(images);
    for (float& v : pixels) v = random.normal();
    const auto forward = [&] {
        scratch.reset();
        tower.embed(device, scratch, pixels.data(), images, x.data());
        tower.run(device, scratch, x.data(), images, 0, blocks);
        if (blocks == config::layers) tower.project(device, scratch, x.data(), images, embeddings.data(), false);
    };
    for (int i = 0; i < 2; ++i) forward();  // sizes the arena
    for (auto _ : state) forward();
    const double work = gflop(images, blocks) * double(state.iterations());
    state.counters["gflops"] = benchmark::Counter(work, benchmark::Counter::kIsRate);
    state.counters["of_ceiling"] = benchmark::Counter(work / ceiling, benchmark::Counter::kIsRate);
    state.counters["ceiling_gflops"] = ceiling;
    state.counters["peak_mib"] = double(scratch.peak_bytes()) / 1048576.0;
}

void settings(benchmark::internal::Benchmark* b) {
    b->ArgName("b")->Unit(benchmark::kMillisecond)->UseRealTime()->Iterations(1);
}
BENCHMARK_CAPTURE(run, full, config::layers)->Apply(settings)->Arg(1)->Repetitions(7);
BENCHMARK_CAPTURE(run, full, config::layers)->Apply(settings)->Arg(8)->Repetitions(3);
BENCHMARK_CAPTURE(run, tap, config::layers - 1)->Apply(settings)->Arg(1)->Repetitions(7);
BENCHMARK_CAPTURE(run, tap, config::layers - 1)->Apply(settings)->Arg(8)->Repetitions(3);

}  // namespace

BENCHMARK_MAIN();
