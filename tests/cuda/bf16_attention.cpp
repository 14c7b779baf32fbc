// Attention of bf16 by tensor cores: as the CPU's on the same numbers, to the precision of bf16.
#include "device.hpp"

#include <psae/cpu/attention.hpp>
#include <psae/cuda/bf16_attention.hpp>

#include "rounded.hpp"

using namespace psae;

namespace {

struct sizes {
    std::size_t images, tokens, heads, width;
};

std::vector<float> on_gpu(const std::vector<float>& qkv, const sizes& s, bool causal) {
    psae::cuda device;
    spoilt_arena scratch(device);
    const std::size_t d = s.heads * s.width;
    const auto there = on_device(device, rounded(qkv));
    auto out = spoilt_tensor<bf16>(device, matrix{s.images * s.tokens, d});
    attention(device, scratch, out.data(), there.data(), s.images, s.tokens, d, s.heads, causal);
    return widened(on_host(device, out));
}

std::vector<float> random_qkv(const sizes& s, float deviation) {
    const auto x = random_tensor<float>(matrix{s.images * s.tokens, 3 * s.heads * s.width}, 1);
    std::vector<float> qkv(x.begin(), x.end());
    for (float& v : qkv) v = widen(to_bf16(deviation * v));
    return qkv;
}

void check(const sizes& s, float deviation) {
    cpu host(1);
    arena<> scratch;
    const std::size_t d = s.heads * s.width;
    const auto qkv = random_qkv(s, deviation);
    for (const bool causal : {false, true}) {
        INFO(s.images << " images, " << s.tokens << " tokens, " << s.heads << " heads of " << s.width
                      << (causal ? ", causal" : ""));
        std::vector<float> expected(s.images * s.tokens * d);
        attention(host, scratch, expected.data(), qkv.data(), s.images, s.tokens, d, s.heads, causal);
        // Weights and results are rounded, each by at most 2^-9 of itself.
        CHECK(relative_difference(on_gpu(qkv, s, causal), expected) < 2.0 / 256);
    }
}

}  // namespace

TEST_CASE("attention of bf16 on the GPU") {
    for (const sizes& s : {sizes{1, 1, 1, 1},
                           {2, 17, 3, 7},
                           {1, 16, 2, 64},
                           {1, 77, 1, 64},
                           {2, 33, 1, 80},
                           {1, 65, 1, 128},
                           {1, 97, 2, 5},
                           {3, 5, 3, 4},
                           {0, 5, 2, 8}})
        check(s, 1);
    check({1, 197, 2, 64}, 1);
    check({1, 300, 1, 32}, 1);
}

TEST_CASE("attention of bf16 on the GPU with scores of which few count") { check({1, 140, 1, 16}, 4); }

TEST_CASE("attention of bf16 on the GPU gives no NaN with very large scores") {
    for (const float x : on_gpu(random_qkv({1, 40, 2, 2}, 1e4f), {1, 40, 2, 2}, false)) CHECK(std::isfinite(x));
}
