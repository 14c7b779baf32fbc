// Training steps of every variant beside their floors (step_timing.hpp). The time is the median of five steps; peak_mib
// is the most memory the process held during the steps.
#include <benchmark/benchmark.h>

#include "step_timing.hpp"

using namespace psae;

namespace {

// range: d, latents, tokens, L0 (of top-k variants their k; of others the mean aimed at, 0 for a random start).
template <class Variant>
void sae_step(benchmark::State& state, const cpu& device = cpu(), codes_form form = codes_form::by_density,
              std::size_t codes_mib = 0) {
    const auto number = [&](int i) { return static_cast<std::size_t>(state.range(i)); };
    const psae_bench::sizes s{number(0), number(1), number(2), number(3)};
    psae_bench::step_timing t{};
    for (auto _ : state) {
        t = psae_bench::time_step<Variant>(device, s, 5, form, codes_mib);
        state.SetIterationTime(t.median_s);
    }
    state.counters["l0"] = t.l0;
    state.counters["median_s"] = t.median_s;
    state.counters["tokens_per_s"] = double(s.tokens) / t.median_s;
    state.counters["encoder_gemm_s"] = t.floor.encoder_gemm;
    state.counters["adam_sweep_s"] = t.floor.adam_sweep;
    if (s.l0 > 0) {
        state.counters["sparse_traffic_s"] = t.sparse_traffic_s;
        state.counters["x_floor"] = t.x_floor;
    } else {
        state.counters["five_gemms_s"] = t.floor.five_gemms;
        state.counters["x_five_gemms"] = t.median_s / t.floor.five_gemms;
    }
    state.counters["peak_mib"] = t.peak_mib;
    state.counters["parameters_and_moments_mib"] = double(s.latents * s.d) * 2 * 3 * 4 / 1048576.0;
}

void settings(benchmark::internal::Benchmark* b) {
    b->ArgNames({"d", "latents", "tokens", "l0"})->Unit(benchmark::kMillisecond)->UseManualTime()->Iterations(1);
}
void relu_step(benchmark::State& state, codes_form form, std::size_t codes_mib) {
    sae_step<patchsae<>>(state, cpu(), form, codes_mib);
}
void relu_step_bf16(benchmark::State& state) {
    cpu device;
    device.products = precision::bf16;
    sae_step<patchsae<>>(state, device);
}
template <class Variant, screening Screening = screening::where_faster>
void step(benchmark::State& state) {
    cpu device;
    device.screening = Screening;
    sae_step<Variant>(state, device);
}

BENCHMARK_CAPTURE(relu_step, by_density, codes_form::by_density, 0)
    ->Apply(settings)
    ->ArgsProduct({{768}, {49152}, {4096}, {0, 64}});
BENCHMARK(step<topk<>>)->Name("topk_step")->Apply(settings)->ArgsProduct({{768}, {49152}, {4096}, {32, 64, 256}});
BENCHMARK(step<batch_topk<>>)
    ->Name("batch_topk_step")
    ->Apply(settings)
    ->ArgsProduct({{768}, {49152}, {4096}, {32, 64, 256}});
BENCHMARK(step<matryoshka<batch_topk<>>>)
    ->Name("matryoshka_step")
    ->Apply(settings)
    ->ArgsProduct({{768}, {49152}, {4096}, {64}});
BENCHMARK(step<standard<>>)->Name("standard_step")->Apply(settings)->ArgsProduct({{768}, {49152}, {4096}, {64}});
BENCHMARK(step<jump_relu<>>)->Name("jump_relu_step")->Apply(settings)->ArgsProduct({{768}, {49152}, {4096}, {64}});
BENCHMARK(step<gated<>>)->Name("gated_step")->Apply(settings)->ArgsProduct({{768}, {49152}, {4096}, {64}});
BENCHMARK(step<transcoder<>>)->Name("transcoder_step")->Apply(settings)->ArgsProduct({{768}, {49152}, {4096}, {64}});
// What the machine's bf16 is worth.
BENCHMARK(relu_step_bf16)->Apply(settings)->ArgsProduct({{768}, {49152}, {4096}, {0}});
BENCHMARK(step<topk<>, screening::never>)
    ->Name("unscreened_topk_step")
    ->Apply(settings)
    ->ArgsProduct({{768}, {49152}, {4096}, {64}});
BENCHMARK(step<patchsae<>, screening::never>)
    ->Name("unscreened_relu_step")
    ->Apply(settings)
    ->ArgsProduct({{768}, {49152}, {4096}, {64}});
// The crossover of the two forms of codes.
BENCHMARK_CAPTURE(relu_step, entries, codes_form::entries, 0)
    ->Apply(settings)
    ->ArgsProduct({{768}, {49152}, {4096}, {1024, 2048, 4096}});
BENCHMARK_CAPTURE(relu_step, tiles, codes_form::tiles, 0)
    ->Apply(settings)
    ->ArgsProduct({{768}, {49152}, {4096}, {1024, 2048, 4096}});
BENCHMARK_CAPTURE(relu_step, tiles_kept, codes_form::tiles, 1024)
    ->Apply(settings)
    ->ArgsProduct({{768}, {49152}, {4096}, {0}});

}  // namespace

BENCHMARK_MAIN();
