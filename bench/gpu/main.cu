// What the CUDA backend costs, as one table: parts and whole steps of SAEs, the tower, beside floors that are measured in
// the same run. Medians of `repeats`.
//   bench_gpu [latents [tokens [images [repeats]]]]     default: 49152 4096 256 20
// The width of tokens is that of the tower: ViT-B/16's 768.
#include <cstdlib>

#include "sae.hpp"
#include "stream.hpp"
#include "tower.hpp"

#ifndef PSAE_BENCH_TOWER
#define PSAE_BENCH_TOWER psae::clip_vit_b16
#endif

using namespace psae_bench;

int main(int argc, char** argv) try {
    const auto number = [&](int i, std::size_t otherwise) {
        return argc > i ? std::size_t(std::strtoull(argv[i], nullptr, 10)) : otherwise;
    };
    using tower = PSAE_BENCH_TOWER;
    const std::size_t latents = number(1, 49152), tokens = number(2, 4096), images = number(3, 256),
                      largest_product = 2 * tokens;
    measurement m(static_cast<int>(number(4, 20)), tower::width, latents);
    std::printf("%s. A copy moves %.0f GB/s (read and written). SAEs: %zu -> %zu.\n\n", m.device.name(),
                m.copy_gigabytes_per_s(), m.d, m.latents);
    m.head();
    // The precision that the goals are for comes first, so that it is there if time runs out.
    for (const precision p : {precision::bf16, precision::tf32, precision::fp32}) {
        m.device.products = p;
        const bool has_goal = p == precision::bf16;
        for (const std::size_t n : {tokens, 4 * tokens}) time_encoder(m, n, has_goal ? 1.15 : 0);
        time_steps(m, tokens);
        time_tower<tower>(m, images, largest_product);
        for (const double l0 : {64.0, 0.0}) measure_memory(m, tokens, l0);
        if (!has_goal) continue;
        for (const std::size_t k : {std::size_t{32}, std::size_t{64}, std::size_t{256}}) time_parts(m, tokens, k);
        time_eight<tower>(m, tokens / tower::tokens);
        time_stream<tower>(m, tokens / tower::tokens);
    }
} catch (const psae::error& e) {
    std::fprintf(stderr, "bench_gpu: %s\n", e.what());
    return 1;
}
