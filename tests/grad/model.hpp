#pragma once
// Parameters of every shape that expressions repeat, random tokens, and the comparison of a loss' gradients on the backend
// with central differences in double.

#include <utility>

#include <catch2/catch.hpp>

#include <psae/core/random.hpp>
#include <psae/sae/parameters.hpp>

#include "../backend.hpp"
#include "../gradient_on_host.hpp"

namespace {

constexpr std::size_t n = 7, d = 5, latents = 9;

template <class T>
struct model {
    using value_type = T;
    template <std::size_t... N>
    using parameter = psae::parameter<T, psae::shape<N...>>;

    std::uint64_t seed;
    bool positive;
    parameter<> scalar;
    parameter<1> one;
    parameter<d> row;
    parameter<n, 1> column;
    parameter<n, d> matrix;
    parameter<latents> per_latent;
    parameter<n, latents> per_entry;
    parameter<latents, d> W_enc, W_dec;
    parameter<latents> b_enc;
    parameter<d> b_dec;
    parameter<latents, d> second_W_enc, second_W_dec;
    psae::tensor<T, psae::shape<n, d>> x;

    // Values in +-[0.3, 1.5]: away from 0, where absolute values and quotients have no derivative. They are floats, so that
    // models of both types are the same.
    explicit model(std::uint64_t from_seed = 11, bool all_positive = false) : seed(from_seed), positive(all_positive) {
        psae::random_stream random(seed);
        const auto draw = [&] {
            const auto v = static_cast<float>(0.3 + 1.2 * double(random.uniform()));
            return static_cast<T>(positive || random.bits() % 2 == 0 ? v : -v);
        };
        each_parameter([&](const char*, auto& p) {
            for (T& v : p.value) v = draw();
        });
        for (T& v : x) v = draw();
    }

    template <class F>
    void each_parameter(F&& f) {
        f("scalar", scalar);
        f("one", one);
        f("row", row);
        f("column", column);
        f("matrix", matrix);
        f("per_latent", per_latent);
        f("per_entry", per_entry);
        f("W_enc", W_enc);
        f("W_dec", W_dec);
        f("b_enc", b_enc);
        f("b_dec", b_dec);
        f("second_W_enc", second_W_enc);
        f("second_W_dec", second_W_dec);
    }
    // `loss(model, tokens)` as a loss of its tokens.
    template <class Loss>
    auto bound(const Loss& loss) {
        return [this, &loss](auto tokens) { return loss(*this, tokens); };
    }
};

// `loss` takes a model and its tokens and returns a scalar; `value` is the loss in plain arithmetic, where the loss holds
// something constant.
template <class Loss, class Value>
void check_loss(model<double>& m, const Loss& loss, const Value& value) {
    backend device;
    model<real> same(m.seed, m.positive);
    const auto analytic = differentiate(device, same, same.bound(loss), std::as_const(same.x).view());
    const auto worst = psae::compare_gradients(m, analytic.gradients, value);
    INFO(worst.where << ": analytic " << worst.analytic << ", numeric " << worst.numeric);
    CHECK(worst.error < gradient_tolerance<real>);
}
template <class Loss>
void check_loss(model<double>& m, const Loss& loss) {
    psae::cpu host(1);
    psae::arena<> scratch;
    check_loss(m, loss, [&] { return psae::loss_value(host, scratch, m, m.bound(loss), std::as_const(m.x).view()); });
}
template <class Loss>
void check_loss(const Loss& loss) {
    model<double> m;
    check_loss(m, loss);
}

}  // namespace
