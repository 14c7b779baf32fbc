#pragma once
// Parameters of every shape that expressions repeat, random tokens, and the comparison of a loss' gradients with
// central differences in double.

#include <catch2/catch.hpp>

#include <psae/core/random.hpp>
#include <psae/grad/check.hpp>
#include <psae/sae/parameters.hpp>

namespace {

constexpr std::size_t n = 7, d = 5, latents = 9;

struct model {
    template <std::size_t... N>
    using parameter = psae::parameter<double, psae::shape<N...>>;

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
    psae::tensor<double, psae::shape<n, d>> x;

    // Values in +-[0.3, 1.5]: away from 0, where absolute values and quotients have no derivative.
    explicit model(std::uint64_t seed = 11, bool positive = false) {
        psae::random_stream random(seed);
        const auto draw = [&] {
            const double v = 0.3 + 1.2 * double(random.uniform());
            return positive || random.bits() % 2 == 0 ? v : -v;
        };
        each_parameter([&](const char*, auto& p) {
            for (double& v : p.value) v = draw();
        });
        for (double& v : x) v = draw();
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
};

// `loss` takes the model and the tokens and returns a scalar; `value` is the loss in plain arithmetic, where the loss
// holds something constant.
template <class Loss, class... Value>
void check_loss(model& m, const Loss& loss, const Value&... value) {
    const auto worst = psae::check_gradients(
        m, [&](auto x) { return loss(m, x); }, std::as_const(m.x).view(), value...);
    INFO(worst.where << ": analytic " << worst.analytic << ", numeric " << worst.numeric);
    CHECK(worst.error < 1e-7);
}
template <class Loss>
void check_loss(const Loss& loss) {
    model m;
    check_loss(m, loss);
}

}  // namespace
