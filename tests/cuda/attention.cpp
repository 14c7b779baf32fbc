// Attention and its adjoint: as on the CPU, for whole and partial blocks of tokens and widths of heads.
#include "device.hpp"

#include <psae/cpu/attention.hpp>
#include <psae/cuda/attention.hpp>

using namespace psae;

namespace {

struct sizes {
    std::size_t images, tokens, heads, width;
};

template <class T>
void check(const sizes& s, double deviation, double tolerance) {
    cpu host(1);
    psae::cuda device;
    arena<> scratch;
    spoilt_arena scratch_there(device);
    const std::size_t n = s.images * s.tokens, d = s.heads * s.width;
    auto qkv = random_tensor<T>(matrix{n, 3 * d}, 1);
    for (T& x : qkv) x *= static_cast<T>(deviation);
    const auto g = random_tensor<T>(matrix{n, d}, 2), before = random_tensor<T>(matrix{n, 3 * d}, 3);
    const auto qkv_there = on_device(device, qkv), g_there = on_device(device, g);
    for (const bool causal : {false, true}) {
        INFO(s.images << " images, " << s.tokens << " tokens, " << s.heads << " heads of " << s.width
                      << (causal ? ", causal" : ""));
        tensor<T, matrix> expected(matrix{n, d});
        attention(host, scratch, expected.data(), qkv.data(), s.images, s.tokens, d, s.heads, causal);
        auto out = spoilt_tensor<T>(device, expected.shape());
        attention(device, scratch_there, out.data(), qkv_there.data(), s.images, s.tokens, d, s.heads, causal);
        CHECK(relative_difference(on_host(device, out), expected) < tolerance);
        for (const auto how : {psae::write::overwrite, psae::write::add}) {
            INFO((how == psae::write::add ? "gradient added" : "gradient"));
            auto expected_gradient = before.clone();
            attention_adjoint(host, scratch, expected_gradient.data(), g.data(), qkv.data(), s.images, s.tokens, d,
                              s.heads, how, causal);
            auto dqkv = how == psae::write::add ? on_device(device, before) : spoilt_tensor<T>(device, before.shape());
            attention_adjoint(device, scratch_there, dqkv.data(), g_there.data(), qkv_there.data(), s.images, s.tokens,
                              d, s.heads, how, causal);
            CHECK(relative_difference(on_host(device, dqkv), expected_gradient) < tolerance);
        }
    }
}

}  // namespace

TEST_CASE("attention on the GPU") {
    for (const sizes& s : {sizes{1, 1, 1, 1},
                           {2, 17, 3, 7},
                           {1, 64, 2, 32},
                           {1, 77, 1, 64},
                           {2, 33, 1, 80},
                           {1, 65, 1, 128},
                           {1, 97, 1, 5},
                           {0, 5, 2, 8}}) {
        check<float>(s, 1, 1e-5);
        check<double>(s, 1, 1e-12);
    }
}

TEST_CASE("attention on the GPU with scores of which few count") {
    check<float>({1, 70, 1, 16}, 10, 1e-4);
    check<double>({1, 70, 1, 16}, 10, 1e-12);
}

TEST_CASE("attention on the GPU gives no NaN with very large scores") {
    psae::cuda device;
    spoilt_arena scratch(device);
    auto qkv = random_tensor<float>(matrix{40, 12}, 1);
    for (float& x : qkv) x *= 1e4f;
    auto out = spoilt_tensor<float>(device, matrix{40, 4});
    attention(device, scratch, out.data(), on_device(device, qkv).data(), 1, 40, 4, 2);
    for (const float x : on_host(device, out)) CHECK(std::isfinite(x));
}

TEST_CASE("attention on the GPU of many tokens") {
    cpu host(1);
    psae::cuda device;
    arena<> scratch;
    spoilt_arena scratch_there(device);
    const std::size_t tokens = 1025;
    const auto qkv = random_tensor<float>(matrix{tokens, 3}, 1);
    tensor<float, matrix> expected(matrix{tokens, 1});
    attention(host, scratch, expected.data(), qkv.data(), 1, tokens, 1, 1);
    auto out = spoilt_tensor<float>(device, expected.shape());
    attention(device, scratch_there, out.data(), on_device(device, qkv).data(), 1, tokens, 1, 1);
    CHECK(relative_difference(on_host(device, out), expected) < 1e-5);
}

TEST_CASE("attention on the GPU refuses heads that are too wide") {
    psae::cuda device;
    arena<space::device> scratch;
    tensor<float, matrix, space::device> qkv(matrix{2, 3 * 129}), out(matrix{2, 129});
    CHECK_THROWS_AS(attention(device, scratch, out.data(), qkv.data(), 1, 2, 129, 1), error);
}
