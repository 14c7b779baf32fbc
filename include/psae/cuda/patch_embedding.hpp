#pragma once
// Pictures as rows of patches, positions, and the class token; with their adjoints.

#include <cstddef>

#include <psae/core/element.hpp>
#include <psae/cuda/rows.hpp>
#include <psae/expr/node.hpp>

namespace psae {

namespace detail {

// Calls f(pixel, element of a patch) for every pixel of a block's patch: where it stands in pictures [images, channels,
// side, side], and in patches [images * (1 + patches), channels * patch * patch]. The block's threads take `across`
// neighbours of each of `down` rows of pixels at a time.
template <class F>
__device__ void each_patch_pixel(std::size_t channels, std::size_t side, std::size_t patch, unsigned across,
                                 unsigned down, const F& f) {
    // Divisions of 32 bits: those of 64 would take longer than the pixels.
    const auto patch_side = static_cast<unsigned>(patch);
    const unsigned grid = static_cast<unsigned>(side) / patch_side, patches = grid * grid;
    const unsigned image = blockIdx.x / patches, number = blockIdx.x - image * patches;
    const std::size_t y0 = number / grid * patch, x0 = number % grid * patch;
    const std::size_t row = (image * (std::size_t{patches} + 1) + 1 + number) * channels * patch * patch;
    const unsigned first = threadIdx.x / across;
    if (first >= down) return;
    std::size_t channel = first / patch_side, y = first % patch_side;
    for (std::size_t line = first; line < channels * patch; line += down) {
        const std::size_t pixel = ((image * channels + channel) * side + y0 + y) * side + x0;
        for (std::size_t x = threadIdx.x - first * across; x < patch; x += across) f(pixel + x, row + line * patch + x);
        for (y += down; y >= patch; y -= patch) ++channel;
    }
}

template <class Out, class T>
__global__ void extract_patches_kernel(Out* out, const T* pixels, std::size_t channels, std::size_t side,
                                       std::size_t patch, unsigned across, unsigned down) {
    const unsigned grid = static_cast<unsigned>(side) / static_cast<unsigned>(patch), patches = grid * grid;
    const std::size_t inputs = channels * patch * patch;
    if (blockIdx.x % patches == 0) {
        Out* place_of_class = out + blockIdx.x / patches * (std::size_t{patches} + 1) * inputs;
        for (std::size_t c = threadIdx.x; c < inputs; c += blockDim.x) place_of_class[c] = Out{};
    }
    each_patch_pixel(channels, side, patch, across, down,
                     [=](std::size_t pixel, std::size_t element) { out[element] = element_cast<Out>(pixels[pixel]); });
}
template <class T>
__global__ void extract_patches_adjoint_kernel(T* dpixels, const T* g, std::size_t channels, std::size_t side,
                                               std::size_t patch, unsigned across, unsigned down, bool add) {
    each_patch_pixel(channels, side, patch, across, down, [=](std::size_t pixel, std::size_t element) {
        dpixels[pixel] = g[element] + (add ? dpixels[pixel] : T(0));
    });
}

// A block for each patch.
struct patch_launch {
    static constexpr unsigned threads = 256;
    unsigned blocks, across, down;

    patch_launch(std::size_t images, std::size_t side, std::size_t patch)
        : blocks(blocks_of(images * (side / patch) * (side / patch), 1)),
          across(patch < threads ? static_cast<unsigned>(patch) : threads),
          down(threads / across) {}
};

template <unsigned width, class T>
__global__ void add_positions_kernel(T* out, const T* x, const T* class_embedding, const T* position,
                                     std::size_t tokens, std::size_t d) {
    const std::size_t r = blockIdx.x, token = blockIdx.x % static_cast<unsigned>(tokens);
    for (std::size_t c = threadIdx.x * width; c < d; c += std::size_t{blockDim.x} * width) {
        auto values = load_pack<width>(x + r * d + c);
        const auto place = load_pack<width>(position + token * d + c);
        if (token == 0) {
            const auto class_values = load_pack<width>(class_embedding + c);
            for (unsigned i = 0; i < width; ++i) values.of[i] += class_values.of[i];
        }
        for (unsigned i = 0; i < width; ++i) values.of[i] += place.of[i];
        store_pack(out + r * d + c, values);
    }
}

template <class T>
__global__ void sum_over_images_kernel(T* out, const T* g, std::size_t images, std::size_t tokens, std::size_t d,
                                       bool add) {
    const std::size_t r = blockIdx.x, c = std::size_t{blockIdx.y} * blockDim.x + threadIdx.x;
    if (c >= d) return;
    T sum = add ? out[r * d + c] : T(0);
    for (std::size_t i = 0; i < images; ++i) sum += g[(i * tokens + r) * d + c];
    out[r * d + c] = sum;
}

template <unsigned width, class T>
__global__ void class_tokens_kernel(T* out, const T* x, std::size_t tokens, std::size_t d) {
    const std::size_t image = blockIdx.x;
    for (std::size_t c = threadIdx.x * width; c < d; c += std::size_t{blockDim.x} * width)
        store_pack(out + image * d + c, load_pack<width>(x + image * tokens * d + c));
}
// Blocks go through the first `visited` tokens of each image; all but the class token become 0.
template <unsigned width, class T>
__global__ void class_tokens_adjoint_kernel(T* dx, const T* g, std::size_t tokens, std::size_t visited, std::size_t d,
                                            bool add) {
    const std::size_t image = blockIdx.x / visited, token = blockIdx.x - image * visited;
    T* target = dx + (image * tokens + token) * d;
    for (std::size_t c = threadIdx.x * width; c < d; c += std::size_t{blockDim.x} * width) {
        auto values = add ? load_pack<width>(target + c) : row_pack<T, width>{};
        if (token == 0) {
            const auto cotangent = load_pack<width>(g + image * d + c);
            for (unsigned i = 0; i < width; ++i) values.of[i] += cotangent.of[i];
        }
        store_pack(target + c, values);
    }
}

template <unsigned width, class T>
__global__ void put_rows_kernel(T* out, std::size_t tokens, std::size_t at, const T* rows, std::size_t stride,
                                std::size_t count, std::size_t d) {
    const std::size_t image = blockIdx.x / count, row = blockIdx.x - image * count;
    T* target = out + (image * tokens + at + row) * d;
    for (std::size_t c = threadIdx.x * width; c < d; c += std::size_t{blockDim.x} * width)
        store_pack(target + c, load_pack<width>(rows + (image * stride + row) * d + c));
}

}  // namespace detail

// out: [images * (1 + patches), channels * patch * patch]: for each image a row of zeros, which keeps the class token's
// place, and its patches in reading order, each by channel, row, column. pixels: [images, channels, side, side]. out may
// be bf16, of rounded pixels.
template <class Out, class T>
void extract_patches(cuda& device, Out* out, const T* pixels, std::size_t images, std::size_t channels,
                     std::size_t side, std::size_t patch) {
    const detail::patch_launch at(images, side, patch);
    launch(device, detail::extract_patches_kernel<Out, T>, at.blocks, at.threads, 0, out, pixels, channels, side, patch,
           at.across, at.down);
}
// dpixels (+)= the adjoint of extract_patches. g: like its out.
template <class T>
void extract_patches_adjoint(cuda& device, T* dpixels, const T* g, std::size_t images, std::size_t channels,
                             std::size_t side, std::size_t patch, write how) {
    const detail::patch_launch at(images, side, patch);
    launch(device, detail::extract_patches_adjoint_kernel<T>, at.blocks, at.threads, 0, dpixels, g, channels, side,
           patch, at.across, at.down, how == write::add);
}

// out[i, t, :] = x[i, t, :] + position[t, :], and + class_embedding for t = 0. x, out: [images * tokens, d].
template <class T>
void add_positions(cuda& device, T* out, const T* x, const T* class_embedding, const T* position, std::size_t images,
                   std::size_t tokens, std::size_t d) {
    using namespace detail;
    const bool wide =
        has_wide_rows(out, d) && has_wide_rows(x, d) && has_wide_rows(class_embedding, d) && has_wide_rows(position, d);
    launch(device, wide ? add_positions_kernel<wide_pack<T>, T> : add_positions_kernel<1, T>,
           blocks_of(images * tokens, 1), 256, 0, out, x, class_embedding, position, tokens, d);
}

// out[r, :] (+)= sum over images of g[image, r, :], for the first `rows` rows of each. g: [images * tokens, d].
template <class T>
void sum_over_images(cuda& device, T* out, const T* g, std::size_t images, std::size_t tokens, std::size_t rows,
                     std::size_t d, write how) {
    constexpr unsigned threads = 128;
    launch(device, detail::sum_over_images_kernel<T>, dim3(detail::blocks_of(rows, 1), detail::blocks_of(d, threads)),
           threads, 0, out, g, images, tokens, d, how == write::add);
}

// out[i, :] = x[i, 0, :]. x: [images * tokens, d].
template <class T>
void class_tokens(cuda& device, T* out, const T* x, std::size_t images, std::size_t tokens, std::size_t d) {
    using namespace detail;
    const bool wide = has_wide_rows(out, d) && has_wide_rows(x, d);
    launch(device, wide ? class_tokens_kernel<wide_pack<T>, T> : class_tokens_kernel<1, T>, blocks_of(images, 1), 256,
           0, out, x, tokens, d);
}
// dx (+)= the adjoint of class_tokens. g: [images, d].
template <class T>
void class_tokens_adjoint(cuda& device, T* dx, const T* g, std::size_t images, std::size_t tokens, std::size_t d,
                          write how) {
    using namespace detail;
    const bool wide = has_wide_rows(dx, d) && has_wide_rows(g, d);
    const std::size_t visited = how == write::add ? 1 : tokens;
    launch(device, wide ? class_tokens_adjoint_kernel<wide_pack<T>, T> : class_tokens_adjoint_kernel<1, T>,
           blocks_of(images * visited, 1), 256, 0, dx, g, tokens, visited, d, how == write::add);
}

// out[i, at + r, :] = rows[i * stride + r, :] for r < count: rows among the `tokens` of each image; stride 0 puts the
// same ones into all. out: [images, tokens, d].
template <class T>
void put_rows(cuda& device, T* out, std::size_t images, std::size_t tokens, std::size_t at, const T* rows,
              std::size_t stride, std::size_t count, std::size_t d) {
    using namespace detail;
    const bool wide = has_wide_rows(out, d) && has_wide_rows(rows, d);
    launch(device, wide ? put_rows_kernel<wide_pack<T>, T> : put_rows_kernel<1, T>, blocks_of(images * count, 1), 256,
           0, out, tokens, at, rows, stride, count, d);
}

}  // namespace psae
