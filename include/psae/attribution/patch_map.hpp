#pragma once
// Patch-level attribution: where in a picture a latent fires, and which latents fire most at a patch.

#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

#include <psae/io/image.hpp>
#include <psae/sparse/codes.hpp>

namespace psae {

// Activations of one latent on the patches of one image, [grid, grid] row-major. The image's tokens start at
// `first_token`, CLS first.
template <class T>
std::vector<float> patch_map(const codes_view<T>& z, std::size_t first_token, std::size_t grid, std::size_t latent) {
    std::vector<float> map(grid * grid, 0.0f);
    for (std::size_t p = 0; p < grid * grid; ++p) {
        const std::size_t t = first_token + 1 + p;
        const auto* end = z.latent + z.offsets[t + 1];
        const auto* found = std::lower_bound(z.latent + z.offsets[t], end, latent);
        if (found != end && *found == latent) map[p] = static_cast<float>(z.value[found - z.latent]);
    }
    return map;
}

// The `count` largest activations of a token, descending, ties to the lower latent.
template <class T>
std::vector<std::pair<std::size_t, float>> strongest_latents(const codes_view<T>& z, std::size_t token,
                                                             std::size_t count) {
    std::vector<std::pair<std::size_t, float>> all;
    for (std::size_t i = z.offsets[token]; i < z.offsets[token + 1]; ++i)
        all.emplace_back(z.latent[i], static_cast<float>(z.value[i]));
    std::stable_sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.second > b.second; });
    all.resize(std::min(count, all.size()));
    return all;
}

// A map [rows, cols] enlarged to [height, width] by nearest neighbour: source index floor(i * rows / height).
inline std::vector<float> enlarge(const std::vector<float>& map, std::size_t rows, std::size_t cols, std::size_t height,
                                  std::size_t width) {
    std::vector<float> out(height * width);
    for (std::size_t y = 0; y < height; ++y)
        for (std::size_t x = 0; x < width; ++x) out[y * width + x] = map[y * rows / height * cols + x * cols / width];
    return out;
}

// The picture with the map over it: dark where the latent is silent, tinted from red to yellow with its strength.
inline image overlay(const image& picture, const std::vector<float>& map, std::size_t rows, std::size_t cols) {
    const float largest = std::max(1e-20f, *std::max_element(map.begin(), map.end()));
    const auto mask = enlarge(map, rows, cols, picture.height, picture.width);
    image out = picture;
    for (std::size_t i = 0; i < mask.size(); ++i) {
        const float m = std::max(0.0f, mask[i]) / largest;
        const float keep = 0.35f + 0.4f * m, tint = 0.55f * m;
        const float colour[3] = {255.0f, 60.0f + 180.0f * m, 40.0f};
        for (std::size_t c = 0; c < 3; ++c)
            out.rgb[i * 3 + c] = static_cast<std::uint8_t>(
                std::min(255.0f, keep * static_cast<float>(picture.rgb[i * 3 + c]) + tint * colour[c]));
    }
    return out;
}

}  // namespace psae
