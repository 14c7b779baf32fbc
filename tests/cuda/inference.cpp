// Trained SAEs in use on the GPU give the codes and reconstructions that they give on the CPU: to the bit on whole
// numbers.
#include <array>
#include <limits>
#include <memory>
#include <string>

#include <psae/cuda.hpp>
#include <psae/sae/device_sae.hpp>

#include "device.hpp"

using namespace psae;

namespace {

std::vector<float> whole_numbers(std::size_t count, std::uint64_t seed, std::uint64_t most = 30) {
    random_stream random(seed);
    std::vector<float> v(count);
    for (float& x : v) x = static_cast<float>(random.below(2 * most + 1)) - static_cast<float>(most);
    return v;
}

// Its products are exact, and so are the norms of its decoder rows where asked.
sae_weights whole_sae(std::size_t d_in, std::size_t d_sae, std::size_t d_out = 0, bool exact_norms = false) {
    sae_weights sae;
    sae.d_in = d_in, sae.d_sae = d_sae, sae.d_out = d_out;
    const std::size_t out = sae.outputs();
    sae.W_enc = whole_numbers(d_sae * d_in, 1);
    sae.b_enc = whole_numbers(d_sae, 2, 2000);
    sae.W_dec = whole_numbers(d_sae * out, 3);
    sae.b_dec = whole_numbers(out, 4);
    for (std::size_t f = 0; exact_norms && f < d_sae; ++f) {
        std::fill_n(sae.W_dec.begin() + std::ptrdiff_t(f * out), out, 0.0f);
        sae.W_dec[f * out + f % out] = f == 5 ? 0 : f % 2 == 0 ? 4 : -0.5f;  // row 5 is zero
    }
    return sae;
}

struct result {
    std::vector<std::size_t> offsets;
    std::vector<std::uint32_t> latent;
    std::vector<float> value, x_hat;
    bool operator==(const result&) const = default;
};
result result_of(const codes_view<float>& z, std::vector<float> x_hat) {
    return {{z.offsets, z.offsets + z.tokens + 1},
            {z.latent, z.latent + z.entries()},
            {z.value, z.value + z.entries()},
            std::move(x_hat)};
}

result on_cpu(const sae_view& sae, const std::vector<float>& x, std::size_t n) {
    const psae::cpu device;
    arena<> scratch;
    std::vector<float> x_hat(n * sae.outputs());
    const auto z = encode_rows(device, scratch, sae, x.data(), n);
    decode_rows(device, sae, z, x.data(), x_hat.data());
    return result_of(z, x_hat);
}
// On any device by the functions of the same name, all arrays in its memory.
template <class Device>
result on(const Device& device, arena<Device::memory>& scratch, const sae_weights& weights, const std::vector<float>& x,
          std::size_t n) {
    const device_sae sae(device, weights);
    const auto there = on_device(device, x);
    device_array<float, Device> x_hat(shape<dyn>{n * sae.outputs()});
    const auto z = encode_rows(device, scratch, sae, there.data(), n);
    decode_rows(device, scratch, sae, z, there.data(), x_hat.data());
    arena<> of_host;
    return result_of(detail::download_codes(device, of_host, z), on_host(device, x_hat.data(), x_hat.size()));
}
// With nothing left that the CPU could use.
sae_view remote(const sae_weights& weights) {
    sae_view sae(weights);
    sae.remote = std::make_shared<remote_sae_on<psae::cuda>>(psae::cuda(), sae);
    sae.W_enc = sae.b_enc = sae.W_dec = sae.b_dec = nullptr;
    return sae;
}

// Whole numbers: in every way the same bits.
void check_equal(const sae_weights& sae, std::size_t n) {
    INFO(sae.architecture << ", d_in " << sae.d_in << ", d_sae " << sae.d_sae << ", k " << sae.k << ", " << n
                          << " tokens");
    const auto x = whole_numbers(n * sae.d_in, 9);
    const result expected = on_cpu(sae, x, n);
    const psae::cuda device;
    spoilt_arena scratch(device);
    CHECK(on(device, scratch, sae, x, n) == expected);
    CHECK(on_cpu(remote(sae), x, n) == expected);
    arena<> of_host;
    CHECK(on(psae::cpu(), of_host, sae, x, n) == expected);
    if (n > 0 && sae.k != 0) CHECK(!expected.latent.empty());
}

std::vector<float> dense(const result& r, std::size_t d_sae) {
    std::vector<float> z((r.offsets.size() - 1) * d_sae);
    for (std::size_t t = 0; t + 1 < r.offsets.size(); ++t)
        for (std::size_t i = r.offsets[t]; i < r.offsets[t + 1]; ++i) z[t * d_sae + r.latent[i]] = r.value[i];
    return z;
}

std::vector<sae_weights> every_architecture(std::size_t d_in, std::size_t d_sae, std::size_t k) {
    std::vector<sae_weights> all;
    const auto add = [&](const char* architecture, bool exact_norms = false) -> sae_weights& {
        auto& sae = all.emplace_back(whole_sae(d_in, d_sae, 0, exact_norms));
        sae.architecture = architecture;
        return sae;
    };
    add("standard");
    add("standard").centred_input = false;
    add("topk").k = k;
    auto& signed_values = add("topk");
    signed_values.k = k;
    signed_values.rectified = false;
    for (const bool rectified : {true, false}) {
        auto& rescaled = add("topk", true);
        rescaled.k = k;
        rescaled.rescaled = true;
        rescaled.rectified = rectified;
    }
    add("jumprelu").threshold = whole_numbers(d_sae, 5, 3000);  // some are below 0
    auto& gated = add("gated");
    gated.r_mag.assign(d_sae, 0);  // whose exponential is exact
    gated.b_mag = whole_numbers(d_sae, 6, 2000);
    return all;
}

}  // namespace

TEST_CASE("trained SAEs on the GPU give the codes and reconstructions of the CPU") {
    for (const auto& [d_in, d_sae, n] :
         {std::array<std::size_t, 3>{8, 96, 5}, {7, 131, 33}, {1, 1, 1}, {24, 1100, 2}, {5, 300, 0}})
        for (const sae_weights& sae : every_architecture(d_in, d_sae, 6)) check_equal(sae, n);
}

TEST_CASE("top-k SAEs on the GPU with as many latents as there are, more, and none") {
    for (const std::size_t k : {0, 64, 1000})
        for (const sae_weights& sae : every_architecture(6, 64, k))
            if (sae.architecture == "topk") check_equal(sae, 9);
}

TEST_CASE("trained SAEs on the GPU break ties as on the CPU, and leave tokens without codes") {
    for (sae_weights sae : every_architecture(4, 80, 7)) {
        for (std::size_t f = 1; f < sae.d_sae; ++f) std::copy_n(sae.W_enc.begin(), 4, &sae.W_enc[f * 4]);
        std::fill(sae.b_enc.begin(), sae.b_enc.end(), 3.0f);
        check_equal(sae, 12);
    }
    for (sae_weights sae : every_architecture(4, 80, 7)) {
        if (!sae.rectified) continue;  // whose tokens all have k codes
        std::fill(sae.b_enc.begin(), sae.b_enc.end(), -1e6f);
        const auto x = whole_numbers(6 * 4, 9);
        CHECK(on_cpu(sae, x, 6).latent.empty());
        CHECK(on_cpu(remote(sae), x, 6) == on_cpu(sae, x, 6));
    }
}

TEST_CASE("transcoders on the GPU, with a skip connection and without") {
    auto sae = whole_sae(6, 90, 11);
    sae.centred_input = false;
    check_equal(sae, 7);
    sae.W_skip = whole_numbers(11 * 6, 7);
    check_equal(sae, 7);
}

TEST_CASE("scaled tokens on the GPU") {
    const std::size_t d = 20, d_sae = 70, n = 9;
    random_stream random(3);
    const auto draw = [&](std::size_t count, double mean, double deviation) {
        std::vector<float> v(count);
        for (float& x : v) x = static_cast<float>(mean + deviation * random.normal());
        return v;
    };
    auto x = draw(n * d, 2, 3);
    std::fill_n(x.begin() + std::ptrdiff_t(2 * d), d, 0.0f);  // a token of zeros, one whose numbers are equal
    std::fill_n(x.begin() + std::ptrdiff_t(5 * d), d, 4.0f);
    sae_weights sae;
    sae.d_in = d, sae.d_sae = d_sae;
    sae.W_enc = draw(d_sae * d, 0, 1);
    sae.b_enc = draw(d_sae, 0, 1);
    sae.W_dec = draw(d_sae * d, 0, 1);
    sae.b_dec = draw(d, 0, 1);
    sae.r_mag = draw(d_sae, 0, 0.5);
    sae.b_mag = draw(d_sae, 0, 1);
    sae.threshold = draw(d_sae, 1, 1);
    sae.k = 8;
    for (const input_scaling scaling : {input_scaling::none, input_scaling::layer_norm, input_scaling::constant_norm})
        for (const char* architecture : {"standard", "topk", "jumprelu", "gated"}) {
            sae.scaling = scaling;
            sae.activation_scale = scaling == input_scaling::none ? 0.3 : 1;
            sae.architecture = architecture;
            sae.centred_input = scaling != input_scaling::layer_norm;
            INFO(architecture << ", scaling " << int(scaling));
            const result expected = on_cpu(sae, x, n), found = on_cpu(remote(sae), x, n);
            CHECK(relative_difference(dense(found, d_sae), dense(expected, d_sae)) < 1e-6);
            CHECK(relative_difference(found.x_hat, expected.x_hat) < 1e-6);
        }
}

TEST_CASE("codes of some tokens among others are decoded on the GPU") {
    const std::size_t n = 12, d = 6;
    for (const sae_weights& weights : every_architecture(d, 100, 5)) {
        const psae::cpu device;
        arena<> scratch;
        const sae_view sae = remote(weights);
        const auto x = whole_numbers(n * d, 9);
        auto z = encode_rows(device, scratch, sae, x.data(), n);
        std::vector<float> all(n * d), some(4 * d);
        decode_rows(device, sae, z, x.data(), all.data());
        z.tokens = 4;
        z.offsets += 3;
        decode_rows(device, sae, z, x.data() + 3 * d, some.data());
        CHECK(some == std::vector<float>(all.begin() + 3 * d, all.begin() + 7 * d));
    }
}

TEST_CASE("the evaluation of an SAE on the GPU is that on the CPU") {
    const auto weights = whole_sae(6, 100);
    const auto x = whole_numbers(700 * 6, 9);  // more than are encoded at once
    const psae::cpu device;
    arena<> scratch;
    const auto here = evaluate_sae(device, scratch, weights, x.data(), 700),
               there = evaluate_sae(device, scratch, remote(weights), x.data(), 700);
    CHECK(there.mse == here.mse);
    CHECK(there.l0 == here.l0);
    CHECK(there.explained_variance == here.explained_variance);
    CHECK(there.dead_fraction == here.dead_fraction);
}

TEST_CASE("trained SAEs on the GPU refuse what is not finite as on the CPU") {
    const auto refusal = [](const sae_view& sae, const std::vector<float>& x) -> std::string {
        try {
            on_cpu(sae, x, x.size() / sae.d_in);
        } catch (const error& e) {
            return e.what();
        }
        return "none";
    };
    const auto weights = whole_sae(6, 100);
    const sae_view sae = remote(weights);
    for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                            -std::numeric_limits<float>::infinity()}) {
        auto x = whole_numbers(5 * 6, 9);
        x[3 * 6 + 4] = bad;
        CHECK(refusal(sae, x) == refusal(weights, x));
        CHECK_THAT(refusal(sae, x), Catch::Contains("activation is not finite") && Catch::Contains("row 3, column 4"));
    }
    std::vector<float> large(5 * 6, 0.0f);
    large[2 * 6 + 1] = 3e38f;
    CHECK(refusal(sae, large) == refusal(weights, large));
    CHECK_THAT(refusal(sae, large), Catch::Contains("code is not finite") && Catch::Contains("row 2, latent "));
    CHECK(refusal(sae, whole_numbers(5 * 6, 9)) == "none");  // after errors
}
