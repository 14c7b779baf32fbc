// Encoding alone, screened and not, beside the bare GEMM of the same shape; how many pre-activations the screening
// leaves to be computed; and decoding and the latent summary beside copying.
//
// Activations and weights: `normal` has all of them independent; `spectrum` has activations whose principal components
// fall off as a power law around a large mean, with two dimensions far above the others as in CLIP's residual stream,
// and latents along such activations; `trained` takes an SAE and activations [n, d_in] from the files that PSAE_BENCH_SAE
// and PSAE_BENCH_ACTIVATIONS name.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include <benchmark/benchmark.h>

#include <psae/attribution/latent_summary.hpp>
#include <psae/io/numpy.hpp>
#include <psae/io/sae_file.hpp>
#include <psae/psae.hpp>

using namespace psae;

namespace {

template <class F>
double median_seconds(int times, const F& f) {
    std::vector<double> seconds;
    for (int i = 0; i < times; ++i) {
        const auto start = std::chrono::steady_clock::now();
        f();
        seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    std::nth_element(seconds.begin(), seconds.begin() + times / 2, seconds.end());
    return seconds[std::size_t(times) / 2];
}

using matrix = tensor<float, shape<dyn, dyn>>;

struct operands {
    std::size_t tokens, d, latents;
    matrix x, W;  // x: centred, as the encoder gets it
    tensor<float, shape<dyn>> b;
};

// Rows that are sums of d directions, the i-th with deviation i^-0.6, and two entries of 20 deviations.
matrix rows_with_spectrum(std::size_t n, std::size_t d, const matrix& directions, random_stream& random) {
    matrix scores{shape<dyn, dyn>{n, d}}, rows{shape<dyn, dyn>{n, d}};
    for (std::size_t r = 0; r < n; ++r)
        for (std::size_t i = 0; i < d; ++i)
            scores(r, i) = float(random.normal() * std::pow(double(i + 1), -0.6) / std::sqrt(double(d)));
    gemm(cpu(), false, false, n, d, d, 1.0f, scores.data(), d, directions.data(), d, 0.0f, rows.data(), d);
    for (std::size_t r = 0; r < n; ++r)
        for (const std::size_t c : {d / 7, d / 3}) rows(r, c) += float(0.2 * random.normal());
    return rows;
}

operands make_operands(const std::string& kind, std::size_t tokens, std::size_t d, std::size_t latents) {
    operands o{tokens, d, latents, {}, {}, {}};
    random_stream random(5);
    if (kind == "trained") {
        const char *sae_path = std::getenv("PSAE_BENCH_SAE"), *rows_path = std::getenv("PSAE_BENCH_ACTIVATIONS");
        if (sae_path == nullptr || rows_path == nullptr) return o;
        const auto sae = read_sae(sae_path);
        const auto rows = read_npy(rows_path);
        o.d = sae.d_in;
        o.latents = sae.d_sae;
        o.tokens = std::min<std::size_t>(4096, rows.size() / sae.d_in);
        const auto values = to_floats(rows);
        o.x = matrix{shape<dyn, dyn>{o.tokens, o.d}};
        o.W = matrix{shape<dyn, dyn>{o.latents, o.d}};
        for (std::size_t i = 0; i < o.tokens * o.d; ++i) o.x.data()[i] = values[i] - sae.b_dec[i % o.d];
        std::copy(sae.W_enc.begin(), sae.W_enc.end(), o.W.data());
        o.b = tensor<float, shape<dyn>>{shape<dyn>{o.latents}};
        std::copy(sae.b_enc.begin(), sae.b_enc.end(), o.b.data());
        return o;
    }
    o.b = tensor<float, shape<dyn>>{shape<dyn>{latents}};
    if (kind == "spectrum") {
        matrix directions{shape<dyn, dyn>{d, d}};
        for (float& v : directions) v = float(random.normal());
        o.x = rows_with_spectrum(tokens, d, directions, random);
        o.W = rows_with_spectrum(latents, d, directions, random);
    } else {
        o.x = matrix{shape<dyn, dyn>{tokens, d}};
        o.W = matrix{shape<dyn, dyn>{latents, d}};
        for (float& v : o.x) v = float(random.normal());
        for (float& v : o.W) v = float(random.normal());
    }
    for (std::size_t f = 0; f < latents; ++f) {  // rows of unit norm
        double squares = 0;
        for (std::size_t c = 0; c < d; ++c) squares += double(o.W(f, c)) * double(o.W(f, c));
        for (std::size_t c = 0; c < d; ++c) o.W(f, c) /= float(std::sqrt(squares));
    }
    return o;
}

// Of the tokens of the first batch: pre-activations whose upper bound reaches the k-th largest lower bound.
template <class Screen>
double survivors(const operands& o, std::size_t k) {
    cpu device;
    arena<> scratch;
    const std::size_t tokens = std::min<std::size_t>(256, o.tokens);
    Screen by(device, scratch, tokens, o.d, detail::encode_chunk(tokens, o.latents));
    detail::screened_pre_activations pre(device, scratch, o.x.data(), tokens, o.d, o.W.data(), o.b.data(),
                                         detail::encoded_latents(o.latents, nullptr), by);
    std::vector<std::vector<float>> lows(tokens), highs(tokens);
    pre.each_chunk([&](const auto& chunk) {
        for (std::size_t t = 0; t < tokens; ++t)
            for (std::size_t j = 0; j < chunk.count; ++j) {
                lows[t].push_back(chunk(t).low(j));
                highs[t].push_back(chunk(t).high(j));
            }
    });
    std::size_t number = 0;
    for (std::size_t t = 0; t < tokens; ++t) {
        std::nth_element(lows[t].begin(), lows[t].begin() + std::ptrdiff_t(k - 1), lows[t].end(), std::greater<>());
        for (const float high : highs[t]) number += high >= lows[t][k - 1];
    }
    return double(number) / double(tokens);
}

// Thresholds that about k latents of a token exceed on average, one for all latents.
float threshold_of(const operands& o, std::size_t k) {
    cpu device;
    arena<> scratch;
    codes_view<float> z;
    const std::size_t tokens = std::min<std::size_t>(256, o.tokens);
    float least = 0;
    encode(device, scratch, z, o.x.data(), tokens, o.d, o.W.data(), o.b.data(), o.latents, batch_top_k(double(k)),
           static_cast<const latent_set*>(nullptr), &least);
    return least;
}

void encode_alone(benchmark::State& state, const std::string& kind, const std::string& selection) {
    const auto k = static_cast<std::size_t>(state.range(0));
    const operands o = make_operands(kind, 4096, 768, 49152);
    if (o.x.data() == nullptr || k > o.latents) {
        state.SkipWithError("no trained SAE: PSAE_BENCH_SAE and PSAE_BENCH_ACTIVATIONS name its files");
        return;
    }
    cpu device;
    arena<> scratch;
    codes_view<float> z;
    std::vector<float> floor(o.latents, threshold_of(o, k));
    const auto once = [&] {
        scratch.reset();
        const auto with = [&](const auto& activation) {
            encode(device, scratch, z, o.x.data(), o.tokens, o.d, o.W.data(), o.b.data(), o.latents, activation,
                   static_cast<const latent_set*>(nullptr));
        };
        if (selection == "top_k") with(top_k(k));
        else if (selection == "batch_top_k") with(batch_top_k(double(k)));
        else with(above<float>{floor.data()});
    };
    once();  // sizes the arena
    double screened = 0, unscreened = 0;
    for (auto _ : state) {
        device.screening = screening::where_faster;
        screened = median_seconds(3, once);
        device.screening = screening::never;
        unscreened = median_seconds(3, once);
        state.SetIterationTime(screened);
    }
    matrix H{shape<dyn, dyn>{o.tokens, o.latents}};
    const double bare = median_seconds(3, [&] {
        gemm(device, false, true, o.tokens, o.latents, o.d, 1.0f, o.x.data(), o.d, o.W.data(), o.d, 0.0f, H.data(),
             o.latents);
    });
    state.counters["gemm_s"] = bare;
    state.counters["l0"] = double(z.entries()) / double(o.tokens);
    state.counters["screened_s"] = screened;
    state.counters["x_gemm"] = screened / bare;
    state.counters["unscreened_x_gemm"] = unscreened / bare;
    if (selection != "top_k") return;
    state.counters["survivors_bf16"] = survivors<detail::bf16_screen>(o, k);
    state.counters["survivors_int16"] = survivors<detail::int16_screen>(o, k);
}

// Decoding and the latent summary move what their entries name; beside the speed of a copy.
void decode_alone(benchmark::State& state) {
    const auto k = static_cast<std::size_t>(state.range(0));
    const operands o = make_operands("normal", 4096, 768, 49152);
    cpu device;
    arena<> scratch;
    codes_view<float> z;
    encode(device, scratch, z, o.x.data(), o.tokens, o.d, o.W.data(), o.b.data(), o.latents, top_k(k),
           static_cast<const latent_set*>(nullptr));
    matrix x_hat{shape<dyn, dyn>{o.tokens, o.d}}, copy{shape<dyn, dyn>{o.latents, o.d}};
    double seconds = 0, copying = 0;
    for (auto _ : state) {
        seconds = median_seconds(5, [&] {
            sparse_decode(device, x_hat.data(), z, z.value, o.W.data(), static_cast<const float*>(nullptr), o.d);
        });
        copying = median_seconds(5, [&] {
            const std::size_t piece = o.W.size() / 64;
            device.parallel_for(
                64, [&](std::size_t i) { std::copy_n(o.W.data() + i * piece, piece, copy.data() + i * piece); });
        });
        state.SetIterationTime(seconds);
    }
    const double moved = (double(z.entries()) + double(o.tokens)) * double(o.d) * sizeof(float);
    state.counters["gb_per_s"] = moved / seconds / 1e9;
    state.counters["of_copy"] = moved / seconds / (2.0 * double(o.W.size()) * sizeof(float) / copying);
}

void settings(benchmark::internal::Benchmark* b) {
    b->ArgName("k")->Unit(benchmark::kMillisecond)->UseManualTime()->Iterations(1);
}
BENCHMARK_CAPTURE(encode_alone, normal_top_k, "normal", "top_k")->Apply(settings)->Arg(32)->Arg(64)->Arg(256);
BENCHMARK_CAPTURE(encode_alone, normal_batch_top_k, "normal", "batch_top_k")->Apply(settings)->Arg(64);
BENCHMARK_CAPTURE(encode_alone, normal_jump_relu, "normal", "jump_relu")->Apply(settings)->Arg(64);
BENCHMARK_CAPTURE(encode_alone, spectrum_top_k, "spectrum", "top_k")->Apply(settings)->Arg(32)->Arg(64)->Arg(256);
BENCHMARK_CAPTURE(encode_alone, spectrum_batch_top_k, "spectrum", "batch_top_k")->Apply(settings)->Arg(64);
BENCHMARK_CAPTURE(encode_alone, spectrum_jump_relu, "spectrum", "jump_relu")->Apply(settings)->Arg(64);
BENCHMARK_CAPTURE(encode_alone, trained_top_k, "trained", "top_k")->Apply(settings)->Arg(32)->Arg(64);
BENCHMARK_CAPTURE(encode_alone, trained_batch_top_k, "trained", "batch_top_k")->Apply(settings)->Arg(32);
BENCHMARK_CAPTURE(encode_alone, trained_jump_relu, "trained", "jump_relu")->Apply(settings)->Arg(32);
BENCHMARK(decode_alone)->Apply(settings)->Arg(64)->Arg(256);

}  // namespace

BENCHMARK_MAIN();
