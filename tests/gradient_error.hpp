#pragma once
// A stage's gradients on the backend against central differences in double.

#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <catch2/catch.hpp>

#include <psae/core/random.hpp>
#include <psae/stage/reduce.hpp>

#include "backend.hpp"
#include "gradient_on_host.hpp"

// Random floats in either type.
template <class T, class Shape>
psae::parameter<T, Shape> normal_parameter(const Shape& extents, std::uint64_t seed) {
    psae::parameter<T, Shape> p(extents);
    psae::random_stream random(seed);
    for (T& v : p.value) v = static_cast<T>(static_cast<float>(random.normal()));
    return p;
}
template <class To, class T, class Shape>
psae::parameter<To, Shape> converted(const psae::parameter<T, Shape>& p) {
    psae::parameter<To, Shape> copy(p.shape());
    std::copy(p.value.begin(), p.value.end(), copy.value.begin());
    return copy;
}

// Operands as the parameters of a model.
template <class T, class... Shape>
struct operands {
    using value_type = T;
    std::tuple<psae::parameter<T, Shape>...> all;
    template <class F>
    void each_parameter(F&& f) {
        int i = 0;
        std::apply([&](auto&... p) { (..., f(("operand " + std::to_string(i++)).c_str(), p)); }, all);
    }
};

// The largest disagreement of the gradients of operands with central differences, which are taken at p. result(zero, p...)
// calls stages on the operands, in either type; zero is a scalar that brings the tape along. The loss weights every
// element of the result differently.
template <class Result, class... Shape>
double gradient_error(const Result& result, const psae::parameter<double, Shape>&... p) {
    using namespace psae;
    backend device;
    operands<double, Shape...> here{{converted<double>(p)...}};
    operands<real, Shape...> there{{converted<real>(p)...}};
    const auto weight = constants<double, real>(device, [] {
        std::vector<double> w(2048);
        random_stream random(99);
        for (double& v : w) v = static_cast<float>(random.normal());
        return w;
    }());
    const auto loss_of = [&](auto& model) {
        return [&](auto zero) {
            const auto y = evaluate(std::apply([&](auto&... q) { return result(zero, q...); }, model.all));
            REQUIRE(y.size() <= weight.here.size());
            using tape_type = std::remove_reference_t<decltype(*zero.owner)>;
            using view_type =
                const_view<typename decltype(y)::value_type, typename decltype(y)::shape_type, tape_type::memory>;
            return evaluate(mean(y * view_type{weight.of(zero).data(), y.shape()}) + mean(square(y)));
        };
    };
    const tensor<double, shape<>> zero;
    const tensor<real, shape<>> zero_there;
    const auto analytic = differentiate(device, there, loss_of(there), zero_there.view());
    cpu host(1);
    arena<> scratch;
    const auto value = [&] { return loss_value(host, scratch, here, loss_of(here), zero.view()); };
    const auto worst = compare_gradients(here, analytic.gradients, value, 1, 1e-5);
    UNSCOPED_INFO(worst.where << ": analytic " << worst.analytic << ", numeric " << worst.numeric);
    return worst.error;
}
