#pragma once
// Elementary functions that vectorise without -ffast-math.

#include <cmath>
#include <cstdint>

#include <psae/core/annotations.hpp>

namespace psae {

// exp(x) for float: 2^n times a polynomial of degree 6 in the remainder (coefficients of Cephes' expf), relative error
// below 2e-7 on [-87, 88]; outside of it the argument is clamped. tests/cpu/vector_math.cpp measures the bound.
PSAE_FN float fast_exp(float x) {
    x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    const float n = (x * 1.44269504088896341f + 12582912.0f) - 12582912.0f;  // rounds to nearest: |x| is far below 2^22
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const std::int32_t exponent = (static_cast<std::int32_t>(n) + 127) << 23;
    return p * __builtin_bit_cast(float, exponent);
}
PSAE_FN double fast_exp(double x) { return std::exp(x); }

}  // namespace psae
