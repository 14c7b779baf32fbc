// Pictures to tokens, and tokens to the class token: values against a convolution in loops.
#include "values.hpp"

using namespace psae;

namespace {

using pixels_shape = shape<dyn, dyn, dyn, dyn>;
struct sizes {
    std::size_t images, channels, grid, patch, d;
    std::size_t side() const { return grid * patch; }
    std::size_t tokens() const { return grid * grid + 1; }
    std::size_t inputs() const { return channels * patch * patch; }
};

}  // namespace

TEST_CASE("patch_embedding is a convolution with the patch as its step, after the class token") {
    for (const sizes& s : {sizes{1, 1, 1, 1, 1}, {2, 3, 3, 4, 10}, {3, 3, 2, 5, 7}}) {
        const auto x = normal_tensor<float>(pixels_shape{s.images, s.channels, s.side(), s.side()}, 1);
        const auto W = normal_tensor<float>(matrix{s.d, s.inputs()}, 2);
        const auto token = normal_tensor<float>(row{s.d}, 3);
        const auto position = normal_tensor<float>(matrix{s.tokens(), s.d}, 4);
        std::vector<double> want;
        for (std::size_t i = 0; i < s.images; ++i)
            for (std::size_t t = 0; t < s.tokens(); ++t)
                for (std::size_t c = 0; c < s.d; ++c) {
                    double sum = double(position(t, c)) + (t == 0 ? double(token[c]) : 0.0);
                    for (std::size_t j = 0; t > 0 && j < s.inputs(); ++j) {
                        const std::size_t channel = j / (s.patch * s.patch), y = j / s.patch % s.patch, u = j % s.patch;
                        const std::size_t y0 = (t - 1) / s.grid * s.patch, x0 = (t - 1) % s.grid * s.patch;
                        sum += double(W(c, j)) *
                               double(x[((i * s.channels + channel) * s.side() + y0 + y) * s.side() + x0 + u]);
                    }
                    want.push_back(sum);
                }
        const packed_matrix<float, matrix> packed(W.view());
        CHECK(relative_difference(
                  run_stage<float>([&](auto zero) { return patch_embedding(x + zero, W, token, position, s.patch); }),
                  want) < 1e-6);
        CHECK(relative_difference(run_stage<float>([&](auto zero) {
                                      return patch_embedding(x + zero, packed, token, position, s.patch);
                                  }),
                                  want) < 1e-6);
    }
}

TEST_CASE("patch_embedding refuses pictures that are not whole patches") {
    cpu device;
    arena<> scratch;
    tape<cpu> t(device, scratch, mode::infer);
    const auto x = normal_tensor<float>(pixels_shape{2, 3, 8, 8}, 1),
               oblong = normal_tensor<float>(pixels_shape{2, 3, 8, 4}, 1);
    const auto W = normal_tensor<float>(matrix{5, 48}, 2);
    const auto token = normal_tensor<float>(row{5}, 3);
    const auto position = normal_tensor<float>(matrix{5, 5}, 4), few = normal_tensor<float>(matrix{4, 5}, 4);
    const auto pixels = t.input(x.view());
    CHECK_NOTHROW(patch_embedding(pixels, W, token, position, 4));
    CHECK_THROWS_AS(patch_embedding(pixels, W, token, position, 3), error);
    CHECK_THROWS_AS(patch_embedding(pixels, W, token, position, 0), error);
    CHECK_THROWS_AS(patch_embedding(pixels, W, token, few, 4), error);
    CHECK_THROWS_AS(patch_embedding(pixels, W, token, position, 2), error);
    CHECK_THROWS_AS(patch_embedding(t.input(oblong.view()), W, token, position, 4), error);
    CHECK_THROWS_AS(class_tokens(t.input(few.view()), 3), error);
}
