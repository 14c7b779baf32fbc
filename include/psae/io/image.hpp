#pragma once
// Pictures: PNG (all colour types, depths and interlacing, every checksum verified) and JPEG (libjpeg-turbo, decoded as
// Pillow does), to 8-bit RGB. EXIF orientation is ignored, as Pillow does on opening; 16-bit samples are read by their
// high byte.

#include <algorithm>
#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include <jpeglib.h>
#include <zlib.h>

#include <psae/io/atomic_file.hpp>
#include <psae/io/file_bytes.hpp>

namespace psae {

struct image {
    std::size_t width = 0, height = 0;
    std::vector<std::uint8_t> rgb;  // [height, width, 3]
};

// What becomes of transparency: blended over white (transformers 5), or ignored (transformers 4 and PatchSAE).
enum class alpha_mode { white, drop };

// More pixels than this are refused, as Pillow refuses decompression bombs.
inline constexpr std::size_t max_pixels = 178'956'970;

namespace detail {

class png_decoder {
public:
    png_decoder(const std::uint8_t* data, std::size_t size, const std::string& where, alpha_mode alpha)
        : data_(data), size_(size), where_(where), alpha_(alpha) {}

    image decode() {
        read_chunks();
        image out{width_, height_, {}};
        out.rgb.resize(width_ * height_ * 3);
        const std::uint8_t* at = raw_.data();
        if (interlaced_) {
            constexpr std::size_t x0[7] = {0, 4, 0, 2, 0, 1, 0}, y0[7] = {0, 0, 4, 0, 2, 0, 1},
                                  dx[7] = {8, 8, 4, 4, 2, 2, 1}, dy[7] = {8, 8, 8, 4, 4, 2, 2};
            for (int p = 0; p < 7; ++p) at = pass(at, out, x0[p], y0[p], dx[p], dy[p]);
        } else {
            pass(at, out, 0, 0, 1, 1);
        }
        return out;
    }

private:
    [[noreturn]] void fail(const std::string& what, const std::string& expected = {}) const {
        throw error(what, where_, expected);
    }
    std::uint32_t u32(std::size_t at) const {
        return std::uint32_t{data_[at]} << 24 | std::uint32_t{data_[at + 1]} << 16 | std::uint32_t{data_[at + 2]} << 8 |
               data_[at + 3];
    }
    std::size_t row_bytes(std::size_t columns) const { return (columns * channels_ * depth_ + 7) / 8; }

    void read_chunks() {
        std::size_t at = 8;
        z_stream stream{};
        struct ender {
            z_stream* s;
            ~ender() { inflateEnd(s); }
        } end{&stream};
        bool header = false, finished = false, done = false;
        while (!done) {
            if (size_ - at < 12) fail("PNG is truncated", "another chunk at byte " + std::to_string(at));
            const std::size_t length = u32(at);
            if (length > size_ - at - 12)
                fail("PNG is truncated",
                     "a chunk of " + std::to_string(length) + " bytes at byte " + std::to_string(at));
            const std::string type(reinterpret_cast<const char*>(data_) + at + 4, 4);
            const std::uint8_t* body = data_ + at + 8;
            if (static_cast<std::uint32_t>(crc32_z(0, data_ + at + 4, length + 4)) != u32(at + 8 + length))
                fail("PNG chunk " + type + " has a wrong checksum");
            if (!header && type != "IHDR") fail("PNG does not begin with IHDR");
            if (type == "IHDR") {
                if (header || length != 13) fail("PNG header is not valid");
                header = true;
                read_header(at + 8);
                if (inflateInit(&stream) != Z_OK) fail("zlib cannot start");
            } else if (type == "PLTE") {
                if (length % 3 != 0 || length == 0 || length > 768) fail("PNG palette is not valid");
                palette_.assign(body, body + length);
            } else if (type == "tRNS") {
                transparency_.assign(body, body + length);
            } else if (type == "IDAT") {
                inflate_some(stream, body, length, finished);
            } else if (type == "IEND") {
                done = true;
            } else if (!(type[0] & 32)) {
                fail("PNG has an unknown critical chunk", type);
            }
            at += length + 12;
        }
        if (raw_.size() != expected_)
            fail("PNG holds too little image data",
                 std::to_string(expected_) + " bytes, found " + std::to_string(raw_.size()));
        if (!finished) fail("PNG image data do not end properly");
        if (colour_ == 3 && palette_.empty()) fail("PNG has no palette");
    }

    void read_header(std::size_t at) {
        width_ = u32(at);
        height_ = u32(at + 4);
        depth_ = data_[at + 8];
        colour_ = data_[at + 9];
        interlaced_ = data_[at + 12] == 1;
        if (width_ == 0 || height_ == 0)
            fail("PNG has no pixels", std::to_string(width_) + " x " + std::to_string(height_));
        if (width_ > max_pixels || height_ > max_pixels / width_)
            fail("picture is too large", "at most " + std::to_string(max_pixels) + " pixels, found " +
                                             std::to_string(width_) + " x " + std::to_string(height_));
        const bool depth_fits = colour_ == 0 ? depth_ == 1 || depth_ == 2 || depth_ == 4 || depth_ == 8 || depth_ == 16
                                : colour_ == 3 ? depth_ == 1 || depth_ == 2 || depth_ == 4 || depth_ == 8
                                               : depth_ == 8 || depth_ == 16;
        if ((colour_ != 0 && colour_ != 2 && colour_ != 3 && colour_ != 4 && colour_ != 6) || !depth_fits)
            fail("PNG colour type is not valid",
                 "type " + std::to_string(colour_) + " with " + std::to_string(depth_) + " bits");
        if (data_[at + 10] != 0 || data_[at + 11] != 0 || data_[at + 12] > 1) fail("PNG header is not valid");
        channels_ = colour_ == 2 ? 3 : colour_ == 4 ? 2 : colour_ == 6 ? 4 : 1;
        const auto bytes = [&](std::size_t w, std::size_t h) { return w == 0 || h == 0 ? 0 : h * (1 + row_bytes(w)); };
        if (interlaced_) {
            constexpr std::size_t x0[7] = {0, 4, 0, 2, 0, 1, 0}, y0[7] = {0, 0, 4, 0, 2, 0, 1},
                                  dx[7] = {8, 8, 4, 4, 2, 2, 1}, dy[7] = {8, 8, 8, 4, 4, 2, 2};
            for (int p = 0; p < 7; ++p)
                expected_ += bytes((width_ + dx[p] - 1 - x0[p]) / dx[p], (height_ + dy[p] - 1 - y0[p]) / dy[p]);
        } else {
            expected_ = bytes(width_, height_);
        }
    }

    void inflate_some(z_stream& stream, const std::uint8_t* body, std::size_t length, bool& finished) {
        raw_.reserve(std::min(expected_, 64 * size_));  // what the header claims, within reason
        stream.next_in = const_cast<Bytef*>(body);
        stream.avail_in = static_cast<uInt>(length);
        while (stream.avail_in > 0 && !finished) {
            const std::size_t have = raw_.size(), room = std::min<std::size_t>(32768, expected_ - have);
            std::uint8_t beyond[1];  // where the stream goes on once everything expected is there
            raw_.resize(have + room);
            stream.next_out = room > 0 ? raw_.data() + have : beyond;
            stream.avail_out = room > 0 ? static_cast<uInt>(room) : 1;
            const uInt offered = stream.avail_out;
            const int status = inflate(&stream, Z_NO_FLUSH);
            const std::size_t made = offered - stream.avail_out;
            raw_.resize(have + std::min(made, room));
            if (status != Z_OK && status != Z_STREAM_END && status != Z_BUF_ERROR) fail("PNG image data are damaged");
            if (made > room) fail("PNG holds more image data than its size says");
            finished = status == Z_STREAM_END;
            if (made == 0 && status == Z_BUF_ERROR) break;
        }
    }

    // Undoes a row's filter: row = from + what is predicted from the pixel to the left (a), above (b) and above to the
    // left (c), `step` bytes a pixel.
    template <std::size_t step>
    void unfilter(unsigned filter, const std::uint8_t* from, const std::uint8_t* above, std::uint8_t* row,
                  std::size_t bytes) const {
        const auto each = [&](auto predict) {
            std::uint8_t a[step] = {}, c[step] = {};
            for (std::size_t i = 0; i < bytes; i += step)
                for (std::size_t j = 0; j < step; ++j) {
                    const std::uint8_t b = above[i + j];
                    row[i + j] = a[j] = static_cast<std::uint8_t>(from[i + j] + predict(int{a[j]}, int{b}, int{c[j]}));
                    c[j] = b;
                }
        };
        if (filter == 0) std::memcpy(row, from, bytes);
        else if (filter == 1) each([](int a, int, int) { return a; });
        else if (filter == 2)
            for (std::size_t i = 0; i < bytes; ++i) row[i] = static_cast<std::uint8_t>(from[i] + above[i]);
        else if (filter == 3) each([](int a, int b, int) { return (a + b) / 2; });
        else if (filter == 4)
            each([](int a, int b, int c) {
                const int pa = std::abs(b - c), pb = std::abs(a - c), pc = std::abs(a + b - 2 * c);
                return pa <= pb && pa <= pc ? a : pb <= pc ? b : c;
            });
        else fail("PNG row has an unknown filter", std::to_string(filter));
    }
    void unfilter(std::size_t step, unsigned filter, const std::uint8_t* from, const std::uint8_t* above,
                  std::uint8_t* row, std::size_t bytes) const {
        switch (step) {
            case 1:
                return unfilter<1>(filter, from, above, row, bytes);
            case 2:
                return unfilter<2>(filter, from, above, row, bytes);
            case 3:
                return unfilter<3>(filter, from, above, row, bytes);
            case 4:
                return unfilter<4>(filter, from, above, row, bytes);
            case 6:
                return unfilter<6>(filter, from, above, row, bytes);
            default:
                return unfilter<8>(filter, from, above, row, bytes);
        }
    }

    // Unfilters the rows of one pass and puts their pixels in place; returns the end of the pass.
    const std::uint8_t* pass(const std::uint8_t* at, image& out, std::size_t x0, std::size_t y0, std::size_t dx,
                             std::size_t dy) {
        const std::size_t columns = x0 < width_ ? (width_ - x0 + dx - 1) / dx : 0,
                          rows = y0 < height_ ? (height_ - y0 + dy - 1) / dy : 0;
        if (columns == 0 || rows == 0) return at;
        const std::size_t bytes = row_bytes(columns), step = std::max<std::size_t>(1, channels_ * depth_ / 8);
        std::vector<std::uint8_t> before(bytes, 0), current(bytes);
        // 8-bit RGB without transparency is what the picture holds: rows are unfiltered into it.
        const bool as_it_is = colour_ == 2 && depth_ == 8 && dx == 1 && transparency_.empty();
        const std::uint8_t* above = before.data();
        for (std::size_t r = 0; r < rows; ++r, at += bytes) {
            std::uint8_t* const target = out.rgb.data() + ((y0 + r * dy) * width_ + x0) * 3;
            std::uint8_t* const row = as_it_is ? target : current.data();
            const unsigned filter = *at++;
            unfilter(step, filter, at, above, row, bytes);
            above = row;
            if (as_it_is) continue;
            for (std::size_t c = 0; c < columns; ++c) put(row, c, target + c * dx * 3);
            std::swap(before, current);
        }
        return at;
    }

    unsigned sample(const std::uint8_t* row, std::size_t i) const {
        if (depth_ == 8) return row[i];
        if (depth_ == 16) return unsigned{row[2 * i]} << 8 | row[2 * i + 1];
        return row[i * depth_ / 8] >> (8 - depth_ - i * depth_ % 8) & ((1u << depth_) - 1);
    }
    std::uint8_t to_byte(unsigned v) const {
        return static_cast<std::uint8_t>(depth_ == 16 ? v >> 8 : depth_ == 8 ? v : v * 255 / ((1u << depth_) - 1));
    }
    unsigned key(std::size_t i) const { return unsigned{transparency_[2 * i]} << 8 | transparency_[2 * i + 1]; }

    void put(const std::uint8_t* row, std::size_t column, std::uint8_t* rgb) const {
        unsigned alpha = 255;
        if (colour_ == 3) {
            const unsigned i = sample(row, column);
            for (std::size_t c = 0; c < 3; ++c) rgb[c] = i * 3 + c < palette_.size() ? palette_[i * 3 + c] : 0;
            if (i < transparency_.size()) alpha = transparency_[i];
        } else {
            const std::size_t colours = channels_ >= 3 ? 3 : 1;
            unsigned v[4] = {};
            for (std::size_t c = 0; c < channels_; ++c) v[c] = sample(row, column * channels_ + c);
            for (std::size_t c = 0; c < 3; ++c) rgb[c] = to_byte(v[colours == 3 ? c : 0]);
            if (channels_ > colours) alpha = to_byte(v[colours]);
            else if (transparency_.size() == 2 * colours) {
                bool match = true;
                for (std::size_t c = 0; c < colours; ++c) match = match && v[c] == key(c);
                if (match) alpha = 0;
            }
        }
        if (alpha == 255 || alpha_ == alpha_mode::drop) return;
        // Pillow's alpha_composite over opaque white, in its fixed-point arithmetic.
        for (std::size_t c = 0; c < 3; ++c) {
            const std::uint32_t t = (rgb[c] * alpha + 255u * (255u - alpha)) * 128u + (0x80u << 7);
            rgb[c] = static_cast<std::uint8_t>(((t >> 8) + t) >> 8 >> 7);
        }
    }

    const std::uint8_t* data_;
    std::size_t size_;
    const std::string& where_;
    alpha_mode alpha_;
    std::size_t width_ = 0, height_ = 0, channels_ = 0, expected_ = 0;
    unsigned depth_ = 0, colour_ = 0;
    bool interlaced_ = false;
    std::vector<std::uint8_t> palette_, transparency_, raw_;
};

// libjpeg's error manager that jumps out instead of exiting.
struct jpeg_errors : jpeg_error_mgr {
    std::jmp_buf jump;
    char message[JMSG_LENGTH_MAX];
    bool premature_end;
};

// Decodes into `out`; on failure fills `errors.message` and returns false. No C++ object lives in this frame: longjmp
// leaves it.
inline bool decode_jpeg_into(jpeg_decompress_struct& info, jpeg_errors& errors, const std::uint8_t* data,
                             std::size_t size, std::vector<std::uint8_t>& row, image& out) {
    if (setjmp(errors.jump)) return false;
    jpeg_create_decompress(&info);
    jpeg_mem_src(&info, data, static_cast<unsigned long>(size));
    jpeg_read_header(&info, TRUE);
    const std::size_t pixels = std::size_t{info.image_width} * info.image_height;
    // An 8 x 8 block of a JPEG takes at least two bits, so a picture cannot be much larger than its file.
    if (pixels > max_pixels || pixels / 1000 > size + 1000) {
        std::snprintf(errors.message, sizeof errors.message, "it claims %u x %u pixels in %zu bytes", info.image_width,
                      info.image_height, size);
        return false;
    }
    info.dct_method = JDCT_ISLOW;
    info.do_fancy_upsampling = TRUE;
    info.out_color_space = info.num_components == 4 ? JCS_CMYK : info.num_components == 1 ? JCS_GRAYSCALE : JCS_RGB;
    jpeg_start_decompress(&info);
    out.width = info.output_width;
    out.height = info.output_height;
    const std::size_t channels = static_cast<std::size_t>(info.output_components);
    row.resize(channels == 3 ? 0 : out.width * channels);
    out.rgb.reserve(std::min(out.width * out.height * 3, 64 * size));  // what the header claims, within reason
    while (info.output_scanline < info.output_height && !errors.premature_end) {
        const std::size_t start = out.rgb.size();
        out.rgb.resize(start + out.width * 3);
        std::uint8_t* rgb = out.rgb.data() + start;
        JSAMPROW pointer = channels == 3 ? rgb : row.data();
        jpeg_read_scanlines(&info, &pointer, 1);
        if (channels == 3) continue;
        for (std::size_t x = 0; x < out.width; ++x, rgb += 3) {
            const std::uint8_t* p = row.data() + x * channels;
            if (channels == 1) {
                rgb[0] = rgb[1] = rgb[2] = p[0];
            } else {  // inverted CMYK, by Pillow's formula
                const unsigned white = p[3];
                for (int c = 0; c < 3; ++c) {
                    const unsigned t = (255u - p[c]) * white + 128u;
                    rgb[c] = static_cast<std::uint8_t>(white - std::min(white, ((t >> 8) + t) >> 8));
                }
            }
        }
    }
    if (!errors.premature_end) jpeg_finish_decompress(&info);
    return !errors.premature_end;
}

// The same for encoding; `bytes` is libjpeg's, from malloc.
inline bool encode_jpeg_into(jpeg_compress_struct& info, jpeg_errors& errors, const image& picture, int quality,
                             unsigned char*& bytes, unsigned long& size) {
    if (setjmp(errors.jump)) return false;
    jpeg_create_compress(&info);
    jpeg_mem_dest(&info, &bytes, &size);
    info.image_width = static_cast<JDIMENSION>(picture.width);
    info.image_height = static_cast<JDIMENSION>(picture.height);
    info.input_components = 3;
    info.in_color_space = JCS_RGB;
    jpeg_set_defaults(&info);
    jpeg_set_quality(&info, quality, TRUE);
    jpeg_start_compress(&info, TRUE);
    while (info.next_scanline < info.image_height) {
        auto* row = const_cast<JSAMPROW>(picture.rgb.data() + info.next_scanline * picture.width * 3);
        jpeg_write_scanlines(&info, &row, 1);
    }
    jpeg_finish_compress(&info);
    return true;
}

// libjpeg's error manager set up to jump to `errors.jump`, with its message kept.
inline jpeg_error_mgr* jpeg_failures(jpeg_errors& errors) {
    jpeg_error_mgr* manager = jpeg_std_error(&errors);
    errors.error_exit = [](j_common_ptr c) {
        auto* e = static_cast<jpeg_errors*>(c->err);
        c->err->format_message(c, e->message);
        std::longjmp(e->jump, 1);
    };
    return manager;
}

inline image decode_jpeg(const std::uint8_t* data, std::size_t size, const std::string& where) {
    jpeg_decompress_struct info{};
    jpeg_errors errors{};
    info.err = jpeg_failures(errors);
    errors.emit_message = [](j_common_ptr c, int level) {
        auto* e = static_cast<jpeg_errors*>(c->err);
        if (level >= 0) return;
        char text[JMSG_LENGTH_MAX];
        c->err->format_message(c, text);
        if (std::strstr(text, "Premature end of JPEG file") != nullptr) {
            e->premature_end = true;
            std::memcpy(e->message, text, sizeof text);
        }
    };
    image out;
    std::vector<std::uint8_t> row;
    const bool good = decode_jpeg_into(info, errors, data, size, row, out);
    jpeg_destroy_decompress(&info);
    if (!good) throw error("JPEG cannot be decoded", where, errors.message);
    return out;
}

}  // namespace detail

// Reads a PNG or JPEG file, told apart by its first bytes. Throws psae::error naming the file and what is wrong with
// it.
inline image read_image(const std::filesystem::path& path, alpha_mode alpha = alpha_mode::white) {
    const file_bytes bytes(path);
    const auto* data = reinterpret_cast<const std::uint8_t*>(bytes.data());
    const std::string where = path.string();
    if (bytes.size() >= 8 && std::memcmp(data, "\x89PNG\r\n\x1a\n", 8) == 0)
        return detail::png_decoder(data, bytes.size(), where, alpha).decode();
    if (bytes.size() >= 3 && std::memcmp(data, "\xff\xd8\xff", 3) == 0)
        return detail::decode_jpeg(data, bytes.size(), where);
    throw error("not a picture", where, "expected a PNG or JPEG file", bytes.size() == 0 ? "the file is empty" : "");
}

// An 8-bit PNG of pixels [height, width, channels]: 3 channels are RGB, 4 RGBA.
inline std::string encode_png(const std::vector<std::uint8_t>& pixels, std::size_t width, std::size_t height,
                              std::size_t channels) {
    if ((channels != 3 && channels != 4) || width == 0 || height == 0 || pixels.size() != width * height * channels)
        throw error("pixels do not make a PNG", "encode_png",
                    "expected " + std::to_string(width) + " x " + std::to_string(height) +
                        " of 3 or 4 channels, found " + std::to_string(pixels.size()) + " values in " +
                        std::to_string(channels) + " channels");
    std::string out("\x89PNG\r\n\x1a\n", 8);
    const auto u32 = [](std::size_t v) { return std::string{char(v >> 24), char(v >> 16), char(v >> 8), char(v)}; };
    const auto chunk = [&](const std::string& type_and_body) {
        out += u32(type_and_body.size() - 4) + type_and_body;
        out += u32(crc32_z(0, reinterpret_cast<const Bytef*>(type_and_body.data()), type_and_body.size()));
    };
    chunk("IHDR" + u32(width) + u32(height) + std::string{8, channels == 3 ? char(2) : char(6), 0, 0, 0});
    std::vector<std::uint8_t> rows;
    rows.reserve(pixels.size() + height);
    for (std::size_t y = 0; y < height; ++y) {
        rows.push_back(1);  // each byte as the difference from the pixel to its left
        const std::uint8_t* row = pixels.data() + y * width * channels;
        for (std::size_t i = 0; i < width * channels; ++i)
            rows.push_back(static_cast<std::uint8_t>(row[i] - (i >= channels ? row[i - channels] : 0)));
    }
    uLongf size = compressBound(static_cast<uLong>(rows.size()));
    std::string body(4 + size, '\0');
    std::memcpy(body.data(), "IDAT", 4);
    if (compress2(reinterpret_cast<Bytef*>(body.data()) + 4, &size, rows.data(), static_cast<uLong>(rows.size()), 6) !=
        Z_OK)
        throw error("picture cannot be compressed", "encode_png");
    body.resize(4 + size);
    chunk(body);
    chunk("IEND");
    return out;
}

// A baseline JPEG, quality 1 to 100.
inline std::string encode_jpeg(const image& picture, int quality) {
    if (picture.width == 0 || picture.height == 0 || picture.width > 65500 || picture.height > 65500)
        throw error("picture cannot be a JPEG", "encode_jpeg",
                    "expected 1 to 65500 pixels a side, found " + std::to_string(picture.width) + " x " +
                        std::to_string(picture.height));
    jpeg_compress_struct info{};
    detail::jpeg_errors errors{};
    info.err = detail::jpeg_failures(errors);
    unsigned char* bytes = nullptr;
    unsigned long size = 0;
    const bool good = detail::encode_jpeg_into(info, errors, picture, quality, bytes, size);
    jpeg_destroy_compress(&info);
    std::string out(reinterpret_cast<const char*>(bytes), good ? size : 0);
    std::free(bytes);
    if (!good) throw error("picture cannot be compressed", "encode_jpeg", errors.message);
    return out;
}

inline void write_png(const std::filesystem::path& path, const image& picture) {
    write_text(path, encode_png(picture.rgb, picture.width, picture.height, 3));
}

}  // namespace psae
