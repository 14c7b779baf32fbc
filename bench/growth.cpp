// How a TopK step's throughput changes with the number of latents, k, tokens a batch and threads, each beside its floor
// (step_timing.hpp): a table on stdout and a plot.
//   bench_growth latents|k|tokens|threads [PLOT.png]
#include <cstdio>
#include <string>
#include <vector>

#include <psae/attribution/chart.hpp>
#include <psae/attribution/picture.hpp>

#include "step_timing.hpp"

using psae_bench::sizes;

int main(int argc, char** argv) {
    const std::string what = argc > 1 ? argv[1] : "";
    std::vector<std::size_t> values;
    if (what == "latents") values = {4096, 8192, 16384, 32768, 49152, 65536, 131072};
    else if (what == "k") values = {16, 32, 64, 128, 256, 512};
    else if (what == "tokens") values = {512, 1024, 2048, 4096, 8192, 16384};
    else if (what == "threads")
        for (int i = 1; i <= psae::cpu().threads; ++i) values.push_back(std::size_t(i));
    if (values.empty()) {
        std::fprintf(stderr, "usage: bench_growth latents|k|tokens|threads [PLOT.png]\n");
        return 2;
    }
    psae::series measured{"measured", {}, {}}, floor{"floor", {}, {}};
    std::printf(
        "| %s | tokens/s | of its floor's time | peak memory, MiB | parameters and moments, MiB |\n|-|-|-|-|-|\n",
        what.c_str());
    for (const std::size_t v : values) {
        sizes s{768, 49152, 4096, 64};
        psae::cpu device;
        if (what == "latents") s.latents = v;
        else if (what == "k") s.l0 = v;
        else if (what == "tokens") s.tokens = v;
        else device.threads = int(v);
        const auto t = psae_bench::time_step<psae::topk<>>(device, s, 3);
        const double rate = double(s.tokens) / t.median_s;
        std::printf("| %zu | %.0f | %.2f | %.0f | %.0f |\n", v, rate, t.x_floor, t.peak_mib,
                    double(s.latents * s.d) * 2 * 3 * 4 / 1048576.0);
        std::fflush(stdout);
        measured.x.push_back(double(v));
        measured.y.push_back(rate);
        floor.x.push_back(double(v));
        floor.y.push_back(rate * t.x_floor);
    }
    if (argc > 2)
        psae::write_png(argv[2], psae::to_image(psae::line_plot("TopK training", what, "tokens/s", {measured, floor},
                                                                {.log_x = true, .log_y = true})));
    return 0;
}
