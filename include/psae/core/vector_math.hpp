#pragma once
// Elementary functions that vectorise without -ffast-math.

#include <cmath>
#include <cstdint>

#include <psae/core/annotations.hpp>

namespace psae {

// exp(x) for float: 2^n times a polynomial of degree 6 in the remainder (coefficients of Cephes' expf), relative error
// below 2e-7 on [-87, 88]; outside of [least, most] the argument is clamped. tests/core/vector_math.cpp measures the
// bound. Narrower limits are for what divides by the result: a compiler that vectorises may evaluate exp(most) for
// every element and select afterwards, and quotients that are denormal numbers take a hundred cycles each.
PSAE_FN float fast_exp(float x, float least = -87.0f, float most = 88.0f) {
    x = x < least ? least : x;
    x = x > most ? most : x;
    const float n = (x * 1.44269504088896341f + 12582912.0f) - 12582912.0f;  // rounds to nearest: |x| is far below 2^22
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * __builtin_bit_cast(float, (static_cast<std::int32_t>(n) + 127) << 23);
}
// exp(x) for double, without limits.
PSAE_FN double fast_exp(double x, double = 0, double = 0) { return std::exp(x); }

// erf(x) for float: x times a rational function of x^2, both of degree 5, fitted for least largest relative error on
// [0, 3.925], where erf has reached 1 in float; relative error below 6e-7. tests/core/vector_math.cpp measures the
// bound.
PSAE_FN float fast_erf(float x) {
    constexpr float limit = 3.925f;
    const float outside = x < -limit  ? -1.0f
                          : x > limit ? 1.0f
                                      : 0.0f;  // exact, however the compiler contracts the rest
    x = x < -limit ? -limit : x > limit ? limit : x;
    const float u = x * x;
    float p = 2.046050710e-6f;
    p = p * u + 2.848435571e-4f;
    p = p * u + 3.772501120e-3f;
    p = p * u + 5.276914517e-2f;
    p = p * u + 1.905924535e-1f;
    p = p * u + 1.128379146f;
    float q = 3.804802137e-5f;
    q = q * u + 1.163848135e-3f;
    q = q * u + 1.498309684e-2f;
    q = q * u + 1.141822012e-1f;
    q = q * u + 5.022408946e-1f;
    q = q * u + 1.0f;
    return outside != 0 ? outside : x * p / q;
}
PSAE_FN double fast_erf(double x) { return std::erf(x); }

// tanh(x) for float, to 3e-7 of its value: a series near 0, where the other form would lose digits.
PSAE_FN float fast_tanh(float x) {
    const float s = x * x, e = fast_exp(2.0f * x, -40.0f, 40.0f);
    const float near = x * (1.0f + s * (-1.0f / 3 + s * (2.0f / 15 + s * (-17.0f / 315 + s * (62.0f / 2835)))));
    return s < 0.09f ? near : 1.0f - 2.0f / (e + 1.0f);
}
PSAE_FN double fast_tanh(double x) { return std::tanh(x); }

}  // namespace psae
