// Every stage of a tower and of an SAE on the GPU beside the same in double, in each precision of products: one token, odd
// numbers of them, and tokens that are all equal. What they write to reads as NaN before.
#include <psae/cpu/attention.hpp>
#include <psae/cpu/codes.hpp>
#include <psae/cpu/encode.hpp>
#include <psae/cpu/layer_norm.hpp>
#include <psae/cpu/matmul.hpp>
#include <psae/cpu/pointwise.hpp>
#include <psae/cuda.hpp>
#include <psae/psae.hpp>

#include "../gradient_on_host.hpp"
#include "device.hpp"

using namespace psae;

namespace {

// How far a stage may be off, by the norm of all that it writes. TF32 where operands are cut off, as Hopper's tensor cores
// do with what is not rounded before: each product is too small by 7e-4 on average.
struct precision_bound {
    precision products;
    double most;
};
constexpr precision_bound bounds[] = {{precision::fp32, 1e-5}, {precision::tf32, 1e-3}, {precision::bf16, 1e-2}};

struct batch {
    std::size_t tokens;
    bool all_equal;
};
constexpr batch batches[] = {{1, false}, {197, false}, {197, true}, {4097, false}, {4097, true}};

// Floats, in both types and on the device.
struct numbers {
    std::vector<float> narrow;
    std::vector<double> wide;
    device_array<float, psae::cuda> there;

    numbers(const psae::cuda& device, std::vector<float> values)
        : narrow(std::move(values)), wide(narrow.begin(), narrow.end()), there(on_device(device, narrow)) {}
};
numbers random_numbers(const psae::cuda& device, std::size_t count, std::uint64_t seed) {
    std::vector<float> x(count);
    random_stream random(seed);
    for (float& v : x) v = static_cast<float>(random.normal());
    return {device, x};
}
// [tokens, d]
numbers rows_of(const psae::cuda& device, const batch& b, std::size_t d, std::uint64_t seed) {
    auto x = random_numbers(device, b.tokens * d, seed).narrow;
    for (std::size_t i = d; b.all_equal && i < x.size(); ++i) x[i] = x[i - d];
    return {device, x};
}

// f(device, batch, most) in each precision, but of many tokens, which round no differently, in fp32 alone.
template <class F>
void each_batch(const F& f) {
    for (const auto& [products, most] : bounds)
        for (const batch& b : batches) {
            if (products != precision::fp32 && b.tokens > 1000) continue;
            INFO(b.tokens << " tokens" << (b.all_equal ? ", all equal" : "") << ", products "
                          << static_cast<int>(products));
            psae::cuda device;
            device.products = products;
            f(device, b, most);
        }
}

}  // namespace

TEST_CASE("matmul and its adjoints on the GPU in every precision, beside double") {
    constexpr std::size_t in = 37, out = 21;
    each_batch([](psae::cuda& device, const batch& b, double most) {
        cpu host;
        arena<> host_scratch;
        spoilt_arena scratch(device);
        const numbers x = rows_of(device, b, in, 1), g = rows_of(device, b, out, 2),
                      W = random_numbers(device, out * in, 3), c = random_numbers(device, out, 4);
        const matrix of_W{out, in};
        const const_view<double, matrix> W_here{W.wide.data(), of_W};
        const const_view<float, matrix, space::device> W_there{W.there.data(), of_W};
        const const_view<double, row> c_here{c.wide.data(), row{out}};
        const const_view<float, row, space::device> c_there{c.there.data(), row{out}};

        tensor<double, matrix> y(matrix{b.tokens, out}), dx(matrix{b.tokens, in}), dW(of_W);
        matmul(host, host_scratch, y.view(), x.wide.data(), W_here, bias(c_here) >> quick_gelu{});
        auto y_there = spoilt_tensor<float>(device, y.shape());
        matmul(device, scratch, y_there.view(), static_cast<const float*>(x.there.data()), W_there,
               bias(c_there) >> quick_gelu{});
        CHECK(norm_difference(on_host(device, y_there), y) < most);

        matmul_adjoint_input(host, host_scratch, dx.data(), g.wide.data(), b.tokens, W_here, psae::write::overwrite);
        auto dx_there = spoilt_tensor<float>(device, dx.shape());
        matmul_adjoint_input(device, scratch, dx_there.data(), static_cast<const float*>(g.there.data()), b.tokens,
                             W_there, psae::write::overwrite);
        CHECK(norm_difference(on_host(device, dx_there), dx) < most);

        matmul_adjoint_weights(host, dW.data(), g.wide.data(), x.wide.data(), b.tokens, out, in,
                               psae::write::overwrite);
        auto dW_there = spoilt_tensor<float>(device, of_W);
        matmul_adjoint_weights(device, dW_there.data(), static_cast<const float*>(g.there.data()),
                               static_cast<const float*>(x.there.data()), b.tokens, out, in, psae::write::overwrite);
        CHECK(norm_difference(on_host(device, dW_there), dW) < most);
    });
}

namespace {

constexpr std::size_t d = 9, latents = 131;

// Every third latent is active for all tokens, the others for none, whatever is rounded.
numbers decided_biases(const psae::cuda& device) {
    std::vector<float> b(latents);
    for (std::size_t f = 0; f < latents; ++f) b[f] = f % 3 == 0 ? 20.0f : -20.0f;
    return {device, b};
}

}  // namespace

TEST_CASE("encode on the GPU in every precision, beside double") {
    each_batch([](psae::cuda& device, const batch& b, double most) {
        cpu host;
        arena<> host_scratch;
        spoilt_arena scratch(device);
        const numbers x = rows_of(device, b, d, 1), W = random_numbers(device, latents * d, 2),
                      c = decided_biases(device);
        codes_view<double> z;
        codes_view<float> z_there;
        const latent_set* all = nullptr;
        encode(host, host_scratch, z, x.wide.data(), b.tokens, d, W.wide.data(), c.wide.data(), latents, relu{}, all);
        encode(device, scratch, z_there, static_cast<const float*>(x.there.data()), b.tokens, d,
               static_cast<const float*>(W.there.data()), static_cast<const float*>(c.there.data()), latents, relu{},
               all);
        const std::vector<std::size_t> offsets(z.offsets, z.offsets + b.tokens + 1);
        REQUIRE(on_host(device, z_there.offsets, b.tokens + 1) == offsets);
        CHECK(on_host(device, z_there.latent, offsets.back()) ==
              std::vector<std::uint32_t>(z.latent, z.latent + offsets.back()));
        const auto products_of = [](auto values, const std::uint32_t* latent, const auto& biases) {
            std::vector<double> h(values.begin(), values.end());
            for (std::size_t i = 0; i < h.size(); ++i) h[i] -= biases[latent[i]];
            return h;
        };
        CHECK(norm_difference(products_of(on_host(device, z_there.value, offsets.back()), z.latent, c.wide),
                              products_of(std::vector<double>(z.value, z.value + offsets.back()), z.latent, c.wide)) <
              most);
    });
}

TEST_CASE("a step of an SAE on the GPU in every precision, beside double, its codes as entries and as tiles") {
    each_batch([](psae::cuda& device, const batch& b, double most) {
        const auto fill_in = [&](auto& sae) {
            const auto put = [](auto& p, const numbers& n) { std::copy(n.narrow.begin(), n.narrow.end(), p.data()); };
            put(sae.W_enc, random_numbers(device, latents * d, 2));
            put(sae.b_enc, decided_biases(device));
            put(sae.W_dec, random_numbers(device, latents * d, 3));
            put(sae.b_dec, random_numbers(device, d, 4));
        };
        const auto loss_of = [](const auto& sae) {
            return [&](auto x) {
                const auto z = encode(x - sae.b_dec, sae.W_enc, sae.b_enc, relu{});
                return squared_error(decode(z, sae.W_dec, sae.b_dec), x) + 0.1 * mean_over_tokens(sum(square(z)));
            };
        };
        sae_parameters<d, latents, double> here;
        sae_parameters<d, latents, float> there;
        fill_in(here);
        fill_in(there);
        const numbers x = rows_of(device, b, d, 1);
        const shape<dyn, d> extents{b.tokens};
        cpu host;
        const auto expected =
            differentiate(host, here, loss_of(here), const_view<double, shape<dyn, d>>{x.wide.data(), extents});
        for (const codes_form form : {codes_form::entries, codes_form::tiles}) {
            const auto found = differentiate(device, there, loss_of(there),
                                             const_view<float, shape<dyn, d>>{x.narrow.data(), extents}, form);
            // Errors of rounding add up from product to product: W_enc's gradient is the fourth.
            const double chain = device.products == precision::fp32 ? most : 4 * most;
            CHECK(found.loss == Approx(expected.loss).epsilon(chain));
            for (std::size_t i = 0; i < expected.gradients.size(); ++i) {
                INFO((form == codes_form::tiles ? "tiles" : "entries") << ", gradient " << i);
                CHECK(norm_difference(found.gradients[i], expected.gradients[i]) < chain);
            }
        }
    });
}

TEST_CASE("layer_norm and its adjoint on the GPU beside double") {
    psae::cuda device;
    cpu host;
    constexpr std::size_t width = 37;
    for (const batch& b : batches) {
        INFO(b.tokens << " tokens" << (b.all_equal ? ", all equal" : ""));
        const std::size_t n = b.tokens;
        const numbers x = rows_of(device, b, width, 1), g = rows_of(device, b, width, 2),
                      gain = random_numbers(device, width, 3), shift = random_numbers(device, width, 4);
        tensor<double, matrix> y(matrix{n, width}), dx(matrix{n, width});
        tensor<double, row> means(row{n}), scales(row{n});
        layer_norm(host, y.data(), x.wide.data(), gain.wide.data(), shift.wide.data(), n, width, 1e-5, means.data(),
                   scales.data());
        layer_norm_adjoint_input(host, dx.data(), g.wide.data(), x.wide.data(), gain.wide.data(), means.data(),
                                 scales.data(), n, width, psae::write::overwrite);
        auto y_there = spoilt_tensor<float>(device, y.shape()), dx_there = spoilt_tensor<float>(device, y.shape());
        auto means_there = spoilt_tensor<float>(device, row{n}), scales_there = spoilt_tensor<float>(device, row{n});
        layer_norm(device, y_there.data(), x.there.data(), gain.there.data(), shift.there.data(), n, width, 1e-5f,
                   means_there.data(), scales_there.data());
        layer_norm_adjoint_input(device, dx_there.data(), g.there.data(), x.there.data(), gain.there.data(),
                                 means_there.data(), scales_there.data(), n, width, psae::write::overwrite);
        CHECK(norm_difference(on_host(device, y_there), y) < 1e-5);
        CHECK(norm_difference(on_host(device, dx_there), dx) < 1e-5);
    }
}

TEST_CASE("attention and its adjoint on the GPU beside double") {
    psae::cuda device;
    cpu host;
    arena<> host_scratch;
    spoilt_arena scratch(device);
    for (const batch& b : batches) {
        const bool many = b.tokens > 1000;
        // A sum in float of thousands of equal terms, one by one, is off by more: by 4e-5 for these.
        if (many && b.all_equal) continue;
        INFO(b.tokens << " tokens" << (b.all_equal ? ", all equal" : ""));
        const std::size_t n = b.tokens, heads = many ? 1 : 2, width = 3 * heads;
        const numbers qkv = rows_of(device, b, 3 * width, 1), g = rows_of(device, b, width, 2);
        tensor<double, matrix> y(matrix{n, width}), dqkv(matrix{n, 3 * width});
        attention(host, host_scratch, y.data(), qkv.wide.data(), 1, n, width, heads, false);
        auto y_there = spoilt_tensor<float>(device, y.shape()), dqkv_there = spoilt_tensor<float>(device, dqkv.shape());
        attention(device, scratch, y_there.data(), qkv.there.data(), 1, n, width, heads, false);
        CHECK(norm_difference(on_host(device, y_there), y) < 1e-5);
        if (many) continue;  // seconds under emulation
        attention_adjoint(host, host_scratch, dqkv.data(), g.wide.data(), qkv.wide.data(), 1, n, width, heads,
                          psae::write::overwrite, false);
        attention_adjoint(device, scratch, dqkv_there.data(), g.there.data(), qkv.there.data(), 1, n, width, heads,
                          psae::write::overwrite, false);
        CHECK(norm_difference(on_host(device, dqkv_there), dqkv) < 1e-5);
    }
}
