#pragma once
// Element types: float and double compute; bf16 and half are storage formats that widen exactly to float.

#include <cstdint>
#include <type_traits>

#include <psae/core/annotations.hpp>

namespace psae {

// bfloat16: the upper half of an IEEE binary32.
struct bf16 {
    std::uint16_t bits;
};

// IEEE binary16.
struct half {
    std::uint16_t bits;
};

// Exact.
PSAE_FN float widen(bf16 x) { return __builtin_bit_cast(float, std::uint32_t{x.bits} << 16); }

// Exact, subnormals and infinities included.
PSAE_FN float widen(half x) {
    const std::uint32_t sign = std::uint32_t{x.bits & 0x8000u} << 16;
    const std::uint32_t exponent = (x.bits >> 10) & 31u;
    const std::uint32_t fraction = x.bits & 1023u;
    if (exponent == 31) return __builtin_bit_cast(float, sign | 0x7f800000u | (fraction << 13));
    if (exponent == 0) {
        const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
        return sign ? -magnitude : magnitude;
    }
    return __builtin_bit_cast(float, sign | ((exponent + 112) << 23) | (fraction << 13));
}

// Rounds to nearest even; a NaN stays a NaN.
PSAE_FN bf16 to_bf16(float x) {
    const std::uint32_t u = __builtin_bit_cast(std::uint32_t, x);
    if ((u & 0x7fffffffu) > 0x7f800000u) return {static_cast<std::uint16_t>((u >> 16) | 64u)};
    return {static_cast<std::uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)};
}

// Rounds to nearest even; overflow becomes infinity; a NaN stays a NaN.
PSAE_FN half to_half(float x) {
    const std::uint32_t u = __builtin_bit_cast(std::uint32_t, x);
    const auto sign = static_cast<std::uint16_t>((u >> 16) & 0x8000u);
    const std::uint32_t magnitude = u & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return {static_cast<std::uint16_t>(sign | 0x7e00u)};
    if (magnitude >= 0x477ff000u) return {static_cast<std::uint16_t>(sign | 0x7c00u)};
    if (magnitude < 0x38800000u) {  // subnormal: adding 0.5 leaves the rounded multiple of 2^-24 in the low bits
        const float shifted = __builtin_bit_cast(float, magnitude) + 0.5f;
        return {static_cast<std::uint16_t>(sign | (__builtin_bit_cast(std::uint32_t, shifted) - 0x3f000000u))};
    }
    const std::uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u) - (112u << 23);
    return {static_cast<std::uint16_t>(sign | (rounded >> 13))};
}

// x as a float, a double or a bf16; rounded where that has fewer digits.
template <class To, class From>
PSAE_FN To element_cast(From x) {
    if constexpr (std::is_same_v<To, From>) return x;
    else if constexpr (std::is_same_v<To, bf16>) return to_bf16(static_cast<float>(x));
    else if constexpr (std::is_same_v<From, bf16>) return static_cast<To>(widen(x));
    else return static_cast<To>(x);
}

}  // namespace psae
