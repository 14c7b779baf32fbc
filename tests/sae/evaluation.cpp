// Sums over batches against plain sums over all tokens in double.
#include <catch2/catch.hpp>

#include <psae/core/random.hpp>
#include <psae/sae/evaluation.hpp>

using namespace psae;

namespace {

// The definitions, with the mean taken first, for tokens of x whose index i has wanted(i).
struct plain_errors {
    double mse = 0, nmse = 0;
    plain_errors(const std::vector<float>& x, const std::vector<float>& x_hat, std::size_t d, auto wanted) {
        std::vector<double> mean(d);
        double count = 0, residual = 0, variance = 0;
        for (std::size_t t = 0; t < x.size() / d; ++t)
            if (wanted(t)) {
                ++count;
                for (std::size_t c = 0; c < d; ++c) mean[c] += double(x[t * d + c]);
            }
        for (double& m : mean) m /= count;
        for (std::size_t t = 0; t < x.size() / d; ++t)
            for (std::size_t c = 0; c < d && wanted(t); ++c) {
                const double v = double(x[t * d + c]);
                residual += (v - double(x_hat[t * d + c])) * (v - double(x_hat[t * d + c]));
                variance += (v - mean[c]) * (v - mean[c]);
            }
        mse = residual / (count * double(d));
        nmse = residual / variance;
    }
};

// Tokens with a mean that is far larger than their spread, reconstructions near them, codes of about a fifth of all
// latents, of which the last two never fire; entries of value 0 do not count.
struct tokens {
    static constexpr std::size_t d = 7, latents = 12;
    std::vector<float> x, x_hat, value;
    std::vector<std::size_t> offsets{0};
    std::vector<std::uint32_t> latent;

    explicit tokens(std::size_t n) {
        random_stream random(5);
        for (std::size_t i = 0; i < n * d; ++i) {
            x.push_back(100.0f * float(i % d) + random.normal());
            x_hat.push_back(x.back() + 0.3f * random.normal());
        }
        for (std::size_t t = 0; t < n; ++t) {
            for (std::uint32_t f = 0; f < latents - 2; ++f)
                if (random.uniform() < 0.2f) latent.push_back(f), value.push_back(f == 3 ? 0.0f : 1 + random.uniform());
            offsets.push_back(latent.size());
        }
    }
    void add(reconstruction_sums& sums, std::size_t first, std::size_t count, std::size_t per_image) const {
        std::vector<std::size_t> own(offsets.begin() + std::ptrdiff_t(first),
                                     offsets.begin() + std::ptrdiff_t(first + count + 1));
        const std::size_t at = own.front();
        for (std::size_t& o : own) o -= at;
        codes_view<float> z;
        z.tokens = count;
        z.latents = latents;
        z.offsets = own.data();
        z.latent = latent.data() + at;
        z.value = value.data() + at;
        sums.add(x.data() + first * d, z, x_hat.data() + first * d, per_image);
    }
};

}  // namespace

TEST_CASE("sums over batches of images give the errors of each kind of token") {
    constexpr std::size_t T = 5, n = 12 * T, d = tokens::d;
    const tokens data(n);
    reconstruction_sums sums(d, tokens::latents), at_once(d, tokens::latents);
    for (const auto& [first, images] : {std::pair<std::size_t, std::size_t>{0, 1}, {1, 4}, {5, 7}, {12, 0}})
        data.add(sums, first * T, images * T, T);
    data.add(at_once, 0, n, T);
    for (const auto& q : {sums.result(), at_once.result()}) {
        const auto check = [&](const token_errors& found, std::size_t count, auto wanted) {
            const plain_errors expected(data.x, data.x_hat, d, wanted);
            CHECK(found.tokens == count);
            CHECK(found.mse == Approx(expected.mse).epsilon(1e-12));
            CHECK(found.nmse == Approx(expected.nmse).epsilon(1e-12));
        };
        check(q.all, n, [](std::size_t) { return true; });
        check(q.cls, 12, [](std::size_t t) { return t % T == 0; });
        check(q.patches, n - 12, [](std::size_t t) { return t % T != 0; });
        CHECK(q.mse == q.all.mse);
        CHECK(q.explained_variance == Approx(1 - q.all.nmse).epsilon(1e-12));
        double cosine = 0, ratio = 0, active = 0;
        for (std::size_t t = 0; t < n; ++t) {
            double inner = 0, a = 0, b = 0;
            for (std::size_t c = t * d; c < (t + 1) * d; ++c) {
                inner += double(data.x[c]) * double(data.x_hat[c]);
                a += double(data.x[c]) * double(data.x[c]);
                b += double(data.x_hat[c]) * double(data.x_hat[c]);
            }
            cosine += inner / (std::sqrt(a) * std::sqrt(b)) / double(n);
            ratio += std::sqrt(b) / std::sqrt(a) / double(n);
        }
        for (const float v : data.value) active += v > 0;
        CHECK(q.cosine_similarity == Approx(cosine).epsilon(1e-12));
        CHECK(q.l2_ratio == Approx(ratio).epsilon(1e-12));
        CHECK(q.l0 == Approx(active / double(n)));
        CHECK(q.dead_fraction == Approx(3.0 / 12));  // the last two, and the one whose entries are 0
    }
}

TEST_CASE("tokens that nobody knows the kind of, equal tokens, no tokens") {
    const tokens data(10);
    reconstruction_sums sums(tokens::d, tokens::latents);
    CHECK(sums.result().l0 == 0);
    CHECK(std::isnan(sums.result().all.mse));
    data.add(sums, 0, 10, 0);
    CHECK(sums.result().all.tokens == 10);
    CHECK(sums.result().cls.tokens == 0);
    CHECK(std::isnan(sums.result().patches.nmse));
    CHECK_THROWS_WITH(data.add(sums, 0, 10, 4), Catch::Contains("whole images of 4 tokens"));
    reconstruction_sums wide(tokens::d, 13);
    CHECK_THROWS_WITH(data.add(wide, 0, 10, 0), Catch::Contains("13 latents, found"));

    tokens equal(4);
    equal.x.assign(equal.x.size(), 0.1f);
    reconstruction_sums same(tokens::d, tokens::latents);
    equal.add(same, 0, 4, 0);
    CHECK(same.result().all.mse > 0);
    CHECK(std::isnan(same.result().all.nmse));
    CHECK(same.result().explained_variance == 0);
}
