// Gradients of every variant on both backends against central differences in double. The numeric side is a second
// implementation of the loss (plain_losses.hpp), which must also give the same value, or the loss itself.
#include <utility>

#include <catch2/catch.hpp>

#include <psae/sae/matryoshka.hpp>
#include <psae/sae/standard.hpp>

#include "../backend.hpp"
#include "../gradient_on_host.hpp"
#include "plain_losses.hpp"

using namespace psae;

namespace {

constexpr std::size_t d = 6, latents = 20, tokens = 9;
using rows = shape<dyn, d>;

template <class From, class To>
void copy_parameters(From& from, To& to) {
    std::vector<decltype(&*from.b_enc.value.begin())> values;
    from.each_parameter([&](const char*, auto& p) { values.push_back(p.data()); });
    auto next = values.begin();
    to.each_parameter([&](const char*, auto& p) { std::copy_n(*next++, p.size(), p.data()); });
}

// A variant in double and as it is on the backend, with the same parameters, which are floats. make(T()) gives that of T.
template <class Make>
struct twins {
    decltype(std::declval<Make>()(double())) here;
    decltype(std::declval<Make>()(real())) there;
    tensor<double, rows> x{rows{tokens}};
    tensor<real, rows> x_there{rows{tokens}};

    // adjust(here): for parameters that are not as `initialise` leaves them.
    template <class Adjust>
    twins(const Make& make, std::uint64_t seed, const Adjust& adjust) : here(make(double())), there(make(real())) {
        random_stream random(seed);
        here.initialise(random);
        adjust(here, random);
        here.each_parameter([](const char*, auto& p) {
            for (double& v : p.value) v = static_cast<float>(v);
        });
        copy_parameters(here, there);
        for (double& v : x) v = static_cast<float>(random.normal());
        std::copy(x.begin(), x.end(), x_there.begin());
    }
    // now_of(x): the state of the training run in the memory of the tape of x. value(): the loss in double.
    template <class State, class Value>
    void check(const State& now_of, const Value& value) {
        backend device;
        const auto found = differentiate(
            device, there, [&](auto x) { return there.loss(x, now_of(x)); }, std::as_const(x_there).view());
        CHECK(found.loss == Approx(value()).epsilon(sizeof(real) == 4 ? 1e-5 : 1e-12));
        const auto worst = compare_gradients(here, found.gradients, value);
        INFO(worst.where << ": analytic " << worst.analytic << ", numeric " << worst.numeric);
        CHECK(worst.error < gradient_tolerance<real>);
    }
};

// Against differences of the second implementation. weights: of the tokens; empty: none.
template <class Make>
void check(const Make& make, const std::vector<std::uint32_t>& dead, const std::vector<float>& weights = {}) {
    twins<Make> sae(make, 5, [&](auto& here, auto& random) {
        for (double& v : here.b_enc.value) v = 0.1 * random.normal();
        for (double& v : here.b_dec.value) v = 0.1 * random.normal();
        for (const std::uint32_t f : {2, 7, 11}) here.b_enc.value[f] = -0.7;  // rarely reached, dead or not
        if (!here.unit_norm_decoder)
            for (std::size_t i = 0; i < here.W_dec.size(); ++i)
                here.W_dec.data()[i] *= 0.5 + 0.1 * static_cast<double>(i / d);
    });
    auto held = make(double());
    copy_parameters(sae.here, held);
    const plain::matrix x = plain::make(tokens, d, [&](std::size_t t, std::size_t c) { return sae.x(t, c); });
    const backend device;
    const auto dead_latents = constants(device, dead);
    const auto dead_count = constants<std::size_t>(device, {dead.size()});
    const auto token_weights = constants(device, weights);
    sae.check(
        [&](auto x) {
            return training_state{{dead_latents.of(x).data(), dead_count.of(x).data(), dead.size()},
                                  !dead.empty(),
                                  weights.empty() ? nullptr : token_weights.of(x).data()};
        },
        [&] { return plain::loss(sae.here, held, x, dead, weights); });
}

const std::vector<std::uint32_t> some_dead{2, 7, 11};

template <topk_form form>
void check_topk() {
    // The auxiliary term as strong as the other.
    const auto with_aux = [](std::size_t k) {
        return [k](auto number) {
            topk<d, latents, decltype(number), form> sae;
            sae.k = 4;
            sae.dead_latents.weight = 0.8;
            sae.dead_latents.k = k;
            return sae;
        };
    };
    SECTION("fewer dead latents than aux_k") { check(with_aux(5), some_dead); }
    SECTION("more dead latents than aux_k") { check(with_aux(2), some_dead); }
    SECTION("no dead latents") { check(with_aux(5), {}); }
}

}  // namespace

TEST_CASE("PatchSAE: gradients") {
    const auto with_ghosts = [](bool ghosts) {
        return [ghosts](auto number) {
            patchsae<d, latents, decltype(number)> sae;
            sae.lambda = static_cast<decltype(number)>(0.03);
            sae.dead_latents.enabled = ghosts;
            return sae;
        };
    };
    SECTION("without ghost gradients") { check(with_ghosts(false), some_dead); }
    SECTION("no dead latents") { check(with_ghosts(true), {}); }
    SECTION("ghost gradients") { check(with_ghosts(true), some_dead); }
    SECTION("ghost gradients and weights of tokens") {
        check(with_ghosts(true), some_dead, {2.5f, 1, 1, 2.5f, 1, 1, 2.5f, 1, 1});
    }
}

TEST_CASE("TopK in dictionary_learning's form: gradients") { check_topk<topk_form::dictionary_learning>(); }
TEST_CASE("TopK in SAELens' form: gradients") { check_topk<topk_form::saelens>(); }
TEST_CASE("TopK in OpenAI's form: gradients") { check_topk<topk_form::openai>(); }

namespace {

// Against differences of the loss itself, for losses that hold nothing constant.
template <class Make>
void check_by_itself(const Make& make, std::size_t step = 0) {
    twins<Make> sae(make, 8, [&](auto& here, auto& random) {
        for (double& v : here.b_enc.value) v = 0.3 + 0.1 * random.normal();
        for (std::size_t i = 0; i < here.W_dec.size(); ++i)
            here.W_dec.data()[i] *= 0.5 + 0.05 * static_cast<double>(i % latents);
    });
    const auto none = constants<std::size_t>(backend(), {0});
    const auto now_of = [&](auto x) {
        return training_state{{nullptr, none.of(x).data(), 0}, false, nullptr, step, 100, random_stream(4)};
    };
    cpu host(1);
    arena<> scratch;
    sae.check(now_of, [&] {
        return loss_value(
            host, scratch, sae.here, [&](auto x) { return sae.here.loss(x, now_of(x)); }, std::as_const(sae.x).view());
    });
}

}  // namespace

TEST_CASE("penalties: gradients, and the exponent that falls") {
    check_by_itself([](auto number) {
        standard<d, latents, decltype(number)> sae;
        sae.norm_weighted = false;
        return sae;
    });
    check_by_itself([](auto number) {
        standard<d, latents, decltype(number), tanh_penalty> sae;
        sae.lambda = 0.5;
        return sae;
    });
    const auto powers = [](auto number) {
        standard<d, latents, decltype(number), power_penalty> sae;
        sae.lambda = 0.5;
        sae.penalty = {0.5, 10, 30};
        return sae;
    };
    check_by_itself(powers, 20);
    const auto p_at = [penalty = powers(double()).penalty](std::size_t step) {
        return penalty.at({{nullptr, nullptr}, false, nullptr, step, 100, random_stream(0)}).p;
    };
    CHECK(p_at(0) == 1);
    CHECK(p_at(20) == 0.75);
    CHECK(p_at(30) == 0.5);
    CHECK(p_at(90) == 0.5);
}

TEST_CASE("Multi-TopK and random prefixes: gradients") {
    const auto multi = []<topk_form form>(std::integral_constant<topk_form, form>) {
        return [](auto number) {
            topk<d, latents, decltype(number), form> sae;
            sae.k = 3;
            sae.multi_k = 7;
            return sae;
        };
    };
    check_by_itself(multi(std::integral_constant<topk_form, topk_form::dictionary_learning>()));
    check_by_itself(multi(std::integral_constant<topk_form, topk_form::saelens>()));
    check_by_itself([](auto number) {
        matryoshka<batch_topk<d, latents, decltype(number)>> sae;
        sae.k = 4;
        sae.random_prefixes = 4;
        return sae;
    });
    check_by_itself([](auto number) {
        matryoshka<topk<d, latents, decltype(number)>> sae;
        sae.k = 4;
        sae.prefixes = {5, 11};
        return sae;
    });
}
