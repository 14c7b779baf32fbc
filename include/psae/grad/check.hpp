#pragma once
// The public gradient checker: analytic gradients of a loss against central differences, meant for T = double.
//
//   auto worst = check_gradients(my_sae, [&](auto x) { return my_sae.loss(x); }, tokens);
//   worst.error < 1e-6, or worst.where says which element disagrees

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include <psae/cpu/codes.hpp>
#include <psae/cpu/encode.hpp>
#include <psae/cpu/pointwise.hpp>
#include <psae/grad/differentiate.hpp>

namespace psae {

struct gradient_disagreement {
    // |analytic - numeric| / (largest |numeric| of that parameter, at least 1e-3); infinite where one of them is no number
    double error = 0;
    double analytic = 0, numeric = 0;
    std::string where;  // "W_enc[17]"
};

// Copies a collected gradient to dense memory, row by row. out: the parameter's size; zeros where nothing was
// collected.
template <class T, class Shape>
void read_gradient(const parameter<T, Shape>& p, T* out) {
    const std::size_t cols = Shape::rank == 1 ? 1 : p.shape().cols();
    for (std::size_t f = 0; f < p.size() / cols; ++f) gradient_row(*p.gradient, f, cols, out + f * cols);
}

// Compares every `stride`-th element of gradients, wherever they come from, with central differences of `value()`, the loss
// at the parameters of `model` (which has each_parameter) as they stand. analytic: an array for each parameter, in order;
// of float, too, where a device computes in it. Returns the worst disagreement.
template <class Model, class T, class Value>
gradient_disagreement compare_gradients(Model& model, const std::vector<std::vector<T>>& analytic, const Value& value,
                                        std::size_t stride = 1, double step = 1e-6) {
    gradient_disagreement worst;
    auto of_parameter = analytic.begin();
    model.each_parameter([&](const char* name, auto& p) {
        using number = typename std::remove_reference_t<decltype(p)>::value_type;
        const std::vector<T>& found = *of_parameter++;
        std::vector<double> numeric(p.size());
        double largest = 1e-3;
        for (std::size_t i = 0; i < p.size(); i += stride) {
            const number original = p.data()[i];
            p.data()[i] = original + static_cast<number>(step);
            const double above = value();
            p.data()[i] = original - static_cast<number>(step);
            const double below = value();
            p.data()[i] = original;
            numeric[i] = (above - below) / (2 * step);
            const double size = std::abs(numeric[i]);
            if (std::isfinite(size)) largest = std::max(largest, size);
        }
        for (std::size_t i = 0; i < p.size(); i += stride) {
            double error = std::abs(static_cast<double>(found[i]) - numeric[i]) / largest;
            if (std::isnan(error)) error = std::numeric_limits<double>::infinity();
            if (error > worst.error)
                worst = {error, static_cast<double>(found[i]), numeric[i],
                         std::string(name) + "[" + std::to_string(i) + "]"};
        }
    });
    return worst;
}

// The loss at the parameters as they stand. Resets scratch. `loss` takes tokens bound to a tape and returns a scalar
// expression.
template <class Model, class Loss, class T, class Shape>
double loss_value(cpu& device, arena<>& scratch, Model& model, const Loss& loss, view<const T, Shape> tokens) {
    scratch.reset();
    tape<cpu> t(device, scratch, mode::train);
    model.each_parameter([&](const char*, auto& p) { t.collect(p); });
    const auto result = loss(t.input(tokens));
    t.run();
    const auto value = static_cast<double>(result.load(position{}));
    model.each_parameter([&](const char*, auto& p) { p.gradient = nullptr; });
    return value;
}

// Compares the gradients of `loss` with central differences of `value()`, as above.
template <class Model, class Loss, class T, class Shape, class Value>
requires std::is_invocable_r_v<double, Value> gradient_disagreement check_gradients(Model& model, const Loss& loss,
                                                                                    view<const T, Shape> tokens,
                                                                                    const Value& value,
                                                                                    std::size_t stride = 1,
                                                                                    double step = 1e-6) {
    cpu device;
    arena<> kept;
    tape<cpu> t(device, kept, mode::train);
    model.each_parameter([&](const char*, auto& p) { t.collect(p); });
    const auto result = loss(t.input(tokens));
    t.run();
    backward(t, result);
    std::vector<std::vector<T>> gradients;
    model.each_parameter([&](const char*, auto& p) {
        gradients.emplace_back(p.size());
        read_gradient(p, gradients.back().data());
        p.gradient = nullptr;
    });
    return compare_gradients(model, gradients, value, stride, step);
}

// The same with the value of `loss` itself on the numeric side. Only for a loss without stop_gradient: what is stopped
// is a constant of the analytic gradient, but moves with the parameters here. Where a loss has it, give a `value` that
// computes those parts from a copy of the parameters.
template <class Model, class Loss, class T, class Shape>
gradient_disagreement check_gradients(Model& model, const Loss& loss, view<const T, Shape> tokens,
                                      std::size_t stride = 1, double step = 1e-6) {
    cpu device;
    arena<> scratch;
    const auto value = [&] { return loss_value(device, scratch, model, loss, tokens); };
    return check_gradients(model, loss, tokens, value, stride, step);
}

}  // namespace psae
