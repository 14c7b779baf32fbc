#pragma once
// CLIP's preprocessing on the GPU, with the same sums of whole numbers as on the CPU.
//
//   psae::staged_upload<std::uint8_t, psae::cuda> bytes(device);
//   psae::preprocess(device, scratch, bytes, decoded, how, pixels);      // pixels for clip_vision::embed

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <utility>
#include <vector>

#include <psae/cuda/staging.hpp>
#include <psae/vit/preprocess.hpp>

namespace psae {

namespace detail {

// A picture among what is uploaded: where its bytes [rows, cols, 3], the spans of its axes and their weights begin.
struct uploaded_picture {
    struct axis {
        resize_plan::window window;
        std::size_t first;           // what is uploaded of the picture begins at this row or column
        std::size_t spans, weights;  // bytes from the start
    };
    axis x, y;
    std::size_t bytes, rows, cols;
    std::size_t narrow;  // where [rows, x.window.count, 3] begins, the picture after the first pass
};

inline __device__ const uploaded_picture& picture_of_block(const std::uint8_t* uploaded) {
    return reinterpret_cast<const uploaded_picture*>(uploaded)[blockIdx.y];
}
// The sums of output i of an axis, one for each channel; its inputs are `stride` bytes apart.
inline __device__ void resample_pixel(const std::uint8_t* uploaded, const uploaded_picture::axis& axis, std::size_t i,
                                      const std::uint8_t* from, std::size_t stride, std::uint8_t (&bytes)[3]) {
    const auto& span = reinterpret_cast<const resample_weights::span*>(uploaded + axis.spans)[i];
    const auto* weight = reinterpret_cast<const std::int32_t*>(uploaded + axis.weights) + span.offset;
    std::int32_t sums[3] = {one_half, one_half, one_half};
    from += (span.first - axis.first) * stride;
    for (std::size_t j = 0; j < span.count; ++j, from += stride)
        for (int c = 0; c < 3; ++c) sums[c] += from[c] * weight[j];
    for (int c = 0; c < 3; ++c) bytes[c] = byte_of_sum(sums[c]);
}

// A thread for each pixel of the pictures after the first pass, across. (Templates because a kernel cannot be inline.)
template <class Byte>
__global__ void resample_across_kernel(Byte* narrow, const Byte* uploaded) {
    const uploaded_picture& p = picture_of_block(uploaded);
    const std::size_t i = std::size_t{blockIdx.x} * blockDim.x + threadIdx.x, count = p.x.window.count;
    if (i >= p.rows * count) return;
    const std::size_t row = i / count, col = i - row * count;
    std::uint8_t bytes[3];
    resample_pixel(uploaded, p.x, col, uploaded + p.bytes + row * p.cols * 3, 3, bytes);
    for (int c = 0; c < 3; ++c) narrow[p.narrow + i * 3 + c] = bytes[c];
}

// A thread for each pixel of the result: the pass down, and by table [3, 256] the numbers.
template <class T>
__global__ void resample_down_kernel(T* pixels, const std::uint8_t* narrow, const std::uint8_t* uploaded,
                                     std::size_t table, std::size_t crop) {
    const uploaded_picture& p = picture_of_block(uploaded);
    const std::size_t i = std::size_t{blockIdx.x} * blockDim.x + threadIdx.x, size = crop * crop;
    if (i >= size) return;
    const std::size_t row = i / crop - p.y.window.target, col = i % crop - p.x.window.target;  // huge before the window
    std::uint8_t bytes[3] = {0, 0, 0};
    if (row < p.y.window.count && col < p.x.window.count)
        resample_pixel(uploaded, p.y, row, narrow + p.narrow + col * 3, p.x.window.count * 3, bytes);
    const auto* numbers = reinterpret_cast<const T*>(uploaded + table);
    for (std::size_t c = 0; c < 3; ++c) pixels[(blockIdx.y * 3 + c) * size + i] = numbers[c * 256 + bytes[c]];
}

// Pictures that go there at once: [pictures.size(), 3, crop, crop] to pixels.
inline void preprocess_part(const cuda& device, arena<space::device>& scratch,
                            staged_upload<std::uint8_t, cuda>& upload, std::span<const image> pictures,
                            const preprocessing& p, float* pixels) {
    const std::size_t n = pictures.size(), size = p.crop * p.crop;
    std::vector<resize_plan> plans;
    std::vector<uploaded_picture> places;
    std::size_t end = 0, narrow_bytes = 0, most = 0;
    const auto place = [&](std::size_t bytes) { return std::exchange(end, (end + bytes + 7) / 8 * 8); };
    const auto place_axis = [&](const auto& window, std::size_t first, const resample_weights& r) {
        return uploaded_picture::axis{window, first, place(r.spans.size() * sizeof(r.spans[0])),
                                      place(r.weights.size() * sizeof(r.weights[0]))};
    };
    place(n * sizeof(uploaded_picture));
    const std::size_t table = place(3 * 256 * sizeof(float));
    for (const image& picture : pictures) {
        const auto& plan = plans.emplace_back(picture.width, picture.height, p);
        const std::size_t pixels_across = plan.rows * plan.x.count;
        const auto x = place_axis(plan.x, plan.first_col, plan.across),
                   y = place_axis(plan.y, plan.first_row, plan.down);
        places.push_back({x, y, place(plan.rows * plan.cols * 3), plan.rows, plan.cols,
                          std::exchange(narrow_bytes, narrow_bytes + pixels_across * 3)});
        most = std::max(most, pixels_across);
    }

    std::uint8_t* to = upload.next(end);
    const auto put = [&](std::size_t at, const auto& values) {
        std::memcpy(to + at, values.data(), values.size() * sizeof(values[0]));
    };
    put(0, places);
    std::vector<float> numbers;
    for (std::size_t c = 0; c < 3; ++c)
        for (int v = 0; v < 256; ++v) numbers.push_back(normalised_byte(p, c, v));
    put(table, numbers);
    for (std::size_t i = 0; i < n; ++i) {
        put(places[i].x.spans, plans[i].across.spans);
        put(places[i].x.weights, plans[i].across.weights);
        put(places[i].y.spans, plans[i].down.spans);
        put(places[i].y.weights, plans[i].down.weights);
        const std::uint8_t* from = pictures[i].rgb.data() + plans[i].first_col * 3;
        for (std::size_t r = 0; r < plans[i].rows; ++r)
            std::memcpy(to + places[i].bytes + r * plans[i].cols * 3,
                        from + (plans[i].first_row + r) * pictures[i].width * 3, plans[i].cols * 3);
    }
    const std::uint8_t* uploaded = upload.send(end);

    constexpr unsigned threads = 256;
    const auto mark = scratch.position();
    auto* narrow = scratch.allocate<std::uint8_t>(narrow_bytes);
    launch(device, resample_across_kernel<std::uint8_t>, dim3(blocks_of(most, threads), static_cast<unsigned>(n)),
           threads, 0, narrow, uploaded);
    launch(device, resample_down_kernel<float>, dim3(blocks_of(size, threads), static_cast<unsigned>(n)), threads, 0,
           pixels, narrow, uploaded, table, p.crop);
    scratch.release_to(mark);
}

}  // namespace detail

// As preprocess() of each picture, equal to the bit. pixels: [pictures.size(), 3, crop, crop], memory of the device. Of
// each picture the bytes that the crop shows go there by `upload`, beside what is computed; so many pictures at a time
// that they are of at most `most_bytes`, unless one alone is of more, and at most 65535.
inline void preprocess(const cuda& device, arena<space::device>& scratch, staged_upload<std::uint8_t, cuda>& upload,
                       std::span<const image> pictures, const preprocessing& p, float* pixels,
                       std::size_t most_bytes = std::size_t{64} << 20) {
    while (!pictures.empty()) {
        std::size_t count = 0, bytes = 0;
        do bytes += pictures[count++].rgb.size();
        while (count < pictures.size() && count < 65535 && bytes + pictures[count].rgb.size() <= most_bytes);
        detail::preprocess_part(device, scratch, upload, pictures.first(count), p, pixels);
        pictures = pictures.subspan(count);
        pixels += count * 3 * p.crop * p.crop;
    }
}

}  // namespace psae
