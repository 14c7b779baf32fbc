// Attribution of a logit to latents: gradients against central differences of a slow chain in double, integrated gradients
// against what they must sum to, removal against the tower run on edited tokens.
#include <catch2/catch.hpp>

#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

#include <psae/attribution/logit_attribution.hpp>
#include <psae/attribution/patch_map.hpp>
#include <psae/core/random.hpp>
#include <psae/vit/zero_shot.hpp>

#include "../difference.hpp"
#include "../vit/random_weights.hpp"
#include "owned_codes.hpp"

using namespace psae;

namespace {

using config = clip_tiny_test;
constexpr std::size_t T = config::tokens, d = config::width, F = 40, p = config::projection;

std::vector<double> normal(std::size_t count, std::uint64_t seed, double deviation = 1) {
    random_stream random(seed);
    std::vector<double> out(count);
    for (double& v : out) v = deviation * random.normal();
    return out;
}
std::vector<float> floats(const std::vector<double>& v) { return {v.begin(), v.end()}; }

// A random tower in float and in double, a random SAE and an image whose codes are about a third of all.
struct scene {
    clip_vision_tower<config> tower{random_weights{}};
    clip_vision<config, double> exact{random_weights{}};
    sae_weights weights;
    std::vector<float> x = floats(normal(T * d, 1)), direction = floats(normal(p, 2, 3)), dense;

    explicit scene(input_scaling scaling = input_scaling::none, bool rescaled = false) {
        weights.d_in = d, weights.d_sae = F;
        weights.architecture = rescaled ? "topk" : "standard";
        weights.k = F / 3;
        weights.scaling = scaling;
        weights.rescaled = rescaled;
        weights.W_enc = floats(normal(F * d, 3, 0.2));
        weights.W_dec = floats(normal(F * d, 4, 0.2));
        weights.b_enc = floats(normal(F, 5, 0.3));
        weights.b_dec = floats(normal(d, 6, 0.3));
        arena<> scratch;
        const auto z = encode_rows(cpu(1), scratch, weights, x.data(), T);
        dense.assign(T * F, 0);
        for (std::size_t t = 0; t < T; ++t)
            for (std::size_t i = z.offsets[t]; i < z.offsets[t + 1]; ++i) dense[t * F + z.latent[i]] = z.value[i];
    }

    // Tokens from dense codes, by the definitions, in double.
    std::vector<double> decode(const std::vector<double>& z) const {
        std::vector<double> out(T * d);
        for (std::size_t t = 0; t < T; ++t) {
            double mean = 0, squares = 0;
            for (std::size_t c = 0; c < d; ++c) mean += double(x[t * d + c]) / double(d);
            if (weights.scaling != input_scaling::layer_norm) mean = 0;
            for (std::size_t c = 0; c < d; ++c) squares += std::pow(double(x[t * d + c]) - mean, 2);
            const double scale = weights.scaling == input_scaling::none         ? 1
                                 : weights.scaling == input_scaling::layer_norm ? std::sqrt(squares / double(d - 1))
                                                                                : std::sqrt(squares / double(d));
            for (std::size_t c = 0; c < d; ++c) out[t * d + c] = double(weights.b_dec[c]);
            for (std::size_t f = 0; f < F; ++f) {
                double norm = 0;
                for (std::size_t c = 0; c < d; ++c) norm += std::pow(double(weights.W_dec[f * d + c]), 2);
                norm = weights.rescaled ? std::sqrt(norm) : 1;
                for (std::size_t c = 0; c < d; ++c)
                    out[t * d + c] += z[t * F + f] * double(weights.W_dec[f * d + c]) / norm;
            }
            for (std::size_t c = 0; c < d; ++c) out[t * d + c] = out[t * d + c] * scale + mean;
        }
        return out;
    }
    // The value of codes z by the tower in double, in infer mode. layer: whose tokens are replaced.
    double value(const std::vector<double>& z, std::size_t layer, bool error_term) const {
        auto tokens = decode(z);
        if (error_term) {
            const auto x_hat = decode({dense.begin(), dense.end()});
            for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] += double(x[i]) - x_hat[i];
        }
        return exact_value(tokens, layer);
    }
    double exact_value(std::vector<double>& tokens, std::size_t layer) const {
        cpu device(1);
        arena<> scratch;
        for (std::size_t i = layer; i < config::layers; ++i) {
            tape<cpu> t(device, scratch, mode::infer);
            const auto next =
                exact.block(i, t.input(const_view<double, shape<dyn, d>>{tokens.data(), shape<dyn, d>{T}}));
            tokens.assign(next.data, next.data + T * d);
        }
        tape<cpu> t(device, scratch, mode::infer);
        const auto e = exact.project(t.input(const_view<double, shape<dyn, d>>{tokens.data(), shape<dyn, d>{T}}));
        double dot = 0, squares = 0;
        for (std::size_t k = 0; k < p; ++k) dot += e.data[k] * double(direction[k]), squares += e.data[k] * e.data[k];
        return dot / std::sqrt(squares);
    }
};

double correlation(const std::vector<double>& a, const std::vector<double>& b) {
    const double n = double(a.size());
    double sa = 0, sb = 0, aa = 0, bb = 0, ab = 0;
    for (std::size_t i = 0; i < a.size(); ++i)
        sa += a[i] / n, sb += b[i] / n, aa += a[i] * a[i] / n, bb += b[i] * b[i] / n, ab += a[i] * b[i] / n;
    return (ab - sa * sb) / std::sqrt((aa - sa * sa) * (bb - sb * sb));
}

}  // namespace

TEST_CASE("the gradient of a value with respect to the tokens of every layer equals central differences") {
    const scene s;
    const std::vector<double> direction(s.direction.begin(), s.direction.end());
    arena<> scratch;
    for (std::size_t layer = 0; layer <= config::layers; ++layer) {
        INFO("layer " << layer);
        auto tokens = normal(T * d, 8 + layer);
        std::vector<double> gradient(T * d);
        const double value =
            embedding_gradient(cpu(1), scratch, s.exact, tokens.data(), layer, direction.data(), gradient.data());
        const auto at = [&](std::size_t i, double step) {
            auto moved = tokens;
            moved[i] += step;
            return s.exact_value(moved, layer);
        };
        CHECK(value == Approx(at(0, 0)).epsilon(1e-12));
        double largest = 0, worst = 0;
        for (std::size_t i = 0; i < T * d; i += 7) {
            const double n = (at(i, 1e-5) - at(i, -1e-5)) / 2e-5;
            largest = std::max(largest, std::abs(n));
            worst = std::max(worst, std::abs(n - gradient[i]));
        }
        CHECK(largest > 1e-3);
        CHECK(worst / largest < 1e-7);
        // Of the last hidden state only the class token counts.
        if (layer == config::layers)
            CHECK(std::all_of(gradient.begin() + d, gradient.end(), [](double g) { return g == 0; }));

        // The tower behind the interface does the same in float.
        const auto x = floats(tokens);
        std::vector<float> single(T * d);
        double largest_value = 0;  // what the value can be at most: the length of the direction
        for (const double v : direction) largest_value += v * v;
        largest_value = std::sqrt(largest_value);
        const float in_float =
            s.tower.differentiate(cpu(1), scratch, x.data(), layer, s.direction.data(), single.data());
        CHECK(std::abs(double(in_float) - value) < 1e-6 * largest_value);
        CHECK(relative_difference(single, gradient) < 3e-6);
    }
}

TEST_CASE("gradient times activation equals central differences of each code") {
    const auto scaling = GENERATE(input_scaling::none, input_scaling::layer_norm, input_scaling::constant_norm);
    const bool rescaled = GENERATE(false, true), error_term = GENERATE(false, true);
    CAPTURE(int(scaling), rescaled, error_term);
    const scene s(scaling, rescaled);
    const sae_view sae(s.weights);
    const owned_codes z(s.dense, T, F);
    constexpr std::size_t layer = 2;
    arena<> scratch;
    const explained_image image{s.tower, layer, sae, z.view, s.x.data(), s.direction, error_term};
    const auto a = attribute_logit(cpu(1), scratch, image);
    REQUIRE(a.attribution.size() == z.view.entries());
    const std::vector<double> codes(s.dense.begin(), s.dense.end());
    CHECK(a.value == Approx(s.value(codes, layer, error_term)).epsilon(1e-5));
    CHECK(a.baseline == Approx(s.value(std::vector<double>(T * F), layer, error_term)).epsilon(1e-5));
    std::vector<double> numeric(a.attribution.size());
    double total = 0;
    for (std::size_t t = 0; t < T; ++t)
        for (std::size_t i = z.view.offsets[t]; i < z.view.offsets[t + 1]; ++i) {
            const std::size_t f = z.view.latent[i];
            const auto at = [&](double step) {
                auto moved = codes;
                moved[t * F + f] += step;
                return s.value(moved, layer, error_term);
            };
            total += double(a.attribution[i]);
            if (i % 5 != 0) continue;
            numeric[i] = codes[t * F + f] * (at(1e-4) - at(-1e-4)) / 2e-4;
        }
    std::vector<float> some(a.attribution);
    for (std::size_t i = 0; i < some.size(); ++i)
        if (i % 5 != 0) some[i] = 0;
    CHECK(relative_difference(some, numeric) < 3e-6);
    CHECK(a.total == Approx(total));
    CHECK(a.completeness_error() == Approx(total - (a.value - a.baseline)));
}

TEST_CASE("integrated gradients account for all that the latents do, the better the more steps") {
    const bool error_term = GENERATE(false, true);
    const scene s;
    const sae_view sae(s.weights);
    const owned_codes z(s.dense, T, F);
    arena<> scratch;
    const explained_image image{s.tower, 1, sae, z.view, s.x.data(), s.direction, error_term};
    const auto error = [&](std::size_t steps) {
        const auto a = attribute_logit(cpu(1), scratch, image, steps);
        return std::abs(a.completeness_error() / (a.value - a.baseline));
    };
    const double gradient_only = error(0), four = error(4), sixteen = error(16), many = error(64);
    CAPTURE(gradient_only, four, sixteen, many);
    CHECK(gradient_only > 0.1);  // the blocks are not linear
    CHECK(four < gradient_only);
    CHECK(sixteen < four / 8);  // the midpoint rule: by 16 where the path is smooth
    CHECK(many < sixteen);
    CHECK(many < 2e-4);
}

TEST_CASE("effects of removal are those of codes without the latent, and attributions follow them") {
    const bool error_term = GENERATE(false, true);
    const std::size_t layer = GENERATE(std::size_t{3}, config::layers);
    CAPTURE(error_term, layer);
    const scene s;
    const sae_view sae(s.weights);
    const owned_codes z(s.dense, T, F);
    arena<> scratch;
    const explained_image image{s.tower, layer, sae, z.view, s.x.data(), s.direction, error_term};
    const std::vector<double> codes(s.dense.begin(), s.dense.end());
    const double whole = s.value(codes, layer, error_term);

    std::vector<std::uint32_t> latents(F);
    for (std::uint32_t f = 0; f < F; ++f) latents[f] = F - 1 - f;
    const auto effects = removal_effects(cpu(1), scratch, image, latents);
    REQUIRE(effects.size() == F);
    std::vector<double> expected;
    for (const std::uint32_t f : latents) {
        auto without = codes;
        for (std::size_t t = 0; t < T; ++t) without[t * F + f] = 0;
        expected.push_back(whole - s.value(without, layer, error_term));
    }
    CHECK(relative_difference(effects, expected) < 1e-5);
    CHECK(removal_effects(cpu(1), scratch, image, {}).empty());

    // Of one latent of one token.
    const auto a = attribute_logit(cpu(1), scratch, image);
    const auto integrated = attribute_logit(cpu(1), scratch, image, 16);
    std::vector<double> single, attributed, shares;
    for (std::size_t t = 0; t < T; ++t)
        for (std::size_t i = z.view.offsets[t]; i < z.view.offsets[t + 1]; ++i) {
            auto without = codes;
            without[t * F + z.view.latent[i]] = 0;
            single.push_back(whole - s.value(without, layer, error_term));
            attributed.push_back(double(a.attribution[i]));
            shares.push_back(double(integrated.attribution[i]));
        }
    CAPTURE(correlation(attributed, single), correlation(shares, single));
    CHECK(correlation(attributed, single) > 0.9);
    CHECK(correlation(shares, single) > 0.7);
}

TEST_CASE("where the value is linear in the codes, attribution is the effect of removal") {
    // Codes so small that the blocks are linear in them.
    scene s;
    for (float& v : s.dense) v *= 1e-3f;
    const sae_view sae(s.weights);
    const owned_codes z(s.dense, T, F);
    arena<> scratch;
    const explained_image image{s.tower, 2, sae, z.view, s.x.data(), s.direction};
    const std::size_t steps = GENERATE(0, 2);
    const auto a = attribute_logit(cpu(1), scratch, image, steps);
    const std::vector<double> codes(s.dense.begin(), s.dense.end());
    const double whole = s.value(codes, 2, true);
    std::vector<double> effects;
    std::vector<float> attributed;
    for (const auto& l : attributed_latents(z.view, a, z.view.tokens)) {
        auto without = codes;
        for (std::size_t t = 0; t < T; ++t) without[t * F + l.latent] = 0;
        effects.push_back(whole - s.value(without, 2, true));
        attributed.push_back(float(l.attribution));
    }
    REQUIRE(effects.size() == F);
    CHECK(relative_difference(attributed, effects) < 2e-3);
    for (std::size_t i = 0; i < effects.size(); ++i)
        if (std::abs(effects[i]) > 1e-2 * std::abs(effects[0])) CHECK((effects[i] > 0) == (attributed[i] > 0));
}

TEST_CASE("sums of attributions by latent, by token and on the map") {
    // A class token and two patches, in the middle of a batch's codes.
    const owned_codes all({9, 9, 0,  //
                           1, 0, 2,  //
                           0, 4, 2,  //
                           3, 0, 0},
                          4, 3);
    codes_view<float> z = all.view;
    z.tokens = 3, ++z.offsets;
    logit_attribution a;
    a.attribution = {0, 0, 10, -1, 5, -2, 20};
    const auto latents = attributed_latents(z, a, z.tokens);
    REQUIRE(latents.size() == 3);
    CHECK((latents[0].latent == 0 && latents[1].latent == 1 && latents[2].latent == 2));
    CHECK((latents[0].attribution == 30 && latents[1].attribution == 5 && latents[2].attribution == -3));
    CHECK((latents[0].class_token == 10 && latents[1].class_token == 0 && latents[2].class_token == -1));
    CHECK(latents[0].activation == Approx(4 / 3.0));
    CHECK(latents[2].activation == Approx(4 / 3.0));
    CHECK(attribution_of_tokens(z, a) == std::vector<float>{9, 3, 20});
    const owned_codes five({1, 0, 1, 0, 1, 0, 0, 1, 1, 0}, 5, 2);
    logit_attribution b;
    b.attribution = {7, -1, 2, 3, 4};
    CHECK(patch_map(b.codes(five.view), 0, 2, 0) == std::vector<float>{-1, 2, 0, 4});
}

TEST_CASE("the direction of a class, and against others") {
    zero_shot_classifier c;
    c.classes = {"a", "b", "c"};
    c.embeddings = {1, 0, 0, 1, 0.6f, 0.8f};
    c.scale = 10;
    CHECK(relative_difference(c.direction(2), std::vector<float>{6, 8}) < 1e-6);
    const std::size_t others[] = {0, 1};
    CHECK(relative_difference(c.direction(2, others), std::vector<float>{1, 3}) < 1e-6);
    const std::vector<float> embed{0.8f, 0.6f};
    const auto logits = c.logits(embed, 1), direction = c.direction(0, std::span(others + 1, 1));
    CHECK(embed[0] * direction[0] + embed[1] * direction[1] == Approx(logits[0] - logits[1]));
    CHECK_THROWS_WITH(c.direction(3), Catch::Contains("0 to 2"));
    CHECK_THROWS_AS(c.direction(0, std::vector<std::size_t>{1, 9}), error);
}

TEST_CASE("parts that do not fit and transcoders are refused") {
    scene s;
    const sae_view sae(s.weights);
    const owned_codes z(s.dense, T, F);
    arena<> scratch;
    const std::uint32_t latents[] = {0};
    const auto refused = [&](const explained_image& image, const char* text) {
        CHECK_THROWS_WITH(attribute_logit(cpu(1), scratch, image), Catch::Contains(text));
        CHECK_THROWS_WITH(removal_effects(cpu(1), scratch, image, latents), Catch::Contains(text));
    };
    const explained_image good{s.tower, 2, sae, z.view, s.x.data(), s.direction};
    explained_image image = good;
    image.z.tokens = T - 1;
    refused(image, "17 tokens");
    image.z = z.view;
    image.direction = image.direction.first(p - 1);
    refused(image, "24 numbers");
    s.weights.d_out = d;
    const sae_view transcoder(s.weights);
    refused({s.tower, 2, transcoder, z.view, s.x.data(), s.direction}, "transcoder");
}
