// Purity of the top images' labels, and what chance gives: against all draws one by one.
#include <catch2/catch.hpp>

#include <numeric>

#include <psae/attribution/label_purity.hpp>

using namespace psae;

TEST_CASE("expected purity is the mean over all subsets of the images") {
    const std::vector<std::size_t> images_of_label{4, 1, 3, 2};
    std::vector<std::size_t> label;
    for (std::size_t c = 0; c < 4; ++c) label.insert(label.end(), images_of_label[c], c);
    std::vector<double> sum(11), subsets(11);
    for (unsigned bits = 1; bits < 1u << 10; ++bits) {
        std::vector<std::size_t> count(4);
        for (std::size_t i = 0; i < 10; ++i)
            if (bits >> i & 1) ++count[label[i]];
        const std::size_t m = std::accumulate(count.begin(), count.end(), std::size_t{0});
        sum[m] += double(*std::max_element(count.begin(), count.end())) / double(m);
        ++subsets[m];
    }
    const auto expected = expected_purity(images_of_label, 20);
    REQUIRE(expected.size() == 11);
    CHECK(expected[0] == 0);
    for (std::size_t m = 1; m <= 10; ++m) CHECK(expected[m] == Approx(sum[m] / subsets[m]).epsilon(1e-12));
    CHECK(expected_purity(images_of_label, 3).size() == 4);
    CHECK(expected_purity({}, 3) == std::vector<double>{0});
    const std::vector<std::size_t> one{50};
    for (const double p : expected_purity(one, 10)) CHECK((p == 0 || p == Approx(1)));
    const std::vector<std::size_t> many(1000, 100);  // as ImageNet's, and no overflow
    CHECK(expected_purity(many, 10)[2] == Approx(0.5 + 0.5 * 99.0 / 99999.0).epsilon(1e-9));
}

TEST_CASE("purity is averaged over latents that have a labelled top image") {
    latent_summary s;
    s.latents = 4;
    s.top = 3;
    s.images = 6;
    s.top_images = {0, 1, 2, 3, 4, -1, 5, -1, -1, -1, -1, -1};
    s.top_values = {9, 1, 1, 2, 1, 0, 1, 0, 0, 0, 0, 0};
    const std::vector<std::int64_t> labels{0, 1, 1, 0, 0, -1};
    const auto result = purity_of_top_images(s, labels);
    const std::vector<std::size_t> images_of_label{3, 2};
    const auto expected = expected_purity(images_of_label, 3);
    CHECK(result.latents == 2);  // the third has a top image without a label, the last fires on none
    CHECK(result.purity == Approx((2.0 / 3 + 1) / 2));
    CHECK(result.chance == Approx((expected[3] + expected[2]) / 2));
    CHECK(std::isnan(purity_of_top_images(s, std::vector<std::int64_t>(6, -1)).purity));
}
