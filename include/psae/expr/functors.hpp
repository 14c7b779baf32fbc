#pragma once
// The pointwise functions: operators on operands of expressions, and map(functor, ...) by name. Each functor holds
// value and derivative together; a new one is about ten lines.

#include <cmath>

#include <psae/core/vector_math.hpp>
#include <psae/expr/node.hpp>

namespace psae {

struct plus {
    template <class T>
    PSAE_FN T value(T a, T b) const {
        return a + b;
    }
    template <class T>
    PSAE_FN partials<T, 2> derivative(T, T) const {
        return {{T(1), T(1)}};
    }
};
struct minus {
    template <class T>
    PSAE_FN T value(T a, T b) const {
        return a - b;
    }
    template <class T>
    PSAE_FN partials<T, 2> derivative(T, T) const {
        return {{T(1), T(-1)}};
    }
};
struct times {
    template <class T>
    PSAE_FN T value(T a, T b) const {
        return a * b;
    }
    template <class T>
    PSAE_FN partials<T, 2> derivative(T a, T b) const {
        return {{b, a}};
    }
};
struct divides {
    template <class T>
    PSAE_FN T value(T a, T b) const {
        return a / b;
    }
    template <class T>
    PSAE_FN partials<T, 2> derivative(T a, T b) const {
        return {{T(1) / b, -a / (b * b)}};
    }
};
struct negate {
    template <class T>
    PSAE_FN T value(T a) const {
        return -a;
    }
    template <class T>
    PSAE_FN partials<T, 1> derivative(T) const {
        return {{T(-1)}};
    }
};
struct square_functor {
    template <class T>
    PSAE_FN T value(T a) const {
        return a * a;
    }
    template <class T>
    PSAE_FN partials<T, 1> derivative(T a) const {
        return {{2 * a}};
    }
};
// |a|, with derivative 0 at 0.
struct absolute {
    template <class T>
    PSAE_FN T value(T a) const {
        return a < 0 ? -a : a;
    }
    template <class T>
    PSAE_FN partials<T, 1> derivative(T a) const {
        return {{T(a > 0) - T(a < 0)}};
    }
};
// Square root, with derivative 0 at 0 (the subgradient that keeps norms of zero rows finite).
struct square_root {
    template <class T>
    PSAE_FN T value(T a) const {
        return std::sqrt(a);
    }
    template <class T>
    PSAE_FN partials<T, 1> derivative(T a) const {
        return {{a > 0 ? T(0.5) / std::sqrt(a) : T(0)}};
    }
};
struct exponential {
    template <class T>
    PSAE_FN T value(T a) const {
        return std::exp(a);
    }
    template <class T>
    PSAE_FN partials<T, 1> derivative(T a) const {
        return {{std::exp(a)}};
    }
};
struct logarithm {
    template <class T>
    PSAE_FN T value(T a) const {
        return std::log(a);
    }
    template <class T>
    PSAE_FN partials<T, 1> derivative(T a) const {
        return {{T(1) / a}};
    }
};
// x sigmoid(1.702 x), the activation of OpenAI's CLIP.
struct quick_gelu {
    template <class T>
    PSAE_FN T value(T x) const {
        return x / (T(1) + exponential(x));
    }
    template <class T>
    PSAE_FN partials<T, 1> derivative(T x) const {
        const T s = T(1) / (T(1) + exponential(x));
        return {{s + T(1.702) * x * s * (T(1) - s)}};
    }

private:
    // exp(-1.702 x), for float at most e^70, where the sigmoid is 4e-31: see fast_exp.
    template <class T>
    static PSAE_FN T exponential(T x) {
        return fast_exp(T(-1.702) * x, T(-87), T(70));
    }
};
// x Phi(x) with the standard normal distribution Phi: the exact form of GELU, not its tanh approximation.
struct gelu {
    template <class T>
    PSAE_FN T value(T x) const {
        return x * distribution(x);
    }
    template <class T>
    PSAE_FN partials<T, 1> derivative(T x) const {
        return {{distribution(x) + x * T(0.39894228040143268) * fast_exp(T(-0.5) * x * x, T(-80), T(0))}};
    }

private:
    template <class T>
    static PSAE_FN T distribution(T x) {
        return T(0.5) * (T(1) + fast_erf(x * T(0.70710678118654752)));
    }
};
// tanh(scale a).
struct hyperbolic_tangent {
    double scale = 1;
    template <class T>
    PSAE_FN T value(T a) const {
        return fast_tanh(T(scale) * a);
    }
    template <class T>
    PSAE_FN partials<T, 1> derivative(T a) const {
        const T t = fast_tanh(T(scale) * a);
        return {{T(scale) * (T(1) - t * t)}};
    }
};
// max(a, 0), with derivative 0 at 0.
struct rectifier {
    template <class T>
    PSAE_FN T value(T a) const {
        return a > 0 ? a : T(0);
    }
    template <class T>
    PSAE_FN partials<T, 1> derivative(T a) const {
        return {{T(a > 0)}};
    }
};
struct minimum {
    template <class T>
    PSAE_FN T value(T a, T b) const {
        return b < a ? b : a;
    }
    template <class T>
    PSAE_FN partials<T, 2> derivative(T a, T b) const {
        return {{T(!(b < a)), T(b < a)}};
    }
};

// Operators between operands, and between an operand and a number (the number takes the operand's element type).
#define PSAE_BINARY_OPERATOR(symbol, functor)                                                                         \
    template <class A, class B>                                                                                       \
    requires(operand<std::remove_cvref_t<A>> && operand<std::remove_cvref_t<B>>) auto operator symbol(A&& a, B&& b) { \
        return map(functor{}, std::forward<A>(a), std::forward<B>(b));                                                \
    }                                                                                                                 \
    template <class A, class B>                                                                                       \
    requires(operand<std::remove_cvref_t<A>> && std::is_arithmetic_v<B>) auto operator symbol(A&& a, B b) {           \
        using T = typename node_t<std::remove_cvref_t<A>>::value_type;                                                \
        return map(functor{}, std::forward<A>(a), constant_node<T>{static_cast<T>(b)});                               \
    }                                                                                                                 \
    template <class A, class B>                                                                                       \
    requires(std::is_arithmetic_v<A> && operand<std::remove_cvref_t<B>>) auto operator symbol(A a, B&& b) {           \
        using T = typename node_t<std::remove_cvref_t<B>>::value_type;                                                \
        return map(functor{}, constant_node<T>{static_cast<T>(a)}, std::forward<B>(b));                               \
    }
PSAE_BINARY_OPERATOR(+, plus)
PSAE_BINARY_OPERATOR(-, minus)
PSAE_BINARY_OPERATOR(*, times)
PSAE_BINARY_OPERATOR(/, divides)
#undef PSAE_BINARY_OPERATOR

#define PSAE_UNARY_FUNCTION(name, functor)   \
    template <class A>                       \
    requires operand<std::remove_cvref_t<A>> \
    auto name(A&& a) { return map(functor{}, std::forward<A>(a)); }
PSAE_UNARY_FUNCTION(operator-, negate)
PSAE_UNARY_FUNCTION(square, square_functor)
PSAE_UNARY_FUNCTION(abs, absolute)
PSAE_UNARY_FUNCTION(sqrt, square_root)
PSAE_UNARY_FUNCTION(exp, exponential)
PSAE_UNARY_FUNCTION(log, logarithm)
#undef PSAE_UNARY_FUNCTION

// The value of the expression, held constant for gradients.
template <class A>
requires operand<std::remove_cvref_t<A>>
auto stop_gradient(A&& a) {
    detail::refuse_temporary_owner<A&&>();
    return stopped_node<node_t<std::remove_cvref_t<A>>>{as_node(a)};
}

}  // namespace psae
