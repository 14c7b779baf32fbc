// Edited codes against dense loops; intervals of accuracies against published numbers.
#include <catch2/catch.hpp>

#include <cmath>
#include <limits>
#include <vector>

#include <psae/attribution/intervention.hpp>
#include <psae/core/random.hpp>

#include "owned_codes.hpp"

namespace {

std::vector<float> dense_of(const psae::codes_view<float>& z) {
    std::vector<float> dense(z.tokens * z.latents);
    for (std::size_t t = 0; t < z.tokens; ++t)
        for (std::size_t i = z.offsets[t]; i < z.offsets[t + 1]; ++i) {
            CHECK((i == z.offsets[t] || z.latent[i] > z.latent[i - 1]));  // ascending, each once
            dense[t * z.latents + z.latent[i]] = z.value[i];
        }
    return dense;
}

}  // namespace

TEST_CASE("codes with latents kept, removed and set equal a dense loop") {
    constexpr std::size_t T = 9, F = 13;
    psae::random_stream random(11);
    std::vector<float> dense(T * F);
    for (float& v : dense) v = random.uniform() < 0.4f ? random.uniform() + 0.1f : 0.0f;
    std::fill_n(dense.begin() + 3 * F, F, 0.0f);  // a token without entries
    const owned_codes z(dense, T, F);
    psae::codes_view<float> part = z.view;  // the tokens from the third on, as one picture of a batch
    part.tokens -= 2, part.offsets += 2;
    using action = psae::codes_edit::action;
    const psae::latent_value values[] = {{0, 2.5f}, {4, -1.0f}, {5, 0.0f}, {12, 7.0f}};
    const psae::cpu device;
    psae::arena<> scratch;
    const auto edited = [&](action what) { return dense_of(psae::edit_codes(device, scratch, part, {what, values})); };
    const auto kept = edited(action::keep), rest = edited(action::remove), set = edited(action::set);
    for (std::size_t t = 0; t < T - 2; ++t)
        for (std::size_t f = 0; f < F; ++f) {
            INFO("token " << t << ", latent " << f);
            const float before = dense[(t + 2) * F + f];
            const auto found =
                std::find_if(std::begin(values), std::end(values), [&](auto v) { return v.latent == f; });
            const bool listed = found != std::end(values);
            CHECK(kept[t * F + f] == (listed ? before : 0.0f));
            CHECK(rest[t * F + f] == (listed ? 0.0f : before));
            CHECK(set[t * F + f] == (listed ? found->value : before));
        }
    CHECK(dense_of(psae::edit_codes(device, scratch, z.view, {})) == dense);
    CHECK(dense_of(psae::edit_codes(device, scratch, z.view, {action::set, {}})) == dense);
    CHECK(psae::edit_codes(device, scratch, z.view, {action::keep, {}}).entries() == 0);

    const auto refused = [&](std::vector<psae::latent_value> wrong, const char* text) {
        CHECK_THROWS_WITH(psae::require_settable(wrong, F), Catch::Contains(text));
    };
    refused({{13, 1}}, "0 to 12");
    refused({{3, std::numeric_limits<float>::quiet_NaN()}}, "not finite");
    refused({{3, 1}, {3, 2}}, "latent 3");
    refused({{3, 1}, {2, 2}}, "ascending");
}

TEST_CASE("intervals of accuracies") {
    // Newcombe, Two-sided confidence intervals for the single proportion, 1998, table I, method 3.
    const auto near = [](psae::interval i, double low, double high) {
        CHECK(i.low == Approx(low).margin(5e-5));
        CHECK(i.high == Approx(high).margin(5e-5));
    };
    near(psae::wilson_interval(81, 263), 0.2553, 0.3662);
    near(psae::wilson_interval(15, 148), 0.0624, 0.1605);
    near(psae::wilson_interval(0, 20), 0, 0.1611);
    near(psae::wilson_interval(1, 29), 0.0061, 0.1718);
    CHECK(psae::wilson_interval(29, 29).high == 1);
    CHECK(std::isnan(psae::wilson_interval(0, 0).low));

    // Agresti and Min's formula, written out: pictures 100, 12 gained, 4 lost.
    const double difference = 8 / 102.0, half = 1.959963984540054 * std::sqrt(12.5 + 4.5 - 64 / 102.0) / 102;
    near(psae::paired_interval(12, 4, 100), difference - half, difference + half);
    near(psae::paired_interval(4, 12, 100), -difference - half, -difference + half);
    const auto nothing = psae::paired_interval(0, 0, 50);
    CHECK(nothing.low == -nothing.high);
    CHECK(nothing.high > 0);
    CHECK(psae::paired_interval(0, 1, 1).low == -1);
    CHECK(std::isnan(psae::paired_interval(0, 0, 0).high));
}
