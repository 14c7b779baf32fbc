// Every functor of expr/functors.hpp: its value, and its derivative against central differences in double.
#include <catch2/catch.hpp>

#include <psae/expr/functors.hpp>

#include "../header_structs.hpp"

using namespace psae;

namespace {

std::set<std::string> checked;

// `wanted` is the same function in other words; arguments run over [low, high].
template <class F, class Wanted>
void check(const char* name, const F& f, const Wanted& wanted, double low, double high) {
    INFO(name);
    checked.insert(name);
    constexpr double h = 1e-6;
    const auto agree = [](double analytic, double above, double below) {
        const double numeric = (above - below) / (2 * h);
        CHECK(std::abs(analytic - numeric) < 1e-8 * std::max(1.0, std::abs(numeric)));
    };
    for (int i = 0; i < 41; ++i) {
        const double a = low + (high - low) * (i + 0.37) / 41;
        if constexpr (requires { f.value(a); }) {
            CHECK(f.value(a) == Approx(wanted(a)).epsilon(1e-15).margin(1e-15));  // 1 + erf cancels
            CHECK(f.value(float(a)) == Approx(wanted(float(a))).epsilon(1e-6).margin(1e-6));
            agree(f.derivative(a).d[0], f.value(a + h), f.value(a - h));
        } else {
            for (int j = 0; j < 41; ++j) {
                const double b = low + (high - low) * (j + 0.71) / 41;
                CHECK(f.value(a, b) == Approx(wanted(a, b)).epsilon(1e-15));
                CHECK(f.value(float(a), float(b)) == Approx(wanted(float(a), float(b))).epsilon(1e-6));
                agree(f.derivative(a, b).d[0], f.value(a + h, b), f.value(a - h, b));
                agree(f.derivative(a, b).d[1], f.value(a, b + h), f.value(a, b - h));
            }
        }
    }
}

}  // namespace

TEST_CASE("values and derivatives of all functors") {
    check(
        "plus", plus{}, [](auto a, auto b) { return b + a; }, -2, 2);
    check(
        "minus", minus{}, [](auto a, auto b) { return -(b - a); }, -2, 2);
    check(
        "times", times{}, [](auto a, auto b) { return b * a; }, -2, 2);
    check(
        "divides", divides{}, [](auto a, auto b) { return a * (1 / b); }, 0.5, 2);
    check(
        "divides", divides{}, [](auto a, auto b) { return a * (1 / b); }, -2, -0.5);
    check(
        "negate", negate{}, [](auto a) { return 0 - a; }, -2, 2);
    check(
        "square_functor", square_functor{}, [](auto a) { return std::pow(a, 2); }, -2, 2);
    check(
        "absolute", absolute{}, [](auto a) { return std::fabs(a); }, -2, 2);
    check(
        "square_root", square_root{}, [](auto a) { return std::pow(a, 0.5); }, 0.1, 3);
    check(
        "exponential", exponential{}, [](auto a) { return std::pow(std::exp(decltype(a)(1)), a); }, -3, 3);
    check(
        "logarithm", logarithm{}, [](auto a) { return std::log1p(a - 1); }, 0.1, 4);
    check(
        "minimum", minimum{}, [](auto a, auto b) { return std::fmin(a, b); }, -2, 2);
    check(
        "hyperbolic_tangent", hyperbolic_tangent{1.5},
        [](auto a) { return std::expm1(3 * a) / (std::expm1(3 * a) + 2); }, -3, 3);
    check(
        "rectifier", rectifier{}, [](auto a) { return std::fmax(a, decltype(a)(0)); }, -2, 2);
    check(
        "quick_gelu", quick_gelu{}, [](auto x) { return x / (1 + std::exp(-decltype(x)(1.702) * x)); }, -4, 4);
    check(
        "gelu", gelu{}, [](auto x) { return x * std::erfc(-x * decltype(x)(0.70710678118654752)) / 2; }, -3, 3);
    CHECK(checked ==
          structs_with_member("expr/functors.hpp", "derivative"));  // a new functor is checked above, or this fails
}

TEST_CASE("derivatives where a function has a corner") {
    CHECK(absolute{}.derivative(0.0).d[0] == 0);
    CHECK(square_root{}.derivative(0.0).d[0] == 0);
    CHECK(minimum{}.derivative(1.0, 1.0).d[0] == 1);  // the first of two equal arguments
    CHECK(minimum{}.derivative(1.0, 1.0).d[1] == 0);
}
