#pragma once
// Random operands, and a stage's gradients against central differences in double.
#include <catch2/catch.hpp>

#include <psae/core/random.hpp>
#include <psae/cpu/attention.hpp>
#include <psae/cpu/layer_norm.hpp>
#include <psae/cpu/matmul.hpp>
#include <psae/cpu/patch_embedding.hpp>
#include <psae/grad/check.hpp>
#include <psae/stage/attention.hpp>
#include <psae/stage/layer_norm.hpp>
#include <psae/stage/patch_embedding.hpp>
#include <psae/stage/reduce.hpp>

#include "../difference.hpp"

namespace psae {

template <class T, class Shape>
tensor<T, Shape> normal_tensor(const Shape& extents, std::uint64_t seed, double deviation = 1) {
    tensor<T, Shape> x(extents);
    random_stream random(seed);
    for (T& v : x) v = static_cast<T>(deviation * random.normal());
    return x;
}
template <class T, class Shape>
parameter<T, Shape> normal_parameter(const Shape& extents, std::uint64_t seed, double deviation = 1) {
    parameter<T, Shape> p;
    p.value = normal_tensor<T>(extents, seed, deviation);
    return p;
}

using matrix = shape<dyn, dyn>;
using row = shape<dyn>;

// Operands as the parameters of a model.
template <class... Parameter>
struct operands {
    std::tuple<Parameter&...> all;
    template <class F>
    void each_parameter(F&& f) {
        int i = 0;
        std::apply([&](auto&... p) { (..., f(("operand " + std::to_string(i++)).c_str(), p)); }, all);
    }
};

// The largest disagreement of the gradients of a stage's operands with central differences. `result(zero)` calls the
// stage on the operands; zero is a scalar that brings the tape along. The loss weights every element differently.
template <class Result, class... Parameter>
double gradient_error(const Result& result, Parameter&... p) {
    operands<Parameter...> model{{p...}};
    tensor<double, shape<>> zero;
    double weights[4096];
    random_stream random(99);
    for (double& w : weights) w = random.normal();
    const auto loss = [&](auto tape_bringer) {
        const auto y = result(tape_bringer);
        REQUIRE(y.size() <= 4096);
        using shape_type = typename decltype(y)::shape_type;
        return evaluate(mean(y * const_view<double, shape_type>{weights, y.shape()}) + mean(square(y)));
    };
    const auto worst = check_gradients(model, loss, std::as_const(zero).view(), 1, 1e-5);
    UNSCOPED_INFO(worst.where << ": analytic " << worst.analytic << ", numeric " << worst.numeric);
    return worst.error;
}

// Runs a stage at once and copies its result. `result(zero)` as above.
template <class T, class Result>
auto run_stage(const Result& result, int threads = 0) {
    cpu device(threads);
    arena<> scratch;
    tape<cpu> t(device, scratch, mode::infer);
    tensor<T, shape<>> zero;
    const auto y = result(t.input(std::as_const(zero).view()));
    std::vector<T> values(y.data, y.data + y.size());
    return values;
}

}  // namespace psae
