#pragma once
// CLIP's preprocessing, equal to Hugging Face's CLIPImageProcessor: resize the shortest edge (Pillow 11's antialiased
// bicubic in 22-bit fixed point, horizontally then vertically, each pass rounded to bytes), centre crop, scale to [0,
// 1], normalise.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include <psae/core/annotations.hpp>
#include <psae/io/image.hpp>

namespace psae {

struct preprocessing {
    std::size_t shortest_edge = 224, crop = 224;
    float mean[3] = {0.48145466f, 0.4578275f, 0.40821073f};
    float std[3] = {0.26862954f, 0.26130258f, 0.27577711f};
};

namespace detail {

// The weights of one axis: output i is the sum over its span of input * weight, weights in units of 2^-22.
struct resample_weights {
    struct span {
        std::size_t first, count, offset;
    };
    std::vector<span> spans;
    std::vector<std::int32_t> weights;
};

// Outputs first .. first + count of an axis resized from `in` to `out`.
inline resample_weights bicubic_weights(std::size_t in, std::size_t out, std::size_t first, std::size_t count) {
    const auto kernel = [](double x) {
        constexpr double a = -0.5;
        x = std::abs(x);
        if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
        return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0.0;
    };
    const double scale = static_cast<double>(in) / static_cast<double>(out), stretch = std::max(scale, 1.0),
                 support = 2 * stretch;
    resample_weights r;
    std::vector<double> values;
    for (std::size_t i = first; i < first + count; ++i) {
        const double centre = (static_cast<double>(i) + 0.5) * scale;
        const auto low = static_cast<std::size_t>(std::max(0.0, std::trunc(centre - support + 0.5)));
        const auto high =
            static_cast<std::size_t>(std::min(static_cast<double>(in), std::trunc(centre + support + 0.5)));
        values.clear();
        double sum = 0;
        for (std::size_t x = low; x < high; ++x) {
            values.push_back(kernel((static_cast<double>(x) - centre + 0.5) * (1.0 / stretch)));
            sum += values.back();
        }
        r.spans.push_back({low, values.size(), r.weights.size()});
        for (double v : values) {
            if (sum != 0) v /= sum;
            r.weights.push_back(static_cast<std::int32_t>(v * (1 << 22) + (v < 0 ? -0.5 : 0.5)));
        }
    }
    return r;
}

// Sums of bytes times weights are in units of 2^-22. They begin with one half, so that rounding down rounds to nearest.
inline constexpr std::int32_t one_half = 1 << 21;
PSAE_FN std::uint8_t byte_of_sum(std::int32_t sum) {
    const std::int32_t v = sum >> 22;
    return static_cast<std::uint8_t>(v < 0 ? 0 : v > 255 ? 255 : v);
}

// N sums in a row, which is what the compiler turns into vectors.
template <std::size_t N>
PSAE_HOST_FN void clear(std::int32_t (&sums)[N]) {
    for (std::size_t i = 0; i < N; ++i) sums[i] = one_half;
}
template <std::size_t N>
PSAE_HOST_FN void add_weighted(std::int32_t (&sums)[N], const std::uint8_t* bytes, std::int32_t weight) {
#pragma omp simd
    for (std::size_t i = 0; i < N; ++i) sums[i] += bytes[i] * weight;
}
template <std::size_t N>
PSAE_HOST_FN void store(const std::int32_t (&sums)[N], std::uint8_t* bytes) {
#pragma omp simd
    for (std::size_t i = 0; i < N; ++i) bytes[i] = byte_of_sum(sums[i]);
}

typedef std::uint8_t bytes_16 __attribute__((vector_size(16)));

// Four rounds of interleaving row i with row i + 8 transpose 16 rows.
PSAE_HOST_FN void transpose(bytes_16 (&a)[16]) {
    for (int round = 0; round < 4; ++round) {
        bytes_16 b[16];
        for (int i = 0; i < 8; ++i) {
            b[2 * i] = __builtin_shufflevector(a[i], a[i + 8], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            b[2 * i + 1] =
                __builtin_shufflevector(a[i], a[i + 8], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
        }
        std::memcpy(a, b, sizeof a);
    }
}
// Sixteen rows of `columns` bytes (the first `count` of them, the last one repeated), `stride` apart, to columns that
// stand side by side: to [columns rounded up to 16, 16].
inline void rows_to_columns(const std::uint8_t* rows, std::size_t stride, std::size_t count, std::size_t columns,
                            std::uint8_t* to) {
    for (std::size_t first = 0; first < columns; first += 16) {
        bytes_16 a[16] = {};
        for (std::size_t i = 0; i < 16; ++i) {
            const std::uint8_t* from = rows + std::min(i, count - 1) * stride + first;
            if (columns - first >= 16) std::memcpy(&a[i], from, 16);
            else std::memcpy(&a[i], from, columns - first);
        }
        transpose(a);
        std::memcpy(to + first * 16, a, sizeof a);
    }
}
// And back: columns [columns, 16], a multiple of 16 of them, to 16 rows `stride` apart.
inline void columns_to_rows(const std::uint8_t* from, std::size_t columns, std::uint8_t* rows, std::size_t stride) {
    for (std::size_t first = 0; first < columns; first += 16) {
        bytes_16 a[16];
        std::memcpy(a, from + first * 16, sizeof a);
        transpose(a);
        for (std::size_t i = 0; i < 16; ++i) std::memcpy(rows + i * stride + first, &a[i], 16);
    }
}

// What a resize and centre crop need of a picture, and where it goes.
struct resize_plan {
    struct window {
        std::size_t source, target, count;  // first row or column of the resized picture, where it goes, how many
    };
    window x, y;
    resample_weights across, down;
    std::size_t first_row, rows, first_col, cols;  // of the picture

    resize_plan(std::size_t w, std::size_t h, const preprocessing& p) {
        const std::size_t edge = p.shortest_edge;
        const auto longer = [&](std::size_t side, std::size_t shorter) {
            return static_cast<std::size_t>(static_cast<double>(edge * side) / static_cast<double>(shorter));
        };
        const std::size_t new_w = w <= h ? edge : longer(w, h), new_h = w <= h ? longer(h, w) : edge;
        const auto centre = [&](std::size_t n) {
            return n >= p.crop ? window{(n - p.crop) / 2, 0, p.crop} : window{0, (p.crop - n + 1) / 2, n};
        };
        x = centre(new_w);
        y = centre(new_h);
        across = bicubic_weights(w, new_w, x.source, x.count);
        down = bicubic_weights(h, new_h, y.source, y.count);
        const auto end_of = [](const resample_weights& r) { return r.spans.back().first + r.spans.back().count; };
        first_row = down.spans.front().first;
        rows = end_of(down) - first_row;
        first_col = across.spans.front().first;
        cols = end_of(across) - first_col;
    }
};

// A byte of a channel as the model takes it.
inline float normalised_byte(const preprocessing& p, std::size_t channel, int byte) {
    return (static_cast<float>(byte * 0.00392156862745098) - p.mean[channel]) / p.std[channel];
}

}  // namespace detail

// The picture after resize and centre crop, [crop, crop, 3]; only what the crop shows is computed. Where the picture is
// smaller than the crop the rest is black.
inline std::vector<std::uint8_t> resize_and_crop(const image& picture, const preprocessing& p) {
    const detail::resize_plan plan(picture.width, picture.height, p);
    const auto& [x, y, across, down, first_row, rows, first_col, cols] = plan;
    const std::size_t w = picture.width;
    constexpr std::size_t lanes = 64;  // columns that are summed at a time
    const std::size_t stride = (x.count * 3 + lanes - 1) / lanes * lanes;
    // Across, 16 rows at a time: transposed, each of their bytes is one vector.
    std::vector<std::uint8_t> narrow((rows + 15) / 16 * 16 * stride), columns((cols * 3 + 15) / 16 * 256),
        narrow_columns(stride * 16);
    for (std::size_t r = 0; r < rows; r += 16) {
        detail::rows_to_columns(picture.rgb.data() + ((first_row + r) * w + first_col) * 3, w * 3,
                                std::min<std::size_t>(rows - r, 16), cols * 3, columns.data());
        std::uint8_t* target = narrow_columns.data();
        for (const auto& s : across.spans) {
            const std::uint8_t* pixel = columns.data() + (s.first - first_col) * 48;
            const std::int32_t* weight = across.weights.data() + s.offset;
            alignas(64) std::int32_t sums[48];  // 16 rows of red, of green, of blue
            detail::clear(sums);
            for (std::size_t i = 0; i < s.count; ++i, pixel += 48) detail::add_weighted(sums, pixel, weight[i]);
            detail::store(sums, target);
            target += 48;
        }
        detail::columns_to_rows(narrow_columns.data(), stride, narrow.data() + r * stride, stride);
    }
    // Down.
    std::vector<std::uint8_t> out(p.crop * p.crop * 3, 0), row(stride);
    for (std::size_t r = 0; r < y.count; ++r) {
        const auto& s = down.spans[r];
        const std::int32_t* weight = down.weights.data() + s.offset;
        for (std::size_t c = 0; c < stride; c += lanes) {
            const std::uint8_t* byte = narrow.data() + (s.first - first_row) * stride + c;
            alignas(64) std::int32_t sums[lanes];
            detail::clear(sums);
            for (std::size_t i = 0; i < s.count; ++i, byte += stride) detail::add_weighted(sums, byte, weight[i]);
            detail::store(sums, row.data() + c);
        }
        std::memcpy(out.data() + ((y.target + r) * p.crop + x.target) * 3, row.data(), x.count * 3);
    }
    return out;
}

// pixels: [3, crop, crop].
inline void preprocess(const image& picture, const preprocessing& p, float* pixels) {
    const auto bytes = resize_and_crop(picture, p);
    const std::size_t size = p.crop * p.crop;
    for (std::size_t c = 0; c < 3; ++c) {
        float table[256];
        for (int v = 0; v < 256; ++v) table[v] = detail::normalised_byte(p, c, v);
        for (std::size_t i = 0; i < size; ++i) pixels[c * size + i] = table[bytes[i * 3 + c]];
    }
}

}  // namespace psae
