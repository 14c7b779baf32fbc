// Gradients of every variant against central differences in double.
#include <catch2/catch.hpp>

#include <psae/grad/check.hpp>
#include <psae/sae/patchsae.hpp>
#include <psae/sae/topk.hpp>

using namespace psae;

namespace {

constexpr std::size_t d = 6, latents = 20, tokens = 9;

template <class Variant>
struct fixture {
    Variant sae;
    tensor<double, shape<dyn, d>> x{shape<dyn, d>{tokens}};
    std::uint32_t dead[3] = {2, 7, 11};
    std::size_t dead_count = 3;
    training_state now{{dead, &dead_count}, true, nullptr};

    fixture() {
        random_stream random(5);
        sae.initialise(random);
        for (double& v : sae.b_enc.value) v = 0.1 * random.normal();
        for (double& v : sae.b_dec.value) v = 0.1 * random.normal();
        for (double& v : x) v = random.normal();
        for (std::uint32_t f : dead) sae.b_enc.value[f] = -4;  // no token reaches them
    }
    gradient_disagreement check(double step = 1e-6) {
        return check_gradients(
            sae, [&](auto input) { return sae.loss(input, now); }, std::as_const(x).view(), 1, step);
    }
};

}  // namespace

TEST_CASE("PatchSAE without ghost gradients") {
    fixture<patchsae<d, latents, double>> f;
    f.sae.ghost_gradients = false;
    f.sae.lambda = 0.03;
    const auto worst = f.check();
    INFO(worst.where << ": analytic " << worst.analytic << ", numeric " << worst.numeric);
    CHECK(worst.error < 1e-7);
}

TEST_CASE("TopK, no dead latents") {
    fixture<topk<d, latents, double>> f;
    f.sae.k = 4;
    f.now.any_dead = false;
    const auto worst = f.check();
    INFO(worst.where << ": analytic " << worst.analytic << ", numeric " << worst.numeric);
    CHECK(worst.error < 1e-7);
}
