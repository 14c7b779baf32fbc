// A new SAE: ReLU codes under a logarithmic penalty. The struct is the variant; gradients, sparse kernels and the
// trainer come with it.
#include <cmath>
#include <cstdio>

#include <psae/psae.hpp>

struct log_penalty {  // a pointwise function: value and derivative together
    double eps;
    template <class T>
    PSAE_FN T value(T z) const {
        return std::log1p(z / T(eps));
    }
    template <class T>
    PSAE_FN psae::partials<T, 1> derivative(T z) const {
        return {{1 / (T(eps) + z)}};
    }
};

template <std::size_t d_in, std::size_t d_sae = psae::dyn, class T = float>
struct log_sae : psae::sae_parameters<d_in, d_sae, T> {
    T lambda = T(1e-3);
    auto loss(auto x) const {  // x: tokens [n, d_in]
        auto z = encode(x - this->b_dec, this->W_enc, this->b_enc, psae::relu{});
        auto x_hat = decode(z, this->W_dec, this->b_dec);
        return term("mse", mean(square(x_hat - x))) +
               term("penalty", lambda * mean_over_tokens(sum(map(log_penalty{0.1}, z))));
    }
};

int main() {
    psae::random_stream random(1);
    psae::cpu device;

    psae::tensor<double, psae::shape<20, 8>> few;
    for (double& v : few) v = random.normal();
    log_sae<8, 24, double> checked;
    checked.initialise(random);
    const auto worst = psae::check_gradients(
        checked, [&](auto x) { return checked.loss(x); }, std::as_const(few).view());
    std::printf("worst gradient error %.1e at %s\n", worst.error, worst.where.c_str());

    psae::tensor<float, psae::shape<256, 8>> tokens;
    log_sae<8, 24> sae;
    sae.initialise(random);
    psae::trainer run(sae, {.lr = 2e-3, .warmup_steps = 10}, device);
    for (int step = 0; step < 200; ++step) {
        for (float& v : tokens) v = random.normal();
        const auto m = run.step(std::as_const(tokens).view());
        if (step % 50 == 49) std::printf("step %3d: loss %.4f, L0 %.1f\n", step + 1, m.loss, m.l0);
    }
    return worst.error < 1e-6 ? 0 : 1;
}
