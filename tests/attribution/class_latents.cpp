// Class-level latents against golden/pipeline and against slow obvious references.
#include <catch2/catch.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <string>
#include <vector>

#include <psae/attribution/class_latents.hpp>
#include <psae/io/numpy.hpp>

#include "owned_codes.hpp"

namespace {

psae::array golden(const char* file, const char* name) {
    return psae::read_npz(std::string(PSAE_GOLDEN_DIR) + "/pipeline/" + file, name);
}

// Counts as they come out of a loop over a dense matrix.
std::uint32_t slow_count(const std::vector<float>& dense, std::size_t T, std::size_t F,
                         const std::vector<std::int32_t>& classes, psae::class_count what, double tau, std::size_t c,
                         std::size_t f) {
    std::uint32_t count = 0;
    for (std::size_t i = 0; i < classes.size(); ++i) {
        if (classes[i] != std::int32_t(c)) continue;
        double sum = 0, most = 0;
        std::uint32_t tokens = 0;
        for (std::size_t t = 0; t < T; ++t) {
            const auto z = double(dense[(i * T + t) * F + f]);
            sum += z;
            most = std::max(most, z);
            tokens += z > tau;
        }
        count += what == psae::class_count::tokens       ? tokens
                 : what == psae::class_count::images_max ? most > tau
                                                         : sum / double(T) > tau;
    }
    return count;
}

}  // namespace

TEST_CASE("tokens above tau by class, and the first latents of a class, equal the reference's") {
    const auto dense = psae::to_floats(golden("codes.npz", "codes"));
    const auto labels = psae::values<std::int32_t>(golden("codes.npz", "labels"));
    const owned_codes z(dense, 24 * 17, 96);
    psae::class_latent_counter counter(4, 96, psae::class_count::tokens, 0.2);
    counter.add(z.view, 17, labels);
    const auto& counts = counter.counts();
    CHECK(counts.count == psae::values<std::uint32_t>(golden("masking.npz", "cls_sae_cnt")));
    CHECK(counts.images == std::vector<std::uint32_t>{6, 6, 6, 6});
    CHECK(counts.possible(2) == 6 * 17);
    CHECK(psae::rank_latents(counts, 16).latents ==
          psae::values<std::uint32_t>(golden("masking.npz", "chosen_latents")));

    // Images whose score, the golden mean over tokens, is above tau.
    const auto score = psae::to_floats(golden("statistics.npz", "image_score"));
    psae::class_latent_counter images(4, 96);
    images.add(z.view, 17, labels);
    std::vector<std::uint32_t> expected(4 * 96);
    for (std::size_t i = 0; i < 24; ++i)
        for (std::size_t f = 0; f < 96; ++f) expected[std::size_t(labels[i]) * 96 + f] += score[i * 96 + f] > 0.2f;
    CHECK(images.counts().count == expected);
    CHECK(std::any_of(expected.begin(), expected.end(), [](auto n) { return n > 0; }));
}

TEST_CASE("counts of many batches equal a slow reference") {
    // 10000 batches of one to three images; some images have no class, some classes no image.
    const auto what = GENERATE(psae::class_count::images, psae::class_count::images_max, psae::class_count::tokens);
    constexpr std::size_t C = 7, F = 11, T = 3, batches = 10000;
    const double tau = what == psae::class_count::images ? 0.25 : 0.5;  // both are among the values: not above
    psae::random_stream random(5);
    psae::class_latent_counter counter(C, F, what, tau);
    std::vector<std::uint32_t> expected(C * F), images(C);
    for (std::size_t b = 0; b < batches; ++b) {
        std::vector<std::int32_t> classes(1 + random.below(3));
        for (auto& c : classes) c = std::int32_t(random.below(C)) - 1;
        std::vector<float> dense(classes.size() * T * F);
        for (float& v : dense)
            if (random.uniform() < 0.2f) v = 0.25f * float(1 + random.below(4));
        counter.add(owned_codes(dense, classes.size() * T, F).view, T, classes);
        for (std::size_t c = 0; c < C; ++c) {
            images[c] += std::uint32_t(std::count(classes.begin(), classes.end(), std::int32_t(c)));
            for (std::size_t f = 0; f < F; ++f)
                expected[c * F + f] += slow_count(dense, T, F, classes, what, tau, c, f);
        }
    }
    CHECK(counter.counts().count == expected);
    CHECK(counter.counts().images == images);
    CHECK(images[C - 1] == 0);
    CHECK(images[0] > 1000);
    const auto sum = counter.counts().of_all();
    for (std::size_t f = 0; f < F; ++f) {
        std::uint64_t all = 0;
        for (std::size_t c = 0; c < C; ++c) all += expected[c * F + f];
        CHECK(sum[f] == all);
    }
}

TEST_CASE("how a latent and a class go together") {
    psae::class_latent_counts counts;
    counts.classes = 3, counts.latents = 5;
    counts.images = {10, 30, 0};
    counts.count = {10, 0, 5, 10, 0, /**/ 0, 0, 15, 30, 3, /**/ 0, 0, 0, 0, 0};
    const auto fires = counts.of_all();
    const auto of = [&](std::size_t c, std::size_t f) {
        return psae::association_of(counts, c, f, fires[f], counts.possible_of_all());
    };
    // On the class's images, all of them, and on no others.
    CHECK(of(0, 0).npmi == Approx(1));
    CHECK(of(0, 0).share == 1);
    CHECK(of(0, 0).frequency == 1);
    CHECK(of(0, 0).class_share == 0.25);
    CHECK(of(0, 0).phi == Approx(1));
    // On half of each class: independent.
    CHECK(of(0, 2).npmi == Approx(0).margin(1e-12));
    CHECK(of(0, 2).share == Approx(0.25));
    CHECK(of(1, 2).frequency == 0.5);
    CHECK(of(1, 2).phi == Approx(0).margin(1e-12));
    // On everything: independent too.
    CHECK(of(1, 3).npmi == Approx(0).margin(1e-12));
    CHECK(of(1, 3).phi == 0);
    // Never; and together never.
    CHECK(of(0, 1).npmi == -1);
    CHECK(of(0, 1).share == 0);
    CHECK(of(0, 4).npmi == -1);
    CHECK(of(2, 3).npmi == -1);
    CHECK(of(2, 3).frequency == 0);
    // By hand: p(c, f) = 3/40, p(c) = 30/40, p(f) = 3/40.
    CHECK(of(1, 4).npmi == Approx(std::log((3 / 40.0) / (30 / 40.0 * 3 / 40.0)) / -std::log(3 / 40.0)));
    // The correlation of two columns of 40 noughts and ones: 3 images have both, 27 the class alone, 10 neither.
    CHECK(of(1, 4).phi == Approx((3 * 10 - 0 * 27) / std::sqrt(30.0 * 10 * 3 * 37)));
    CHECK(of(0, 4).phi == Approx((0 * 27 - 3 * 10) / std::sqrt(10.0 * 30 * 3 * 37)));
    // By phi: latent 0 goes with class 0, then latent 2, which is everywhere alike; 1 and 4 never fire on it.
    const auto specific = psae::specific_latents(counts, 0, 9, fires);
    REQUIRE(specific.size() == 3);
    CHECK(specific[0].first == 0);
    CHECK(specific[1].first == 2);  // of equal ones the smaller index
    CHECK(specific[2].first == 3);
    CHECK(psae::specific_latents(counts, 1, 1, fires).front().first == 4);
    CHECK(psae::specific_latents(counts, 2, 9, fires).empty());
    // Tokens: as many times more are possible.
    counts.what = psae::class_count::tokens, counts.tokens_per_image = 2;
    CHECK(of(0, 0).frequency == 0.5);
    CHECK(of(0, 0).class_share == 0.25);
    CHECK(of(0, 0).npmi == Approx(std::log(4.0) / -std::log(10 / 80.0)));
    // One class and a latent that is always there tell nothing.
    psae::class_latent_counts one;
    one.classes = one.latents = 1, one.images = {4}, one.count = {4};
    CHECK(psae::association_of(one, 0, 0, 4, one.possible_of_all()).npmi == 0);
}

TEST_CASE("random latents: of those that fire first, each once, the same for the same seed") {
    psae::class_latent_counts counts;
    counts.classes = 40, counts.latents = 50;
    counts.images.assign(40, 1);
    counts.count.resize(40 * 50);
    for (std::size_t f = 0; f < 50; f += 5) counts.count[(f % 40) * 50 + f] = 1;  // ten of them
    const auto ranking = psae::random_ranking(counts, 25, 3);
    std::vector<std::size_t> first(50);
    for (std::size_t c = 0; c < 40; ++c) {
        const auto own = ranking.of_class(c);
        CHECK(std::set<std::uint32_t>(own.begin(), own.end()).size() == 25);
        for (std::size_t i = 0; i < 25; ++i) CHECK((own[i] % 5 == 0) == (i < 10));
        ++first[own[0]];
    }
    CHECK(*std::max_element(first.begin(), first.end()) < 15);  // 4 of 40 are expected of each
    CHECK(psae::random_ranking(counts, 25, 3).latents == ranking.latents);
    CHECK(psae::random_ranking(counts, 25, 4).latents != ranking.latents);
    CHECK(psae::random_ranking(counts, 50, 3).of_class(39).size() == 50);
    CHECK_THROWS_WITH(psae::random_ranking(counts, 51, 3), Catch::Contains("at most 50"));
    CHECK_THROWS_WITH(psae::rank_latents(counts, 51), Catch::Contains("at most 50"));
}

TEST_CASE("class-level latents refuse what does not fit") {
    const owned_codes z(std::vector<float>(6 * 4, 1.0f), 6, 4);
    psae::class_latent_counter counter(2, 4), narrow(2, 3);
    const std::vector<std::int32_t> two{0, 1}, wrong{0, 2};
    CHECK_THROWS_WITH(narrow.add(z.view, 3, two), Catch::Contains("expected 3 latents"));
    CHECK_THROWS_AS(counter.add(z.view, 2, two), psae::error);
    CHECK_THROWS_WITH(counter.add(z.view, 3, wrong), Catch::Contains("below 2, found 2"));
    CHECK(counter.counts().images[0] == 0);
    counter.add(z.view, 3, two);
    CHECK_THROWS_AS(counter.add(z.view, 2, std::vector<std::int32_t>{0, 1, 1}), psae::error);
    for (const double tau : {-0.1, std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()})
        CHECK_THROWS_WITH(psae::class_latent_counter(2, 4, psae::class_count::images, tau), Catch::Contains("tau"));
}
