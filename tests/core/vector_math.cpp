#include <catch2/catch.hpp>

#include <psae/core/vector_math.hpp>

#include "../difference.hpp"

TEST_CASE("fast_exp keeps its error bound") {
    double worst = 0;
    for (double x = -87; x <= 88; x += 1e-4) {
        const double want = std::exp(double(float(x)));
        worst = worse(worst, std::abs(double(psae::fast_exp(float(x))) - want) / want);
    }
    CHECK(worst < 2e-7);
    CHECK(psae::fast_exp(-1000.0f) < 1e-37f);
}

TEST_CASE("fast_erf keeps its error bound") {
    double worst = 0;
    for (double x = 1e-5; x <= 6; x += 1e-5) {
        const double want = std::erf(double(float(x)));
        worst = worse(worst, std::abs(double(psae::fast_erf(float(x))) - want) / want);
        REQUIRE(psae::fast_erf(-float(x)) == -psae::fast_erf(float(x)));
    }
    CHECK(worst < 6e-7);
    CHECK(psae::fast_erf(0.0f) == 0.0f);
    CHECK(psae::fast_erf(1e30f) == Approx(1.0f));
}

TEST_CASE("fast_tanh keeps its error bound") {
    double worst = 0;
    for (double x = 1e-5; x <= 12; x += 1e-5) {
        const double want = std::tanh(double(float(x)));
        worst = worse(worst, std::abs(double(psae::fast_tanh(float(x))) - want) / want);
    }
    CHECK(worst < 4e-7);
    CHECK(psae::fast_tanh(0.0f) == 0.0f);
    CHECK(psae::fast_tanh(1e30f) == 1.0f);
    CHECK(psae::fast_tanh(-1e30f) == -1.0f);
}
