// One training step of a PatchSAE-shaped autoencoder beside its floor: the bare encoder GEMM and the Adam sweep at copy
// speed.
//   sae_step [d] [latents] [tokens] [L0: 0 = random start, relu] [topk|relu] [steps]
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include <sys/resource.h>

#include <psae/psae.hpp>

using namespace psae;

namespace {

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }
template <class F>
double best(int times, const F& f) {
    double least = 1e30;
    for (int i = 0; i < times; ++i) {
        const double t = seconds();
        f();
        least = std::min(least, seconds() - t);
    }
    return least;
}

template <class Variant>
void measure(Variant& sae, std::size_t d, std::size_t latents, std::size_t n, double l0, int steps) {
    cpu device;
    random_stream random(7);
    sae.initialise(random);
    tensor<float, shape<dyn, dyn>> x{shape<dyn, dyn>{n, d}}, tile{shape<dyn, dyn>{n, latents / 48}};
    for (float& v : x) v = random.normal();
    if (l0 > 0 && std::is_same_v<Variant, patchsae<>>) {
        // Pre-activations are normal with deviation sqrt(2 d / latents): the bias that leaves the wanted share above
        // zero.
        const double share = l0 / double(latents), deviation = std::sqrt(2.0 * double(d) / double(latents));
        double low = 0, high = 10;
        for (int i = 0; i < 60; ++i)
            (0.5 * std::erfc((low + high) / 2 / std::sqrt(2.0)) > share ? low : high) = (low + high) / 2;
        for (float& b : sae.b_enc.value) b = static_cast<float>(-low * deviation);
    }
    trainer<Variant> run(sae, {}, device);
    step_metrics m = run.step(std::as_const(x).view());
    std::vector<double> times;
    for (int i = 0; i < steps; ++i) {
        const double t = seconds();
        m = run.step(std::as_const(x).view());
        times.push_back(seconds() - t);
    }
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    std::sort(times.begin(), times.end());
    const double gemm_seconds = 48 * best(3, [&] {
                                    gemm(device, false, true, n, latents / 48, d, 1.0f, x.data(), d, sae.W_enc.data(),
                                         d, 0.0f, tile.data(), latents / 48);
                                });
    // Adam reads and writes w, m and v: 24 bytes an element, beside which a copy moves 8.
    std::vector<float> a(latents * d), b(latents * d);
    const double copy = best(3, [&] {
        device.parallel_for(64, [&](std::size_t i) {
            std::memcpy(b.data() + i * (b.size() / 64), a.data() + i * (a.size() / 64), a.size() / 64 * 4);
        });
    });
    const double sweep = copy * 3 * 2;
    const double median = times[times.size() / 2];
    std::printf(
        "{\"d\": %zu, \"latents\": %zu, \"tokens\": %zu, \"l0\": %.1f, \"step_median_s\": %.3f, \"step_min_s\": %.3f, "
        "\"encoder_gemm_s\": %.3f, \"adam_sweep_s\": %.3f, \"x_floor\": %.2f, \"x_five_gemms\": %.2f, "
        "\"tokens_per_s\": %.0f, "
        "\"peak_mib\": %ld, \"parameters_and_moments_mib\": %.0f}\n",
        d, latents, n, m.l0, median, times[0], gemm_seconds, sweep, median / (gemm_seconds + sweep),
        median / (5 * gemm_seconds), double(n) / median, usage.ru_maxrss / 1024,
        double(latents * d) * 2 * 3 * 4 / 1048576.0);
}

}  // namespace

int main(int argc, char** argv) {
    const auto number = [&](int i, double otherwise) { return argc > i ? std::atof(argv[i]) : otherwise; };
    const auto d = std::size_t(number(1, 768)), latents = std::size_t(number(2, 49152)),
               n = std::size_t(number(3, 4096));
    const double l0 = number(4, 64);
    const int steps = int(number(6, 5));
    if (argc > 5 && std::strcmp(argv[5], "topk") == 0) {
        topk<> sae(d, latents);
        sae.k = std::size_t(l0);
        measure(sae, d, latents, n, l0, steps);
    } else {
        patchsae<> sae(d, latents);
        sae.ghost_gradients = false;
        measure(sae, d, latents, n, l0, steps);
    }
}
