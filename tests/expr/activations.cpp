// The activation functions of transformers, value and derivative.
#include <catch2/catch.hpp>

#include <psae/expr/functors.hpp>

#include "../difference.hpp"

namespace {

// The functor in float against its formula in double, relative to max(|x|, 1e-3); and its derivative in double against
// a central difference.
template <class F, class Formula>
void check_activation(const F& f, const Formula& formula) {
    double worst_value = 0, worst_slope = 0;
    for (double x = -30; x <= 30; x += 1.7e-3) {
        const double scale = std::max(std::abs(x), 1e-3), h = 1e-5;
        worst_value = worse(worst_value, std::abs(double(f.value(float(x))) - formula(double(float(x)))) / scale);
        worst_slope = worse(worst_slope, std::abs(f.derivative(x).d[0] - (formula(x + h) - formula(x - h)) / (2 * h)));
        worst_slope = worse(worst_slope, 1e-3 * std::abs(f.derivative(x).d[0] - double(f.derivative(float(x)).d[0])));
    }
    CHECK(worst_value < 5e-7);
    CHECK(worst_slope < 2e-9);
    for (const float x : {-1e20f, -200.0f, 200.0f, 1e20f}) {  // saturates, without NaN or infinity
        CHECK(f.value(x) == Approx(std::max(x, 0.0f)).margin(1e-8));
        CHECK(f.derivative(x).d[0] == Approx(x > 0 ? 1.0f : 0.0f).margin(1e-6));
    }
}

}  // namespace

TEST_CASE("quick_gelu is x sigmoid(1.702 x), with its derivative") {
    check_activation(psae::quick_gelu{}, [](double x) { return x / (1 + std::exp(-1.702 * x)); });
}

TEST_CASE("gelu is x Phi(x), with its derivative") {
    check_activation(psae::gelu{}, [](double x) { return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0))); });
}
