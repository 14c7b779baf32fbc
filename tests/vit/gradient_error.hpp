#pragma once
// The error of the gradient through stages with respect to their input.

#include <vector>

#include <catch2/catch.hpp>

#include <psae/core/random.hpp>
#include <psae/grad/check.hpp>
#include <psae/stage/reduce.hpp>

template <class Shape>
struct one_parameter {
    psae::parameter<double, Shape> x;
    explicit one_parameter(const Shape& extents) : x(extents) {
        psae::random_stream random(3);
        for (double& v : x.value) v = random.normal();
    }
    template <class F>
    void each_parameter(F&& f) {
        f("x", x);
    }
    // The error of the gradient of mean(weights * stages(x)) with respect to x.
    template <class Stages>
    double gradient_error(const Stages& stages) {
        using namespace psae;
        const tensor<double, shape<>> zero;  // brings the tape along
        std::vector<double> weights;
        random_stream random(4);
        const auto worst = check_gradients(
            *this,
            [&](auto input) {
                const auto y = evaluate(stages(evaluate(x + input)));
                while (weights.size() < y.size()) weights.push_back(random.normal());
                using shape_type = typename decltype(y)::shape_type;
                return evaluate(mean(y * const_view<double, shape_type>{weights.data(), y.shape()}));
            },
            zero.view(), 1, 1e-5);
        UNSCOPED_INFO(worst.where << ": analytic " << worst.analytic << ", numeric " << worst.numeric);
        return worst.error;
    }
};
