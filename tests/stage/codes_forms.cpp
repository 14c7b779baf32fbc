// Codes as entries and as tiles are two ways to the same loss and the same gradients, on both backends.
#include <catch2/catch.hpp>

#include <map>

#include <psae/psae.hpp>

#include "../backend.hpp"
#include "../difference.hpp"
#include "../gradient_on_host.hpp"

using namespace psae;

namespace {

constexpr std::size_t d = 10, latents = 150, tokens = 37;

struct outcome {
    bool dense;
    double loss;
    std::vector<std::uint32_t> fired;
    std::map<std::string, std::vector<double>> gradients;
};

using rows = shape<dyn, d>;
using device_rows = const_view<double, rows, backend_memory>;

// One forward and backward sweep of a loss over parameters; with memory for `kept_bytes` of tiles.
template <class Model, class Loss>
outcome sweep(Model& sae, const tensor<double, rows>& x, codes_form form, const Loss& loss_of,
              std::size_t kept_bytes = 0) {
    backend device;
    parameter_copies copies(sae, device);
    const auto standing_in = copies.stand_in();
    arena<backend_memory> scratch;
    arena<> records;
    tape<backend> t(device, scratch, records, mode::train);
    t.form = form;
    t.codes_memory = kept_bytes;
    sae.each_parameter([&](const char*, auto& p) { t.collect(p); });
    const auto there = on_device(device, std::vector<double>(x.begin(), x.end()));
    const auto loss = evaluate(loss_of(t.input(device_rows{there.data(), x.shape()})));
    t.run();
    backward(t, loss);
    const auto& z = *static_cast<const codes_record<double>*>(t.main_codes);
    outcome o{z.dense(), read(device, loss.data), on_host(device, z.fired, sae.latents()), {}};
    sae.each_parameter([&](const char* name, auto& p) {
        o.gradients[name] = gradient_on_host(device, p);
        p.gradient = nullptr;
    });
    return o;
}

void check_equal(const outcome& a, const outcome& b) {
    CHECK(a.loss == Approx(b.loss).epsilon(1e-13));
    CHECK(a.fired == b.fired);
    for (const auto& [name, g] : a.gradients) {
        INFO(name);
        CHECK(std::any_of(g.begin(), g.end(), [](double v) { return v != 0; }));
        CHECK(relative_difference(b.gradients.at(name), g) < 1e-12);
    }
}

struct fixture {
    patchsae<d, latents, double> sae;
    tensor<double, rows> x{rows{tokens}};

    fixture() {
        random_stream random(3);
        sae.initialise(random);
        sae.lambda = 0.03;
        for (double& v : sae.b_enc.value) v = 0.1 * random.normal();
        for (double& v : sae.b_dec.value) v = 0.1 * random.normal();
        for (double& v : x) v = random.normal();
    }
};

// Two latents that count as dead.
struct dead_pair {
    const backend device;
    const device_array<std::uint32_t, backend> index = on_device(device, std::vector<std::uint32_t>{5, 149});
    const device_array<std::size_t, backend> count = on_device(device, std::vector<std::size_t>{2});
    training_state state() const { return {{index.data(), count.data(), 2}, true, nullptr, 0, 0, random_stream(0)}; }
};

template <class Loss>
void check_forms(fixture& f, const Loss& loss) {
    const auto entries = sweep(f.sae, f.x, codes_form::entries, loss),
               tiles = sweep(f.sae, f.x, codes_form::tiles, loss);
    CHECK(!entries.dense);
    CHECK(tiles.dense);
    check_equal(entries, tiles);
}

}  // namespace

TEST_CASE("codes: PatchSAE in both forms, with tiles kept and made again") {
    fixture f;
    const dead_pair dead;
    f.sae.b_enc.value[5] = f.sae.b_enc.value[149] = -9;
    const auto loss = [&](auto x) { return f.sae.loss(x, dead.state()); };
    const auto entries = sweep(f.sae, f.x, codes_form::entries, loss),
               tiles = sweep(f.sae, f.x, codes_form::tiles, loss);
    CHECK(!entries.dense);
    CHECK(tiles.dense);
    check_equal(entries, tiles);
    check_equal(tiles, sweep(f.sae, f.x, codes_form::tiles, loss, std::size_t{1} << 20));
    // Half of the latents are active at a random start: the density alone decides for tiles.
    CHECK(sweep(f.sae, f.x, codes_form::by_density, loss).dense);
}

TEST_CASE("codes: an input that is not linear, and leaves that broadcast over codes") {
    fixture f;
    const auto loss = [&](auto x) {
        auto& s = f.sae;
        auto length = evaluate(norm(x - s.b_dec));  // before the encoder, so that tiles can read it
        auto z = encode(square(x - s.b_dec), s.W_enc, s.b_enc, relu{});
        auto x_hat = decode(z, s.W_dec, s.b_dec);
        return mean(square(x_hat - x)) + mean_over_tokens(sum(square(z) * s.b_enc)) + mean_over_tokens(sum(z * length));
    };
    check_forms(f, loss);
}

TEST_CASE("codes: two decoders of one matrix read the same tiles") {
    fixture f;
    const auto loss = [&](auto x) {
        auto& s = f.sae;
        auto z = encode(x, s.W_enc, s.b_enc, relu{});
        auto first = decode(z, s.W_dec, s.b_dec), second = decode(z, s.W_dec);
        return mean(square(first - x)) + mean(square(second) * abs(x));
    };
    check_forms(f, loss);
}

TEST_CASE("codes: a decoder that goes on from a reconstruction") {
    fixture f;
    const auto in_tiles = [&](auto x) {
        auto& s = f.sae;
        auto base = evaluate(x * s.b_dec);  // before the encoder, so that tiles can read it
        auto z = encode(x, s.W_enc, s.b_enc, relu{});
        return mean(square(decode(z, s.W_dec, base) - x));
    };
    check_forms(f, in_tiles);
    // From prefix to prefix is the same as the sums of separate decoders.
    const auto going_on = [&](auto x) {
        auto& s = f.sae;
        auto z = encode(x, s.W_enc, s.b_enc, relu{});
        auto first = decode(z, s.W_dec, s.b_dec, {0, 40}), second = decode(z, s.W_dec, first, {40, latents});
        return mean(square(first - x)) + mean(square(second - x) * abs(x));
    };
    const auto apart = [&](auto x) {
        auto& s = f.sae;
        auto z = encode(x, s.W_enc, s.b_enc, relu{});
        auto first = decode(z, s.W_dec, s.b_dec, {0, 40}), more = decode(z, s.W_dec, {40, latents});
        return mean(square(first - x)) + mean(square(first + more - x) * abs(x));
    };
    check_equal(sweep(f.sae, f.x, codes_form::entries, going_on), sweep(f.sae, f.x, codes_form::entries, apart));
}

TEST_CASE("codes: codes made from codes, and numbers by latent") {
    fixture f;
    const auto loss = [&](auto x) {
        auto& s = f.sae;
        auto slope = evaluate(on_tape_of(x, exp(s.b_enc)));
        auto first = encode(x - s.b_dec, s.W_enc, s.b_enc, relu{});
        auto z = evaluate(map(rectifier{}, slope * (first - 0.3) + s.b_enc));
        auto norms = row_norms(x, s.W_dec);
        return mean(square(decode(z, s.W_dec, s.b_dec) - x)) + mean(square(decode(first, s.W_dec))) +
               mean_over_tokens(sum(square(z) * norms)) + mean_over_tokens(sum(first * slope));
    };
    check_forms(f, loss);
}

namespace {

// The variants whose codes can be tiles, beside their entries.
template <class Variant>
void check_variant(Variant&& sae) {
    random_stream random(3);
    sae.initialise(random);
    for (double& v : sae.b_enc.value) v = 0.1 * random.normal();
    for (double& v : sae.b_dec.value) v = 0.1 * random.normal();
    tensor<double, rows> x{rows{tokens}};
    for (double& v : x) v = random.normal();
    const dead_pair dead;
    const auto loss = [&](auto input) { return sae.loss(input, dead.state()); };
    const auto entries = sweep(sae, x, codes_form::entries, loss), tiles = sweep(sae, x, codes_form::tiles, loss);
    CHECK(!entries.dense);
    CHECK(tiles.dense);
    check_equal(entries, tiles);
    check_equal(tiles, sweep(sae, x, codes_form::tiles, loss, std::size_t{1} << 20));
}

}  // namespace

TEST_CASE("codes: variants in both forms") {
    check_variant(standard<d, latents, double>());
    check_variant(standard<d, latents, double, tanh_penalty>());
    jump_relu<d, latents, double, jump_relu_form::saelens_step> step;
    jump_relu<d, latents, double, jump_relu_form::saelens_tanh> tanh;
    jump_relu<d, latents, double, jump_relu_form::dictionary_learning> target;
    step.window = tanh.window = target.window = 0.3;  // wider than the thresholds
    step.pre_act_weight = tanh.pre_act_weight = 0.1;
    check_variant(std::move(step));
    check_variant(std::move(tanh));
    check_variant(std::move(target));
    check_variant(gated<d, latents, double, gated_form::saelens>());
    check_variant(gated<d, latents, double, gated_form::paper>());
}

TEST_CASE("codes: what needs a later stage keeps the entries") {
    fixture f;
    const auto with_bias = [&](auto x) {
        auto& s = f.sae;
        auto z = encode(x, s.W_enc, s.b_enc, relu{});
        auto centre = column_means(x * s.b_dec);
        return mean(square(decode(z, s.W_dec, centre) - x));
    };
    const auto biased = sweep(f.sae, f.x, codes_form::tiles, with_bias);
    CHECK(!biased.dense);
    check_equal(biased, sweep(f.sae, f.x, codes_form::entries, with_bias));
    const auto loss = [&](auto x) {
        auto& s = f.sae;
        auto z = encode(x, s.W_enc, s.b_enc, relu{});
        auto x_hat = decode(z, s.W_dec, s.b_dec);
        auto length = evaluate(norm(x_hat - x));  // not there yet when the encoder runs
        return mean_over_tokens(sum(z * length));
    };
    const auto o = sweep(f.sae, f.x, codes_form::tiles, loss);
    CHECK(!o.dense);
    check_equal(o, sweep(f.sae, f.x, codes_form::entries, loss));
}

TEST_CASE("codes: gradient rows taken in the sweep give the parameters of the unfused update") {
    // A clipping threshold that is never reached makes the trainer collect whole gradients first.
    fixture fused, unfused, entries;
    for (std::uint32_t f = 0; f < 7; ++f)
        for (auto* s : {&fused.sae, &unfused.sae, &entries.sae}) s->b_enc.value[f * 20] = -9;  // dead: ghost gradients
    backend device;
    training_options options{.lr = 1e-2, .warmup_steps = 0, .dead_after = 0};
    options.codes = codes_form::tiles;
    trainer a(fused.sae, options, device);
    options.clip_grad_norm = 1e9;
    trainer b(unfused.sae, options, device);
    options = {.lr = 1e-2, .warmup_steps = 0, .dead_after = 0, .codes = codes_form::entries};
    trainer c(entries.sae, options, device);
    const auto there = on_device(device, std::vector<double>(fused.x.begin(), fused.x.end()));
    const device_rows x{there.data(), fused.x.shape()};
    for (int step = 0; step < 4; ++step) {
        const auto m = a.step(x);
        CHECK(m.loss == Approx(b.step(x).loss).epsilon(1e-13));
        CHECK(m.loss == Approx(c.step(x).loss).epsilon(1e-9));
    }
    for (auto* run : {&a, &b, &c}) run->read_parameters();
    for (std::size_t i = 0; i < fused.sae.W_dec.size(); ++i) {
        CHECK(fused.sae.W_dec.data()[i] == Approx(unfused.sae.W_dec.data()[i]).margin(1e-13));
        CHECK(fused.sae.W_enc.data()[i] == Approx(entries.sae.W_enc.data()[i]).margin(1e-6));
    }
}

namespace {

// Decoder norms in an expression that is evaluated before the encoder: its adjoint runs after the encoder's.
template <bool before>
struct norms_of_rows : sae_parameters<d, latents, double> {
    auto loss(auto x) const {
        const auto norms = row_norms(x, this->W_dec);
        const auto weighted = [&] { return evaluate(2.0 * norms); };
        if constexpr (before) {
            const auto twice = weighted();
            return rest(x, encode(x, this->W_enc, this->b_enc, relu{}), twice);
        } else {
            const auto z = encode(x, this->W_enc, this->b_enc, relu{});
            return rest(x, z, weighted());
        }
    }

private:
    auto rest(auto x, auto z, auto weight) const {
        return squared_error(decode(z, this->W_dec, this->b_dec), x) + mean_over_tokens(sum(z * weight));
    }
};

}  // namespace

TEST_CASE("codes: a gradient's share that comes after the rows were used is an error, not lost") {
    fixture f;
    backend device;
    const auto there = on_device(device, std::vector<double>(f.x.begin(), f.x.end()));
    const auto step = [&](auto sae, double clip) {
        random_stream random(3);
        sae.initialise(random);
        training_options options{.clip_grad_norm = clip, .unit_norm_decoder = false};
        options.codes = codes_form::tiles;
        trainer run(sae, options, device);
        return run.step(device_rows{there.data(), f.x.shape()}).loss;
    };
    CHECK_THROWS_WITH(step(norms_of_rows<true>(), 0), Catch::Contains("optimiser has used"));
    CHECK(step(norms_of_rows<true>(), 1e9) == Approx(step(norms_of_rows<false>(), 1e9)));
}
