#pragma once
// Pictures of results: a map over its image, and sheets of small images with captions.
//
//   psae::write_png("mask.png", psae::heat_overlay(picture, map, 14, 14));
//   psae::write_png("latent_7.png", psae::thumbnail_grid(images, captions, {.columns = 5, .title = "latent 7"}));

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <psae/attribution/patch_map.hpp>
#include <psae/core/error.hpp>
#include <psae/io/image.hpp>

namespace psae {

using colour = std::array<std::uint8_t, 3>;

namespace detail {

// The printable ASCII characters, 5 x 7 with one row below the line. A glyph is eight rows, each a digit of base 32
// whose five bits are the pixels from the left.
inline constexpr std::string_view font_rows =
    "0000000044444040AAA00000AAVAVAA04FKE5U40OP248J30CIK8LID044000000248884208422248004LEL400044V440000000C48"
    "000V000000000CC011248GG0EHJLPHE04C4444E0EH1248V0V2421HE026AIV220VGU11HE068GUHHE0V1248880EHHEHHE0EHHF12C0"
    "0CC0CC000CC0C480248G842000V0V00084212480EH124040EH1DLLE0EHHVHHH0UHHUHHU0EHGGGHE0SIHHHIS0VGGUGGV0VGGUGGG0"
    "EHGNHHF0HHHVHHH0E44444E072222IC0HIKOKIH0GGGGGGV0HRLLHHH0HHPLJHH0EHHHHHE0UHHUGGG0EHHHLID0UHHUKIH0FGGE11U0"
    "V4444440HHHHHHE0HHHHHA40HHHLLLA0HHA4AHH0HHA44440V1248GV0E88888E0GG842110E22222E04AH000000000000V84000000"
    "00E1FHF0GGMPHHU000EGGHE011DJHHF000EHVGE0698S888000FHHF1EGGMPHHH040C444E0206222ICGGIKOKI0C44444E000QLLHH0"
    "00MPHHH000EHHHE000UHHUGG00FHHF1100MPGGG000EGE1U088S8896000HHHJD000HHHA4000HHLLA000HA4AH000HHHF1E00V248V0"
    "244844204444444084424480008L2000";
static_assert(font_rows.size() == 95 * 8);

inline void blend(image& on, std::ptrdiff_t x, std::ptrdiff_t y, const colour& with, double opacity) {
    if (x < 0 || y < 0 || x >= static_cast<std::ptrdiff_t>(on.width) || y >= static_cast<std::ptrdiff_t>(on.height) ||
        !(opacity > 0))
        return;
    std::uint8_t* p = on.rgb.data() + (static_cast<std::size_t>(y) * on.width + static_cast<std::size_t>(x)) * 3;
    for (std::size_t c = 0; c < 3; ++c)
        p[c] = static_cast<std::uint8_t>(std::lround(p[c] + (with[c] - p[c]) * std::min(opacity, 1.0)));
}

inline void fill(image& on, std::ptrdiff_t x, std::ptrdiff_t y, std::ptrdiff_t w, std::ptrdiff_t h,
                 const colour& with) {
    for (std::ptrdiff_t j = y; j < y + h; ++j)
        for (std::ptrdiff_t i = x; i < x + w; ++i) blend(on, i, j, with, 1);
}

// Bytes that continue a UTF-8 character are no character of their own.
inline bool continues_character(char c) { return (static_cast<unsigned char>(c) & 0xc0) == 0x80; }

}  // namespace detail

inline image blank_image(std::size_t width, std::size_t height, const colour& background = {255, 255, 255}) {
    if (width == 0 || height == 0 || width > 100'000 || height > 100'000 || width * height > 100'000'000)
        throw error("picture of this size is not made", "", std::to_string(width) + " x " + std::to_string(height));
    image out{width, height, std::vector<std::uint8_t>(width * height * 3)};
    for (std::size_t i = 0; i < out.rgb.size(); ++i) out.rgb[i] = background[i % 3];
    return out;
}

// Width of a text in pixels: six per character and unit of scale. Its height is seven, and one below the line.
inline std::size_t text_width(std::string_view text, std::size_t scale = 1) {
    const auto n = static_cast<std::size_t>(
        std::count_if(text.begin(), text.end(), [](char c) { return !detail::continues_character(c); }));
    return n == 0 ? 0 : (6 * n - 1) * scale;
}

// Writes text with its top left corner at (x, y), upwards from there if `upwards`; what falls outside is cut off.
// Characters beyond ASCII appear as a question mark.
inline void draw_text(image& on, std::ptrdiff_t x, std::ptrdiff_t y, std::string_view text, const colour& ink,
                      std::size_t scale = 1, bool upwards = false) {
    const auto s = static_cast<std::ptrdiff_t>(scale);
    std::ptrdiff_t along = 0;
    for (const char c : text) {
        if (detail::continues_character(c)) continue;
        const std::size_t glyph = static_cast<std::size_t>(c >= ' ' && c <= '~' ? c - ' ' : '?' - ' ');
        for (std::ptrdiff_t r = 0; r < 8; ++r) {
            const char digit = detail::font_rows[glyph * 8 + static_cast<std::size_t>(r)];
            const int bits = digit <= '9' ? digit - '0' : digit - 'A' + 10;
            for (std::ptrdiff_t i = 0; i < 5; ++i)
                if (bits >> (4 - i) & 1) {
                    if (upwards) detail::fill(on, x + r * s, y - (along + (i + 1) * s), s, s, ink);
                    else detail::fill(on, x + along + i * s, y + r * s, s, s, ink);
                }
        }
        along += 6 * s;
    }
}

// Dark purple over red to pale yellow for strength 0 to 1: lighter is stronger, also for the colour-blind and in gray.
inline colour heat_colour(float strength) {
    static constexpr std::uint8_t stops[][3] = {{22, 11, 57},  {74, 12, 107},  {120, 28, 109},
                                                {165, 44, 96}, {207, 68, 70},  {237, 105, 37},
                                                {251, 155, 6}, {247, 209, 61}, {252, 255, 164}};
    const float at = std::clamp(strength, 0.0f, 1.0f) * 8;
    const int low = std::min(7, static_cast<int>(at));
    colour out{};
    for (std::size_t c = 0; c < 3; ++c)
        out[c] = static_cast<std::uint8_t>(
            std::lround(static_cast<float>(stops[low][c]) +
                        (at - static_cast<float>(low)) * static_cast<float>(stops[low + 1][c] - stops[low][c])));
    return out;
}

namespace detail {

inline void check_map(const image& picture, std::span<const float> map, std::size_t rows, std::size_t cols) {
    if (rows == 0 || cols == 0 || map.size() != rows * cols || picture.width == 0 || picture.height == 0 ||
        picture.rgb.size() != picture.width * picture.height * 3)
        throw error("map does not fit over the picture", "",
                    "a map of " + std::to_string(rows) + " x " + std::to_string(cols) + ", found " +
                        std::to_string(map.size()) + " values over " + std::to_string(picture.width) + " x " +
                        std::to_string(picture.height));
}

}  // namespace detail

// A map as RGBA pixels [rows, cols, 4] to be laid over its picture: nearly black and nearly opaque where the map is not
// positive, heat colours where it is, brighter and clearer with its strength relative to `largest` (0: the map's own
// maximum). NaN counts as nothing.
inline std::vector<std::uint8_t> heat_layer(std::span<const float> map, float largest = 0) {
    if (!(largest > 0))
        for (const float v : map)
            if (std::isfinite(v)) largest = std::max(largest, v);
    std::vector<std::uint8_t> out;
    out.reserve(map.size() * 4);
    for (const float v : map) {
        const bool fires = v > 0 && largest > 0;
        // The scale begins with a step: a weak patch differs visibly from a silent one.
        const float m = fires ? std::min(v / largest, 1.0f) : 0.0f;
        const colour c = fires ? heat_colour(0.12f + 0.8f * m) : colour{14, 12, 22};
        out.insert(out.end(), {c[0], c[1], c[2], static_cast<std::uint8_t>(fires ? std::lround(190 - 125 * m) : 198)});
    }
    return out;
}

// A map of both signs in the same form: orange where it is positive, blue where it is negative, clear where it is 0. What
// it covers goes with the square root of its magnitude relative to `largest` (0: the largest of the map), so that weak
// patches are seen. NaN counts as 0.
inline std::vector<std::uint8_t> signed_layer(std::span<const float> map, float largest = 0) {
    if (!(largest > 0))
        for (const float v : map)
            if (std::isfinite(v)) largest = std::max(largest, std::abs(v));
    std::vector<std::uint8_t> out;
    out.reserve(map.size() * 4);
    for (const float v : map) {
        const float m = largest > 0 && std::isfinite(v) ? std::min(std::abs(v) / largest, 1.0f) : 0.0f;
        const colour c = v > 0 ? colour{230, 97, 1} : colour{0, 92, 200};
        out.insert(out.end(), {c[0], c[1], c[2], static_cast<std::uint8_t>(std::lround(225 * std::sqrt(m)))});
    }
    return out;
}

// The picture with a layer [rows, cols, 4] over it. `seen` is the part of the picture that the layer's patches divide
// (default: all of it); what lies outside was not seen by the model and becomes pale gray.
inline image lay_over(const image& picture, std::span<const std::uint8_t> layer, std::size_t rows, std::size_t cols,
                      rectangle seen = {}) {
    if (!(seen.width > 0 && seen.height > 0))
        seen = {0, 0, static_cast<double>(picture.width), static_cast<double>(picture.height)};
    const std::uint8_t unseen[4] = {200, 200, 200, 210};
    const auto patch_under = [](double at, double from, double extent, std::size_t patches) {
        return static_cast<std::ptrdiff_t>(std::floor((at + 0.5 - from) / extent * static_cast<double>(patches)));
    };
    image out = picture;
    for (std::size_t y = 0; y < picture.height; ++y)
        for (std::size_t x = 0; x < picture.width; ++x) {
            const auto r = patch_under(static_cast<double>(y), seen.y, seen.height, rows),
                       c = patch_under(static_cast<double>(x), seen.x, seen.width, cols);
            const bool inside =
                r >= 0 && c >= 0 && r < static_cast<std::ptrdiff_t>(rows) && c < static_cast<std::ptrdiff_t>(cols);
            const std::uint8_t* over =
                inside ? layer.data() + (static_cast<std::size_t>(r) * cols + static_cast<std::size_t>(c)) * 4 : unseen;
            std::uint8_t* p = out.rgb.data() + (y * picture.width + x) * 3;
            for (std::size_t i = 0; i < 3; ++i)
                p[i] = static_cast<std::uint8_t>((p[i] * (255 - over[3]) + over[i] * over[3] + 127) / 255);
        }
    return out;
}

// The picture with heat_layer of a map [rows, cols] over it; seen: as of lay_over. psae::error if the map has another
// size or the picture is empty.
inline image heat_overlay(const image& picture, std::span<const float> map, std::size_t rows, std::size_t cols,
                          rectangle seen = {}, float largest = 0) {
    detail::check_map(picture, map, rows, cols);
    return lay_over(picture, heat_layer(map, largest), rows, cols, seen);
}

// The picture in pale gray with signed_layer of a map [rows, cols] over it: only the map has colours. Otherwise as
// heat_overlay.
inline image signed_overlay(const image& picture, std::span<const float> map, std::size_t rows, std::size_t cols,
                            rectangle seen = {}, float largest = 0) {
    detail::check_map(picture, map, rows, cols);
    image gray = picture;
    for (std::size_t i = 0; i < gray.rgb.size(); i += 3) {
        const int luma = (299 * gray.rgb[i] + 587 * gray.rgb[i + 1] + 114 * gray.rgb[i + 2]) / 1000;
        std::fill_n(gray.rgb.begin() + std::ptrdiff_t(i), 3, static_cast<std::uint8_t>(110 + luma * 145 / 255));
    }
    return lay_over(gray, signed_layer(map, largest), rows, cols, seen);
}

// PatchSAE's own picture of a mask (get_segmentation_mask): the map [rows, cols], upsampled to the whole picture and
// normalised; where that is exactly zero the picture is darkened to trunc(rgb * 30 / 255), elsewhere kept. It shows
// whether, not how strongly, a latent fires, and where every patch fires the weakest is dark all the same.
inline image darken_silent(const image& picture, std::span<const float> map, std::size_t rows, std::size_t cols) {
    detail::check_map(picture, map, rows, cols);
    const auto mask = normalise_map(upsample_map(map, rows, cols, picture.height, picture.width));
    image out = picture;
    for (std::size_t i = 0; i < mask.size(); ++i)
        for (std::size_t c = 0; c < 3 && mask[i] == 0; ++c)
            out.rgb[i * 3 + c] = static_cast<std::uint8_t>(out.rgb[i * 3 + c] * 30 / 255);
    return out;
}

// The picture made to fit into width x height, its shape kept, on a background. Shrinking averages the covered pixels.
inline image fit_into(const image& picture, std::size_t width, std::size_t height,
                      const colour& background = {255, 255, 255}) {
    image out = blank_image(width, height, background);
    if (picture.width == 0 || picture.height == 0) return out;
    const double scale = std::min(static_cast<double>(width) / static_cast<double>(picture.width),
                                  static_cast<double>(height) / static_cast<double>(picture.height));
    const auto extent = [&](std::size_t n, std::size_t most) {
        return std::clamp<std::size_t>(static_cast<std::size_t>(std::lround(static_cast<double>(n) * scale)), 1, most);
    };
    const std::size_t w = extent(picture.width, width), h = extent(picture.height, height), left = (width - w) / 2,
                      top = (height - h) / 2;
    for (std::size_t y = 0; y < h; ++y)
        for (std::size_t x = 0; x < w; ++x) {
            const std::size_t y0 = y * picture.height / h, y1 = std::max(y0 + 1, (y + 1) * picture.height / h);
            const std::size_t x0 = x * picture.width / w, x1 = std::max(x0 + 1, (x + 1) * picture.width / w);
            std::size_t sum[3] = {};
            for (std::size_t j = y0; j < y1; ++j)
                for (std::size_t i = x0; i < x1; ++i)
                    for (std::size_t c = 0; c < 3; ++c) sum[c] += picture.rgb[(j * picture.width + i) * 3 + c];
            const std::size_t n = (y1 - y0) * (x1 - x0);
            for (std::size_t c = 0; c < 3; ++c)
                out.rgb[((top + y) * width + left + x) * 3 + c] = static_cast<std::uint8_t>((sum[c] + n / 2) / n);
        }
    return out;
}

// The part of a picture inside a rectangle (rounded to whole pixels), white where the rectangle reaches beyond it.
inline image cut_out(const image& picture, const rectangle& part) {
    const auto x = static_cast<std::ptrdiff_t>(std::lround(part.x)),
               y = static_cast<std::ptrdiff_t>(std::lround(part.y));
    image out = blank_image(static_cast<std::size_t>(std::max(1L, std::lround(part.width))),
                            static_cast<std::size_t>(std::max(1L, std::lround(part.height))));
    for (std::size_t r = 0; r < out.height; ++r)
        for (std::size_t c = 0; c < out.width; ++c) {
            const auto from_y = y + static_cast<std::ptrdiff_t>(r), from_x = x + static_cast<std::ptrdiff_t>(c);
            if (from_y < 0 || from_x < 0 || from_y >= static_cast<std::ptrdiff_t>(picture.height) ||
                from_x >= static_cast<std::ptrdiff_t>(picture.width))
                continue;
            std::memcpy(out.rgb.data() + (r * out.width + c) * 3,
                        picture.rgb.data() +
                            (static_cast<std::size_t>(from_y) * picture.width + static_cast<std::size_t>(from_x)) * 3,
                        3);
        }
    return out;
}

struct grid_options {
    std::size_t columns = 5, cell = 160, gap = 8;  // pixels
    std::string title{};
};

// Images in rows, each fitted into cell x cell, with its caption below (there may be fewer captions than images; long
// ones are cut) and a title, perhaps of several lines, above all. psae::error without images or with too large a sheet.
inline image thumbnail_grid(std::span<const image> images, std::span<const std::string> captions = {},
                            const grid_options& options = {}) {
    if (images.empty() || options.columns == 0 || options.cell == 0) throw error("nothing to show in a grid of images");
    const colour ink{40, 40, 40}, frame{236, 236, 236};
    const std::size_t columns = std::min(options.columns, images.size()),
                      rows = (images.size() + columns - 1) / columns;
    const std::size_t caption_scale = options.cell < 150 ? 1 : 2,
                      caption = captions.empty() ? 0 : 6 + 8 * caption_scale;
    const auto lines = static_cast<std::size_t>(std::count(options.title.begin(), options.title.end(), '\n')) + 1;
    const std::size_t head = options.title.empty() ? 0 : 4 + 22 * lines;
    const std::size_t step_x = options.cell + options.gap, step_y = options.cell + caption + options.gap;
    image out = blank_image(options.gap + columns * step_x, options.gap + head + rows * step_y);
    // What does not fit loses its end, and says so.
    const auto cut = [](std::string text, std::size_t room, std::size_t scale) {
        if (text_width(text, scale) <= room) return text;
        while (!text.empty() && text_width(text + "..", scale) > room) text.pop_back();
        return text + "..";
    };
    std::string_view title = options.title;
    for (std::size_t line = 0; line < lines; ++line) {
        const auto end = std::min(title.find('\n'), title.size());
        draw_text(out, static_cast<std::ptrdiff_t>(options.gap), static_cast<std::ptrdiff_t>(options.gap + 22 * line),
                  cut(std::string(title.substr(0, end)), out.width - 2 * options.gap, 2), ink, 2);
        title.remove_prefix(std::min(end + 1, title.size()));
    }
    for (std::size_t i = 0; i < images.size(); ++i) {
        const std::size_t x = options.gap + i % columns * step_x, y = options.gap + head + i / columns * step_y;
        const image small = fit_into(images[i], options.cell, options.cell, frame);
        for (std::size_t r = 0; r < options.cell; ++r)
            std::memcpy(out.rgb.data() + ((y + r) * out.width + x) * 3, small.rgb.data() + r * options.cell * 3,
                        options.cell * 3);
        if (i < captions.size())
            draw_text(out, static_cast<std::ptrdiff_t>(x), static_cast<std::ptrdiff_t>(y + options.cell + 4),
                      cut(captions[i], options.cell, caption_scale), ink, caption_scale);
    }
    return out;
}

}  // namespace psae
