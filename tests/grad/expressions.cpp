// Gradients of pointwise expressions and reductions against central differences in double, on both backends.
#include "model.hpp"

using namespace psae;

TEST_CASE("operands of every shape, repeated over others") {
    // Each product of two shapes, so that every leaf is summed over what it is repeated over.
    check_loss([](auto& m, auto x) { return mean(x * m.scalar * m.matrix); });
    check_loss([](auto& m, auto x) { return mean(x * m.one * m.matrix); });
    check_loss([](auto& m, auto x) { return mean(x * m.row * m.matrix); });
    check_loss([](auto& m, auto x) { return mean(x * m.column * m.matrix); });
    check_loss([](auto& m, auto x) { return mean(square(m.row * m.column + m.scalar / m.matrix) + x); });
    check_loss([](auto& m, auto x) { return mean_over_tokens(sum(x) * m.column * m.scalar); });
    check_loss([](auto& m, auto x) { return mean(column_means(x) * m.row * m.one); });
    check_loss([](auto& m, auto x) { return mean(x) * m.scalar * m.scalar; });
}

TEST_CASE("functors with parameters on both sides") {
    const auto both = [](auto f) {
        check_loss([f](auto& m, auto x) { return mean(map(f, m.matrix, m.row) * x); });
        check_loss([f](auto& m, auto x) { return mean(map(f, m.column, m.matrix) * x); });
        check_loss([f](auto& m, auto x) { return mean(map(f, m.scalar, m.row) * x); });
    };
    both(plus{});
    both(minus{});
    both(times{});
    both(divides{});
    both(minimum{});
    const auto single = [](auto f) {
        model<double> m(12, true);
        check_loss(m, [f](auto& m, auto x) { return mean(map(f, m.matrix * m.column) * x + map(f, m.row)); });
    };
    single(negate{});
    single(square_functor{});
    single(absolute{});
    single(square_root{});
    single(exponential{});
    single(logarithm{});
}

TEST_CASE("functions of functions, numbers on either side") {
    model<double> m(13, true);
    check_loss(m, [](auto& m, auto x) {
        return mean(log(1 + exp(m.matrix * 2 - m.row)) / (3 - m.column / x)) - 0.5 * mean(-sqrt(abs(x) + m.scalar));
    });
}

TEST_CASE("a variable used several times is computed once and collects every share") {
    check_loss([](auto& m, auto x) {
        auto y = evaluate(x * m.row + m.matrix);
        auto s = sum(square(y));
        return mean(y * m.matrix) + mean(y / (1 + s)) + mean_over_tokens(s * s) + mean(column_means(y) * m.row);
    });
}

TEST_CASE("reductions of reductions") {
    check_loss([](auto& m, auto x) {
        auto centred = evaluate(m.matrix * x - column_means(m.matrix * x));
        auto unit = evaluate(centred / norm(centred));
        return term("spread", mean(square(unit - column_means(unit) * m.row))) / (1 + mean(square(m.row * x)));
    });
}

TEST_CASE("an operand without tokens stands on their tape") {
    check_loss([](auto& m, auto x) {
        return mean(x * m.row) + 0.1 * mean(square(on_tape_of(x, m.W_dec))) +
               mean_over_tokens(norm(on_tape_of(x, m.W_enc))) * mean(on_tape_of(x, exp(m.row)));
    });
}

TEST_CASE("what is stopped is a constant") {
    model<double> m, held;
    const auto loss = [](auto& m, auto x) {
        auto y = evaluate(m.matrix * x);
        return mean(y * stop_gradient(square(y) + m.row)) + stop_gradient(mean(y)) * m.scalar +
               mean(stop_gradient(m.column) * x);
    };
    check_loss(m, loss, [&] {
        double first = 0, mean_of_held = 0, third = 0;
        for (std::size_t r = 0; r < n; ++r)
            for (std::size_t c = 0; c < d; ++c) {
                const double y = m.matrix.value(r, c) * m.x(r, c), y_held = held.matrix.value(r, c) * m.x(r, c);
                first += y * (y_held * y_held + held.row.value[c]) / (n * d);
                mean_of_held += y_held / (n * d);
                third += held.column.value[r] * m.x(r, c) / (n * d);
            }
        return first + mean_of_held * m.scalar.value[0] + third;
    });
}
