// Layer normalisation and its adjoint: as on the CPU, for rows that a warp holds, that several hold and that none hold.
#include "device.hpp"

#include <psae/cpu/layer_norm.hpp>
#include <psae/cuda/layer_norm.hpp>

#include "rounded.hpp"

using namespace psae;

namespace {

struct sizes {
    std::size_t n, d;
};
const sizes all_sizes[] = {{0, 8}, {1, 1}, {3, 5}, {17, 64}, {9, 768}, {2, 1028}, {3, 1283}, {2, 9000}};

template <class T>
constexpr double tolerance = sizeof(T) == 4 ? 1e-5 : 1e-12;

}  // namespace

TEMPLATE_TEST_CASE("layer_norm on the GPU", "", float, double) {
    using T = TestType;
    cpu host(1);
    psae::cuda device;
    for (const auto& [n, d] : all_sizes) {
        INFO(n << " rows of " << d);
        const auto x = random_tensor<T>(matrix{n, d}, 1);
        const auto gain = random_tensor<T>(row{d}, 2), bias = random_tensor<T>(row{d}, 3);
        tensor<T, matrix> expected(x.shape());
        tensor<T, row> means(row{n}), scales(row{n});
        layer_norm(host, expected.data(), x.data(), gain.data(), bias.data(), n, d, T(1e-5), means.data(),
                   scales.data());

        const auto x_there = on_device(device, x);
        const auto gain_there = on_device(device, gain), bias_there = on_device(device, bias);
        auto out = spoilt_tensor<T>(device, x.shape());
        auto means_there = spoilt_tensor<T>(device, row{n}), scales_there = spoilt_tensor<T>(device, row{n});
        layer_norm(device, out.data(), x_there.data(), gain_there.data(), bias_there.data(), n, d, T(1e-5),
                   means_there.data(), scales_there.data());
        CHECK(relative_difference(on_host(device, out), expected) < tolerance<T>);
        CHECK(relative_difference(on_host(device, means_there), means) < tolerance<T>);
        CHECK(relative_difference(on_host(device, scales_there), scales) < tolerance<T>);

        if constexpr (std::is_same_v<T, float>) {
            auto short_out = spoilt_tensor<bf16>(device, x.shape());
            layer_norm(device, short_out.data(), x_there.data(), gain_there.data(), bias_there.data(), n, d, T(1e-5));
            CHECK(widened(on_host(device, short_out)) == widened(rounded(on_host(device, out))));
        }

        // In place, from rows that are not aligned to 16 bytes, without means and scales.
        auto shifted = spoilt_tensor<T>(device, row{n * d + 1});
        upload(device, shifted.data() + 1, x.data(), x.size());
        layer_norm(device, shifted.data() + 1, shifted.data() + 1, gain_there.data(), bias_there.data(), n, d, T(1e-5));
        CHECK(relative_difference(on_host(device, shifted.data() + 1, n * d), expected) < tolerance<T>);
    }
}

TEMPLATE_TEST_CASE("layer_norm's adjoint on the GPU", "", float, double) {
    using T = TestType;
    cpu host(1);
    psae::cuda device;
    for (const auto& [n, d] : all_sizes) {
        const auto x = random_tensor<T>(matrix{n, d}, 1), g = random_tensor<T>(matrix{n, d}, 2),
                   before = random_tensor<T>(matrix{n, d}, 3);
        const auto gain = random_tensor<T>(row{d}, 4), bias = random_tensor<T>(row{d}, 5);
        tensor<T, matrix> out(x.shape());
        tensor<T, row> means(row{n}), scales(row{n});
        layer_norm(host, out.data(), x.data(), gain.data(), bias.data(), n, d, T(1e-5), means.data(), scales.data());
        const auto x_there = on_device(device, x), g_there = on_device(device, g);
        const auto gain_there = on_device(device, gain), means_there = on_device(device, means),
                   scales_there = on_device(device, scales);
        for (const auto how : {psae::write::overwrite, psae::write::add}) {
            INFO(n << " rows of " << d << (how == psae::write::add ? ", added" : ""));
            auto expected = before.clone();
            layer_norm_adjoint_input(host, expected.data(), g.data(), x.data(), gain.data(), means.data(),
                                     scales.data(), n, d, how);
            auto dx = how == psae::write::add ? on_device(device, before) : spoilt_tensor<T>(device, x.shape());
            layer_norm_adjoint_input(device, dx.data(), g_there.data(), x_there.data(), gain_there.data(),
                                     means_there.data(), scales_there.data(), n, d, how);
            CHECK(relative_difference(on_host(device, dx), expected) < tolerance<T>);
        }
    }
}
