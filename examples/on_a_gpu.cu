// On a GPU: the variant and the trainer of quickstart.cpp, with tokens, codes and reconstructions in the GPU's memory.
#include <cstdio>
#include <vector>

#include <psae/cuda.hpp>

#include <psae/psae.hpp>

int main() try {
    using namespace psae;
    constexpr std::size_t d = 32, latents = 256, n = 1024, directions = 100;
    using matrix = shape<dyn, dyn>;
    psae::cuda device;  // the first GPU; several backends of one GPU have streams of their own
    random_stream random(0);

    // Activations: sums of 4 hidden directions, made on the host.
    std::vector<float> hidden(directions * d), batch(n * d);
    for (float& v : hidden) v = random.normal() / 4;
    const auto make_batch = [&] {
        for (std::size_t t = 0; t < n; ++t)
            for (std::size_t j = 0; j < 4; ++j)
                for (std::size_t c = 0, f = random.below(directions); c < d; ++c)
                    batch[t * d + c] = hidden[f * d + c] + (j > 0 ? batch[t * d + c] : 0);
    };

    topk<> sae(d, latents);
    sae.k = 4;
    sae.initialise(random);
    trainer<topk<>, psae::cuda> run(sae, {.lr = 3e-3, .warmup_steps = 10}, device);
    staged_upload<float, psae::cuda> batches(device);  // copies beside what the GPU computes
    for (int step = 0; step < 200; ++step) {
        make_batch();
        const view<const float, matrix, space::device> tokens{batches(batch.data(), batch.size()), matrix{n, d}};
        const auto& m = run.step(tokens);
        if (step % 50 == 49)
            std::printf("step %zu: loss %.4f, L0 %.1f, explained variance %.3f\n", m.step + 1, m.loss, m.l0,
                        m.explained_variance);
    }
    std::printf("%zu steps were replayed as a CUDA graph\n", run.replays());
    run.read_parameters();  // to the host's

    // The trained SAE in use.
    const device_sae trained(device, sae_view(sae));
    arena<space::device> scratch;
    const float* x = batches(batch.data(), batch.size());
    const auto z = encode_rows(device, scratch, trained, x, n);
    float* x_hat = scratch.allocate<float>(n * d);
    decode_rows(device, scratch, trained, z, x, x_hat);
    std::printf("%zu codes for %zu tokens; the first number of the first token: %.3f, reconstructed %.3f\n",
                read(device, z.offsets + n), n, read(device, x), read(device, x_hat));
} catch (const psae::error& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
}
