// SAEs in SAELens' layout: codes and reconstructions of its files, and what cannot be read.
#include <catch2/catch.hpp>

#include <cmath>
#include <filesystem>

#include <unistd.h>

#include <psae/io/numpy.hpp>
#include <psae/io/sae_file.hpp>

#include "../difference.hpp"

using namespace psae;

namespace {

const std::filesystem::path formats = std::filesystem::path(PSAE_GOLDEN_DIR) / "formats";

std::vector<float> dense(const codes_view<float>& z) {
    std::vector<float> x(z.tokens * z.latents);
    for (std::size_t t = 0; t < z.tokens; ++t)
        for (std::size_t i = z.offsets[t]; i < z.offsets[t + 1]; ++i) x[t * z.latents + z.latent[i]] = z.value[i];
    return x;
}

}  // namespace

TEST_CASE("SAELens' SAEs give its codes and reconstructions") {
    const auto expected = read_npz(formats / "saelens.expected.npz");
    const auto x = to_floats(expected.at("x"));
    const cpu device;
    for (const std::string name :
         {"standard", "standard_no_centre", "standard_layer_norm", "standard_constant_norm", "topk", "topk_rescaled",
          "jumprelu", "gated"}) {
        INFO(name);
        const auto sae = read_sae(formats / "saelens" / name);
        arena<> scratch;
        const auto z = encode_rows(device, scratch, sae, x.data(), 5);
        CHECK(relative_difference(dense(z), to_floats(expected.at(name + "_z"))) < 1e-5);
        std::vector<float> x_hat(x.size());
        decode_rows(device, sae, z, x.data(), x_hat.data());
        CHECK(relative_difference(x_hat, to_floats(expected.at(name + "_x_hat"))) < 1e-5);
    }
}

TEST_CASE("SAELens' layout before version 6 is read") {
    const auto sae = read_sae(formats / "saelens" / "old_v3"), standard = read_sae(formats / "saelens" / "standard");
    CHECK(sae.architecture == "standard");
    CHECK(sae.d_in == 8);
    CHECK(sae.d_sae == 24);
    const safetensors_file file(formats / "saelens" / "old_v3" / "sae_weights.safetensors");
    CHECK(sae.W_enc == transpose(file.read("W_enc", {8, 24}).data(), 8, 24));
    CHECK(sae.W_dec == file.read("W_dec", {24, 8}));
}

TEST_CASE("a written SAE is read back exactly, with all its options") {
    const auto directory = std::filesystem::temp_directory_path() / ("psae_sae_" + std::to_string(getpid()));
    for (const std::string name : {"standard_no_centre", "standard_layer_norm", "standard_constant_norm", "topk", "jumprelu", "gated"}) {
        INFO(name);
        const auto sae = read_sae(formats / "saelens" / name);
        write_sae(directory, sae, "model", -2);
        const auto back = read_sae(directory / "sae_weights.safetensors");
        CHECK(back.architecture == sae.architecture);
        CHECK(back.k == sae.k);
        CHECK(back.centred_input == sae.centred_input);
        CHECK(back.scaling == sae.scaling);
        CHECK(back.W_enc == sae.W_enc);
        CHECK(back.b_enc == sae.b_enc);
        CHECK(back.W_dec == sae.W_dec);
        CHECK(back.b_dec == sae.b_dec);
        CHECK(back.threshold == sae.threshold);
        CHECK(back.r_mag == sae.r_mag);
        CHECK(back.b_mag == sae.b_mag);
    }
    std::filesystem::remove_all(directory);
}

TEST_CASE("damaged descriptions of SAEs are refused") {
    for (const auto& entry : std::filesystem::directory_iterator(formats / "refuse" / "json")) {
        INFO(entry.path());
        CHECK_THROWS_AS(read_sae(entry.path()), error);
    }
}
