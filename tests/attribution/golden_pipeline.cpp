// The per-latent summary and the patch maps against golden/pipeline, and against slow obvious references where that has
// no case.
#include <catch2/catch.hpp>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include <psae/attribution/latent_summary.hpp>
#include <psae/attribution/picture.hpp>
#include <psae/core/random.hpp>
#include <psae/io/numpy.hpp>

#include "owned_codes.hpp"

namespace {

using arrays = std::map<std::string, psae::array>;

arrays load(const char* name) { return psae::read_npz(std::string(PSAE_GOLDEN_DIR) + "/pipeline/" + name); }

// |a - b| <= tolerance * largest |b|, and NaN exactly where b has it.
template <class A>
bool close(const std::vector<A>& a, const psae::array& golden, double tolerance) {
    const auto b = psae::values<double>(golden);
    if (a.size() != b.size()) return false;
    double largest = 0;
    for (const double v : b) largest = std::isnan(v) ? largest : std::max(largest, std::abs(v));
    for (std::size_t i = 0; i < b.size(); ++i) {
        if (std::isnan(double(a[i])) != std::isnan(b[i])) return false;
        if (std::abs(double(a[i]) - b[i]) > tolerance * largest) return false;
    }
    return true;
}

constexpr std::size_t images = 24, tokens = 17, latents = 96, top = 10;

}  // namespace

TEST_CASE("the latent summary equals the reference's statistics") {
    const auto codes = load("codes.npz"), expected = load("statistics.npz");
    const auto dense = psae::to_floats(codes.at("codes"));
    const auto labels = psae::values<std::int64_t>(codes.at("labels"));
    const std::size_t batch = GENERATE(1, 5, 24);  // images added at once
    psae::latent_summary_builder builder(latents, top);
    for (std::size_t first = 0; first < images; first += batch) {
        const std::size_t count = std::min(batch, images - first);
        const auto begin = dense.begin() + std::ptrdiff_t(first * tokens * latents);
        const owned_codes z({begin, begin + std::ptrdiff_t(count * tokens * latents)}, count * tokens, latents);
        builder.add(z.view, tokens);
    }
    const auto s = builder.finish(labels);
    CHECK(close(s.token_frequency, expected.at("token_frequency"), 1e-6));
    CHECK(close(s.mean_activation, expected.at("mean_positive_token_activation"), 1e-6));
    CHECK(close(s.max_activation, expected.at("max_token_activation"), 0));
    CHECK(close(s.image_frequency, expected.at("sae_sparsity"), 1e-6));
    CHECK(close(s.mean_image_score, expected.at("sae_mean_acts"), 1e-6));
    CHECK(close(s.top_values, expected.at("max_activating_image_values"), 1e-6));
    CHECK(close(s.label_entropy, expected.at("label_entropy_fixed"), 1e-6));
    CHECK(close(s.label_std, expected.at("label_std_population"), 1e-9));
    const auto indices = psae::values<std::int64_t>(expected.at("top_indices_fixed"));
    CHECK(std::equal(indices.begin(), indices.end(), s.top_images.begin(), s.top_images.end()));
    // The scores behind them: the k-th top value is the k-th largest image score.
    const auto score = psae::to_floats(expected.at("image_score"));
    for (std::size_t f = 0; f < latents; ++f)
        for (std::size_t j = 0; j < top; ++j)
            if (const auto image = s.top_images[f * top + j]; image >= 0)
                CHECK(s.top_values[f * top + j] == Approx(score[std::size_t(image) * latents + f]).epsilon(1e-5));
}

TEST_CASE("the latent summary equals a slow reference") {
    // Few distinct values make ties; some images have no label, some latents never fire or on few images only.
    constexpr std::size_t n = 13, T = 3, F = 20;
    psae::random_stream random(7);
    std::vector<float> dense(n * T * F);
    for (std::size_t t = 0; t < n * T; ++t)
        for (std::size_t f = 0; f + 2 < F; ++f)
            if (random.uniform() < 0.05 + 0.03 * double(f))
                dense[t * F + f] = 0.5f * float(1 + int(random.uniform() * 3));
    dense[4 * T * F + F - 2] = 1;  // one image only
    std::vector<std::int64_t> labels(n);
    for (std::size_t i = 0; i < n; ++i) labels[i] = i == 4 ? -1 : std::int64_t(i % 4) - 1;
    const owned_codes z(dense, n * T, F);
    const std::size_t most = GENERATE(0, 1, 5, 40);  // 40: more than there are images
    psae::latent_summary_builder builder(F, most);
    builder.add(z.view, T);
    const auto s = builder.finish(labels), unlabelled = builder.finish();
    for (std::size_t f = 0; f < F; ++f) {
        INFO("latent " << f << ", top " << most);
        std::vector<double> score(n);
        for (std::size_t i = 0; i < n; ++i)
            for (std::size_t t = 0; t < T; ++t) score[i] += double(dense[(i * T + t) * F + f]) / double(T);
        std::vector<std::size_t> order(n);
        std::iota(order.begin(), order.end(), std::size_t{0});
        std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return score[a] > score[b]; });
        std::map<std::int64_t, double> mass;
        std::vector<double> found;
        double total = 0;
        for (std::size_t j = 0; j < most; ++j) {
            const bool there = j < n && score[order[j]] > 0;
            CHECK(s.top_images[f * most + j] == (there ? std::int32_t(order[j]) : -1));
            CHECK(s.top_values[f * most + j] == Approx(there ? score[order[j]] : 0));
            if (!there || labels[order[j]] < 0) continue;
            mass[labels[order[j]]] += score[order[j]];
            total += score[order[j]];
            found.push_back(double(labels[order[j]]));
        }
        const bool fires = std::any_of(score.begin(), score.end(), [](double v) { return v > 0; });
        CHECK(unlabelled.top_images == s.top_images);
        CHECK(std::isnan(unlabelled.label_entropy[f]));
        if (found.empty()) {
            CHECK(std::isnan(s.label_entropy[f]));
            CHECK((fires ? std::isnan(s.label_std[f]) : s.label_std[f] == 0));
            continue;
        }
        double entropy = 0, mean = 0, variance = 0;
        for (const auto& [label, m] : mass) entropy -= m / total * std::log(m / total);
        for (const double l : found) mean += l / double(found.size());
        for (const double l : found) variance += (l - mean) * (l - mean) / double(found.size());
        CHECK(s.label_entropy[f] == Approx(entropy).margin(1e-9));
        CHECK(s.label_std[f] == Approx(std::sqrt(variance)).margin(1e-9));
        double sum = 0;
        for (const auto& l : psae::label_shares(s, f, labels)) {
            CHECK(l.share == Approx(mass.at(l.label) / total));
            CHECK(l.images == std::size_t(std::count(found.begin(), found.end(), double(l.label))));
            sum += l.share;
        }
        CHECK(sum == Approx(1));
    }
}

TEST_CASE("the latent summary refuses what does not fit") {
    const owned_codes z(std::vector<float>(6 * 4, 1.0f), 6, 4);
    psae::latent_summary_builder builder(4, 3), other(5, 3);
    CHECK_THROWS_AS(other.add(z.view, 3), psae::error);
    CHECK_THROWS_AS(builder.add(z.view, 4), psae::error);
    CHECK_THROWS_AS(builder.add(z.view, 0), psae::error);
    builder.add(z.view, 3);
    CHECK_THROWS_AS(builder.finish(std::vector<std::int64_t>{1}), psae::error);
    CHECK(builder.finish(std::vector<std::int64_t>{1, 2}).token_frequency[0] == 1);
    CHECK(psae::latent_summary_builder(4, 3).finish().token_frequency[3] == 0);
}

TEST_CASE("patch maps equal the reference's masks") {
    const auto codes = load("codes.npz"), golden = load("masks.npz");
    const owned_codes z(psae::to_floats(codes.at("codes")), images * tokens, latents);
    const auto pairs = psae::values<std::int64_t>(golden.at("pairs"));
    for (std::size_t i = 0; i < pairs.size() / 2; ++i) {
        INFO("pair " << i);
        const auto name = [&](const char* what) { return what + std::to_string(i); };
        const auto map = psae::patch_map(z.view, std::size_t(pairs[2 * i]) * tokens, 4, std::size_t(pairs[2 * i + 1]));
        CHECK(map == psae::to_floats(golden.at(name("grid_"))));
        const auto large = psae::upsample_map(map, 4, 4, 40, 36);
        CHECK(large == psae::to_floats(golden.at(name("upsampled_"))));
        CHECK(close(psae::normalise_map(large), golden.at(name("normalised_")), 1e-6));
    }
    CHECK_THROWS_AS(psae::patch_map(z.view, 0, 4, latents), psae::error);
    CHECK_THROWS_AS(psae::patch_map(z.view, (images - 1) * tokens + 1, 4, 0), psae::error);
}

TEST_CASE("the reference's darkening is reproduced") {
    const auto golden = load("masks.npz");
    const auto& shape = golden.at("overlay_image").shape;
    const psae::image picture{shape[1], shape[0], psae::values<std::uint8_t>(golden.at("overlay_image"))};
    const auto activations = psae::to_floats(golden.at("overlay_activations")),
               means = psae::to_floats(golden.at("overlay_mean_acts"));
    for (std::size_t f = 0; f < 6; ++f) {
        INFO("latent " << f);
        std::vector<float> map(14 * 14);
        for (std::size_t p = 0; p < map.size(); ++p) map[p] = means[f] > 0.1f ? 0 : activations[(p + 1) * 6 + f];
        const auto out = psae::darken_silent(picture, map, 14, 14);
        const auto expected = psae::values<std::uint8_t>(golden.at("overlay_" + std::to_string(f)));
        REQUIRE(expected.size() == out.rgb.size() / 3 * 4);
        std::size_t wrong = 0;
        for (std::size_t i = 0; i < expected.size() / 4; ++i)
            for (std::size_t c = 0; c < 3; ++c) wrong += expected[4 * i + c] != out.rgb[3 * i + c];
        CHECK(wrong == 0);
    }
}

TEST_CASE("the strongest latents of a patch equal a full sort") {
    const auto codes = load("codes.npz");
    const auto dense = psae::to_floats(codes.at("codes"));
    const owned_codes z(dense, images * tokens, latents);
    for (std::size_t t = 0; t < images * tokens; ++t) {
        std::vector<std::pair<float, std::size_t>> all;
        for (std::size_t f = 0; f < latents; ++f)
            if (dense[t * latents + f] > 0) all.emplace_back(-dense[t * latents + f], f);
        std::sort(all.begin(), all.end());
        const auto found = psae::strongest_latents(z.view, t, 5);
        REQUIRE(found.size() == std::min<std::size_t>(5, all.size()));
        for (std::size_t i = 0; i < found.size(); ++i)
            CHECK((found[i].first == all[i].second && found[i].second == -all[i].first));
    }
    const owned_codes tie({0, 2, 1, 2, 0}, 1, 5);
    const auto found = psae::strongest_latents(tie.view, 0, 9);
    CHECK(found == std::vector<std::pair<std::size_t, float>>{{1, 2.0f}, {3, 2.0f}, {2, 1.0f}});
    CHECK_THROWS_AS(psae::strongest_latents(tie.view, 1, 1), psae::error);
}
