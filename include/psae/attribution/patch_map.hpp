#pragma once
// Patch-level attribution: where in a picture a latent fires, and which latents fire most at a patch.

#include <algorithm>
#include <cstddef>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <psae/core/error.hpp>
#include <psae/sparse/codes.hpp>
#include <psae/vit/preprocess.hpp>

namespace psae {

// A rectangle of a picture, in pixels from its upper left corner.
struct rectangle {
    double x = 0, y = 0, width = 0, height = 0;
};

// What CLIP's preprocessing shows the model of a picture: the centre crop, in pixels of the picture. It reaches beyond
// the picture where that is smaller than the crop. A patch map's rows and columns divide this rectangle.
inline rectangle seen_by_model(std::size_t width, std::size_t height, const preprocessing& how) {
    const auto w = static_cast<double>(width), h = static_cast<double>(height);
    const double scale = std::min(w, h) / static_cast<double>(how.shortest_edge);
    const double side = static_cast<double>(how.crop) * scale;
    return {(w - side) / 2, (h - side) / 2, side, side};
}

// Activations of one latent on the patches of one image, [grid, grid] row-major. The image's tokens start at
// `first_token`, CLS first. psae::error if there are no such tokens or no such latent.
template <class T>
std::vector<float> patch_map(const codes_view<T>& z, std::size_t first_token, std::size_t grid, std::size_t latent) {
    if (latent >= z.latents || first_token + 1 + grid * grid > z.tokens)
        throw error("codes have no such map",
                    "latent " + std::to_string(latent) + ", tokens from " + std::to_string(first_token),
                    std::to_string(z.latents) + " latents, " + std::to_string(z.tokens) + " tokens");
    std::vector<float> map(grid * grid, 0.0f);
    for (std::size_t p = 0; p < grid * grid; ++p) {
        const std::size_t t = first_token + 1 + p;
        const auto* end = z.latent + z.offsets[t + 1];
        const auto* found = std::lower_bound(z.latent + z.offsets[t], end, latent);
        if (found != end && *found == latent) map[p] = static_cast<float>(z.value[found - z.latent]);
    }
    return map;
}

// The `count` largest positive activations of a token (fewer if fewer are), descending, ties to the lower latent.
// psae::error if there is no such token.
template <class T>
std::vector<std::pair<std::size_t, float>> strongest_latents(const codes_view<T>& z, std::size_t token,
                                                             std::size_t count) {
    if (token >= z.tokens)
        throw error("codes have no such token", "token " + std::to_string(token), std::to_string(z.tokens) + " tokens");
    std::vector<std::pair<std::size_t, float>> all;
    for (std::size_t i = z.offsets[token]; i < z.offsets[token + 1]; ++i)
        if (z.value[i] > 0) all.emplace_back(z.latent[i], static_cast<float>(z.value[i]));
    std::stable_sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.second > b.second; });
    all.resize(std::min(count, all.size()));
    return all;
}

// A map [rows, cols] at the size of a picture, [height, width], by nearest neighbour: source index
// floor(i * rows / height), as PatchSAE's masks take it.
inline std::vector<float> upsample_map(std::span<const float> map, std::size_t rows, std::size_t cols,
                                       std::size_t height, std::size_t width) {
    std::vector<float> out(height * width);
    for (std::size_t y = 0; y < height; ++y)
        for (std::size_t x = 0; x < width; ++x) out[y * width + x] = map[y * rows / height * cols + x * cols / width];
    return out;
}

// (m - min) / (max - min + 1e-10), as PatchSAE normalises its masks.
inline std::vector<float> normalise_map(std::span<const float> map) {
    std::vector<float> out(map.begin(), map.end());
    if (out.empty()) return out;
    const auto [low, high] = std::minmax_element(map.begin(), map.end());
    const float from = *low, range = *high - from + 1e-10f;
    for (float& v : out) v = (v - from) / range;
    return out;
}

}  // namespace psae
