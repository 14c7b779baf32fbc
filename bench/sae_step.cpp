// One training step beside its floors, measured in the same process: the bare encoder GEMM and Adam's sweep at copy
// speed (what a step on sparse codes cannot avoid, with what the entries read), and five bare GEMMs (what a dense step cannot). peak_mib is the
// most memory the process held during the steps.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <string>
#include <vector>

#include <benchmark/benchmark.h>

#include <psae/psae.hpp>

using namespace psae;

namespace {

struct sizes {
    std::size_t d, latents, tokens, l0;  // l0: of TopK its k; of ReLU the mean, 0 for a random start
};

template <class F>
double least_seconds(int times, const F& f) {
    double least = 1e30;
    for (int i = 0; i < times; ++i) {
        const auto start = std::chrono::steady_clock::now();
        f();
        least = std::min(least, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    return least;
}

struct floors {
    double encoder_gemm, five_gemms, adam_sweep, copy_bytes_per_s;  // seconds but for the last
};

floors measure_floors(cpu& device, const sizes& s, const float* x, const float* W) {
    const std::size_t d = s.d, F = s.latents, n = s.tokens;
    std::vector<float> H(n * F), rows(F * d), tokens(n * d);
    const double encode =
        least_seconds(3, [&] { gemm(device, false, true, n, F, d, 1.0f, x, d, W, d, 0.0f, H.data(), F); });
    const double decode =
        least_seconds(2, [&] { gemm(device, false, false, n, d, F, 1.0f, H.data(), F, W, d, 0.0f, tokens.data(), d); });
    const double weights =
        least_seconds(2, [&] { gemm(device, true, false, F, d, n, 1.0f, H.data(), F, x, d, 0.0f, rows.data(), d); });
    // Adam reads and writes w, m and v of two matrices: 24 bytes an element, beside which a copy moves 8.
    const double copy = least_seconds(3, [&] {
        const std::size_t piece = F * d / 64;
        device.parallel_for(64, [&](std::size_t i) { std::copy_n(W + i * piece, piece, rows.data() + i * piece); });
    });
    return {encode, 2 * encode + decode + 2 * weights, 2 * 3 * copy, 2.0 * double(F * d) * sizeof(float) / copy};
}

// The most memory this process has held since the last call, in MiB (0 where the system does not say).
double peak_mib() {
    double kib = 0;
    std::string word;
    for (std::ifstream status("/proc/self/status"); status >> word;)
        if (word == "VmHWM:") status >> kib;
    std::ofstream("/proc/self/clear_refs") << 5;  // starts the peak anew
    return kib / 1024;
}

template <class Variant>
void aim_at(Variant& sae, const sizes& s) {
    if constexpr (requires { sae.k; }) {
        sae.k = static_cast<decltype(sae.k)>(s.l0);
        if constexpr (requires { sae.prefixes; })
            for (std::size_t part = 32; part > 1; part /= 2) sae.prefixes.push_back(s.latents / part);
    } else {
        sae.dead_latents.enabled = false;
        if (s.l0 == 0) return;
        // Pre-activations are normal with deviation sqrt(2 d / latents): the bias that leaves the wanted share above 0.
        const double share = double(s.l0) / double(s.latents),
                     deviation = std::sqrt(2.0 * double(s.d) / double(s.latents));
        double low = 0, high = 10;
        for (int i = 0; i < 60; ++i)
            (0.5 * std::erfc((low + high) / 2 / std::sqrt(2.0)) > share ? low : high) = (low + high) / 2;
        for (float& b : sae.b_enc.value) b = static_cast<float>(-low * deviation);
    }
}

// range: d, latents, tokens, L0 (of TopK its k; of ReLU the mean, 0 for a random start). The step reported is the median.
template <class Variant>
void sae_step(benchmark::State& state, const cpu& machine = cpu(), codes_form form = codes_form::by_density,
              std::size_t codes_mib = 0) {
    const auto number = [&](int i) { return static_cast<std::size_t>(state.range(i)); };
    const sizes s{number(0), number(1), number(2), number(3)};
    cpu device = machine;
    random_stream random(7);
    Variant sae(s.d, s.latents);
    sae.initialise(random);
    tensor<float, shape<dyn, dyn>> x{shape<dyn, dyn>{s.tokens, s.d}};
    for (float& v : x) v = random.normal();
    aim_at(sae, s);

    peak_mib();  // starts anew
    trainer<Variant> run(sae, {.codes = form, .codes_memory = codes_mib << 20}, device);
    step_metrics m = run.step(std::as_const(x).view());  // sizes the arena
    std::vector<double> times;
    for (auto _ : state) {
        times.push_back(least_seconds(1, [&] { m = run.step(std::as_const(x).view()); }));
        state.SetIterationTime(times.back());
    }
    const double peak = peak_mib();
    const floors floor = measure_floors(device, s, x.data(), sae.W_enc.data());
    std::nth_element(times.begin(), times.begin() + std::ptrdiff_t(times.size() / 2), times.end());
    const double median = times[times.size() / 2];
    state.counters["l0"] = m.l0;
    state.counters["median_s"] = median;
    state.counters["tokens_per_s"] = double(s.tokens) / median;
    state.counters["encoder_gemm_s"] = floor.encoder_gemm;
    state.counters["adam_sweep_s"] = floor.adam_sweep;
    state.counters["five_gemms_s"] = floor.five_gemms;
    // For each entry of the codes a row of d floats is read four times: to decode, for the gradient of the value, and for
    // the rows of both weight gradients.
    const double sparse = 4 * m.l0 * double(s.tokens * s.d) * sizeof(float) / floor.copy_bytes_per_s;
    if (s.l0 > 0) {
        state.counters["sparse_traffic_s"] = sparse;
        state.counters["x_floor"] = median / (floor.encoder_gemm + floor.adam_sweep + sparse);
    }
    state.counters["x_five_gemms"] = median / floor.five_gemms;
    state.counters["peak_mib"] = peak;
    state.counters["parameters_and_moments_mib"] = double(s.latents * s.d) * 2 * 3 * 4 / 1048576.0;
}

void settings(benchmark::internal::Benchmark* b) {
    b->ArgNames({"d", "latents", "tokens", "l0"})->Unit(benchmark::kMillisecond)->UseManualTime()->Iterations(5);
}
void relu_step(benchmark::State& state, codes_form form, std::size_t codes_mib) {
    sae_step<patchsae<>>(state, cpu(), form, codes_mib);
}
void relu_step_bf16(benchmark::State& state) {
    cpu device;
    device.products = precision::bf16;
    sae_step<patchsae<>>(state, device);
}
template <class Variant>
void step_unscreened(benchmark::State& state) {
    cpu device;
    device.screening = screening::never;
    sae_step<Variant>(state, device);
}
void topk_step(benchmark::State& state) { sae_step<topk<>>(state); }
void batch_topk_step(benchmark::State& state) { sae_step<batch_topk<>>(state); }
void matryoshka_step(benchmark::State& state) { sae_step<matryoshka<batch_topk<>>>(state); }

BENCHMARK_CAPTURE(relu_step, by_density, codes_form::by_density, 0)
    ->Apply(settings)
    ->ArgsProduct({{768}, {49152}, {4096}, {0, 64}});
BENCHMARK(topk_step)->Apply(settings)->ArgsProduct({{768}, {49152}, {4096}, {32, 64, 256}});
BENCHMARK(batch_topk_step)->Apply(settings)->ArgsProduct({{768}, {49152}, {4096}, {32, 64, 256}});
BENCHMARK(matryoshka_step)->Apply(settings)->ArgsProduct({{768}, {49152}, {4096}, {64}});
// What the machine's bf16 is worth.
BENCHMARK(relu_step_bf16)->Apply(settings)->ArgsProduct({{768}, {49152}, {4096}, {0}});
BENCHMARK(step_unscreened<topk<>>)->Apply(settings)->ArgsProduct({{768}, {49152}, {4096}, {64}});
BENCHMARK(step_unscreened<patchsae<>>)->Apply(settings)->ArgsProduct({{768}, {49152}, {4096}, {64}});
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
