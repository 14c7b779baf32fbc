#pragma once
// The parameters of an SAE whose latents have a threshold each: where the thresholds start, and where one starts anew.

#include <algorithm>
#include <cmath>
#include <functional>
#include <span>
#include <vector>

#include <psae/sae/inference.hpp>
#include <psae/sae/parameters.hpp>

namespace psae {

// as_saelens: the parameter is the threshold's logarithm and tokens are centred by b_dec; otherwise (as in
// dictionary_learning) it is the threshold itself, and they are not.
template <std::size_t d_in, std::size_t d_sae, class T, bool as_saelens>
struct latent_thresholds : sae_parameters<d_in, d_sae, T> {
    using parameters = sae_parameters<d_in, d_sae, T>;
    static constexpr T default_threshold = T(as_saelens ? 0.01 : 0.001);  // what those libraries start with

    latent_thresholds() requires(d_in != dyn && d_sae != dyn) { set_thresholds(default_threshold); }
    latent_thresholds(std::size_t inputs, std::size_t latents)
        : parameters(inputs, latents), threshold(parameters::template make<shape<d_sae>>(latents)) {
        set_thresholds(default_threshold);
    }

    double first_l0 = 0;                    // where a run starts; 0: thresholds stay as they are set
    T first_threshold = default_threshold;  // that of latents which start anew; set_thresholds sets it
    parameter<T, shape<d_sae>> threshold;

    template <class F>
    void each_parameter(F&& f) {
        parameters::each_parameter(f);
        f(as_saelens ? "log_threshold" : "threshold", threshold);
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

    void describe(sae_view& view) const {
        view.architecture = "jumprelu";
        view.centred_input = as_saelens;
        for (const T t : threshold.value) view.threshold.push_back(static_cast<float>(as_saelens ? std::exp(t) : t));
    }
    void adopt(const sae_description& from) {
        for (std::size_t f = 0; f < from.threshold.size(); ++f) set_threshold(f, T(from.threshold[f]));
    }

protected:
    // The thresholds [d_sae] on x's tape.
    auto thresholds(auto x) const {
        if constexpr (as_saelens) return on_tape_of(x, exp(threshold));
        else return on_tape_of(x, threshold);
    }

private:
    void set_threshold(std::size_t f, T theta) { threshold.data()[f] = as_saelens ? std::log(theta) : theta; }
    // h of latent f for a token.
    T pre_activation(std::size_t f, const T* x) const {
        const T *w = this->W_enc.data() + f * this->inputs(), *centre = this->b_dec.data();
        T h = this->b_enc.data()[f];
#pragma omp simd reduction(+ : h)
        for (std::size_t c = 0; c < this->inputs(); ++c) h += w[c] * (as_saelens ? x[c] - centre[c] : x[c]);
        return h;
    }
};

}  // namespace psae
