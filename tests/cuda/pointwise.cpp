// Evaluation and reduction of expressions on the GPU, against the CPU.
#include <utility>

#include <psae/cpu/pointwise.hpp>
#include <psae/cuda/pointwise.hpp>
#include <psae/expr/functors.hpp>

#include "device.hpp"

using namespace psae;

namespace {

// Rows and columns at the edges of what a warp, a block and a grid take at once.
constexpr std::size_t extents[][2] = {{0, 5},   {1, 1},    {1, 5000}, {3, 0},    {5, 2},    {7, 33},
                                      {197, 5}, {300, 48}, {4097, 3}, {1000, 1}, {70, 257}, {3, 2049}};

template <class T>
constexpr double rounding = sizeof(T) == 4 ? 2e-6 : 1e-13;

// The operands of an expression, on both sides.
template <class T>
struct operands {
    cuda device;
    cpu host;
    tensor<T, matrix> x, y;
    tensor<T, row> r;
    tensor<T, column> c;
    tensor<T, scalar> s;
    tensor<T, matrix, space::device> device_x, device_y;
    tensor<T, row, space::device> device_r;
    tensor<T, column, space::device> device_c;
    tensor<T, scalar, space::device> device_s;

    operands(std::size_t rows, std::size_t cols)
        : x(random_tensor<T>(matrix{rows, cols}, 1)),
          y(random_tensor<T>(matrix{rows, cols}, 2)),
          r(random_tensor<T>(row{cols}, 3)),
          c(random_tensor<T>(column{rows}, 4)),
          s(random_tensor<T>(scalar{}, 5)),
          device_x(on_device(device, x)),
          device_y(on_device(device, y)),
          device_r(on_device(device, r)),
          device_c(on_device(device, c)),
          device_s(on_device(device, s)) {}

    // f(x, y, r, c, s), there and here.
    template <class F>
    auto here(const F& f) const {
        return f(x.view(), y.view(), r.view(), c.view(), s.view());
    }
    template <class F>
    auto there(const F& f) const {
        return f(device_x.view(), device_y.view(), device_r.view(), device_c.view(), device_s.view());
    }
};

constexpr auto everything = [](const auto& x, const auto& y, const auto& r, const auto& c, const auto& s) {
    return map(quick_gelu{}, x * s - r) * c + stop_gradient(square(y) / 3);
};

}  // namespace

TEMPLATE_TEST_CASE("expressions are evaluated on the GPU as on the CPU", "", float, double) {
    for (const auto& [rows, cols] : extents) {
        INFO(rows << " x " << cols);
        const operands<TestType> o(rows, cols);
        cpu host;
        tensor<TestType, matrix> expected(matrix{rows, cols});
        auto out = spoilt_tensor<TestType>(o.device, matrix{rows, cols});
        assign(host, expected, o.here(everything));
        assign(o.device, out, o.there(everything));
        CHECK(relative_difference(on_host(o.device, out), expected) < rounding<TestType>);
        assign(host, expected, o.here(everything), psae::write::add);
        assign(o.device, out, o.there(everything), psae::write::add);
        CHECK(relative_difference(on_host(o.device, out), expected) < rounding<TestType>);
    }
}

// Both compilers of a .cu file have to lay an expression out alike: what holds no number takes no memory.
using fixed = view<const float, shape<4, 5>, space::device>;
static_assert(sizeof(fixed) == sizeof(float*));
static_assert(sizeof(decltype(-square(std::declval<fixed>()))) == sizeof(float*));
static_assert(sizeof(decltype(std::declval<fixed>() + square(std::declval<fixed>()))) == 2 * sizeof(float*));

TEST_CASE("expressions reach the GPU as they are, whatever their shapes and functors") {
    const psae::cuda device;
    cpu host;
    const auto m = random_tensor<float>(shape<4, 5>{}, 1);
    const auto r = random_tensor<float>(shape<5>{}, 2);
    const auto c = random_tensor<float>(shape<4, 1>{}, 3);
    const auto s = random_tensor<float>(shape<1>{}, 4);
    const auto there_m = on_device(device, m);
    const auto there_r = on_device(device, r);
    const auto there_c = on_device(device, c);
    const auto there_s = on_device(device, s);
    const auto check = [&](const auto& f) {
        tensor<float, shape<4, 5>> expected;
        auto found = spoilt_tensor<float>(device, shape<4, 5>{});
        assign(host, expected, f(m.view(), r.view(), c.view(), s.view()));
        assign(device, found, f(there_m.view(), there_r.view(), there_c.view(), there_s.view()));
        CHECK(relative_difference(on_host(device, found), expected) < 1e-6);
    };
    check([](auto m, auto, auto, auto) { return m + square(m); });
    check([](auto m, auto, auto, auto) { return -(-(-m)) + (-m) * square(square(m)); });
    check([](auto m, auto r, auto c, auto) { return (m - r) * (m - r) + (m * r) * 2 + r * c; });
    check([](auto m, auto, auto c, auto s) { return s * m + square(c) + square(s); });
    check([](auto m, auto r, auto c, auto s) {
        return map(hyperbolic_tangent{2.0}, m * s) - map(hyperbolic_tangent{3.0}, r) * 2 + stop_gradient(-c * -c);
    });
}

TEST_CASE("rows and numbers are evaluated on the GPU") {
    const cuda device;
    const auto r = random_tensor<float>(row{3000}, 1);
    const auto device_r = on_device(device, r);
    auto out = spoilt_tensor<float>(device, row{3000});
    assign(device, out, device_r * 2);
    CHECK(on_host(device, out)[2999] == 2 * r[2999]);
    auto number = spoilt_tensor<double>(device, scalar{});
    assign(device, number, constant_node<double>{3});
    CHECK(on_host(device, number)[0] == 3);
    auto narrow = spoilt_tensor<float>(device, shape<4, 25, 30>{});
    const view<const float, shape<4, 25, 30>, space::device> same{device_r.data(), {}};
    assign(device, narrow, same - 1);
    CHECK(on_host(device, narrow)[1234] == r[1234] - 1);
}

TEST_CASE("an expression that reads what it writes at other positions is refused on the GPU") {
    const cuda device;
    auto memory = spoilt_tensor<float>(device, row{40});
    const view<float, shape<dyn, 4>, space::device> a{memory.data(), shape<dyn, 4>{5}},
        shifted{memory.data() + 4, shape<dyn, 4>{5}};
    assign(device, a, constant_node<float>{1});
    assign(device, a, a * 2 + a);
    CHECK(on_host(device, memory)[19] == 3);
    CHECK_THROWS_AS(assign(device, a, shifted + 1), error);
    CHECK_THROWS_AS(assign(device, a, view<float, shape<dyn, 4>, space::device>{memory.data(), shape<dyn, 4>{6}}),
                    error);
}

TEMPLATE_TEST_CASE("fill on the GPU", "", float, double, std::uint32_t) {
    const cuda device;
    for (const std::size_t count : {0, 1, 255, 100000}) {
        auto memory = spoilt_tensor<TestType>(device, row{count + 1});
        for (const int value : {0, 3}) {
            fill(device, memory.data(), count, static_cast<TestType>(value));
            auto found = on_host(device, memory);
            CHECK(found.back() != static_cast<TestType>(value));  // what comes after is left alone
            found.pop_back();
            CHECK(found == std::vector<TestType>(count, static_cast<TestType>(value)));
        }
    }
}

TEMPLATE_TEST_CASE("sums on the GPU are those on the CPU, and the same each time", "", float, double) {
    for (const auto& [rows, cols] : extents) {
        INFO(rows << " x " << cols);
        const operands<TestType> o(rows, cols);
        cpu host(1);
        arena<> host_scratch;
        spoilt_arena scratch(o.device);
        const auto here = o.here(everything);
        const auto there = o.there(everything);
        tensor<TestType, column> of_rows(column{rows});
        tensor<TestType, row> of_columns(row{cols});
        auto device_of_rows = spoilt_tensor<TestType>(o.device, column{rows});
        auto device_of_columns = spoilt_tensor<TestType>(o.device, row{cols});
        auto number = spoilt_tensor<TestType>(o.device, scalar{});
        long double sum = 0;
        for (const psae::write mode : {psae::write::overwrite, psae::write::add}) {
            row_sums(host, of_rows.data(), here, rows, cols, mode);
            column_sums(host, host_scratch, of_columns.data(), here, rows, cols, mode);
            row_sums(o.device, device_of_rows.data(), there, rows, cols, mode);
            column_sums(o.device, scratch, device_of_columns.data(), there, rows, cols, mode);
            total(o.device, scratch, number.data(), there, rows, cols, 0.5, mode);
            for (std::size_t i = 0; i < rows; ++i)
                for (std::size_t j = 0; j < cols; ++j)
                    sum += 0.5L * static_cast<long double>(here.load(position{i, j}));
            // The terms are of about 1, however small their sum may be.
            const auto size = [](std::size_t n) { return std::sqrt(static_cast<double>(n)); };
            CHECK(relative_difference(on_host(o.device, device_of_rows), of_rows, size(cols)) < rounding<TestType>);
            CHECK(relative_difference(on_host(o.device, device_of_columns), of_columns, size(rows)) <
                  rounding<TestType>);
            CHECK(std::abs(static_cast<double>(on_host(o.device, number)[0] - sum)) <=
                  rounding<TestType> * size(rows * cols));
        }
        const auto first = on_host(o.device, number)[0];
        total(o.device, scratch, number.data(), there, rows, cols, 0.5, psae::write::overwrite);
        const auto again = on_host(o.device, number)[0];
        total(o.device, scratch, number.data(), there, rows, cols, 0.5, psae::write::overwrite);
        CHECK(on_host(o.device, number)[0] == again);
        CHECK(first == Approx(2 * again).margin(1e-3));
    }
}
