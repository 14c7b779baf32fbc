// One training step of a PatchSAE-shaped autoencoder beside its floors, measured in the same run: the bare encoder GEMM
// and Adam's sweep at copy speed (what a step on sparse codes cannot avoid), and five bare GEMMs (what a dense step
// cannot).
//   sae_step [d] [latents] [tokens] [L0: 0 = random start] [relu|topk] [steps] [by_density|entries|tiles] [codes MiB]
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include <sys/resource.h>

#include <psae/psae.hpp>

using namespace psae;

namespace {

struct settings {
    std::size_t d = 768, latents = 49152, tokens = 4096, steps = 5;
    double l0 = 64;
    training_options training{};
};

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

struct floors {
    double encoder_gemm, five_gemms, adam_sweep;
};

floors measure_floors(cpu& device, const settings& s, const float* x, const float* W) {
    const std::size_t d = s.d, F = s.latents, n = s.tokens;
    std::vector<float> H(n * F), rows(F * d), tokens(n * d);
    const double encode = best(3, [&] { gemm(device, false, true, n, F, d, 1.0f, x, d, W, d, 0.0f, H.data(), F); });
    const double decode =
        best(2, [&] { gemm(device, false, false, n, d, F, 1.0f, H.data(), F, W, d, 0.0f, tokens.data(), d); });
    const double weights =
        best(2, [&] { gemm(device, true, false, F, d, n, 1.0f, H.data(), F, x, d, 0.0f, rows.data(), d); });
    // Adam reads and writes w, m and v of two matrices: 24 bytes an element, beside which a copy moves 8.
    const double copy = best(3, [&] {
        const std::size_t piece = F * d / 64;
        device.parallel_for(64, [&](std::size_t i) { std::copy_n(W + i * piece, piece, rows.data() + i * piece); });
    });
    return {encode, 2 * encode + decode + 2 * weights, 2 * 3 * copy};
}

template <class Variant>
void measure(Variant& sae, const settings& s) {
    cpu device;
    random_stream random(7);
    sae.initialise(random);
    tensor<float, shape<dyn, dyn>> x{shape<dyn, dyn>{s.tokens, s.d}};
    for (float& v : x) v = random.normal();
    if (s.l0 > 0 && std::is_same_v<Variant, patchsae<>>) {
        // Pre-activations are normal with deviation sqrt(2 d / latents): the bias that leaves the wanted share above
        // zero.
        const double share = s.l0 / double(s.latents), deviation = std::sqrt(2.0 * double(s.d) / double(s.latents));
        double low = 0, high = 10;
        for (int i = 0; i < 60; ++i)
            (0.5 * std::erfc((low + high) / 2 / std::sqrt(2.0)) > share ? low : high) = (low + high) / 2;
        for (float& b : sae.b_enc.value) b = static_cast<float>(-low * deviation);
    }
    trainer<Variant> run(sae, s.training, device);
    step_metrics m = run.step(std::as_const(x).view());
    std::vector<double> times;
    for (std::size_t i = 0; i < s.steps; ++i) {
        const double t = seconds();
        m = run.step(std::as_const(x).view());
        times.push_back(seconds() - t);
    }
    std::sort(times.begin(), times.end());
    const double median = times[times.size() / 2];
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    const floors f = measure_floors(device, s, x.data(), sae.W_enc.data());
    std::printf(
        "{\"d\": %zu, \"latents\": %zu, \"tokens\": %zu, \"l0\": %.1f, \"step_median_s\": %.3f, "
        "\"step_min_s\": %.3f, \"encoder_gemm_s\": %.3f, \"adam_sweep_s\": %.3f, \"five_gemms_s\": %.3f, "
        "\"x_floor\": %.2f, \"x_five_gemms\": %.2f, \"tokens_per_s\": %.0f, \"peak_mib\": %ld, "
        "\"parameters_and_moments_mib\": %.0f}\n",
        s.d, s.latents, s.tokens, m.l0, median, times[0], f.encoder_gemm, f.adam_sweep, f.five_gemms,
        median / (f.encoder_gemm + f.adam_sweep), median / f.five_gemms, double(s.tokens) / median,
        usage.ru_maxrss / 1024, double(s.latents * s.d) * 2 * 3 * 4 / 1048576.0);
}

}  // namespace

int main(int argc, char** argv) {
    settings s;
    const auto number = [&](int i, double otherwise) { return argc > i ? std::atof(argv[i]) : otherwise; };
    const auto word = [&](int i) { return std::string(argc > i ? argv[i] : ""); };
    s.d = std::size_t(number(1, 768));
    s.latents = std::size_t(number(2, 49152));
    s.tokens = std::size_t(number(3, 4096));
    s.l0 = number(4, 64);
    s.steps = std::size_t(number(6, 5));
    s.training.codes = word(7) == "entries" ? codes_form::entries
                       : word(7) == "tiles" ? codes_form::tiles
                                            : codes_form::by_density;
    s.training.codes_memory = std::size_t(number(8, 0)) << 20;
    if (word(5) == "topk") {
        topk<> sae(s.d, s.latents);
        sae.k = std::size_t(s.l0);
        measure(sae, s);
    } else {
        patchsae<> sae(s.d, s.latents);
        sae.ghost_gradients = false;
        measure(sae, s);
    }
}
