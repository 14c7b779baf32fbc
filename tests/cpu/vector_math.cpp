#include <catch2/catch.hpp>

#include <psae/cpu/vector_math.hpp>

TEST_CASE("fast_exp keeps its error bound") {
    double worst = 0;
    for (double x = -87; x <= 88; x += 1e-4) {
        const double want = std::exp(double(float(x)));
        worst = std::max(worst, std::abs(double(psae::fast_exp(float(x))) - want) / want);
    }
    CHECK(worst < 2e-7);
    CHECK(psae::fast_exp(-1000.0f) < 1e-37f);
}
