// Gradients of every variant against central differences in double. The numeric side is a second implementation of the
// loss (plain_losses.hpp), which must also give the same value.
#include <catch2/catch.hpp>

#include <psae/grad/check.hpp>
#include <psae/sae/matryoshka.hpp>
#include <psae/sae/standard.hpp>
#include <psae/sae/trainer.hpp>

#include "plain_losses.hpp"

using namespace psae;

namespace {

constexpr std::size_t d = 6, latents = 20, tokens = 9;

template <class Variant>
struct fixture {
    Variant sae, held;
    tensor<double, shape<dyn, d>> x{shape<dyn, d>{tokens}};
    std::vector<std::uint32_t> dead{2, 7, 11};
    std::vector<float> weights;  // of the tokens; empty: none

    fixture() {
        random_stream random(5);
        sae.initialise(random);
        for (double& v : sae.b_enc.value) v = 0.1 * random.normal();
        for (double& v : sae.b_dec.value) v = 0.1 * random.normal();
        for (double& v : x) v = random.normal();
        for (std::uint32_t f : dead) sae.b_enc.value[f] = -0.7;  // rarely reached
    }

    void check() {
        std::vector<double*> copies;
        held.each_parameter([&](const char*, auto& p) { copies.push_back(p.data()); });
        std::size_t i = 0;
        sae.each_parameter([&](const char*, auto& p) { std::copy_n(p.data(), p.size(), copies[i++]); });
        const plain::matrix rows = plain::make(tokens, d, [&](std::size_t t, std::size_t c) { return x(t, c); });
        const auto value = [&] { return plain::loss(sae, held, rows, dead, weights); };
        const std::size_t dead_count = dead.size();
        const training_state now{
            {dead.data(), &dead_count}, dead_count > 0, weights.empty() ? nullptr : weights.data()};
        const auto loss = [&](auto input) { return sae.loss(input, now); };

        cpu device;
        arena<> scratch;
        tape<cpu> t(device, scratch, mode::train);
        const auto recorded = loss(t.input(std::as_const(x).view()));
        t.run();
        CHECK(recorded.load(position{}) == Approx(value()).epsilon(1e-12));

        const auto worst = check_gradients(sae, loss, std::as_const(x).view(), value);
        INFO(worst.where << ": analytic " << worst.analytic << ", numeric " << worst.numeric);
        CHECK(worst.error < 1e-7);
    }
};

template <topk_form form>
void check_topk() {
    fixture<topk<d, latents, double, form>> f;
    f.sae.k = f.held.k = 4;
    // The auxiliary term as strong as the other, and rows of other lengths than 1.
    f.sae.dead_latents.weight = f.held.dead_latents.weight = 0.8;
    for (std::size_t i = 0; i < latents; ++i)
        for (std::size_t c = 0; c < d; ++c) f.sae.W_dec.value(i, c) *= 0.5 + 0.1 * double(i);
    SECTION("fewer dead latents than aux_k") { f.sae.dead_latents.k = f.held.dead_latents.k = 5; }
    SECTION("more dead latents than aux_k") { f.sae.dead_latents.k = f.held.dead_latents.k = 2; }
    SECTION("no dead latents") { f.dead.clear(); }
    f.check();
}

}  // namespace

TEST_CASE("PatchSAE: gradients") {
    fixture<patchsae<d, latents, double>> f;
    f.sae.lambda = 0.03;
    SECTION("without ghost gradients") { f.sae.dead_latents.enabled = false; }
    SECTION("no dead latents") { f.dead.clear(); }
    SECTION("ghost gradients") {}
    SECTION("ghost gradients and weights of tokens") { f.weights = {2.5f, 1, 1, 2.5f, 1, 1, 2.5f, 1, 1}; }
    f.check();
}

TEST_CASE("TopK in dictionary_learning's form: gradients") { check_topk<topk_form::dictionary_learning>(); }
TEST_CASE("TopK in SAELens' form: gradients") { check_topk<topk_form::saelens>(); }
TEST_CASE("TopK in OpenAI's form: gradients") { check_topk<topk_form::openai>(); }

namespace {

// Against differences of the loss itself, for losses that hold nothing constant.
template <class Variant>
void check_by_itself(Variant& sae, std::size_t step = 0) {
    random_stream random(8);
    sae.initialise(random);
    for (double& v : sae.b_enc.value) v = 0.3 + 0.1 * random.normal();
    for (std::size_t i = 0; i < sae.W_dec.size(); ++i) sae.W_dec.data()[i] *= 0.5 + 0.05 * double(i % latents);
    tensor<double, shape<dyn, d>> x{shape<dyn, d>{tokens}};
    for (double& v : x) v = random.normal();
    const std::size_t none = 0;
    const training_state now{{nullptr, &none}, false, nullptr, step, 100, random_stream(4)};
    const auto worst = check_gradients(
        sae, [&](auto input) { return sae.loss(input, now); }, std::as_const(x).view());
    INFO(worst.where << ": analytic " << worst.analytic << ", numeric " << worst.numeric);
    CHECK(worst.error < 1e-6);
}

}  // namespace

TEST_CASE("penalties: gradients, and the exponent that falls") {
    standard<d, latents, double> plain;
    plain.norm_weighted = false;
    check_by_itself(plain);
    standard<d, latents, double, tanh_penalty> tanh;
    tanh.lambda = 0.5;
    check_by_itself(tanh);
    standard<d, latents, double, power_penalty> power;
    power.lambda = 0.5;
    power.penalty = {0.5, 10, 30};
    check_by_itself(power, 20);
    const auto p_at = [&](std::size_t step) {
        return power.penalty.at({{nullptr, nullptr}, false, nullptr, step, 100, random_stream(0)}).p;
    };
    CHECK(p_at(0) == 1);
    CHECK(p_at(20) == 0.75);
    CHECK(p_at(30) == 0.5);
    CHECK(p_at(90) == 0.5);
}

TEST_CASE("Multi-TopK and random prefixes: gradients") {
    topk<d, latents, double> multi;
    multi.k = 3;
    multi.multi_k = 7;
    check_by_itself(multi);
    topk<d, latents, double, topk_form::saelens> weighted;
    weighted.k = 3;
    weighted.multi_k = 7;
    check_by_itself(weighted);
    matryoshka<batch_topk<d, latents, double>> prefixes;
    prefixes.k = 4;
    prefixes.random_prefixes = 4;
    check_by_itself(prefixes);
    matryoshka<topk<d, latents, double>> over_topk;
    over_topk.k = 4;
    over_topk.prefixes = {5, 11};
    check_by_itself(over_topk);
}

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
