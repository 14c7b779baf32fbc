#pragma once
// CLIP's preprocessing, equal to Hugging Face's CLIPImageProcessor: resize the shortest edge (Pillow's antialiased
// bicubic in 22-bit fixed point, horizontally then vertically, each pass rounded to bytes), centre crop, scale to [0,
// 1], normalise.

#include <cmath>
#include <cstdint>
#include <vector>

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

inline std::uint8_t round_to_byte(std::int32_t sum) {
    const std::int32_t v = sum >> 22;
    return static_cast<std::uint8_t>(v < 0 ? 0 : v > 255 ? 255 : v);
}

}  // namespace detail

// The picture after resize and centre crop, [crop, crop, 3]; only what the crop shows is computed. Where the picture is
// smaller than the crop the rest is black.
inline std::vector<std::uint8_t> resize_and_crop(const image& picture, const preprocessing& p) {
    const std::size_t w = picture.width, h = picture.height, edge = p.shortest_edge;
    const auto longer = [&](std::size_t side, std::size_t shorter) {
        return static_cast<std::size_t>(static_cast<double>(edge * side) / static_cast<double>(shorter));
    };
    const std::size_t new_w = w <= h ? edge : longer(w, h), new_h = w <= h ? longer(h, w) : edge;
    struct window {
        std::size_t source, target, count;  // first row or column of the resized picture, where it goes, how many
    };
    const auto centre = [&](std::size_t n) {
        return n >= p.crop ? window{(n - p.crop) / 2, 0, p.crop} : window{0, (p.crop - n + 1) / 2, n};
    };
    const window x = centre(new_w), y = centre(new_h);
    const auto across = detail::bicubic_weights(w, new_w, x.source, x.count),
               down = detail::bicubic_weights(h, new_h, y.source, y.count);
    const std::size_t first_row = down.spans.front().first, end_row = down.spans.back().first + down.spans.back().count;
    std::vector<std::uint8_t> narrow((end_row - first_row) * x.count * 3);
    for (std::size_t r = first_row; r < end_row; ++r) {
        const std::uint8_t* source = picture.rgb.data() + r * w * 3;
        std::uint8_t* target = narrow.data() + (r - first_row) * x.count * 3;
        for (const auto& s : across.spans) {
            std::int32_t sum[3] = {1 << 21, 1 << 21, 1 << 21};
            const std::uint8_t* pixel = source + s.first * 3;
            const std::int32_t* weight = across.weights.data() + s.offset;
            for (std::size_t i = 0; i < s.count; ++i, pixel += 3)
                for (int c = 0; c < 3; ++c) sum[c] += pixel[c] * weight[i];
            for (int c = 0; c < 3; ++c) *target++ = detail::round_to_byte(sum[c]);
        }
    }
    std::vector<std::uint8_t> out(p.crop * p.crop * 3, 0);
    std::vector<std::int32_t> sums(x.count * 3);
    for (std::size_t r = 0; r < y.count; ++r) {
        const auto& s = down.spans[r];
        std::fill(sums.begin(), sums.end(), 1 << 21);
        for (std::size_t i = 0; i < s.count; ++i) {
            const std::int32_t weight = down.weights[s.offset + i];
            const std::uint8_t* row = narrow.data() + (s.first + i - first_row) * x.count * 3;
            for (std::size_t c = 0; c < sums.size(); ++c) sums[c] += row[c] * weight;
        }
        std::uint8_t* target = out.data() + ((y.target + r) * p.crop + x.target) * 3;
        for (std::size_t c = 0; c < sums.size(); ++c) target[c] = detail::round_to_byte(sums[c]);
    }
    return out;
}

// pixels: [3, crop, crop].
inline void preprocess(const image& picture, const preprocessing& p, float* pixels) {
    const auto bytes = resize_and_crop(picture, p);
    const std::size_t size = p.crop * p.crop;
    for (std::size_t c = 0; c < 3; ++c) {
        float table[256];
        for (int v = 0; v < 256; ++v) table[v] = (static_cast<float>(v * 0.00392156862745098) - p.mean[c]) / p.std[c];
        for (std::size_t i = 0; i < size; ++i) pixels[c * size + i] = table[bytes[i * 3 + c]];
    }
}

}  // namespace psae
