// Resampling of dead latents against the reference's two routines, given the rows that it drew; and what becomes of the
// parameters that other variants have.
#include <catch2/catch.hpp>

#include <psae/sae/gated.hpp>
#include <psae/sae/jump_relu.hpp>
#include <psae/sae/patchsae.hpp>
#include <psae/sae/resample.hpp>
#include <psae/sae/trainer.hpp>

#include "golden.hpp"

using namespace psae;

namespace {

// Copies between the trainer's moments and golden arrays <prefix>m_W_enc, ...; the golden W_enc is [d, F].
template <class F>
void each_moment(trainer<patchsae<>>& run, const golden::arrays& a, const std::string& prefix, const F& f) {
    std::size_t seen = 0;
    run.each_state([&](const std::string& name, auto* data, std::size_t count) {
        if (!name.starts_with("adam_")) return;
        auto want = golden::floats(a, prefix + name[5] + "_" + name.substr(7));
        if (name.ends_with("W_enc")) want = golden::transposed(want, 16, 64);
        REQUIRE(want.size() == count);
        f(name, data, want);
        ++seen;
    });
    REQUIRE(seen == 8);
}

}  // namespace

TEST_CASE("resampling equals the reference's routines") {
    const auto golden_arrays = golden::load("sae_patchsae/resample.npz");
    for (const resampling how : {resampling::l2, resampling::anthropic}) {
        const std::string kind = how == resampling::l2 ? "l2" : "anthropic";
        INFO(kind);
        patchsae<> sae(16, 64);
        golden::set_parameters(sae, golden_arrays, "W_dec", kind + "_before_");
        cpu device;
        trainer<patchsae<>> run(sae, {}, device);
        each_moment(run, golden_arrays, kind + "_before_", [](const std::string&, auto* data, const auto& from) {
            std::copy(from.begin(), from.end(), data);
        });
        std::vector<std::uint32_t> dead;
        const auto mask = golden::floats(golden_arrays, kind + "_dead");
        for (std::uint32_t f = 0; f < 64; ++f)
            if (mask[f] != 0) dead.push_back(f);
        std::vector<std::size_t> rows;
        for (float r : golden::floats(golden_arrays, kind + "_chosen_rows")) rows.push_back(std::size_t(r));
        const auto x = golden::floats(golden_arrays, kind + "_x");
        const view<const float, shape<dyn, dyn>> tokens{x.data(), shape<dyn, dyn>{40, 16}};
        resample(sae, run, dead, tokens, rows, how);

        const auto after = [&](const char* name) { return golden::floats(golden_arrays, kind + "_after_" + name); };
        CHECK(relative_difference(sae.W_enc.value, golden::transposed(after("W_enc"), 16, 64)) < 2e-6);
        CHECK(relative_difference(sae.b_enc.value, after("b_enc")) == 0);
        CHECK(relative_difference(sae.W_dec.value, after("W_dec")) < 2e-6);
        CHECK(relative_difference(sae.b_dec.value, after("b_dec")) == 0);
        each_moment(run, golden_arrays, kind + "_after_", [](const std::string& name, auto* data, const auto& want) {
            INFO(name);
            for (std::size_t i = 0; i < want.size(); ++i) CHECK(float(data[i]) == want[i]);
        });

        CHECK_THROWS_AS(resample(sae, run, dead, tokens, std::vector<std::size_t>(8, 40), how), error);
        CHECK_THROWS_AS(resample(sae, run, dead, tokens, std::vector<std::size_t>(7, 0), how), error);
        CHECK_THROWS_AS(resample(sae, run, std::vector<std::uint32_t>{64}, tokens, std::vector<std::size_t>(1, 0), how),
                        error);
    }
}

TEST_CASE("rows are drawn by their errors") {
    random_stream random(3);
    const std::vector<float> errors{0, 1, 3, 0, 2};
    const std::size_t draws = 20000;
    std::vector<double> frequency(5);
    for (const std::size_t r : draw_rows(resampling::l2, errors, draws, random)) frequency[r] += 1.0 / draws;
    const double squares[5] = {0, 1.0 / 14, 9.0 / 14, 0, 4.0 / 14};
    for (std::size_t r = 0; r < 5; ++r) CHECK(std::abs(frequency[r] - squares[r]) < 0.015);

    std::vector<double> first(5);
    for (int i = 0; i < 4000; ++i) {
        auto rows = draw_rows(resampling::anthropic, errors, 3, random);
        first[rows[0]] += 1.0 / 4000;
        std::sort(rows.begin(), rows.end());
        REQUIRE(rows == std::vector<std::size_t>{1, 2, 4});
    }
    for (std::size_t r = 0; r < 5; ++r) CHECK(std::abs(first[r] - double(errors[r]) / 6) < 0.03);

    CHECK_THROWS_AS(draw_rows(resampling::anthropic, errors, 4, random), error);
    CHECK_THROWS_AS(draw_rows(resampling::l2, std::vector<float>{0, 0}, 1, random), error);
    CHECK_THROWS_AS(draw_rows(resampling::l2, std::vector<float>{1, NAN}, 1, random), error);
    CHECK(draw_rows(resampling::l2, std::vector<float>{}, 0, random).empty());
}

namespace {

constexpr std::size_t d = 8, latents = 40, n = 60;
const std::vector<std::uint32_t> dead{3, 4, 17, 39};

// After some steps, so that parameters and moments have moved. Returns tokens [n, d] that are not centred.
template <class Variant>
std::vector<float> train_a_little(Variant& sae, trainer<Variant>& run) {
    random_stream random(9);
    std::vector<float> x(n * d);
    for (int step = 0; step < 3; ++step) {
        for (float& v : x) v = 0.5f + random.normal();
        run.step(view<const float, shape<dyn, dyn>>{x.data(), shape<dyn, dyn>{n, d}});
    }
    for (float& b : sae.b_dec.value) b = 0.2f * random.normal();
    return x;
}
template <class Variant>
void resample_some(Variant& sae, trainer<Variant>& run, const std::vector<float>& x) {
    resample(sae, run, dead, view<const float, shape<dyn, dyn>>{x.data(), shape<dyn, dyn>{n, d}},
             std::vector<std::size_t>{5, 0, 59, 20}, resampling::anthropic);
}

bool is_dead(std::size_t f) { return std::find(dead.begin(), dead.end(), f) != dead.end(); }

// Checks what a latent has of its own, [latents], after resampling: `wanted` for those resampled, as before for others.
void check_restarted(const std::vector<float>& before, const parameter<float, shape<dyn>>& after, float wanted) {
    for (std::size_t f = 0; f < latents; ++f)
        CHECK(after.value.data()[f] == (is_dead(f) ? Approx(wanted) : Approx(before[f])));
}
std::vector<float> values(const parameter<float, shape<dyn>>& p) { return {p.value.begin(), p.value.end()}; }

// Moments of resampled latents are 0, those of others are not all 0.
template <class Variant>
void check_moments(trainer<Variant>& run) {
    std::size_t by_latent = 0;
    run.each_state([&](const std::string& name, auto* data, std::size_t count) {
        if (!name.starts_with("adam_") || name.ends_with("b_dec")) return;
        INFO(name);
        ++by_latent;
        double of_dead = 0, of_others = 0;
        for (std::size_t i = 0; i < count; ++i)
            (is_dead(i / (count / latents)) ? of_dead : of_others) += std::abs(double(data[i]));
        CHECK(of_dead == 0);
        CHECK(of_others > 0);
    });
    CHECK(by_latent >= 8);
}

template <jump_relu_form form>
void check_jump_relu() {
    using variant = jump_relu<dyn, dyn, float, form>;
    for (const double first_l0 : {0.0, 4.0}) {
        INFO("first_l0 " << first_l0);
        variant sae(d, latents);
        random_stream random(2);
        sae.initialise(random);
        sae.set_thresholds(0.3f);
        sae.first_l0 = first_l0;
        sae.window = 0.5;
        cpu device;
        training_options options;
        options.lr = 0.01;
        trainer<variant> run(sae, options, device);
        const auto x = train_a_little(sae, run);
        const auto before = values(sae.threshold);
        resample_some(sae, run, x);
        check_moments(run);
        if (first_l0 == 0) {
            check_restarted(before, sae.threshold, variant::is_saelens ? std::log(0.3f) : 0.3f);
            continue;
        }
        for (std::size_t f = 0; f < latents; ++f) {
            if (!is_dead(f)) {
                CHECK(sae.threshold.value.data()[f] == before[f]);
                continue;
            }
            const double t = double(sae.threshold.value.data()[f]), theta = variant::is_saelens ? std::exp(t) : t;
            std::size_t fires = 0;
            for (std::size_t token = 0; token < n; ++token) {
                double h = 0;
                for (std::size_t c = 0; c < d; ++c)
                    h += double(sae.W_enc.value(f, c)) *
                         (double(x[token * d + c]) - (variant::is_saelens ? double(sae.b_dec.data()[c]) : 0.0));
                fires += h > theta * (1 + 1e-5);
            }
            CHECK(fires == 6);  // 4 of 40 latents are 6 of 60 tokens for each
        }
    }
}

}  // namespace

TEST_CASE("resampled latents of JumpReLU start at the first threshold, or where they fire as often as the start's") {
    check_jump_relu<jump_relu_form::saelens_step>();
    check_jump_relu<jump_relu_form::dictionary_learning>();
}

TEST_CASE("resampled latents of Gated have no magnitude of their own") {
    gated<> sae(d, latents);
    random_stream random(2);
    sae.initialise(random);
    cpu device;
    training_options options;
    options.lr = 0.01;
    trainer<gated<>> run(sae, options, device);
    const auto x = train_a_little(sae, run);
    const auto r_mag = values(sae.r_mag), b_mag = values(sae.b_mag), b_gate = values(sae.b_enc);
    CHECK(r_mag[dead[0]] != 0);
    resample_some(sae, run, x);
    check_restarted(r_mag, sae.r_mag, 0);
    check_restarted(b_mag, sae.b_mag, 0);
    check_restarted(b_gate, sae.b_enc, 0);
    check_moments(run);
}
