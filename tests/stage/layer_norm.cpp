// Layer normalisation: values against the formula in double.
#include "values.hpp"

using namespace psae;

TEST_CASE("layer_norm equals its formula") {
    for (const auto& [n, d] : {std::pair<std::size_t, std::size_t>{1, 1}, {3, 7}, {19, 64}, {33, 100}}) {
        INFO(n << " x " << d);
        const auto x = normal_tensor<float>(matrix{n, d}, 1, 3);
        const auto gain = normal_tensor<float>(row{d}, 2), shift = normal_tensor<float>(row{d}, 3);
        std::vector<double> want(n * d);
        for (std::size_t r = 0; r < n; ++r) {
            double mean = 0, variance = 0;
            for (std::size_t c = 0; c < d; ++c) mean += double(x(r, c)) / double(d);
            for (std::size_t c = 0; c < d; ++c) variance += std::pow(double(x(r, c)) - mean, 2) / double(d);
            for (std::size_t c = 0; c < d; ++c)
                want[r * d + c] =
                    (double(x(r, c)) - mean) / std::sqrt(variance + 1e-5) * double(gain[c]) + double(shift[c]);
        }
        const auto got = run_stage<float>([&](auto zero) { return layer_norm(x + zero, gain, shift, 1e-5); });
        CHECK(relative_difference(got, want) < 1e-6);
    }
}

TEST_CASE("layer_norm refuses a gain of another length") {
    cpu device;
    arena<> scratch;
    tape<cpu> t(device, scratch, mode::infer);
    const auto x = normal_tensor<float>(matrix{4, 5}, 1);
    const auto gain = normal_tensor<float>(row{6}, 2);
    CHECK_THROWS_AS(layer_norm(t.input(x.view()), gain, gain, 1e-5), error);
}
