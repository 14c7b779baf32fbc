#pragma once
// Codes of a dense matrix [tokens, latents]; they own their memory.

#include <cstddef>
#include <cstdint>
#include <vector>

#include <psae/sparse/codes.hpp>

struct owned_codes {
    std::vector<std::size_t> offsets{0};
    std::vector<std::uint32_t> latent;
    std::vector<float> value;
    psae::codes_view<float> view;
    owned_codes(const std::vector<float>& dense, std::size_t tokens, std::size_t latents) {
        for (std::size_t t = 0; t < tokens; ++t) {
            for (std::size_t f = 0; f < latents; ++f)
                if (const float v = dense[t * latents + f]; v != 0)
                    latent.push_back(static_cast<std::uint32_t>(f)), value.push_back(v);
            offsets.push_back(latent.size());
        }
        view.tokens = tokens, view.latents = latents;
        view.offsets = offsets.data(), view.latent = latent.data(), view.value = value.data();
    }
};
