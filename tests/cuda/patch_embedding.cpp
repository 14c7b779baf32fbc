// Patches, positions and class tokens: as on the CPU, to the last bit but for the order of sums.
#include "device.hpp"

#include <psae/cpu/patch_embedding.hpp>
#include <psae/cuda/patch_embedding.hpp>

#include "rounded.hpp"

using namespace psae;

TEMPLATE_TEST_CASE("extract_patches and its adjoint on the GPU", "", float, double) {
    using T = TestType;
    cpu host(1);
    psae::cuda device;
    struct sizes {
        std::size_t images, channels, side, patch;
    };
    for (const auto& [images, channels, side, patch] :
         {sizes{1, 1, 1, 1}, {2, 3, 28, 14}, {3, 3, 15, 5}, {1, 2, 32, 16}, {1, 1, 300, 300}, {0, 3, 8, 4}}) {
        INFO(images << " images, " << channels << " channels, side " << side << ", patches of " << patch);
        const std::size_t patches = side / patch * (side / patch), inputs = channels * patch * patch;
        const auto pixels = random_tensor<T>(matrix{images, channels * side * side}, 1);
        tensor<T, matrix> expected(matrix{images * (patches + 1), inputs});
        extract_patches(host, expected.data(), pixels.data(), images, channels, side, patch);
        auto out = spoilt_tensor<T>(device, expected.shape());
        extract_patches(device, out.data(), on_device(device, pixels).data(), images, channels, side, patch);
        CHECK(largest_difference(on_host(device, out), expected) == 0);
        if constexpr (std::is_same_v<T, float>) {
            auto short_out = spoilt_tensor<bf16>(device, expected.shape());
            extract_patches(device, short_out.data(), on_device(device, pixels).data(), images, channels, side, patch);
            CHECK(widened(on_host(device, short_out)) == widened(rounded(expected)));
        }

        const auto g = random_tensor<T>(expected.shape(), 2);
        for (const auto how : {psae::write::overwrite, psae::write::add}) {
            auto expected_pixels = pixels.clone();
            extract_patches_adjoint(host, expected_pixels.data(), g.data(), images, channels, side, patch, how);
            auto dpixels =
                how == psae::write::add ? on_device(device, pixels) : spoilt_tensor<T>(device, pixels.shape());
            extract_patches_adjoint(device, dpixels.data(), on_device(device, g).data(), images, channels, side, patch,
                                    how);
            CHECK(largest_difference(on_host(device, dpixels), expected_pixels) == 0);
        }
    }
}

TEMPLATE_TEST_CASE("positions, sums over images and class tokens on the GPU", "", float, double) {
    using T = TestType;
    cpu host(1);
    psae::cuda device;
    struct sizes {
        std::size_t images, tokens, d;
    };
    for (const auto& [images, tokens, d] :
         {sizes{1, 1, 1}, {3, 5, 7}, {2, 50, 768}, {5, 17, 12}, {1, 2, 1027}, {0, 5, 8}}) {
        INFO(images << " images, " << tokens << " tokens of " << d);
        const auto x = random_tensor<T>(matrix{images * tokens, d}, 1);
        const auto class_embedding = random_tensor<T>(row{d}, 2);
        const auto position = random_tensor<T>(matrix{tokens, d}, 3);
        const auto x_there = on_device(device, x), position_there = on_device(device, position);

        tensor<T, matrix> expected(x.shape());
        add_positions(host, expected.data(), x.data(), class_embedding.data(), position.data(), images, tokens, d);
        auto out = spoilt_tensor<T>(device, x.shape());
        add_positions(device, out.data(), x_there.data(), on_device(device, class_embedding).data(),
                      position_there.data(), images, tokens, d);
        CHECK(largest_difference(on_host(device, out), expected) == 0);

        tensor<T, matrix> expected_class(matrix{images, d});
        class_tokens(host, expected_class.data(), x.data(), images, tokens, d);
        auto class_there = spoilt_tensor<T>(device, expected_class.shape());
        class_tokens(device, class_there.data(), x_there.data(), images, tokens, d);
        CHECK(largest_difference(on_host(device, class_there), expected_class) == 0);

        for (const auto how : {psae::write::overwrite, psae::write::add}) {
            const bool add = how == psae::write::add;
            for (const std::size_t rows : {std::size_t{1}, tokens}) {
                auto sums = position.clone();
                sum_over_images(host, sums.data(), x.data(), images, tokens, rows, d, how);
                auto sums_there = add ? on_device(device, position) : spoilt_tensor<T>(device, position.shape());
                sum_over_images(device, sums_there.data(), x_there.data(), images, tokens, rows, d, how);
                const auto first_rows = on_host(device, sums_there.data(), rows * d);
                CHECK(largest_difference(first_rows, std::vector<T>(sums.data(), sums.data() + rows * d)) <
                      (sizeof(T) == 4 ? 1e-5 : 1e-14));
            }
            auto dx = x.clone();
            class_tokens_adjoint(host, dx.data(), expected_class.data(), images, tokens, d, how);
            auto dx_there = add ? on_device(device, x) : spoilt_tensor<T>(device, x.shape());
            class_tokens_adjoint(device, dx_there.data(), on_device(device, expected_class).data(), images, tokens, d,
                                 how);
            CHECK(largest_difference(on_host(device, dx_there), dx) == 0);
        }
    }
}

TEMPLATE_TEST_CASE("rows put among the tokens of images on the GPU", "", float, double) {
    using T = TestType;
    cpu host(1);
    psae::cuda device;
    struct sizes {
        std::size_t images, tokens, at, stride, count, d;
    };
    for (const auto& [images, tokens, at, stride, count, d] :
         {sizes{1, 1, 0, 0, 1, 1}, {3, 7, 5, 0, 2, 7}, {3, 7, 0, 5, 5, 768}, {2, 9, 4, 6, 3, 12}, {0, 5, 1, 0, 2, 8}}) {
        INFO(images << " images, " << count << " rows at " << at << " of " << tokens << ", " << d << " wide");
        const auto rows = random_tensor<T>(matrix{(images + 1) * stride + count, d}, 1);
        auto expected = random_tensor<T>(matrix{images * tokens, d}, 2);
        auto out = on_device(device, expected);
        put_rows(device, out.data(), images, tokens, at, on_device(device, rows).data(), stride, count, d);
        for (std::size_t i = 0; i < images; ++i)
            for (std::size_t j = 0; j < count * d; ++j)
                expected.data()[(i * tokens + at) * d + j] = rows.data()[i * stride * d + j];
        CHECK(largest_difference(on_host(device, out), expected) == 0);
        auto here = expected.clone();
        for (std::size_t i = 0; i < images; ++i) std::fill_n(here.data() + (i * tokens + at) * d, count * d, T(-1));
        put_rows(host, here.data(), images, tokens, at, rows.data(), stride, count, d);
        CHECK(largest_difference(on_host(device, out), here) == 0);
    }
}
