// What the CUDA backend costs, as a table: the encoder and training steps beside the bare product of their shape and the
// speed of a copy, measured in one run with CUDA events. Medians of `repeats`.
//   bench_gpu [d latents [repeats]]     default: 768 49152 20
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include <psae/cuda.hpp>

#include <psae/sae/patchsae.hpp>
#include <psae/sae/topk.hpp>
#include <psae/sae/trainer.hpp>

using namespace psae;

namespace {

class stopwatch {
public:
    explicit stopwatch(const psae::cuda& device) : device_(device) {
        detail::check(cudaEventCreate(&start_), "event");
        detail::check(cudaEventCreate(&end_), "event");
    }
    ~stopwatch() {
        cudaEventDestroy(start_);
        cudaEventDestroy(end_);
    }
    // The median time of f() in milliseconds, after three calls that are not counted.
    template <class F>
    double median(int repeats, const F& f) {
        std::vector<float> times;
        for (int i = -3; i < repeats; ++i) {
            detail::check(cudaEventRecord(start_, device_.stream()), "event");
            f();
            detail::check(cudaEventRecord(end_, device_.stream()), "event");
            detail::check(cudaEventSynchronize(end_), "event");
            float ms = 0;
            detail::check(cudaEventElapsedTime(&ms, start_, end_), "event");
            if (i >= 0) times.push_back(ms);
        }
        std::nth_element(times.begin(), times.begin() + std::ptrdiff_t(times.size() / 2), times.end());
        return double(times[times.size() / 2]);
    }

private:
    const psae::cuda& device_;
    cudaEvent_t start_ = nullptr, end_ = nullptr;
};

tensor<float, shape<dyn>, space::device> random_numbers(const psae::cuda& device, std::size_t count,
                                                        std::uint64_t seed) {
    random_stream random(seed);
    std::vector<float> here(count);
    for (float& v : here) v = random.normal();
    tensor<float, shape<dyn>, space::device> there(shape<dyn>{count});
    upload(device, there.data(), here.data(), count);
    device.synchronise();
    return there;
}

const char* name_of(precision p) { return p == precision::fp32 ? "fp32" : p == precision::tf32 ? "tf32" : "bf16"; }

struct sizes {
    std::size_t d, latents, tokens;
};

// Latents with W_enc rows of unit length and a bias that lets about l0 of them fire for tokens of normal numbers; 0
// leaves the bias at 0.
template <class Variant>
Variant random_sae(const sizes& s, double l0) {
    Variant sae(s.d, s.latents);
    random_stream random(1);
    sae.initialise(random);
    std::copy(sae.W_dec.value.begin(), sae.W_dec.value.end(), sae.W_enc.value.begin());
    if (l0 > 0) {  // P(h > t) by bisection, h being normal
        double low = 0, high = 8;
        for (int i = 0; i < 60; ++i) {
            const double t = (low + high) / 2;
            (0.5 * std::erfc(t / std::sqrt(2.0)) > l0 / double(s.latents) ? low : high) = t;
        }
        std::fill(sae.b_enc.value.begin(), sae.b_enc.value.end(), static_cast<float>(-low));
    }
    return sae;
}

template <class Variant>
void time_step(psae::cuda& device, stopwatch& watch, int repeats, const sizes& s, Variant sae, const char* name,
               double gemm_ms, double copy_bytes_per_ms, const float* x) {
    trainer<Variant, psae::cuda> run(sae, {.lr = 1e-6, .dead_after = 1000000}, device);
    const const_view<float, shape<dyn, dyn>, space::device> tokens{x, shape<dyn, dyn>{s.tokens, s.d}};
    double l0 = 0;
    const double ms = watch.median(repeats, [&] { l0 = run.step(tokens).l0; });
    // Adam reads and writes three numbers for each of both matrices'; for each entry four rows are read or written.
    const double sweep = 6.0 * 2 * double(s.d * s.latents) * sizeof(float) / copy_bytes_per_ms,
                 traffic = 4.0 * l0 * double(s.tokens * s.d) * sizeof(float) / copy_bytes_per_ms,
                 floor = l0 > double(s.latents) / 24 ? 5 * gemm_ms : gemm_ms + sweep + traffic;
    std::printf("| %s | %s | %zu | %.1f | %.3f | %.3f | %.2f | %.0f |\n", name, name_of(device.products), s.tokens, l0,
                ms, floor, ms / floor, 1e3 * double(s.tokens) / ms);
}

}  // namespace

int main(int argc, char** argv) try {
    const auto number = [&](int i, std::size_t otherwise) {
        return argc > i ? std::size_t(std::strtoull(argv[i], nullptr, 10)) : otherwise;
    };
    const std::size_t d = number(1, 768), latents = number(2, 49152);
    const int repeats = static_cast<int>(number(3, 20));
    psae::cuda device;
    stopwatch watch(device);
    const std::size_t piece = d * latents;
    const auto from = random_numbers(device, piece, 2);
    tensor<float, shape<dyn>, space::device> to(shape<dyn>{piece});
    const double copy_ms = watch.median(repeats, [&] {
        detail::check(
            cudaMemcpyAsync(to.data(), from.data(), piece * sizeof(float), cudaMemcpyDeviceToDevice, device.stream()),
            "copy");
    });
    const double copy_bytes_per_ms = 2.0 * double(piece) * sizeof(float) / copy_ms;
    std::printf("GPU: %s. A copy moves %.0f GB/s (read and written).\n\n", device.name(), copy_bytes_per_ms / 1e6);

    std::printf(
        "| encode | products | tokens | bare product, ms | encode, ms | ratio | TFLOP/s of the bare product |\n");
    std::printf("|---|---|---|---|---|---|---|\n");
    for (const std::size_t tokens : {std::size_t{4096}, std::size_t{16384}}) {
        const sizes s{d, latents, tokens};
        const auto x = random_numbers(device, tokens * d, 3);
        tensor<float, shape<dyn>, space::device> all(shape<dyn>{tokens * latents});
        for (const precision p : {precision::fp32, precision::tf32, precision::bf16}) {
            device.products = p;
            arena<space::device> scratch;
            const auto sae = random_sae<topk<>>(s, 64);
            tensor<float, shape<dyn>, space::device> W(shape<dyn>{piece}), b(shape<dyn>{latents});
            upload(device, W.data(), sae.W_enc.value.data(), piece);
            upload(device, b.data(), sae.b_enc.value.data(), latents);
            const float *tokens_there = x.data(), *weights = W.data(), *bias = b.data();
            tensor<bf16, shape<dyn>, space::device> rounded_x(shape<dyn>{tokens * d}), rounded_W(shape<dyn>{piece});
            round_to_bf16(device, rounded_x.data(), tokens_there, tokens * d);
            round_to_bf16(device, rounded_W.data(), weights, piece);
            const double gemm_ms = watch.median(repeats, [&] {
                if (p == precision::bf16)
                    gemm(device, false, true, tokens, latents, d, 1.0f, std::as_const(rounded_x).data(), d,
                         std::as_const(rounded_W).data(), d, 0.0f, all.data(), latents);
                else
                    gemm(device, false, true, tokens, latents, d, 1.0f, tokens_there, d, weights, d, 0.0f, all.data(),
                         latents);
            });
            const double tflops = 2.0 * double(tokens * latents) * double(d) / gemm_ms / 1e9;
            const auto row = [&](const std::string& name, const auto& activation) {
                const double ms = watch.median(repeats, [&] {
                    scratch.reset();
                    codes_view<float> z;
                    encode(device, scratch, z, tokens_there, tokens, d, weights, bias, latents, activation, nullptr);
                });
                std::printf("| %s | %s | %zu | %.3f | %.3f | %.2f | %.0f |\n", name.c_str(), name_of(p), tokens,
                            gemm_ms, ms, ms / gemm_ms, tflops);
            };
            for (const std::size_t k : {std::size_t{32}, std::size_t{64}, std::size_t{256}})
                row("top " + std::to_string(k), top_k{k});
            row("ReLU, L0 64", relu{});
            row("top 64 of the batch", batch_top_k{64});
        }
    }

    std::printf("\n| training step | products | tokens | L0 | ms | floor, ms | ratio | tokens/s |\n");
    std::printf("|---|---|---|---|---|---|---|---|\n");
    for (const precision p : {precision::fp32, precision::tf32, precision::bf16}) {
        device.products = p;
        const sizes s{d, latents, 4096};
        const auto x = random_numbers(device, s.tokens * d, 3), W = random_numbers(device, piece, 4);
        tensor<float, shape<dyn>, space::device> all(shape<dyn>{s.tokens * latents});
        arena<space::device> scratch;
        const double gemm_ms = watch.median(repeats, [&] {
            scratch.reset();
            product(device, scratch, false, true, s.tokens, latents, d, x.data(), W.data(), write::overwrite,
                    all.data());
        });
        for (const std::size_t k : {std::size_t{32}, std::size_t{64}, std::size_t{256}}) {
            auto sae = random_sae<topk<>>(s, 0);
            sae.k = k;
            time_step(device, watch, repeats, s, std::move(sae), "TopK", gemm_ms, copy_bytes_per_ms, x.data());
        }
        time_step(device, watch, repeats, s, random_sae<patchsae<>>(s, 64), "ReLU + L1", gemm_ms, copy_bytes_per_ms,
                  x.data());
        time_step(device, watch, repeats, s, random_sae<patchsae<>>(s, 0), "ReLU + L1, random start", gemm_ms,
                  copy_bytes_per_ms, x.data());
    }
} catch (const psae::error& e) {
    std::fprintf(stderr, "bench_gpu: %s\n", e.what());
    return 1;
}
