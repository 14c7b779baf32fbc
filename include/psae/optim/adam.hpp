#pragma once
// Adam (Kingma and Ba, arXiv 1412.6980) with bias correction, as torch.optim.Adam computes it, and learning-rate
// schedules.

#include <algorithm>
#include <cmath>
#include <cstddef>

#include <psae/core/annotations.hpp>

namespace psae {

struct adam {
    double beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8;

    // What a step multiplies by: computed once per step (1-based count of updates).
    struct factors {
        double beta1, beta2, epsilon, step_size, root_of_correction;
    };
    factors at(double learning_rate, std::size_t update) const {
        const double c1 = 1 - std::pow(beta1, static_cast<double>(update)),
                     c2 = 1 - std::pow(beta2, static_cast<double>(update));
        return {beta1, beta2, epsilon, learning_rate / c1, std::sqrt(c2)};
    }
};

// Adam's update in T.
template <class T>
struct adam_update {
    T b1 = 0, b2 = 0, c1 = 0, c2 = 0, eps = 0, step = 0, inverse_root = 0;

    adam_update() = default;
    explicit adam_update(const adam::factors& f)
        : b1(static_cast<T>(f.beta1)),
          b2(static_cast<T>(f.beta2)),
          c1(static_cast<T>(1 - f.beta1)),
          c2(static_cast<T>(1 - f.beta2)),
          eps(static_cast<T>(f.epsilon)),
          step(static_cast<T>(f.step_size)),
          inverse_root(static_cast<T>(1 / f.root_of_correction)) {}

    // One parameter w with gradient g and moments m, v.
    PSAE_FN void operator()(T& w, T& m, T& v, T g) const {
        m = b1 * m + c1 * g;
        v = b2 * v + c2 * g * g;
        w -= step * m / (std::sqrt(v) * inverse_root + eps);
    }
};

enum class schedule { constant, linear, cosine };

// Learning rate of step `step` (from 0): warm-up min(1, (step + 1) / warmup), then constant, or linearly or as a half
// cosine down to 0 at `total` steps.
inline double learning_rate(double base, schedule shape, std::size_t step, std::size_t warmup, std::size_t total) {
    const double s = static_cast<double>(step);
    if (step < warmup) return base * (s + 1) / static_cast<double>(warmup);
    if (shape == schedule::constant || total <= warmup) return base;
    const double progress = std::min(1.0, (s - static_cast<double>(warmup)) / static_cast<double>(total - warmup));
    return shape == schedule::linear ? base * (1 - progress)
                                     : base * 0.5 * (1 + std::cos(3.14159265358979323846 * progress));
}

}  // namespace psae
