// Matrix products on the GPU, against sums in double.
#include <cmath>
#include <utility>

#include <psae/cuda/gemm.hpp>

#include "device.hpp"
#include "rounded.hpp"

using namespace psae;

namespace {

struct sizes {
    std::size_t M, N, K;
};
constexpr sizes shapes[] = {{1, 1, 1}, {5, 3, 7}, {1, 40, 65}, {64, 1, 33}, {37, 50, 129}, {128, 96, 64}};

template <class T>
constexpr double rounding = sizeof(T) == 4 ? 1e-6 : 1e-14;

// Of TF32, by the norm of the result. It keeps 10 bits of an operand's fraction; where the others are cut off, the product
// of two numbers is too small by less than 2^-9 of it, and by 7e-4 on average, which sums of many come to.
double tf32_error(const sizes& s) { return s.M * s.N * s.K < 1000 ? 0x1p-9 : 1e-3; }

// [M, N] of op(A) op(B), each with the leading dimension given.
template <class T>
std::vector<double> plain_product(bool transpose_a, bool transpose_b, const sizes& s, const std::vector<T>& A,
                                  std::size_t lda, const std::vector<T>& B, std::size_t ldb) {
    std::vector<double> C(s.M * s.N);
    for (std::size_t m = 0; m < s.M; ++m)
        for (std::size_t n = 0; n < s.N; ++n)
            for (std::size_t k = 0; k < s.K; ++k)
                C[m * s.N + n] += double(transpose_a ? A[k * lda + m] : A[m * lda + k]) *
                                  double(transpose_b ? B[n * ldb + k] : B[k * ldb + n]);
    return C;
}

template <class T>
std::vector<T> random_numbers(std::size_t count, std::uint64_t seed) {
    random_stream random(seed);
    std::vector<T> x(count);
    for (T& v : x) v = static_cast<T>(random.normal());
    return x;
}
template <class T>
tensor<T, row, space::device> on_device(const psae::cuda& device, const std::vector<T>& x) {
    tensor<T, row, space::device> copy(row{x.size()});
    upload(device, copy.data(), x.data(), x.size());
    return copy;
}

}  // namespace

TEMPLATE_TEST_CASE("products with leading dimensions, transposed or not", "", float, double) {
    const psae::cuda device;
    for (const sizes& s : shapes)
        for (const bool transpose_a : {false, true})
            for (const bool transpose_b : {false, true})
                for (const std::size_t gap : {0, 3}) {
                    INFO(s.M << " x " << s.N << " x " << s.K << (transpose_a ? ", A^T" : "")
                             << (transpose_b ? ", B^T" : "") << ", gap " << gap);
                    const std::size_t lda = (transpose_a ? s.M : s.K) + gap, ldb = (transpose_b ? s.K : s.N) + gap,
                                      ldc = s.N + gap;
                    const auto A = random_numbers<TestType>((transpose_a ? s.K : s.M) * lda, 1),
                               B = random_numbers<TestType>((transpose_b ? s.N : s.K) * ldb, 2);
                    const auto plain = plain_product(transpose_a, transpose_b, s, A, lda, B, ldb);
                    const auto a = on_device(device, A), b = on_device(device, B);
                    // Overwritten, whatever stands there; then added to. What is in the gaps stays.
                    auto C = spoilt_tensor<TestType>(device, row{s.M * ldc});
                    gemm(device, transpose_a, transpose_b, s.M, s.N, s.K, TestType(2), a.data(), lda, b.data(), ldb,
                         TestType(0), C.data(), ldc);
                    gemm(device, transpose_a, transpose_b, s.M, s.N, s.K, TestType(1), a.data(), lda, b.data(), ldb,
                         TestType(0.5), C.data(), ldc);
                    const auto found = on_host(device, C);
                    std::vector<double> result(s.M * s.N), expected(s.M * s.N);
                    for (std::size_t m = 0; m < s.M; ++m)
                        for (std::size_t n = 0; n < ldc; ++n) {
                            if (n >= s.N) {
                                CHECK(std::isnan(found[m * ldc + n]));
                                continue;
                            }
                            result[m * s.N + n] = found[m * ldc + n];
                            expected[m * s.N + n] = 2 * plain[m * s.N + n];
                        }
                    CHECK(relative_difference(result, expected, std::sqrt(double(s.K))) < rounding<TestType>);
                }
}

TEMPLATE_TEST_CASE("products with a bias and another matrix added", "", float, double) {
    const psae::cuda device;
    for (const sizes& s : shapes)
        for (const std::size_t offset : {0, 1}) {  // of the bias
            INFO(s.M << " x " << s.N << " x " << s.K << ", offset " << offset);
            const auto A = random_numbers<TestType>(s.M * s.K, 1), B = random_numbers<TestType>(s.K * s.N, 2),
                       R = random_numbers<TestType>(s.M * s.N, 3), b = random_numbers<TestType>(s.N + offset, 4);
            const auto there_A = on_device(device, A), there_B = on_device(device, B), there_R = on_device(device, R),
                       there_b = on_device(device, b);
            auto C = spoilt_tensor<TestType>(device, row{s.M * s.N});
            const TestType* bias = there_b.data() + offset;
            auto expected = plain_product(false, false, s, A, s.K, B, s.N);
            for (std::size_t i = 0; i < expected.size(); ++i) expected[i] += double(b[offset + i % s.N]);
            gemm(device, false, false, s.M, s.N, s.K, 1, there_A.data(), s.K, there_B.data(), s.N, 0, C.data(), s.N,
                 {bias, nullptr});
            CHECK(relative_difference(on_host(device, C), expected, std::sqrt(double(s.K))) < rounding<TestType>);
            for (std::size_t i = 0; i < expected.size(); ++i) expected[i] += 0.5 * double(R[i]);
            gemm(device, false, false, s.M, s.N, s.K, 1, there_A.data(), s.K, there_B.data(), s.N, TestType(0.5),
                 C.data(), s.N, {bias, there_R.data()});
            CHECK(relative_difference(on_host(device, C), expected, std::sqrt(double(s.K))) < rounding<TestType>);
            CHECK(on_host(device, there_R) == R);
        }
}

TEST_CASE("products of bf16 with a result in either type") {
    const psae::cuda device;
    for (const sizes& s : shapes) {
        INFO(s.M << " x " << s.N << " x " << s.K);
        const auto A = rounded(random_numbers<float>(s.M * s.K, 1)), B = rounded(random_numbers<float>(s.K * s.N, 2)),
                   b = rounded(random_numbers<float>(s.N, 3));
        const auto there_A = on_device(device, A), there_B = on_device(device, B), there_b = on_device(device, b);
        auto expected = plain_product(false, false, s, widened(A), s.K, widened(B), s.N);
        auto C = spoilt_tensor<float>(device, row{s.M * s.N});
        gemm(device, false, false, s.M, s.N, s.K, 1, there_A.data(), s.K, there_B.data(), s.N, 0, C.data(), s.N);
        CHECK(relative_difference(on_host(device, C), expected, std::sqrt(double(s.K))) < 1e-6);
        auto D = spoilt_tensor<bf16>(device, row{s.M * s.N});
        gemm(device, false, false, s.M, s.N, s.K, 1, there_A.data(), s.K, there_B.data(), s.N, 0, D.data(), s.N,
             {there_b.data(), nullptr});
        for (std::size_t i = 0; i < expected.size(); ++i) expected[i] += double(widen(b[i % s.N]));
        CHECK(relative_difference(widened(on_host(device, D)), expected) < 1.0 / 256);
    }
}

TEST_CASE("products of nothing") {
    const psae::cuda device;
    const auto A = on_device(device, random_numbers<float>(12, 1));
    auto C = on_device(device, std::vector<float>(12, 4.0f));
    gemm(device, false, false, 0, 3, 4, 1.0f, A.data(), 4, A.data(), 3, 0.0f, C.data(), 3);
    gemm(device, false, false, 3, 0, 4, 1.0f, A.data(), 4, A.data(), 3, 0.0f, C.data(), 3);
    CHECK(on_host(device, C) == std::vector<float>(12, 4.0f));
    gemm(device, false, false, 3, 3, 0, 1.0f, A.data(), 4, A.data(), 3, 1.0f, C.data(), 4);
    CHECK(on_host(device, C) == std::vector<float>(12, 4.0f));
    gemm(device, false, false, 3, 3, 0, 1.0f, A.data(), 4, A.data(), 3, 0.5f, C.data(), 4);
    CHECK(on_host(device, C) == std::vector<float>{2, 2, 2, 4, 2, 2, 2, 4, 2, 2, 2, 4});
    gemm(device, true, true, 3, 3, 0, 1.0f, A.data(), 4, A.data(), 3, 0.0f, C.data(), 4);
    CHECK(on_host(device, C) == std::vector<float>{0, 0, 0, 4, 0, 0, 0, 4, 0, 0, 0, 4});
    const auto bias = on_device(device, std::vector<float>{1, 2, 3}),
               added = on_device(device, std::vector<float>(12, 6.0f));
    gemm(device, false, false, 3, 3, 0, 1.0f, A.data(), 4, A.data(), 3, 0.5f, C.data(), 4, {bias.data(), added.data()});
    CHECK(on_host(device, C) == std::vector<float>{4, 5, 6, 4, 4, 5, 6, 4, 4, 5, 6, 4});
}

TEST_CASE("products of operands at any address") {
    const psae::cuda device;
    constexpr sizes s{6, 9, 17};
    const auto A = random_numbers<float>(s.M * s.K, 1), B = random_numbers<float>(s.K * s.N, 2);
    const auto expected = plain_product(false, false, s, A, s.K, B, s.N);
    tensor<float, row, space::device> memory(row{1000});
    for (const std::size_t offset : {0, 1, 2, 4}) {
        float *a = memory.data() + offset, *b = a + A.size() + 1, *c = b + B.size() + 1;
        upload(device, a, A.data(), A.size());
        upload(device, b, B.data(), B.size());
        gemm(device, false, false, s.M, s.N, s.K, 1.0f, a, s.K, b, s.N, 0.0f, c, s.N);
        CHECK(relative_difference(on_host(device, c, s.M * s.N), expected) < 1e-6);
    }
}

TEST_CASE("products in the precision of the device") {
    psae::cuda device;
    for (const sizes& s : shapes)
        for (const bool transpose_a : {false, true})
            for (const bool transpose_b : {false, true}) {
                INFO(s.M << " x " << s.N << " x " << s.K);
                const auto A = random_numbers<float>(s.M * s.K, 1), B = random_numbers<float>(s.K * s.N, 2),
                           start = random_numbers<float>(s.M * s.N, 3);
                const std::size_t lda = transpose_a ? s.M : s.K, ldb = transpose_b ? s.K : s.N;
                const auto rounded = [](std::vector<float> x) {
                    for (float& v : x) v = widen(to_bf16(v));
                    return x;
                };
                const auto a = on_device(device, A), b = on_device(device, B);
                for (const precision products : {precision::fp32, precision::tf32, precision::bf16})
                    for (const psae::write how : {psae::write::overwrite, psae::write::add}) {
                        device.products = products;
                        auto expected =
                            products == precision::bf16
                                ? plain_product(transpose_a, transpose_b, s, rounded(A), lda, rounded(B), ldb)
                                : plain_product(transpose_a, transpose_b, s, A, lda, B, ldb);
                        auto C = how == psae::write::add ? on_device(device, start)
                                                         : spoilt_tensor<float>(device, row{start.size()});
                        spoilt_arena scratch(device);
                        product(device, scratch, transpose_a, transpose_b, s.M, s.N, s.K, a.data(), b.data(), how,
                                C.data());
                        // Without what was there before.
                        const auto check = [&] {
                            const auto result = on_host(device, C);
                            std::vector<double> found(result.begin(), result.end());
                            for (std::size_t i = 0; how == psae::write::add && i < found.size(); ++i)
                                found[i] -= double(start[i]);
                            if (products == precision::tf32) CHECK(norm_difference(found, expected) < tf32_error(s));
                            else CHECK(relative_difference(found, expected, std::sqrt(double(s.K))) < 1e-6);
                        };
                        check();
                        // Once more, on operands that are rounded already, with a bias.
                        if (how == psae::write::add) upload(device, C.data(), start.data(), start.size());
                        const auto bias = random_numbers<float>(s.N, 4);
                        const auto b_there = on_device(device, bias);
                        for (std::size_t i = 0; i < expected.size(); ++i) expected[i] += bias[i % s.N];
                        product(device, scratch, transpose_a, transpose_b, s.M, s.N, s.K,
                                operand_of_products(device, scratch, std::as_const(a).data(), A.size()),
                                operand_of_products(device, scratch, std::as_const(b).data(), B.size()), how, C.data(),
                                b_there.data());
                        check();
                    }
            }
}

TEST_CASE("floats are rounded to bf16 on the GPU as on the CPU") {
    const psae::cuda device;
    for (const std::size_t count : {1, 3, 4, 1023, 5000})
        for (const std::size_t offset : {0, 1}) {
            const auto x = random_numbers<float>(count + offset, 7);
            const auto there = on_device(device, x);
            auto out = spoilt_tensor<bf16>(device, row{count});
            round_to_bf16(device, out.data(), there.data() + offset, count);
            const auto found = on_host(device, out);
            std::size_t wrong = 0;
            for (std::size_t i = 0; i < count; ++i) wrong += found[i].bits != to_bf16(x[i + offset]).bits;
            CHECK(wrong == 0);
        }
}

TEST_CASE("products of more shapes than are kept") {
    const psae::cuda device;
    const auto A = random_numbers<float>(2000, 1);
    const auto a = on_device(device, A);
    auto C = spoilt_tensor<float>(device, row{1});
    for (std::size_t round = 0; round < 2; ++round)
        for (std::size_t K = 1; K < 1500; ++K)
            gemm(device, false, true, 1, 1, K, 1.0f, a.data(), K, a.data(), K, 0.0f, C.data(), 1);
    double expected = 0;
    for (std::size_t i = 0; i < 1499; ++i) expected += double(A[i]) * double(A[i]);
    CHECK(on_host(device, C)[0] == Approx(expected));
}
