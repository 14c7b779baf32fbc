#pragma once
// JumpReLU's functions of a pre-activation h and a threshold theta, with derivatives in place of those that are zero
// almost everywhere (straight-through estimators in a window around the threshold; arXiv 2407.14435).

#include <cmath>

#include <psae/expr/functors.hpp>

namespace psae::detail {

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

}  // namespace psae::detail
