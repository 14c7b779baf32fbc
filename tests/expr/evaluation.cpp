// Expressions: broadcasting, what is refused, and that evaluation allocates nothing.
#include <catch2/catch.hpp>

#include <psae/cpu/pointwise.hpp>
#include <psae/expr/functors.hpp>
#include <psae/grad/tape.hpp>

#include "../allocations.hpp"

using namespace psae;

namespace {

template <class T>
void count_up(T& t) {
    for (std::size_t i = 0; i < t.size(); ++i) t[i] = double(i + 1);
}

}  // namespace

TEST_CASE("scalars, rows and columns are repeated over a matrix") {
    tensor<double, shape<dyn, 5>> m{shape<dyn, 5>{3}}, out{shape<dyn, 5>{3}};
    tensor<double, shape<5>> row;
    tensor<double, shape<dyn, 1>> column{shape<dyn, 1>{3}};
    tensor<double, shape<>> scalar;
    tensor<double, shape<1>> one;
    count_up(m), count_up(row), count_up(column), count_up(scalar), count_up(one);
    cpu device(2);
    const auto check = [&](const auto& e, auto wanted) {
        assign(device, out, e);
        for (std::size_t r = 0; r < 3; ++r)
            for (std::size_t c = 0; c < 5; ++c) CHECK(out(r, c) == wanted(r, c));
        assign(device, out, e, write::add);
        for (std::size_t r = 0; r < 3; ++r)
            for (std::size_t c = 0; c < 5; ++c) CHECK(out(r, c) == 2 * wanted(r, c));
    };
    check(m * row, [&](auto r, auto c) { return m(r, c) * row[c]; });
    check(row - m, [&](auto r, auto c) { return row[c] - m(r, c); });
    check(column * row, [&](auto r, auto c) { return column[r] * row[c]; });
    check(m + column, [&](auto r, auto c) { return m(r, c) + column[r]; });
    check(scalar + m * 2 - 3, [&](auto r, auto c) { return scalar[0] + m(r, c) * 2 - 3; });
    check(one * m, [&](auto r, auto c) { return one[0] * m(r, c); });
    check(as_node(row), [&](auto, auto c) { return row[c]; });
    check(as_node(column), [&](auto r, auto) { return column[r]; });
    check(1 / (m * m), [&](auto r, auto c) { return 1 / (m(r, c) * m(r, c)); });
}

TEST_CASE("shapes that differ at run time are refused") {
    tensor<double, shape<dyn, 5>> three{shape<dyn, 5>{3}}, four{shape<dyn, 5>{4}};
    tensor<double, shape<1, 5>> one;
    tensor<double, shape<dyn>> row{shape<dyn>{4}};
    tensor<double, shape<dyn, 1>> column{shape<dyn, 1>{2}};
    cpu device(1);
    CHECK_THROWS_AS(three + four, error);
    CHECK_THROWS_AS(three + one, error);  // rows are repeated only by a lower rank
    CHECK_THROWS_AS(three * row, error);
    CHECK_THROWS_AS(three * column, error);
    CHECK_THROWS_AS(assign(device, three, as_node(four)), error);
    CHECK_THROWS_AS(assign(device, three, as_node(row)), error);
    tensor<double, shape<dyn, 1>> thin{shape<dyn, 1>{1}};  // one row would become three
    CHECK_THROWS_AS(assign(device, thin, as_node(column)), error);
}

TEST_CASE("an expression that reads what it writes at other positions is refused") {
    std::vector<double> memory(40, 1.0);
    using matrix = view<double, shape<dyn, 4>>;
    const matrix a{memory.data(), shape<dyn, 4>{5}}, shifted{memory.data() + 4, shape<dyn, 4>{5}},
        apart{memory.data() + 20, shape<dyn, 4>{5}};
    cpu device(1);
    CHECK_NOTHROW(assign(device, a, a * 2 + a));  // the same positions
    CHECK_NOTHROW(assign(device, a, apart + 1));
    CHECK(memory[0] == 2);
    CHECK_THROWS_AS(assign(device, a, shifted + 1), error);
    CHECK_THROWS_AS(assign(device, shifted, a + 1), error);
    CHECK_THROWS_AS(assign(device, a, exp(stop_gradient(1 - square(shifted))) * apart), error);
    const view<double, shape<4>> row{memory.data() + 8, {}};
    CHECK_THROWS_AS(assign(device, a, apart * row), error);
    const view<double, shape<dyn, 1>> column{memory.data(), shape<dyn, 1>{5}};
    CHECK_THROWS_AS(assign(device, a, apart * column), error);
    // Leaves that know their tape are views as well.
    arena<> scratch;
    tape<cpu> t(device, scratch, mode::train);
    CHECK_THROWS_AS(assign(device, a, t.input(shifted) + 1), error);
    CHECK_THROWS_AS(assign(device, a, t.variable_of(shifted) * 2), error);
    CHECK(memory[4] == 2);  // nothing was written
}

TEST_CASE("evaluating an expression allocates nothing") {
    tensor<float, shape<dyn, 64>> x{shape<dyn, 64>{100}}, out{shape<dyn, 64>{100}};
    tensor<float, shape<64>> row;
    arena<> scratch;
    cpu device(counted_threads);
    std::size_t counted = 0;
    double sum = 0;
    const std::size_t at_start = allocations();
    const tensor<float, shape<1000>> counts_itself;
    CHECK(allocations() - at_start == PSAE_COUNTS_ALLOCATIONS);
    for (int round = 0; round < 3; ++round) {
        scratch.reset();
        const std::size_t before = allocations();
        assign(device, out, sqrt(square(x - row) + 1) * exp(-x));
        row_sums(device, out.data(), x * row, 100, 64);
        column_sums(device, scratch, row.data(), x * 2 + 1, 100, 64);
        float one = 0;
        total(device, scratch, &one, x * row, 100, 64);
        sum += double(one);
        counted = allocations() - before;
    }
    CHECK(sum == 0);
    CHECK(counted == 0);
}
