#pragma once
// Pictures as rows of patches, positions, and the class token; with their adjoints.

#include <algorithm>
#include <cstddef>

#include <psae/cpu/backend.hpp>
#include <psae/expr/node.hpp>

namespace psae {

namespace detail {

// Calls f(row of pixels, row of patch elements) for every row of `patch` pixels: where it stands in pictures
// [images, channels, side, side], and in patches [images * (1 + patches), channels * patch * patch].
template <class F>
void each_patch_row(cpu& device, std::size_t images, std::size_t channels, std::size_t side, std::size_t patch,
                    const F& f) {
    const std::size_t grid = side / patch, patches = grid * grid, inputs = channels * patch * patch;
    device.parallel_for(images * patches, [=](std::size_t task) {
        const std::size_t image = task / patches, y0 = task % patches / grid * patch, x0 = task % grid * patch;
        const std::size_t row = (image * (patches + 1) + 1 + task % patches) * inputs;
        for (std::size_t channel = 0; channel < channels; ++channel)
            for (std::size_t y = 0; y < patch; ++y)
                f(((image * channels + channel) * side + y0 + y) * side + x0, row + (channel * patch + y) * patch);
    });
}

}  // namespace detail

// out: [images * (1 + patches), channels * patch * patch]: for each image a row of zeros, which keeps the class token's
// place, and its patches in reading order, each by channel, row, column. pixels: [images, channels, side, side].
template <class T>
void extract_patches(cpu& device, T* out, const T* pixels, std::size_t images, std::size_t channels, std::size_t side,
                     std::size_t patch) {
    const std::size_t grid = side / patch, inputs = channels * patch * patch;
    for (std::size_t i = 0; i < images; ++i) std::fill_n(out + i * (grid * grid + 1) * inputs, inputs, T(0));
    detail::each_patch_row(device, images, channels, side, patch,
                           [=](std::size_t from, std::size_t to) { std::copy_n(pixels + from, patch, out + to); });
}
// dpixels (+)= the adjoint of extract_patches. g: like its out.
template <class T>
void extract_patches_adjoint(cpu& device, T* dpixels, const T* g, std::size_t images, std::size_t channels,
                             std::size_t side, std::size_t patch, write how) {
    detail::each_patch_row(device, images, channels, side, patch, [=](std::size_t to, std::size_t from) {
        for (std::size_t x = 0; x < patch; ++x)
            dpixels[to + x] = g[from + x] + (how == write::add ? dpixels[to + x] : T(0));
    });
}

// out[i, t, :] = x[i, t, :] + position[t, :], and + class_embedding for t = 0. x, out: [images * tokens, d].
template <class T>
void add_positions(cpu& device, T* out, const T* x, const T* class_embedding, const T* position, std::size_t images,
                   std::size_t tokens, std::size_t d) {
    device.parallel_for(images * tokens, [=](std::size_t r) {
        const std::size_t token = r % tokens;
        const T *source = x + r * d, *place = position + token * d;
        T* target = out + r * d;
        if (token == 0) {
            for (std::size_t c = 0; c < d; ++c) target[c] = source[c] + class_embedding[c] + place[c];
        } else {
#pragma omp simd
            for (std::size_t c = 0; c < d; ++c) target[c] = source[c] + place[c];
        }
    });
}

// out[r, :] (+)= sum over images of g[image, r, :], for the first `rows` rows of each. g: [images * tokens, d].
template <class T>
void sum_over_images(cpu& device, T* out, const T* g, std::size_t images, std::size_t tokens, std::size_t rows,
                     std::size_t d, write how) {
    device.parallel_for(rows, [=](std::size_t r) {
        T* target = out + r * d;
        if (how == write::overwrite) std::fill_n(target, d, T(0));
        for (std::size_t i = 0; i < images; ++i)
            for (std::size_t c = 0; c < d; ++c) target[c] += g[(i * tokens + r) * d + c];
    });
}

// out[i, :] = x[i, 0, :]. x: [images * tokens, d].
template <class T>
void class_tokens(cpu&, T* out, const T* x, std::size_t images, std::size_t tokens, std::size_t d) {
    for (std::size_t i = 0; i < images; ++i) std::copy_n(x + i * tokens * d, d, out + i * d);
}
// dx (+)= the adjoint of class_tokens. g: [images, d].
template <class T>
void class_tokens_adjoint(cpu&, T* dx, const T* g, std::size_t images, std::size_t tokens, std::size_t d, write how) {
    if (how == write::overwrite) std::fill_n(dx, images * tokens * d, T(0));
    for (std::size_t i = 0; i < images; ++i)
        for (std::size_t c = 0; c < d; ++c) dx[i * tokens * d + c] += g[i * d + c];
}

// out[i, at + r, :] = rows[i * stride + r, :] for r < count: rows among the `tokens` of each image; stride 0 puts the
// same ones into all. out: [images, tokens, d].
template <class T>
void put_rows(cpu& device, T* out, std::size_t images, std::size_t tokens, std::size_t at, const T* rows,
              std::size_t stride, std::size_t count, std::size_t d) {
    device.parallel_for(
        images, [&](std::size_t i) { std::copy_n(rows + i * stride * d, count * d, out + (i * tokens + at) * d); });
}

}  // namespace psae
