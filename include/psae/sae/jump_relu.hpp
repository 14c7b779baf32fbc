#pragma once
// JumpReLU (Rajamanoharan et al., arXiv 2407.14435): a threshold per latent, learned through pseudo-derivatives in a
// window around it, and a penalty on L0 itself or on a tanh of the codes.

#include <algorithm>
#include <cmath>
#include <functional>
#include <span>
#include <vector>

#include <psae/sae/inference.hpp>
#include <psae/sae/parameters.hpp>

namespace psae {

// Whose loss; theta are the thresholds, S squared_error, n_f the norm of decoder row f:
//   saelens_step (6.18)          S + lambda * mean L0 + pre_act; theta = exp(log_threshold)
//   saelens_tanh                 S + lambda * mean over tokens of sum tanh(tanh_scale z_f n_f) + pre_act
//   dictionary_learning (0.1.0)  S + lambda * (mean L0 / target_l0 - 1)^2; the threshold itself is the parameter, tokens
//                                are not centred, and the window of L0 is around z, after the jump
// pre_act = pre_act_weight * mean over tokens of sum over dead latents of ReLU(theta - h) n_f.
enum class jump_relu_form { saelens_step, saelens_tanh, dictionary_learning };

namespace detail {

// h where h > theta. d/d theta = -(theta / width) in the window |h - theta| < width / 2.
struct jump {
    double width;
    template <class T>
    PSAE_FN T value(T h, T theta) const {
        return h > theta ? h : T(0);
    }
    template <class T>
    PSAE_FN partials<T, 2> derivative(T h, T theta) const {
        return {{T(h > theta), std::abs(h - theta) < T(width / 2) ? -theta / T(width) : T(0)}};
    }
};
// Whether h > theta. d/d theta = -(1 / width) in that window; none with respect to h.
struct step_above {
    double width;
    template <class T>
    PSAE_FN T value(T h, T theta) const {
        return T(h > theta);
    }
    template <class T>
    PSAE_FN partials<T, 2> derivative(T h, T theta) const {
        return {{T(0), std::abs(h - theta) < T(width / 2) ? T(-1 / width) : T(0)}};
    }
};
// Below this, an h has no part in any of them. Where the window of L0 is around z, it may hold all that do not fire.
struct window_floor {
    double width;
    bool around_z;
    template <class T>
    PSAE_FN T value(T theta) const {
        return around_z && theta < T(width / 2) ? T(-INFINITY) : theta - T(width / 2);
    }
};

}  // namespace detail

template <std::size_t d_in = dyn, std::size_t d_sae = dyn, class T = float,
          jump_relu_form form = jump_relu_form::saelens_step>
struct jump_relu : sae_parameters<d_in, d_sae, T> {
    using parameters = sae_parameters<d_in, d_sae, T>;
    static constexpr const char* name = "jump_relu";
    static constexpr bool is_saelens = form != jump_relu_form::dictionary_learning, unit_norm_decoder = !is_saelens;
    static constexpr T default_threshold = T(is_saelens ? 0.01 : 0.001);

    jump_relu() requires(d_in != dyn && d_sae != dyn) { set_thresholds(default_threshold); }
    jump_relu(std::size_t inputs, std::size_t latents)
        : parameters(inputs, latents), threshold(parameters::template make<shape<d_sae>>(latents)) {
        set_thresholds(default_threshold);
    }

    T lambda = T(1e-3), pre_act_weight = T(0), target_l0 = T(20);
    double first_l0 = 0;                  // where a run starts; 0: thresholds stay as they are set
    std::size_t lambda_warmup_steps = 0;  // over which lambda grows from 0
    double tanh_scale = 4, window = is_saelens ? 0.05 : 0.001;
    T first_threshold = default_threshold;  // that of latents which start anew; set_thresholds sets it
    parameter<T, shape<d_sae>> threshold;   // its logarithm in the forms of saelens

    template <class F>
    void each_parameter(F&& f) {
        parameters::each_parameter(f);
        f(is_saelens ? "log_threshold" : "threshold", threshold);
    }

    // The same threshold for all latents, above 0.
    void set_thresholds(T theta) {
        first_threshold = theta;
        for (std::size_t f = 0; f < this->latents(); ++f) set_threshold(f, theta);
    }

    // The threshold, the same for all latents, above which tokens x [n, d_in] have l0 active latents on average.
    void set_thresholds(const cpu& device, arena<>& scratch, const T* x, std::size_t n, double l0) {
        sae_view before(*this);
        before.architecture = "standard";
        scratch.reset();
        const auto h = encode_rows(device, scratch, before, x, n);
        const std::size_t count = h.entries(), active = static_cast<std::size_t>(l0 * static_cast<double>(n));
        if (count == 0) return;
        float *values = scratch.allocate<float>(count), *least = values + std::min(active, count - 1);
        std::copy_n(h.value, count, values);
        std::nth_element(values, least, values + count, std::greater{});
        set_thresholds(*least);
    }
    // After the start of the other parameters, on scaled tokens of the run.
    void start_on(const cpu& device, arena<>& scratch, const T* x, std::size_t n) {
        if (first_l0 > 0) set_thresholds(device, scratch, x, std::min<std::size_t>(n, 256), first_l0);
    }

    // Resampled latents start at first_threshold, as all did; or, in a run that starts at an L0, each where it fires for
    // as many tokens as that takes of a latent, of up to 1024 of x: that start's threshold was for rows of W_enc of other
    // lengths, and tokens that are not centred lie on one side.
    void restart(const cpu& host, std::span<const std::uint32_t> latents, const T* x, std::size_t n) {
        const spread_evenly token{n, std::min<std::size_t>(n, 1024)};
        const double share = first_l0 / static_cast<double>(this->latents());
        const auto firing =
            std::max<std::size_t>(1, static_cast<std::size_t>(share * static_cast<double>(token.count)));
        host.parallel_for(latents.size(), [&](std::size_t i) {
            T theta = first_l0 > 0 ? default_threshold : first_threshold;
            if (first_l0 > 0 && token.count > firing) {
                std::vector<T> h(token.count);
                for (std::size_t j = 0; j < h.size(); ++j)
                    h[j] = pre_activation(latents[i], x + token(j) * this->inputs());
                std::nth_element(h.begin(), h.begin() + std::ptrdiff_t(firing), h.end(), std::greater{});
                theta = std::max(h[firing], default_threshold);
            }
            set_threshold(latents[i], theta);
        });
    }

    // x: [n, d_in].
    auto loss(auto x, const training_state& now) const {
        auto theta = evaluate(thresholds(x));
        auto h = encode(input(x), this->W_enc, this->b_enc,
                        above<T>{values_of(x, map(detail::window_floor{window, !is_saelens}, thresholds(x)))});
        auto z = evaluate(map(detail::jump{window}, h, theta));
        auto x_hat = decode(z, this->W_dec, this->b_dec);
        auto mse = term("mse", squared_error(x_hat, x));
        return mse + sparsity(x, h, z, theta, warmed_up(lambda, lambda_warmup_steps, now)) + pre_act(x, theta, now);
    }
    void describe(sae_view& view) const {
        view.architecture = "jumprelu";
        view.centred_input = is_saelens;
        for (const T t : threshold.value) view.threshold.push_back(static_cast<float>(is_saelens ? std::exp(t) : t));
    }
    void adopt(const sae_description& from) {
        for (std::size_t f = 0; f < from.threshold.size(); ++f)
            threshold.data()[f] = is_saelens ? std::log(T(from.threshold[f])) : T(from.threshold[f]);
    }

private:
    void set_threshold(std::size_t f, T theta) { threshold.data()[f] = is_saelens ? std::log(theta) : theta; }
    // h of latent f for a token.
    T pre_activation(std::size_t f, const T* x) const {
        const T *w = this->W_enc.data() + f * this->inputs(), *centre = this->b_dec.data();
        T h = this->b_enc.data()[f];
#pragma omp simd reduction(+ : h)
        for (std::size_t c = 0; c < this->inputs(); ++c) h += w[c] * (is_saelens ? x[c] - centre[c] : x[c]);
        return h;
    }
    auto thresholds(auto x) const {
        if constexpr (is_saelens) return on_tape_of(x, exp(threshold));
        else return on_tape_of(x, threshold);
    }
    auto input(auto x) const {
        if constexpr (is_saelens) return x - this->b_dec;
        else return x;
    }
    auto sparsity(auto x, auto h, auto z, auto theta, T weight) const {
        if constexpr (form == jump_relu_form::saelens_step) {
            return term("l0", weight * mean_over_tokens(sum(map(detail::step_above{window}, h, theta))));
        } else if constexpr (form == jump_relu_form::saelens_tanh) {
            return term("l0", weight * mean_over_tokens(
                                           sum(map(hyperbolic_tangent{tanh_scale}, z * row_norms(x, this->W_dec)))));
        } else {
            auto mean_l0 = term("mean_l0", mean_over_tokens(sum(map(detail::step_above{window}, z, theta))));
            return term("sparsity", weight * square(mean_l0 / target_l0 - 1));
        }
    }
    auto pre_act(auto x, auto theta, const training_state& now) const {
        if (pre_act_weight == 0 || !now.any_dead) return term("pre_act", zero_like(x));
        auto h = encode(input(x), this->W_enc, this->b_enc, below<T>{theta.data}, now.dead);
        return term("pre_act", pre_act_weight * mean_over_tokens(sum((theta - h) * row_norms(x, this->W_dec))));
    }
};

}  // namespace psae
