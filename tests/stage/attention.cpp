// Multi-head attention: values against loops in double.
#include "values.hpp"

using namespace psae;

namespace {

struct sizes {
    std::size_t images, tokens, heads, width;
};

template <class T>
std::vector<double> reference(const tensor<T, matrix>& qkv, const sizes& s) {
    const std::size_t d = s.heads * s.width;
    std::vector<double> out(s.images * s.tokens * d);
    for (std::size_t i = 0; i < s.images; ++i)
        for (std::size_t h = 0; h < s.heads; ++h)
            for (std::size_t q = 0; q < s.tokens; ++q) {
                std::vector<double> p(s.tokens);
                double sum = 0;
                for (std::size_t k = 0; k < s.tokens; ++k) {
                    for (std::size_t c = 0; c < s.width; ++c)
                        p[k] += double(qkv(i * s.tokens + q, h * s.width + c)) *
                                double(qkv(i * s.tokens + k, d + h * s.width + c));
                    sum += p[k] = std::exp(p[k] / std::sqrt(double(s.width)));
                }
                for (std::size_t k = 0; k < s.tokens; ++k)
                    for (std::size_t c = 0; c < s.width; ++c)
                        out[(i * s.tokens + q) * d + h * s.width + c] +=
                            p[k] / sum * double(qkv(i * s.tokens + k, 2 * d + h * s.width + c));
            }
    return out;
}

}  // namespace

TEST_CASE("attention equals loops, for any number of tokens and width of heads") {
    for (const sizes& s :
         {sizes{1, 1, 1, 1}, {2, 5, 3, 7}, {1, 17, 4, 16}, {3, 50, 2, 64}, {1, 197, 2, 64}, {1, 65, 1, 80}}) {
        INFO(s.images << " images, " << s.tokens << " tokens, " << s.heads << " heads of " << s.width);
        const matrix extents{s.images * s.tokens, 3 * s.heads * s.width};
        const auto narrow = normal_tensor<float>(extents, 1, 2);
        const auto wide = normal_tensor<double>(extents, 1, 2);
        for (const int threads : {1, 2}) {
            CHECK(relative_difference(
                      run_stage<float>([&](auto zero) { return attention(narrow + zero, s.tokens, s.heads); }, threads),
                      reference(narrow, s)) < 3e-6);
            CHECK(relative_difference(
                      run_stage<double>([&](auto zero) { return attention(wide + zero, s.tokens, s.heads); }, threads),
                      reference(wide, s)) < 1e-13);
        }
    }
}

TEST_CASE("attention with very large scores gives no NaN") {
    auto qkv = normal_tensor<float>(matrix{8, 12}, 1, 1e4);
    for (const float v : run_stage<float>([&](auto zero) { return attention(qkv + zero, 8, 2); }))
        CHECK(std::isfinite(v));
}

TEST_CASE("attention refuses rows that are not whole sequences, and columns that are not whole heads") {
    cpu device;
    arena<> scratch;
    tape<cpu> t(device, scratch, mode::infer);
    const auto x = normal_tensor<float>(matrix{6, 12}, 1);
    const auto qkv = t.input(x.view());
    CHECK_THROWS_AS(attention(qkv, 4, 2), error);
    CHECK_THROWS_AS(attention(qkv, 3, 3), error);
    CHECK_THROWS_AS(attention(qkv, 0, 2), error);
    CHECK_THROWS_AS(attention(qkv, 3, 0), error);
}
