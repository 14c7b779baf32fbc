// Gradients of the tower's stages against central differences in double, on both backends.
#include <catch2/catch.hpp>

#include <psae/cpu/attention.hpp>
#include <psae/cpu/layer_norm.hpp>
#include <psae/cpu/matmul.hpp>
#include <psae/cpu/patch_embedding.hpp>
#include <psae/stage/attention.hpp>
#include <psae/stage/layer_norm.hpp>
#include <psae/stage/patch_embedding.hpp>

#include "../gradient_error.hpp"

using namespace psae;

namespace {

using matrix = shape<dyn, dyn>;
using row = shape<dyn>;

void check(const auto& result, const auto&... operands) {
    CHECK(gradient_error(result, operands...) < gradient_tolerance<real>);
}

}  // namespace

TEST_CASE("attention's gradient") {
    struct sizes {
        std::size_t images, tokens, heads, width;
    };
    for (const sizes& s : {sizes{1, 1, 1, 1}, {2, 5, 3, 2}, {1, 9, 2, 3}})
        for (const bool causal : {false, true}) {
            INFO(s.images << " images, " << s.tokens << " tokens, " << s.heads << " heads of " << s.width
                          << (causal ? ", causal" : ""));
            const auto x = normal_parameter<double>(matrix{s.images * s.tokens, 3 * s.heads * s.width}, 1);
            check([&](auto zero, auto& qkv) { return attention(qkv + zero, s.tokens, s.heads, causal); }, x);
            check(
                [&](auto zero, auto& qkv) {  // used twice: its gradients add up
                    const auto v = evaluate(qkv + zero);
                    return attention(v, s.tokens, s.heads, causal) * attention(v, s.tokens, s.heads);
                },
                x);
        }
}

TEST_CASE("layer_norm's gradients: x, gain and bias") {
    for (const auto& [n, d] : {std::pair<std::size_t, std::size_t>{1, 3}, {3, 7}, {11, 16}}) {
        INFO(n << " x " << d);
        const auto x = normal_parameter<double>(matrix{n, d}, 1);
        const auto gain = normal_parameter<double>(row{d}, 2), shift = normal_parameter<double>(row{d}, 3);
        check([](auto zero, auto& x, auto& g, auto& b) { return layer_norm(x + zero, g, b, 1e-2); }, x, gain, shift);
        check(
            [](auto zero, auto& x, auto& g, auto& b) {  // x used twice: a residual connection around the norm
                const auto v = evaluate(x + zero);
                return layer_norm(v, g, b, 1e-2) + v;
            },
            x, gain, shift);
        check([](auto zero, auto& x, auto& g,
                 auto& b) { return layer_norm(layer_norm(x * x + zero, g, b, 1e-2), g, b, 1e-1); },
              x, gain, shift);
    }
}

TEST_CASE("matmul's gradients: x, W, bias and residual") {
    struct sizes {
        std::size_t n, in, out;
    };
    for (const sizes& s : {sizes{1, 1, 1}, sizes{3, 5, 7}, sizes{9, 6, 4}}) {
        INFO(s.n << " x " << s.in << " x " << s.out);
        const auto x = normal_parameter<double>(matrix{s.n, s.in}, 1),
                   W = normal_parameter<double>(matrix{s.out, s.in}, 2),
                   r = normal_parameter<double>(matrix{s.n, s.out}, 3);
        const auto b = normal_parameter<double>(row{s.out}, 4);
        // Each call makes its epilogue: an operand is taken with the gradient it collects at that moment.
        const auto all = [&](const auto& result) { check(result, x, W, r, b); };
        all([](auto zero, auto& x, auto& W, auto&, auto&) { return matmul(x + zero, W); });
        all([](auto zero, auto& x, auto& W, auto& r, auto& b) {
            return matmul(evaluate(x + zero), W, bias(b) >> add(r));
        });
        all([](auto zero, auto& x, auto& W, auto&, auto& b) {
            return matmul(square(x + zero), W, bias(b) >> quick_gelu{});
        });
        all([](auto zero, auto& x, auto& W, auto& r, auto& b) {
            return matmul(x * x + zero, W, bias(b) >> gelu{} >> add(r * r));
        });
        all([](auto zero, auto& x, auto& W, auto&, auto& b) {
            return matmul(x + zero, W, quick_gelu{} >> bias(b) >> square_functor{});
        });
        all([](auto zero, auto& x, auto& W, auto& r, auto& b) {  // x, W and the bias twice: their gradients add up
            const auto v = evaluate(x + zero);
            return matmul(v, W, bias(b)) * matmul(v * v, W, bias(b) >> add(r));
        });
        // Frozen weights, as they are and packed.
        using packed_there = weights_of<backend>::packed<real, matrix>;
        const auto same = converted<real>(W);
        const either<packed_matrix<double, matrix>, packed_there> packed{
            packed_matrix<double, matrix>(W.value.view()), packed_there(std::as_const(same.value).view())};
        const auto numbers = on_device(backend(), std::vector<real>(same.value.begin(), same.value.end()));
        const either<const_view<double, matrix>, const_view<real, matrix, backend_memory>> plain{
            W.value.view(), {numbers.data(), W.shape()}};
        check([&](auto zero, auto& x, auto& r,
                  auto& b) { return matmul(evaluate(x + zero), packed.of(zero), bias(b) >> quick_gelu{} >> add(r)); },
              x, r, b);
        check([&](auto zero, auto& x, auto& r, auto& b) { return matmul(x + zero, plain.of(zero), bias(b) >> add(r)); },
              x, r, b);
    }
}

TEST_CASE("gradients of patch_embedding and class_tokens") {
    struct sizes {
        std::size_t images, channels, grid, patch, d;
        std::size_t side() const { return grid * patch; }
        std::size_t tokens() const { return grid * grid + 1; }
    };
    for (const sizes& s : {sizes{1, 1, 1, 1, 1}, {2, 3, 2, 2, 3}}) {
        const auto x = normal_parameter<double>(shape<dyn, dyn, dyn, dyn>{s.images, s.channels, s.side(), s.side()}, 1);
        const auto W = normal_parameter<double>(matrix{s.d, s.channels * s.patch * s.patch}, 2),
                   position = normal_parameter<double>(matrix{s.tokens(), s.d}, 4),
                   tokens = normal_parameter<double>(matrix{s.images * s.tokens(), s.d}, 5);
        const auto token = normal_parameter<double>(row{s.d}, 3);
        check([&](auto zero, auto& x, auto& W, auto& token,
                  auto& position) { return patch_embedding(x + zero, W, token, position, s.patch); },
              x, W, token, position);
        check(
            [&](auto zero, auto& x, auto& W, auto& token, auto& position) {  // the pixels twice, as a dense variable
                const auto v = evaluate(x + zero);
                return patch_embedding(v, W, token, position, s.patch) *
                       patch_embedding(v, W, token, position, s.patch);
            },
            x, W, token, position);
        check(
            [&](auto zero, auto& tokens) {
                const auto v = evaluate(tokens + zero);
                return class_tokens(v, s.tokens()) * class_tokens(v * v, s.tokens());
            },
            tokens);
    }
}
