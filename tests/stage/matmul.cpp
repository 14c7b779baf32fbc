// x W^T with prologue and epilogue: values against loops.
#include "values.hpp"

using namespace psae;

namespace {

struct sizes {
    std::size_t n, in, out;
};
const sizes odd_sizes[] = {{1, 1, 1}, {3, 5, 7}, {17, 33, 9}, {64, 16, 48}, {131, 70, 65}};

template <class T>
std::vector<double> reference(const T* x, const T* W, const sizes& s) {
    std::vector<double> y(s.n * s.out);
    for (std::size_t r = 0; r < s.n; ++r)
        for (std::size_t o = 0; o < s.out; ++o)
            for (std::size_t i = 0; i < s.in; ++i)
                y[r * s.out + o] += double(x[r * s.in + i]) * double(W[o * s.in + i]);
    return y;
}

// All epilogues in float and double, with the weights as they are and packed.
template <class T>
void check_values(double tolerance) {
    for (const sizes& s : odd_sizes) {
        INFO(s.n << " x " << s.in << " x " << s.out);
        const auto x = normal_tensor<T>(matrix{s.n, s.in}, 1), W = normal_tensor<T>(matrix{s.out, s.in}, 2),
                   r = normal_tensor<T>(matrix{s.n, s.out}, 3);
        const auto b = normal_tensor<T>(row{s.out}, 4);
        const packed_matrix<T, matrix> packed(W.view());
        const auto product = reference(x.data(), W.data(), s);
        const auto check = [&](const auto& e, const auto& formula) {
            std::vector<double> want(product.size());
            for (std::size_t i = 0; i < want.size(); ++i)
                want[i] = formula(product[i], double(b[i % s.out]), double(r.data()[i]));
            const auto dense = run_stage<T>([&](auto zero) { return matmul(x + zero, W, e); });
            CHECK(relative_difference(dense, want, 1) < tolerance);
            const auto frozen = run_stage<T>([&](auto zero) { return matmul(evaluate(x + zero), packed, e); }, 2);
            CHECK(relative_difference(frozen, want, 1) < tolerance);
        };
        const auto swish = [](double v) { return v / (1 + std::exp(-1.702 * v)); };
        const auto phi = [](double v) { return 0.5 * v * (1 + std::erf(v / std::sqrt(2.0))); };
        check(no_epilogue{}, [](double v, double, double) { return v; });
        check(bias(b), [](double v, double c, double) { return v + c; });
        check(add(r), [](double v, double, double a) { return v + a; });
        check(quick_gelu{}, [&](double v, double, double) { return swish(v); });
        check(bias(b) >> quick_gelu{}, [&](double v, double c, double) { return swish(v + c); });
        check(bias(b) >> gelu{}, [&](double v, double c, double) { return phi(v + c); });
        check(bias(b) >> add(r), [](double v, double c, double a) { return v + c + a; });
        check(bias(b) >> gelu{} >> add(r), [&](double v, double c, double a) { return phi(v + c) + a; });
        check(add(r) >> bias(b), [](double v, double c, double a) { return v + c + a; });  // bias not first
        check(gelu{} >> bias(b), [&](double v, double c, double) { return phi(v) + c; });
        check(bias(b) >> (quick_gelu{} >> bias(b)), [&](double v, double c, double) { return swish(v + c) + c; });
        check(bias(b) >> add(r * r), [](double v, double c, double a) { return v + c + a * a; });
        check(add(r) >> add(r) >> add(r) >> add(r), [](double v, double, double a) { return v + 4 * a; });
        check(bias(b) >> square_functor{}, [](double v, double c, double) { return (v + c) * (v + c); });
    }
}

}  // namespace

TEST_CASE("matmul equals loops, in float") { check_values<float>(2e-6); }
TEST_CASE("matmul equals loops, in double") { check_values<double>(1e-13); }

TEST_CASE("matmul in float trains with packed weights as with plain ones") {
    cpu device;
    arena<> scratch;
    const auto x = normal_tensor<float>(matrix{131, 70}, 1), W = normal_tensor<float>(matrix{65, 70}, 2);
    const packed_matrix<float, matrix> packed(W.view());
    const auto gradient_of_x = [&](const auto& weights) {
        scratch.reset();
        tape<cpu> t(device, scratch, mode::train);
        const auto v = t.variable_of(x.view());
        const auto loss = mean(square(matmul(v, weights, quick_gelu{})));
        t.run();
        backward(t, loss);
        return std::vector<float>(v.adjoint->data, v.adjoint->data + v.size());
    };
    CHECK(relative_difference(gradient_of_x(packed), gradient_of_x(W)) < 1e-6);
    const std::size_t allocations = scratch.allocations();
    for (int i = 0; i < 3; ++i) gradient_of_x(packed);
    CHECK(scratch.allocations() == allocations);
}

TEST_CASE("matmul refuses operands that do not fit") {
    cpu device;
    arena<> scratch;
    tape<cpu> t(device, scratch, mode::infer);
    const auto x = normal_tensor<float>(matrix{4, 5}, 1), W = normal_tensor<float>(matrix{3, 6}, 2),
               r = normal_tensor<float>(matrix{4, 4}, 3);
    const auto b = normal_tensor<float>(row{4}, 4);
    CHECK_THROWS_WITH(matmul(t.input(x.view()), W), "shapes do not fit (matmul): x [4, 5], W [3, 6]");
    const auto fitting = normal_tensor<float>(matrix{3, 5}, 2);
    CHECK_THROWS_AS(matmul(t.input(x.view()), fitting, bias(b)), error);
    CHECK_THROWS_AS(matmul(t.input(x.view()), fitting, add(r)), error);
}
