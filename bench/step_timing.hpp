#pragma once
// One training step of an SAE beside its floors, measured in the same process: the bare encoder GEMM, Adam's sweep at
// copy speed and what the entries read (what a step on sparse codes cannot avoid if all pre-activations are float
// products), and five bare GEMMs (what a dense step cannot). JumpReLU's codes hold what lies in the window under a
// threshold, too, and Gated decodes twice: neither is in their floors.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <concepts>
#include <fstream>
#include <string>
#include <vector>

#include <psae/psae.hpp>

namespace psae_bench {

using namespace psae;

struct sizes {
    std::size_t d, latents, tokens, l0;  // l0: of top-k variants k; of others the mean aimed at, 0 for a random start
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
    double encoder_gemm, five_gemms, adam_sweep,
        copy_bytes_per_s;  // seconds but for the last; five_gemms of dense steps
};

inline floors measure_floors(cpu& device, const sizes& s, const float* x, const float* W) {
    const std::size_t d = s.d, F = s.latents, n = s.tokens;
    std::vector<float> H(n * F), rows(F * d), tokens(n * d);
    const double encode =
        least_seconds(3, [&] { gemm(device, false, true, n, F, d, 1.0f, x, d, W, d, 0.0f, H.data(), F); });
    double five_gemms = 0;
    if (s.l0 == 0) {
        const double decode = least_seconds(
            2, [&] { gemm(device, false, false, n, d, F, 1.0f, H.data(), F, W, d, 0.0f, tokens.data(), d); });
        const double weights = least_seconds(
            2, [&] { gemm(device, true, false, F, d, n, 1.0f, H.data(), F, x, d, 0.0f, rows.data(), d); });
        five_gemms = 2 * encode + decode + 2 * weights;
    }
    // Adam reads and writes w, m and v of two matrices: 24 bytes an element, beside which a copy moves 8.
    const double copy = least_seconds(3, [&] {
        const std::size_t piece = F * d / 64;
        device.parallel_for(64, [&](std::size_t i) { std::copy_n(W + i * piece, piece, rows.data() + i * piece); });
    });
    return {encode, five_gemms, 2 * 3 * copy, 2.0 * double(F * d) * sizeof(float) / copy};
}

// The most memory this process has held since the last call, in MiB (0 where the system does not say).
inline double peak_mib() {
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
        if constexpr (requires { sae.dead_latents.enabled; }) sae.dead_latents.enabled = false;
        if (s.l0 == 0) return;
        // Pre-activations are normal with deviation sqrt(2 d / latents): the bias that leaves the wanted share above 0,
        // or above the threshold.
        const double share = double(s.l0) / double(s.latents),
                     deviation = std::sqrt(2.0 * double(s.d) / double(s.latents));
        double low = 0, high = 10;
        for (int i = 0; i < 60; ++i)
            (0.5 * std::erfc((low + high) / 2 / std::sqrt(2.0)) > share ? low : high) = (low + high) / 2;
        double threshold = 0;
        if constexpr (requires { sae.first_threshold; }) threshold = sae.first_threshold;
        for (float& b : sae.b_enc.value) b = static_cast<float>(threshold - low * deviation);
    }
}

template <class Variant>
Variant make_sae(const sizes& s) {
    if constexpr (std::constructible_from<Variant, std::size_t, std::size_t>) return Variant(s.d, s.latents);
    else return Variant(s.d, s.latents, s.d);  // a transcoder, whose targets are the tokens here
}

struct step_timing {
    double median_s, l0, peak_mib, sparse_traffic_s, x_floor;  // of a dense step the last two are 0
    floors floor;
};

// The median of `repeats` steps after the first, which sizes the arena.
template <class Variant>
step_timing time_step(const cpu& machine, const sizes& s, int repeats, codes_form form = codes_form::by_density,
                      std::size_t codes_mib = 0) {
    cpu device = machine;
    random_stream random(7);
    Variant sae = make_sae<Variant>(s);
    sae.initialise(random);
    tensor<float, shape<dyn, dyn>> x{shape<dyn, dyn>{s.tokens, s.d}};
    for (float& v : x) v = random.normal();
    aim_at(sae, s);

    peak_mib();  // starts anew
    trainer<Variant> run(sae, {.codes = form, .codes_memory = codes_mib << 20}, device);
    step_metrics m = run.step(std::as_const(x).view());
    std::vector<double> times;
    for (int i = 0; i < repeats; ++i) times.push_back(least_seconds(1, [&] { m = run.step(std::as_const(x).view()); }));
    step_timing t{};
    t.peak_mib = peak_mib();
    std::nth_element(times.begin(), times.begin() + std::ptrdiff_t(times.size() / 2), times.end());
    t.median_s = times[times.size() / 2];
    t.l0 = m.l0;
    t.floor = measure_floors(device, s, x.data(), sae.W_enc.data());
    if (s.l0 > 0) {
        // For each entry of the codes a row of d floats is read four times: to decode, for the gradient of the value,
        // and for the rows of both weight gradients.
        t.sparse_traffic_s = 4 * m.l0 * double(s.tokens * s.d) * sizeof(float) / t.floor.copy_bytes_per_s;
        t.x_floor = t.median_s / (t.floor.encoder_gemm + t.floor.adam_sweep + t.sparse_traffic_s);
    }
    return t;
}

}  // namespace psae_bench
