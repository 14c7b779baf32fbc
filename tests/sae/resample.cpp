// Resampling of dead latents against the reference's two routines, given the rows that it drew.
#include <catch2/catch.hpp>

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
