// x W^T with an epilogue and its adjoints on the GPU, against the CPU.
#include <psae/cpu/matmul.hpp>
#include <psae/cuda/matmul.hpp>

#include "device.hpp"

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
        check(bias(b) >> gelu{} >> add(r), bias(there_b) >> gelu{} >> add(there_r));
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
