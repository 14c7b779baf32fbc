#pragma once
// How far arrays are from those expected. A NaN counts as infinitely far, so it never passes a check.

#include <algorithm>
#include <cmath>
#include <limits>

#include <catch2/catch.hpp>

// The larger of the worst so far and the next.
inline double worse(double worst, double next) {
    return std::isnan(next) ? std::numeric_limits<double>::infinity() : std::max(worst, next);
}

// The largest |a - b|.
template <class A, class B>
double largest_difference(const A& a, const B& b) {
    REQUIRE(a.size() == b.size());
    double worst = 0;
    for (std::size_t i = 0; i < b.size(); ++i)
        worst = worse(worst, std::abs(double(a.data()[i]) - double(b.data()[i])));
    return worst;
}

// The same over the largest |b|, or over `least` where that is larger.
template <class A, class B>
double relative_difference(const A& a, const B& b, double least = 0) {
    double largest = least;
    for (std::size_t i = 0; i < b.size(); ++i) largest = std::max(largest, std::abs(double(b.data()[i])));
    const double difference = largest_difference(a, b);
    return largest == 0 ? difference : difference / largest;
}

// The Euclidean norm of a - b over that of b: what errors of rounding amount to over a whole array.
template <class A, class B>
double norm_difference(const A& a, const B& b) {
    REQUIRE(a.size() == b.size());
    double difference = 0, size = 0;
    for (std::size_t i = 0; i < b.size(); ++i) {
        const double from = double(b.data()[i]), off = double(a.data()[i]) - from;
        difference += off * off;
        size += from * from;
    }
    if (std::isnan(difference)) return std::numeric_limits<double>::infinity();
    return difference == 0 ? 0 : std::sqrt(difference / size);
}
