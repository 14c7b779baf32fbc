// Encoders that screen, by bf16 or by whole numbers, keep the same codes as those that do not, and both what a plain
// sort keeps.
#include <catch2/catch.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <vector>

#include <psae/core/random.hpp>
#include <psae/cpu/encode.hpp>

using namespace psae;

namespace {

struct problem {
    std::size_t tokens, d, latents;
    std::vector<float> x, W, b;
    std::vector<std::uint32_t> among;  // empty: all
};

// Whole numbers of nine bits: bf16 rounds them (16 bits do if `large`: a token's first number is then beyond them, a
// weight's first at most 8), and sums in float are exact, so codes have to be equal to the bit.
problem whole_numbers(std::size_t tokens, std::size_t d, std::size_t latents, std::uint64_t seed, double bias = 0,
                      bool large = false) {
    problem p{tokens, d, latents, {}, {}, {}, {}};
    random_stream random(seed);
    const auto draw = [&](std::vector<float>& v, std::size_t n) {
        v.resize(n);
        for (float& value : v) value = float(random.below(601)) - 300;
    };
    draw(p.x, tokens * d);
    draw(p.W, latents * d);
    draw(p.b, latents);
    for (float& value : p.b) value += std::round(float(bias));
    for (std::size_t t = 0; large && t < tokens; ++t) p.x[t * d] = std::round(p.x[t * d] * 1000);
    for (std::size_t f = 0; large && f < latents; ++f) p.W[f * d] = std::round(p.W[f * d] / 40);
    return p;
}

struct outcome {
    std::vector<std::size_t> offsets;
    std::vector<std::uint32_t> latent;
    std::vector<float> value;
    float least = 0;
    bool operator==(const outcome&) const = default;
};

template <class Activation>
outcome encoded(const problem& p, const Activation& activation, screening how, int threads = 2) {
    cpu device(threads);
    device.screening = how;
    arena<> scratch;
    codes_view<float> z;
    outcome o;
    const std::size_t count = p.among.size();
    const latent_set among{p.among.data(), &count};
    encode(device, scratch, z, p.x.data(), p.tokens, p.d, p.W.data(), p.b.data(), p.latents, activation,
           count == 0 ? nullptr : &among, &o.least);
    REQUIRE(z.room == z.entries());
    o.offsets.assign(z.offsets, z.offsets + p.tokens + 1);
    o.latent.assign(z.latent, z.latent + z.entries());
    o.value.assign(z.value, z.value + z.entries());
    return o;
}

// What is active of each token by a plain product in double, ranked.
struct ranked {
    std::size_t token;
    std::uint32_t latent;
    float value, rank;
};
template <class Activation>
std::vector<ranked> active_ones(const problem& p, const Activation& activation) {
    std::vector<ranked> all;
    for (std::size_t t = 0; t < p.tokens; ++t)
        for (std::uint32_t f = 0; f < p.latents; ++f) {
            if (!p.among.empty() && !std::binary_search(p.among.begin(), p.among.end(), f)) continue;
            double sum = p.b[f];
            for (std::size_t c = 0; c < p.d; ++c) sum += double(p.x[t * p.d + c]) * double(p.W[f * p.d + c]);
            const auto h = static_cast<float>(sum);
            if (!detail::is_active(activation, h, f)) continue;
            const float value = detail::value_of(activation, h, f);
            all.push_back({t, f, value, detail::rank_of(activation, value, f)});
        }
    return all;
}

outcome as_outcome(const problem& p, std::vector<ranked> kept, float least = 0) {
    std::sort(kept.begin(), kept.end(), [](const ranked& a, const ranked& b) {
        return a.token != b.token ? a.token < b.token : a.latent < b.latent;
    });
    outcome o{std::vector<std::size_t>(p.tokens + 1), {}, {}, least};
    for (const ranked& r : kept) {
        ++o.offsets[r.token + 1];
        o.latent.push_back(r.latent);
        o.value.push_back(r.value);
    }
    for (std::size_t t = 0; t < p.tokens; ++t) o.offsets[t + 1] += o.offsets[t];
    return o;
}

template <class Activation>
outcome expected(const problem& p, const Activation& activation) {
    auto all = active_ones(p, activation);
    if constexpr (detail::selects_per_token<Activation>) {
        std::stable_sort(all.begin(), all.end(), [](const ranked& a, const ranked& b) {
            return a.token != b.token ? a.token < b.token : a.rank > b.rank;
        });
        std::map<std::size_t, std::size_t> have;
        std::erase_if(all, [&](const ranked& r) { return ++have[r.token] > activation.k; });
        return as_outcome(p, all);
    } else if constexpr (detail::selects_per_batch<Activation>) {
        std::sort(all.begin(), all.end(), [](const ranked& a, const ranked& b) {
            if (a.rank != b.rank) return a.rank > b.rank;
            return a.latent != b.latent ? a.latent < b.latent : a.token < b.token;
        });
        all.resize(std::min(all.size(), activation.batch_entries(p.tokens)));
        return as_outcome(p, all, all.empty() ? 0 : all.back().rank);
    } else {
        return as_outcome(p, all);
    }
}

constexpr screening screens[] = {screening::by_bf16, screening::by_int16};

// Under every kind of activation.
template <class F>
void each_activation(const problem& p, std::size_t k, const F& f) {
    std::vector<float> weight(p.latents), floor(p.latents);
    for (std::size_t i = 0; i < p.latents; ++i) weight[i] = float(1 << (i % 3)), floor[i] = float(i % 7) * 20000;
    const auto named = [&](const char* name, const auto& activation) {
        INFO(name << ", " << p.tokens << " tokens, d " << p.d << ", " << p.latents << " latents, k " << k);
        f(activation);
    };
    named("relu", relu{});
    named("above", above<float>{floor.data()});
    named("top_k", top_k(k));
    named("weighted_top_k", weighted_top_k<float>{top_k(k), weight.data(), true});
    named("weighted_top_k of any sign", weighted_top_k<float>{top_k(k), weight.data(), false});
    named("batch_top_k", batch_top_k(double(k) * 0.9));
    named("weighted_batch_top_k", weighted_batch_top_k<float>{batch_top_k(double(k)), weight.data()});
}

void check_all(const problem& p, std::size_t k) {
    each_activation(p, k, [&](const auto& activation) {
        const outcome wanted = expected(p, activation);
        CHECK(encoded(p, activation, screening::never) == wanted);
        for (const screening by : screens) {
            CHECK(encoded(p, activation, by) == wanted);
            CHECK(encoded(p, activation, by, 1) == wanted);
        }
    });
}

}  // namespace

TEST_CASE("encoders keep what a plain sort keeps") {
    check_all(whole_numbers(1, 8, 10, 1), 3);
    check_all(whole_numbers(197, 64, 500, 2), 8);
    check_all(whole_numbers(33, 37, 1500, 3), 40);
    check_all(whole_numbers(300, 16, 3000, 4, -300000), 16);  // few are active
    check_all(whole_numbers(700, 12, 1500, 19), 60);          // a batch's candidates are more than a histogram's block
    check_all(whole_numbers(197, 45, 1100, 20, 0, true), 8);
}

TEST_CASE("encoders of some latents keep what a plain sort keeps") {
    auto p = whole_numbers(50, 48, 2000, 5);
    for (std::uint32_t f = 3; f < p.latents; f += 7) p.among.push_back(f);
    check_all(p, 9);
}

TEST_CASE("encoders at the edges: no active latent, only active ones, k above the number of latents") {
    check_all(whole_numbers(40, 16, 300, 6, -1e7), 5);
    check_all(whole_numbers(40, 16, 300, 7, 5e6), 5);
    check_all(whole_numbers(40, 16, 300, 8), 300);
    check_all(whole_numbers(40, 16, 300, 9), 1000);
    check_all(whole_numbers(40, 16, 300, 10), 0);
}

TEST_CASE("encoders break ties by the lower latent") {
    auto equal_latents = whole_numbers(60, 16, 2000, 11);  // all latents the same: bounds tell nothing apart
    for (std::size_t f = 1; f < 2000; ++f) std::copy_n(equal_latents.W.begin(), 16, &equal_latents.W[f * 16]);
    std::fill(equal_latents.b.begin(), equal_latents.b.end(), 7.0f);
    check_all(equal_latents, 12);

    auto equal_tokens = whole_numbers(60, 16, 900, 12);
    for (std::size_t t = 1; t < 60; ++t) std::copy_n(equal_tokens.x.begin(), 16, &equal_tokens.x[t * 16]);
    check_all(equal_tokens, 12);

    auto few_values = whole_numbers(60, 16, 900, 13);
    for (float& v : few_values.x) v = v > 0 ? 1 : -1;
    for (float& v : few_values.W) v = v > 0 ? 1 : -1;
    for (float& v : few_values.b) v = 0;
    check_all(few_values, 12);

    auto nothing = whole_numbers(60, 16, 900, 14);
    for (auto* v : {&nothing.x, &nothing.W, &nothing.b}) std::fill(v->begin(), v->end(), 0.0f);
    check_all(nothing, 12);
}

TEST_CASE("a rank of 0 keeps what is active before what may not be") {
    // Latent 0 is a little below 0, where its bounds do not tell; latent 1 is active; both have weight 0.
    const problem p{1, 2, 2, {1, 0.0039f}, {0.0039f, -1.002f, 1, 1}, {0, 0}, {}};
    const std::vector<float> weight{0, 0};
    const weighted_top_k<float> activation{top_k(1), weight.data(), true};
    for (const screening how : {screening::by_bf16, screening::by_int16, screening::never})
        CHECK(encoded(p, activation, how).latent == std::vector<std::uint32_t>{1});
}

TEST_CASE("encoders that cannot be screened fall back") {
    auto p = whole_numbers(40, 16, 700, 15);
    for (float& v : p.x) v *= 0x1p100f;  // bounds would not be finite
    each_activation(p, 6, [&](const auto& activation) {
        for (const screening by : screens)
            CHECK(encoded(p, activation, by) == encoded(p, activation, screening::never));
    });
    auto small = whole_numbers(40, 16, 700, 16);
    for (float& v : small.x) v *= 0x1p-80f;  // squares vanish
    for (float& v : small.b) v *= 0x1p-80f;
    each_activation(small, 6, [&](const auto& activation) {
        for (const screening by : screens)
            CHECK(encoded(small, activation, by) == encoded(small, activation, screening::never));
    });
    auto broken = whole_numbers(40, 16, 700, 17);
    broken.x[5 * 16 + 3] = std::numeric_limits<float>::quiet_NaN();
    each_activation(broken, 6, [&](const auto& activation) {
        const outcome z = encoded(broken, activation, screening::never);
        for (const screening by : screens) CHECK(encoded(broken, activation, by) == z);
        if constexpr (requires { activation.rectified; })
            if (!activation.rectified) return;
        CHECK(z.offsets[5] == z.offsets[6]);  // a NaN is above nothing
    });
}

namespace {

// How a screen's bounds do on a problem without a set of latents.
struct bounds_found {
    std::size_t outside = 0;  // pre-activations, or floats computed for them, that are not between their bounds
    double widest = 0;        // a bound beside |x| |w| + |b|
    double worst = 0;         // an error beside its bound
};

template <class Screen>
bounds_found bounds_of(const problem& p) {
    cpu device;
    arena<> scratch;
    const detail::encoded_latents latents(p.latents, nullptr);
    Screen by(device, scratch, p.tokens, p.d, detail::encode_chunk(p.tokens, p.latents));
    detail::screened_pre_activations pre(device, scratch, p.x.data(), p.tokens, p.d, p.W.data(), p.b.data(), latents,
                                         by);
    bounds_found found;
    pre.each_chunk([&](const auto& chunk) {
        REQUIRE(!chunk.is_exact);
        for (std::size_t t = 0; t < p.tokens; ++t)
            for (std::size_t j = 0; j < chunk.count; ++j) {
                const std::size_t f = chunk.first + j;
                double h = p.b[f], xx = 0, ww = 0;
                for (std::size_t c = 0; c < p.d; ++c) {
                    const double a = p.x[t * p.d + c], w = p.W[f * p.d + c];
                    h += a * w, xx += a * a, ww += w * w;
                }
                const auto row = chunk(t);
                found.outside += !(row.low(j) <= h && h <= row.high(j));
                found.widest = std::max(found.widest, row.width(j) / (std::sqrt(xx * ww) + std::abs(p.b[f])));
                found.worst =
                    std::max(found.worst, std::abs(double(row.products[j]) + double(p.b[f]) - h) / row.width(j));
                const float exact = pre.exactly(t, static_cast<std::uint32_t>(f), row.low(j), row.high(j));
                found.outside += !(std::abs(exact - h) < 1e-5 * (std::sqrt(xx * ww) + std::abs(p.b[f])));
            }
    });
    pre.each_chunk([&](auto chunk) {
        pre.make_exact(chunk);
        const auto row = chunk(p.tokens / 2);
        for (std::size_t j = 0; j < chunk.count; ++j) found.outside += row.low(j) != row.high(j);
    });
    return found;
}

}  // namespace

TEST_CASE("pre-activations lie between the bounds of their screening, which are narrow") {
    for (const double outlier : {1.0, 200.0})  // one dimension much larger, as in CLIP's residual stream
        for (const std::size_t d : {std::size_t{768}, std::size_t{37}}) {
            INFO("d " << d << ", outlier " << outlier);
            problem p{197, d, 700, {}, {}, {}, {}};
            random_stream random(18);
            p.x.resize(p.tokens * p.d), p.W.resize(p.latents * p.d), p.b.resize(p.latents);
            for (float& v : p.x) v = float(random.normal());
            for (float& v : p.W) v = float(random.normal()) / 28;
            for (float& v : p.b) v = float(random.normal());
            for (std::size_t t = 0; t < p.tokens; ++t) p.x[t * p.d + 11] *= float(outlier);
            const auto by_bf16 = bounds_of<detail::bf16_screen>(p), by_int16 = bounds_of<detail::int16_screen>(p);
            CHECK(by_bf16.outside == 0);
            CHECK(by_int16.outside == 0);
            CHECK(by_bf16.widest < 0x1p-7);  // rounding a factor of 8 bits costs 2^-9 at most
            // Norms of at least 2^14, numbers off by 1/2 at most; and the rounding of sums.
            const auto length = double(d);
            CHECK(by_int16.widest < 1.01 * (std::sqrt(length) * 0x1p-14 + (4 * length + 16) * 0x1p-24));
        }
}

TEST_CASE("rows of one number each, which are all rounded the same way, come up to the bounds of their screening") {
    problem p{50, 37, 130, {}, {}, std::vector<float>(130), {}};
    random_stream random(22);
    const auto constant_rows = [&](std::vector<float>& v, std::size_t rows) {
        for (std::size_t r = 0; r < rows; ++r) v.insert(v.end(), p.d, float(1 + random.uniform()));
    };
    constant_rows(p.x, p.tokens);
    constant_rows(p.W, p.latents);
    const auto check = [](const bounds_found& found) {
        CHECK(found.outside == 0);
        CHECK(found.worst > 0.9);
    };
    check(bounds_of<detail::bf16_screen>(p));
    check(bounds_of<detail::int16_screen>(p));
}

TEST_CASE("whole numbers are scaled to the largest norms whose sums stay within 32 bits") {
    for (const std::size_t d : {2, 6, 33, 768})
        for (const double share : {0.9995, 1.09}) {  // of the largest norm; above it scales are halved
            INFO("d " << d << ", " << share);
            problem p{5, d, 7, {}, {}, std::vector<float>(7), {}};
            random_stream random(23);
            std::vector<double> row(d);
            double squares = 0;
            for (double& v : row) {
                v = 1 + random.uniform();
                squares += v * v;
            }
            const double scale = share * (46339 - 0.5 * std::sqrt(double(d))) / std::sqrt(squares);
            for (std::size_t t = 0; t < p.tokens; ++t)
                for (const double v : row) p.x.push_back(float(std::ldexp(v * scale, int(t))));
            for (std::size_t f = 0; f < p.latents; ++f)
                for (const double v : row) p.W.push_back(float(std::ldexp(v * scale, int(f))));
            CHECK(bounds_of<detail::int16_screen>(p).outside == 0);
        }
}

TEST_CASE("products of whole numbers are exact") {
    cpu device(2);
    arena<> scratch;
    for (const auto [M, N, d] : {std::array<std::size_t, 3>{1, 1, 1}, {7, 35, 6}, {197, 130, 33}}) {
        // x along w: sums as large as they may be. Scales are powers of two, so nothing is rounded but the result.
        detail::int16_screen by(device, scratch, M, d, N);
        std::vector<float> row(d), tile(M * N);
        random_stream random(21);
        for (float& v : row) v = float(random.below(40000)) - 20000;
        const auto scaled = [&](std::size_t i) {
            std::vector<float> v = row;
            for (float& value : v) value *= std::ldexp(i % 3 == 1 ? -1.0f : 1.0f, int(i % 7));
            return v;
        };
        for (std::size_t m = 0; m < M; ++m) by.set_token(m, scaled(m).data());
        for (std::size_t n = 0; n < N; ++n) by.set_latent(n, scaled(n + 3).data());
        by.multiply(tile.data(), N);
        // What the row is rounded to, from its own product with a unit vector for each number.
        std::vector<double> rounded(d);
        for (std::size_t c = 0; c < d; ++c) {
            std::vector<float> unit(d), one(1);
            unit[c] = 1;
            detail::int16_screen probe(device, scratch, 1, d, 1);
            probe.set_token(0, row.data());
            probe.set_latent(0, unit.data());
            probe.multiply(one.data(), 1);
            rounded[c] = one[0];
            CHECK(std::abs(one[0] - row[c]) < 8);
        }
        double squares = 0;
        for (const double v : rounded) squares += v * v;
        for (std::size_t m = 0; m < M; ++m)
            for (std::size_t n = 0; n < N; ++n) {
                const double sign = (m % 3 == 1) != ((n + 3) % 3 == 1) ? -1 : 1;
                const double wanted = sign * std::ldexp(squares, int(m % 7 + (n + 3) % 7));
                REQUIRE(tile[m * N + n] == static_cast<float>(wanted));
            }
    }
}
