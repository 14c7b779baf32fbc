// Quickstart: train a sparse autoencoder on activations and read the concepts of one token.
#include <cstdio>

#include <psae/psae.hpp>

int main() {
    using namespace psae;
    cpu device;
    random_stream random(0);

    // Activations: sums of 3 out of 24 hidden directions in 16 dimensions.
    tensor<float, shape<24, 16>> directions;
    for (float& v : directions) v = random.normal() / 4;
    tensor<float, shape<dyn, 16>> tokens{shape<dyn, 16>{512}};

    patchsae<16, 64> sae;
    sae.initialise(random);
    trainer run(sae, {.lr = 3e-3, .warmup_steps = 10}, device);
    for (int step = 0; step < 300; ++step) {
        for (std::size_t t = 0; t < tokens.rows(); ++t)
            for (int j = 0; j < 3; ++j)
                for (std::size_t c = 0, f = random.below(24); c < 16; ++c)
                    tokens(t, c) = directions(f, c) + (j ? tokens(t, c) : 0);
        const auto m = run.step(std::as_const(tokens).view());
        if (step % 100 == 99)
            std::printf("step %zu: loss %.4f, L0 %.1f, explained variance %.3f\n", m.step + 1, m.loss, m.l0,
                        m.explained_variance);
    }
}
