// Classes' latents in two models: an example by hand, and a slow obvious reference on random counts.
#include <catch2/catch.hpp>

#include <cmath>
#include <set>
#include <vector>

#include <psae/attribution/latent_comparison.hpp>
#include <psae/core/random.hpp>

namespace {

psae::class_latent_counts counts_of(std::size_t latents, std::vector<std::uint32_t> count,
                                    std::vector<std::uint32_t> images) {
    psae::class_latent_counts c;
    c.classes = images.size();
    c.latents = latents;
    c.count = std::move(count);
    c.images = std::move(images);
    return c;
}

// The textbook formula in two passes.
double slow_correlation(const std::vector<double>& x, const std::vector<double>& y) {
    double mx = 0, my = 0, xx = 0, yy = 0, xy = 0;
    for (std::size_t i = 0; i < x.size(); ++i) mx += x[i] / double(x.size()), my += y[i] / double(x.size());
    for (std::size_t i = 0; i < x.size(); ++i) {
        xx += (x[i] - mx) * (x[i] - mx);
        yy += (y[i] - my) * (y[i] - my);
        xy += (x[i] - mx) * (y[i] - my);
    }
    return xy / std::sqrt(xx * yy);
}

using latents = std::vector<std::uint32_t>;

}  // namespace

TEST_CASE("shared latents, those of one model only, and what was there before") {
    // Latents:                              0  1  2  3  4  5     classes of 4 and 2 pictures
    const auto base = counts_of(6,
                                {4, 3, 2, 0, 0, 1,  //
                                 2, 0, 0, 0, 1, 0},
                                {4, 2});
    const auto adapted = counts_of(6,
                                   {4, 0, 3, 2, 1, 0,  //
                                    0, 0, 0, 0, 0, 0},
                                   {4, 2});
    const auto c = psae::compare_latents(base, adapted, 3);
    REQUIRE(c.classes.size() == 2);
    const auto& first = c.classes[0];
    CHECK(first.shared == latents{0, 2});
    CHECK(first.base_only == latents{1});
    CHECK(first.adapted_only == latents{3});
    CHECK(first.jaccard == 0.5);
    CHECK(first.base_latents == 4);
    CHECK(first.adapted_latents == 4);
    CHECK(first.present == 2);
    CHECK(first.present_mass == Approx(7.0 / 10));
    CHECK(first.count_correlation == Approx(slow_correlation({4, 3, 2, 0, 0, 1}, {4, 0, 3, 2, 1, 0})));
    const auto& second = c.classes[1];
    CHECK(second.shared.empty());
    CHECK(second.base_only == latents{0, 4});
    CHECK(second.jaccard == 0);
    CHECK(std::isnan(second.present_mass));
    CHECK(std::isnan(second.count_correlation));  // the adapted side does not vary
    CHECK(c.jaccard == 0.25);
    CHECK(c.base_latents == 5);
    CHECK(c.adapted_latents == 4);
    CHECK(c.present == 3);  // 0, 2, 4: the last fired on another class
    CHECK(c.present_mass == Approx(8.0 / 10));
    CHECK(c.class_present_mass == Approx(7.0 / 10));

    // By phi: latent 0 fires on all of both classes in the base model and is specific to neither.
    const auto by_phi = psae::compare_latents(base, adapted, 1, psae::latent_order::phi);
    CHECK(by_phi.classes[0].base_only == latents{1});
    CHECK(by_phi.classes[0].adapted_only == latents{0});

    const auto changes = psae::association_changes(base, adapted, 100);
    REQUIRE(changes.size() == 8);
    for (std::size_t most = 0; most < 8; ++most) {
        const auto first = psae::association_changes(base, adapted, most);
        REQUIRE(first.size() == most);
        for (std::size_t i = 0; i < most; ++i) {
            CHECK(first[i].of_class == changes[i].of_class);
            CHECK(first[i].latent == changes[i].latent);
        }
    }
    // Latent 0 fired on every picture (phi 0) and now on all of the first class alone (phi 1).
    CHECK(changes[0].of_class == 0);
    CHECK(changes[0].latent == 0);
    CHECK(changes[0].base == 0);
    CHECK(changes[0].adapted == 1);
}

TEST_CASE("a model and itself: everything is shared") {
    const auto base = counts_of(4, {3, 1, 0, 0, 0, 2, 1, 0}, {3, 2});
    const auto c = psae::compare_latents(base, base, 2);
    CHECK(c.jaccard == 1);
    CHECK(c.present == c.adapted_latents);
    CHECK(c.present_mass == 1);
    CHECK(c.class_present_mass == 1);
    CHECK(c.association_correlation == Approx(1));
    CHECK(c.classes[0].count_correlation == Approx(1));
}

TEST_CASE("overlap and correlations of random counts equal slow sums") {
    constexpr std::size_t C = 5, F = 40, top = 7;
    psae::random_stream random(3);
    const auto draw = [&] {
        std::vector<std::uint32_t> count(C * F);
        for (auto& n : count) n = random.below(2) == 0 ? 0 : static_cast<std::uint32_t>(random.below(10));
        return counts_of(F, count, std::vector<std::uint32_t>(C, 9));
    };
    const auto base = draw(), adapted = draw();
    const auto c = psae::compare_latents(base, adapted, top);
    const auto base_first = psae::rank_latents(base, top), adapted_first = psae::rank_latents(adapted, top);
    std::vector<double> x, y;
    double jaccards = 0;
    for (std::size_t k = 0; k < C; ++k) {
        const auto a = base_first.of_class(k), b = adapted_first.of_class(k);
        std::set<std::uint32_t> either(a.begin(), a.end()), both;
        for (const auto f : b)
            if (either.contains(f)) both.insert(f);
        either.insert(b.begin(), b.end());
        CHECK(std::set<std::uint32_t>(c.classes[k].shared.begin(), c.classes[k].shared.end()) == both);
        jaccards += double(both.size()) / double(either.size());
        for (std::uint32_t f = 0; f < F; ++f) {
            if (base.of_class(k)[f] == 0 && adapted.of_class(k)[f] == 0) continue;
            x.push_back(psae::association_of(base, k, f, base.of_all()[f], base.possible_of_all()).phi);
            y.push_back(psae::association_of(adapted, k, f, adapted.of_all()[f], adapted.possible_of_all()).phi);
        }
    }
    CHECK(c.jaccard == Approx(jaccards / C));
    CHECK(c.association_correlation == Approx(slow_correlation(x, y)));
}

TEST_CASE("counts of other pictures cannot be compared") {
    const auto base = counts_of(3, {1, 0, 0}, {2});
    auto other = base;
    other.images = {3};
    CHECK_THROWS_WITH(psae::compare_latents(base, other, 1), Catch::Contains("cannot be compared"));
    other = base;
    other.tau = 0.3;
    CHECK_THROWS_WITH(psae::compare_latents(base, other, 1), Catch::Contains("cannot be compared"));
}

TEST_CASE("the share of a gain that is explained, and none without a gain") {
    CHECK(psae::explained_share(0.5, 0.7, 0.6) == Approx(0.5));
    CHECK(psae::explained_share(0.5, 0.7, 0.7) == Approx(1));
    CHECK(psae::explained_share(0.5, 0.7, 0.4) == Approx(-0.5));
    CHECK(std::isnan(psae::explained_share(0.7, 0.7, 0.7)));
    CHECK(std::isnan(psae::explained_share(0.7, 0.5, 0.6)));
}
