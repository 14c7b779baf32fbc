// bf16 and half against their definitions, every value and every rounding boundary.
#include <cmath>
#include <cstdint>
#include <limits>

#include <catch2/catch.hpp>

#include <psae/core/element.hpp>

using namespace psae;

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

// The value of a binary16 by its definition: 1 sign, 5 exponent (bias 15), 10 fraction bits.
double half_by_definition(std::uint16_t bits) {
    const int exponent = (bits >> 10) & 31, fraction = bits & 1023;
    const double magnitude = exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
    return bits & 0x8000 ? -magnitude : magnitude;
}

// For each finite value of the format but the last: halfway to its neighbour rounds to the even one, and the floats
// beside halfway round to the nearer one; in both signs. The number of values for which that fails.
template <class Element, class Round>
int wrong_roundings(std::uint32_t infinity_bits, Round round) {
    int wrong = 0;
    for (std::uint32_t bits = 0; bits + 1 < infinity_bits; ++bits) {
        const float low = widen(Element{static_cast<std::uint16_t>(bits)});
        const float high = widen(Element{static_cast<std::uint16_t>(bits + 1)});
        const float middle = static_cast<float>((static_cast<double>(low) + high) / 2);
        if (!(low < middle && middle < high))
            continue;  // two neighbouring floats (the smallest bf16) have none between
        const std::uint32_t even = bits % 2 == 0 ? bits : bits + 1;
        for (const std::uint32_t sign : {0u, 0x8000u}) {
            const float s = sign ? -1.0f : 1.0f;
            wrong += round(s * middle).bits != (even | sign);
            wrong += round(s * std::nextafter(middle, 0.0f)).bits != (bits | sign);
            wrong += round(s * std::nextafter(middle, infinity)).bits != ((bits + 1) | sign);
        }
    }
    return wrong;
}

}  // namespace

TEST_CASE("half widens to the value its bits define") {
    int wrong = 0;
    for (std::uint32_t b = 0; b < 0x10000; ++b) {
        const half h{static_cast<std::uint16_t>(b)};
        const float x = widen(h);
        if ((b & 0x7c00) != 0x7c00) wrong += x != half_by_definition(h.bits) || std::signbit(x) != ((b & 0x8000) != 0);
        else if ((b & 0x3ff) == 0) wrong += x != (b & 0x8000 ? -infinity : infinity);
        else wrong += !std::isnan(x);
    }
    CHECK(wrong == 0);
}

TEST_CASE("every half and bf16 survives the way to float and back") {
    int wrong_half = 0, wrong_bf16 = 0;
    for (std::uint32_t b = 0; b < 0x10000; ++b) {
        const half h{static_cast<std::uint16_t>(b)};
        const half h_again = to_half(widen(h));
        const bool h_nan = (b & 0x7fff) > 0x7c00;
        wrong_half += h_nan ? (h_again.bits & 0x7fff) <= 0x7c00 : h_again.bits != h.bits;
        const bf16 g{static_cast<std::uint16_t>(b)};
        const bf16 g_again = to_bf16(widen(g));
        const bool g_nan = (b & 0x7fff) > 0x7f80;
        wrong_bf16 += g_nan ? (g_again.bits & 0x7fff) <= 0x7f80 : g_again.bits != g.bits;
    }
    CHECK(wrong_half == 0);
    CHECK(wrong_bf16 == 0);
}

TEST_CASE("rounding is to nearest, ties to even, at every boundary") {
    CHECK(wrong_roundings<half>(0x7c00, [](float x) { return to_half(x); }) == 0);
    CHECK(wrong_roundings<bf16>(0x7f80, [](float x) { return to_bf16(x); }) == 0);
}

TEST_CASE("overflow and underflow") {
    CHECK(to_half(65504.0f).bits == 0x7bff);
    CHECK(to_half(std::nextafter(65520.0f, 0.0f)).bits == 0x7bff);
    CHECK(to_half(65520.0f).bits == 0x7c00);
    CHECK(to_half(std::numeric_limits<float>::max()).bits == 0x7c00);
    CHECK(to_half(-infinity).bits == 0xfc00);
    CHECK(to_half(0x1p-25f).bits == 0);  // halfway between 0 and the smallest subnormal
    CHECK(to_half(std::nextafter(0x1p-25f, 1.0f)).bits == 1);
    CHECK(to_half(-0.0f).bits == 0x8000);
    CHECK(to_half(-std::numeric_limits<float>::denorm_min()).bits == 0x8000);
    CHECK(to_bf16(std::numeric_limits<float>::max()).bits == 0x7f80);
    CHECK(to_bf16(infinity).bits == 0x7f80);
    CHECK(to_bf16(-0.0f).bits == 0x8000);
}

TEST_CASE("a NaN stays a NaN even if its payload is in the bits that are cut") {
    for (const std::uint32_t bits : {0x7f800001u, 0xff800001u, 0x7fc00000u, 0x7fffffffu, 0xffffffffu}) {
        const float nan = __builtin_bit_cast(float, bits);
        CHECK((to_bf16(nan).bits & 0x7fff) > 0x7f80);
        CHECK((to_half(nan).bits & 0x7fff) > 0x7c00);
        CHECK((to_bf16(nan).bits & 0x8000) == ((bits >> 16) & 0x8000));
    }
}
