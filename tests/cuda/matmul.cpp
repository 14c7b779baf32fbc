// x W^T with an epilogue and its adjoints on the GPU, against the CPU.
#include <psae/cpu/matmul.hpp>
#include <psae/cuda/matmul.hpp>

#include "device.hpp"
#include "rounded.hpp"

using namespace psae;

namespace {

struct sizes {
    std::size_t n, in, out;
};
constexpr sizes shapes[] = {{0, 4, 3}, {1, 1, 1}, {197, 5, 7}, {33, 64, 48}, {4097, 3, 2}};

template <class T>
constexpr double rounding = sizeof(T) == 4 ? 2e-6 : 1e-13;

}  // namespace

TEMPLATE_TEST_CASE("matmul on the GPU, with and without an epilogue, with weights of either form", "", float, double) {
    using T = TestType;
    const psae::cuda device;
    cpu host;
    arena<> host_scratch;
    spoilt_arena scratch(device);
    for (const auto& [n, in, out] : shapes) {
        INFO(n << " x " << in << " -> " << out);
        const auto x = random_tensor<T>(matrix{n, in}, 1), W = random_tensor<T>(matrix{out, in}, 2),
                   r = random_tensor<T>(matrix{n, out}, 3);
        const auto b = random_tensor<T>(row{out}, 4);
        const auto there_x = on_device(device, x), there_W = on_device(device, W), there_r = on_device(device, r);
        const auto there_b = on_device(device, b);
        const device_matrix<T, matrix> packed(W.view());
        CHECK(packed.shape() == W.shape());
        const auto check = [&](const auto& here, const auto& there) {
            tensor<T, matrix> expected(matrix{n, out});
            matmul(host, host_scratch, expected.view(), x.data(), W.view(), here);
            auto found = spoilt_tensor<T>(device, matrix{n, out}), again = spoilt_tensor<T>(device, matrix{n, out});
            matmul(device, scratch, found.view(), there_x.data(), there_W.view(), there);
            CHECK(relative_difference(on_host(device, found), expected) < rounding<T>);
            matmul(device, scratch, again.view(), there_x.data(), packed, there);
            CHECK(on_host(device, again) == on_host(device, found));
        };
        check(no_epilogue{}, no_epilogue{});
        check(bias(b), bias(there_b));
        check(bias(b) >> quick_gelu{}, bias(there_b) >> quick_gelu{});
        check(bias(b) >> add(r), bias(there_b) >> add(there_r));
        check(bias(b) >> gelu{} >> add(r), bias(there_b) >> gelu{} >> add(there_r));
        check(add(b), add(there_b));  // a row, repeated
    }
}

TEST_CASE("matmul on the GPU in bf16, of floats and of bf16") {
    psae::cuda device;
    device.products = precision::bf16;
    cpu host;
    arena<> host_scratch;
    spoilt_arena scratch(device);
    for (const auto& [n, in, out] : shapes) {
        INFO(n << " x " << in << " -> " << out);
        const auto x = random_tensor<float>(matrix{n, in}, 1), W = random_tensor<float>(matrix{out, in}, 2),
                   r = random_tensor<float>(matrix{n, out}, 3), g = random_tensor<float>(matrix{n, out}, 5);
        const auto b = random_tensor<float>(row{out}, 4);
        const auto there_x = on_device(device, x), there_W = on_device(device, W), there_r = on_device(device, r),
                   there_g = on_device(device, g);
        const auto there_b = on_device(device, b);
        const auto short_x = on_device(device, rounded(x));
        const auto like = [](const auto& numbers) {
            auto copy = numbers.clone();
            for (float& v : copy) v = widen(to_bf16(v));
            return copy;
        };
        const auto x_like = like(x), W_like = like(W), g_like = like(g);
        const device_matrix<float, matrix> packed(W.view());
        const auto check = [&](const auto& here, const auto& there) {
            tensor<float, matrix> expected(matrix{n, out});
            matmul(host, host_scratch, expected.view(), x_like.data(), W_like.view(), here);
            auto found = spoilt_tensor<float>(device, matrix{n, out});
            matmul(device, scratch, found.view(), there_x.data(), there_W.view(), there);
            CHECK(relative_difference(on_host(device, found), expected) < rounding<float>);
            auto of_short = spoilt_tensor<float>(device, matrix{n, out});
            matmul(device, scratch, of_short.view(), short_x.data(), packed, there);
            CHECK(on_host(device, of_short) == on_host(device, found));
        };
        check(no_epilogue{}, no_epilogue{});
        check(bias(b), bias(there_b));
        check(bias(b) >> add(r), bias(there_b) >> add(there_r));
        check(bias(b) >> quick_gelu{}, bias(there_b) >> quick_gelu{});

        const auto check_rounded = [&](const auto& here, const auto& there) {
            tensor<float, matrix> expected(matrix{n, out});
            matmul(host, host_scratch, expected.view(), x_like.data(), W_like.view(), here);
            auto found = spoilt_tensor<bf16>(device, matrix{n, out});
            matmul(device, scratch, found.view(), short_x.data(), packed, there);
            CHECK(relative_difference(widened(on_host(device, found)), expected) < 1e-2);  // rounded twice
        };
        check_rounded(bias(b), bias(there_b));
        check_rounded(bias(b) >> quick_gelu{}, bias(there_b) >> quick_gelu{});
        check_rounded(bias(b) >> gelu{}, bias(there_b) >> gelu{});

        device_row<float, row> frozen(row{out});
        upload(device, frozen.data(), b.data(), out);
        check(bias(b), bias(frozen));
        const auto result_with = [&](const auto& bias_there) {
            auto found = spoilt_tensor<bf16>(device, matrix{n, out});
            matmul(device, scratch, found.view(), short_x.data(), packed, bias(bias_there));
            return widened(on_host(device, found));
        };
        const auto with_bias = result_with(there_b);
        CHECK(result_with(frozen) == with_bias);
        if (out > 1 && in > 1) {  // it was rounded then, and is not again
            upload(device, frozen.data(), r.data(), out);
            CHECK(result_with(frozen) == with_bias);
        }

        tensor<float, matrix> dx(matrix{n, in});
        auto there_dx = spoilt_tensor<float>(device, matrix{n, in});
        for (const psae::write how : {psae::write::overwrite, psae::write::add}) {
            matmul_adjoint_input(host, host_scratch, dx.data(), g_like.data(), n, W_like.view(), how);
            matmul_adjoint_input(device, scratch, there_dx.data(), there_g.data(), n, packed, how);
            CHECK(relative_difference(on_host(device, there_dx), dx) < rounding<float>);
        }
    }
}

TEMPLATE_TEST_CASE("the adjoints of matmul on the GPU", "", float, double) {
    using T = TestType;
    const psae::cuda device;
    cpu host;
    arena<> host_scratch;
    spoilt_arena scratch(device);
    for (const auto& [n, in, out] : shapes) {
        INFO(n << " x " << in << " -> " << out);
        const auto x = random_tensor<T>(matrix{n, in}, 1), W = random_tensor<T>(matrix{out, in}, 2),
                   g = random_tensor<T>(matrix{n, out}, 3);
        const auto there_x = on_device(device, x), there_W = on_device(device, W), there_g = on_device(device, g);
        const device_matrix<T, matrix> packed(W.view());
        tensor<T, matrix> dx(matrix{n, in}), dW(matrix{out, in});
        auto there_dx = spoilt_tensor<T>(device, matrix{n, in}), there_dW = spoilt_tensor<T>(device, matrix{out, in});
        for (const psae::write how : {psae::write::overwrite, psae::write::add}) {
            matmul_adjoint_input(host, host_scratch, dx.data(), g.data(), n, W.view(), how);
            matmul_adjoint_weights(host, dW.data(), g.data(), x.data(), n, out, in, how);
            if (how == psae::write::overwrite)
                matmul_adjoint_input(device, scratch, there_dx.data(), there_g.data(), n, there_W.view(), how);
            else matmul_adjoint_input(device, scratch, there_dx.data(), there_g.data(), n, packed, how);
            matmul_adjoint_weights(device, there_dW.data(), there_g.data(), there_x.data(), n, out, in, how);
            CHECK(relative_difference(on_host(device, there_dx), dx) < rounding<T>);
            CHECK(relative_difference(on_host(device, there_dW), dW) < rounding<T>);
        }
    }
}
