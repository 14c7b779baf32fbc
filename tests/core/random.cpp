// Random numbers: Philox against the published vectors, and what is made of it.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include <catch2/catch.hpp>

#include <psae/core/random.hpp>

using namespace psae;

namespace {

using words = std::array<std::uint32_t, 4>;

// Philox4x32-10 written down a second time, after the paper, with the whole counter: the stream reaches only counters
// whose upper half is zero, so it is compared with this, and this with the published vectors.
words philox(words c, std::array<std::uint32_t, 2> k) {
    for (int round = 0; round < 10; ++round) {
        const std::uint64_t p0 = 0xD2511F53ull * c[0], p1 = 0xCD9E8D57ull * c[2];
        c = {static_cast<std::uint32_t>(p1 >> 32) ^ c[1] ^ k[0], static_cast<std::uint32_t>(p1),
             static_cast<std::uint32_t>(p0 >> 32) ^ c[3] ^ k[1], static_cast<std::uint32_t>(p0)};
        k = {k[0] + 0x9E3779B9u, k[1] + 0xBB67AE85u};
    }
    return c;
}

words next_four(random_stream& s) {
    words w;
    for (auto& x : w) x = s.bits();
    return w;
}

}  // namespace

TEST_CASE("Philox gives the known answers of Random123") {
    // kat_vectors of Random123, philox4x32 10
    CHECK(philox({0, 0, 0, 0}, {0, 0}) == words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
    CHECK(philox({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}) == words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
    CHECK(philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
          words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});

    random_stream zero(0);
    CHECK(next_four(zero) == words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
}

TEST_CASE("the stream is Philox with the seed as key and the position as counter") {
    for (const std::uint64_t seed : {0ull, 1ull, 0x299f31d0a4093822ull, ~0ull}) {
        for (const std::uint64_t block : {0ull, 1ull, 0xffffffffull, 0x100000000ull, (1ull << 62) - 1}) {
            random_stream s(seed, block * 4);
            CHECK(next_four(s) ==
                  philox({static_cast<std::uint32_t>(block), static_cast<std::uint32_t>(block >> 32), 0, 0},
                         {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)}));
        }
    }
}

TEST_CASE("a stream goes on from its position") {
    random_stream s(42);
    for (int i = 0; i < 7; ++i) s.normal();
    s.below(10);
    s.uniform();
    random_stream resumed(s.seed(), s.position());
    for (int i = 0; i < 20; ++i) CHECK(resumed.bits() == s.bits());
}

TEST_CASE("uniform numbers are in [0, 1) with the moments they should have") {
    random_stream s(3);
    constexpr int n = 200000;
    double sum = 0, squares = 0;
    for (int i = 0; i < n; ++i) {
        const float u = s.uniform();
        if (!(u >= 0 && u < 1)) FAIL(u);
        sum += u;
        squares += static_cast<double>(u) * u;
    }
    CHECK(sum / n == Approx(0.5).margin(5 / std::sqrt(12.0 * n)));
    CHECK(squares / n == Approx(1.0 / 3).margin(5 * 0.298 / std::sqrt(n)));
}

TEST_CASE("normal numbers are finite with the moments they should have") {
    random_stream s(4);
    constexpr int n = 200000;
    double sum = 0, squares = 0, fourth = 0;
    for (int i = 0; i < n; ++i) {
        const double x = s.normal();
        if (!std::isfinite(x)) FAIL(x);
        sum += x;
        squares += x * x;
        fourth += x * x * x * x;
    }
    CHECK(sum / n == Approx(0).margin(5 / std::sqrt(n)));
    CHECK(squares / n == Approx(1).margin(5 * std::sqrt(2.0 / n)));
    CHECK(fourth / n == Approx(3).margin(5 * std::sqrt(96.0 / n)));
}

TEST_CASE("below is in range and even") {
    random_stream s(5);
    for (int i = 0; i < 100; ++i) CHECK(s.below(1) == 0);
    for (int i = 0; i < 1000; ++i) CHECK(s.below((1ull << 63) + 5) < (1ull << 63) + 5);
    std::array<int, 7> count{};
    constexpr int n = 70000;
    for (int i = 0; i < n; ++i) ++count.at(s.below(7));
    double chi_squared = 0;
    for (int c : count) chi_squared += (c - n / 7.0) * (c - n / 7.0) / (n / 7.0);
    CHECK(chi_squared < 30);  // 6 degrees of freedom: exceeded with probability 4e-5
}

TEST_CASE("shuffle permutes, by the seed alone") {
    std::vector<int> a(1000), b(1000);
    std::iota(a.begin(), a.end(), 0);
    std::iota(b.begin(), b.end(), 0);
    const std::vector<int> ascending = a;
    random_stream one(6), same(6);
    shuffle(a, one);
    shuffle(b, same);
    CHECK(a == b);
    CHECK(a != ascending);
    CHECK(std::is_permutation(a.begin(), a.end(), ascending.begin()));
    std::vector<int> none;
    shuffle(none, one);
    CHECK(none.empty());
}
