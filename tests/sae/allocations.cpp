// A training step allocates nothing once the arena has its size. In double: oneDNN, which only float calls, takes
// memory of its own inside each product.
#include <catch2/catch.hpp>

#include <psae/sae/patchsae.hpp>
#include <psae/sae/topk.hpp>
#include <psae/sae/trainer.hpp>

#include "../allocations.hpp"

using namespace psae;

namespace {

// clip: the largest norm of the gradient; 0 means that rows go to the optimiser as soon as they are known.
template <class Variant>
void check_clipped(double clip) {
    Variant sae(16, 64);
    cpu device(counted_threads);
    random_stream random(2);
    sae.initialise(random);
    tensor<double, shape<dyn, dyn>> x{shape<dyn, dyn>{64, 16}};
    // Every other latent is out of reach, so that the terms for dead latents run.
    for (std::size_t f = 0; f < sae.latents(); f += 2) sae.b_enc.data()[f] = -50;
    trainer<Variant> run(
        sae, {.lr = 1e-5, .clip_grad_norm = clip, .unit_norm_decoder = Variant::unit_norm_decoder, .dead_after = 1},
        device);
    std::size_t arena_before = 0, counted = 0;
    for (int step = 0; step < 8; ++step) {
        for (double& v : x) v = random.normal();
        arena_before = run.scratch_allocations();
        const std::size_t before = allocations();
        const auto& m = run.step(std::as_const(x).view());
        counted = allocations() - before;
        CHECK(m.dead_fraction == (step > 1 ? 0.5 : 0.0));
    }
    CHECK(run.scratch_allocations() == arena_before);
    CHECK(counted == 0);
}

template <class Variant>
void check() {
    check_clipped<Variant>(1);
    check_clipped<Variant>(0);
}

}  // namespace

TEST_CASE("a training step allocates nothing after the first ones") {
    SECTION("PatchSAE") { check<patchsae<dyn, dyn, double>>(); }
    SECTION("TopK, dictionary_learning") { check<topk<dyn, dyn, double>>(); }
    SECTION("TopK, SAELens") { check<topk<dyn, dyn, double, topk_form::saelens>>(); }
    SECTION("TopK, OpenAI") { check<topk<dyn, dyn, double, topk_form::openai>>(); }
}
