// Training steps of Matryoshka that use rows of gradients prefix by prefix.
#include <catch2/catch.hpp>

#include <psae/sae/matryoshka.hpp>
#include <psae/sae/trainer.hpp>

using namespace psae;

namespace {

constexpr std::size_t d = 6, latents = 20, tokens = 9;

}  // namespace

TEST_CASE("Matryoshka: steps whose rows of gradients are used prefix by prefix are those with whole gradients") {
    const auto train = [](auto sae, double clip) {
        random_stream random(6);
        sae.initialise(random);
        sae.k = 4;
        sae.prefixes = {3, 5, 11};
        cpu device;
        training_options options;
        options.lr = 0.01;
        options.warmup_steps = 0;
        options.dead_after = 1;
        options.clip_grad_norm = clip;  // far above the norm: all it does is that rows wait for the whole gradient
        trainer<decltype(sae)> run(sae, options, device);
        bool revived = false;
        for (int step = 0; step < 8; ++step) {
            tensor<double, shape<dyn, d>> x{shape<dyn, d>{tokens}};
            for (double& v : x) v = random.normal();
            revived = revived || run.step(std::as_const(x).view()).dead_fraction > 0;
        }
        CHECK(revived);
        std::vector<double> all;
        sae.each_parameter([&](const char*, auto& p) { all.insert(all.end(), p.data(), p.data() + p.size()); });
        return all;
    };
    using dictionary_learning = matryoshka<batch_topk<d, latents, double>>;
    CHECK(train(dictionary_learning(), 0) == train(dictionary_learning(), 1e30));
    using saelens = matryoshka<batch_topk<d, latents, double, topk_form::saelens>, topk_form::saelens>;
    CHECK(train(saelens(), 0) == train(saelens(), 1e30));
}
