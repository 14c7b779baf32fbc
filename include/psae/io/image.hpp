#pragma once
// Pictures from files: PNG by our own decoder on zlib (exact, every checksum checked), JPEG by libjpeg-turbo.
//
//   psae::image picture = psae::read_image("cat.jpg");      // 8-bit RGB, whatever the file holds
//   psae::write_png("copy.png", picture);
//
// Pixels are those Pillow's convert("RGB") gives, with one exception: 16-bit gray keeps its high byte (Pillow saturates,
// which turns nearly every picture white). An EXIF orientation is not applied, as Pillow does not apply it on opening.

#include <algorithm>
#include <array>
#include <csetjmp>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include <jpeglib.h>
// jerror.h defines its messages only when jpeglib.h is there already.
#include <jerror.h>
#include <zlib.h>

#include <psae/core/error.hpp>
#include <psae/io/atomic_file.hpp>
#include <psae/io/file_bytes.hpp>

namespace psae {

// 8-bit RGB, rows from the top.
struct image {
    std::size_t width = 0, height = 0;
    std::vector<std::uint8_t> rgb;  // [height, width, 3]
};

// What becomes of transparency.
enum class alpha_mode {
    white,  // blended over white, as transformers 5 does
    drop,   // the colour as stored, as transformers 4 and PatchSAE do
};

// More pixels than this are refused (the limit of Pillow's guard against decompression bombs).
inline constexpr std::size_t max_image_pixels = 178'956'970;

namespace detail {

inline void check_image_size(std::size_t width, std::size_t height, const std::string& where) {
    if (width == 0 || height == 0)
        throw error("image has no pixels", where, std::to_string(width) + " x " + std::to_string(height));
    if (width > max_image_pixels / height)
        throw error("image is too large", where,
                    "found " + std::to_string(width) + " x " + std::to_string(height) + ", at most " +
                        std::to_string(max_image_pixels) + " pixels are read");
}

// One channel blended over white; the fixed-point rounding is that of Pillow's Image.alpha_composite.
inline std::uint8_t over_white(std::uint32_t value, std::uint32_t alpha) {
    if (alpha == 0) return 255;
    const std::uint32_t t = (value * alpha + 255 * (255 - alpha)) * 128 + (0x80 << 7);
    return static_cast<std::uint8_t>((((t >> 8) + t) >> 8) >> 7);
}

// ---- PNG ------------------------------------------------------------------------------------------------------------

inline std::uint32_t big_endian_32(const std::uint8_t* p) {
    return std::uint32_t{p[0]} << 24 | std::uint32_t{p[1]} << 16 | std::uint32_t{p[2]} << 8 | p[3];
}

class png_decoder {
public:
    png_decoder(std::span<const std::uint8_t> file, const std::string& where) : file_(file), where_(where) {
        read_chunks();
    }

    image decode(alpha_mode alpha) const {
        const std::vector<std::uint8_t> filtered = inflate_data();
        image out{width_, height_, {}};
        out.rgb.resize(width_ * height_ * 3);  // only now: the file has proved that it holds this many pixels
        const bool keep_alpha = alpha == alpha_mode::white;
        std::vector<std::uint8_t> lines(2 * (row_bytes(width_) + padding));
        const std::uint8_t* p = filtered.data();
        for (const pass& s : passes()) {
            const std::size_t w = s.width(width_), h = s.height(height_);
            if (w == 0 || h == 0) continue;
            const std::size_t bytes = row_bytes(w);
            // Two rows, each after `padding` zero bytes, which stand for the pixel left of the first one.
            std::uint8_t* above = lines.data() + padding;
            std::uint8_t* line = above + bytes + padding;
            std::fill(lines.begin(), lines.end(), std::uint8_t{0});
            for (std::size_t y = 0; y < h; ++y, p += 1 + bytes) {
                unfilter(p[0], p + 1, line, above, bytes, y);
                convert_row(line, w, out.rgb.data() + ((s.y0 + y * s.dy) * width_ + s.x0) * 3, s.dx * 3, keep_alpha);
                std::swap(line, above);
            }
        }
        return out;
    }

private:
    static constexpr std::size_t padding = 8;  // the widest pixel: four channels of 16 bits

    struct pass {
        std::size_t x0, y0, dx, dy;
        std::size_t width(std::size_t w) const { return w > x0 ? (w - x0 + dx - 1) / dx : 0; }
        std::size_t height(std::size_t h) const { return h > y0 ? (h - y0 + dy - 1) / dy : 0; }
    };

    std::span<const pass> passes() const {
        static constexpr pass whole[] = {{0, 0, 1, 1}};
        static constexpr pass adam7[] = {{0, 0, 8, 8}, {4, 0, 8, 8}, {0, 4, 4, 8}, {2, 0, 4, 4},
                                         {0, 2, 2, 4}, {1, 0, 2, 2}, {0, 1, 1, 2}};
        if (interlaced_) return adam7;
        return whole;
    }

    std::size_t channels() const { return colour_ == 2 ? 3 : colour_ == 4 ? 2 : colour_ == 6 ? 4 : 1; }
    std::size_t row_bytes(std::size_t w) const { return (w * channels() * depth_ + 7) / 8; }

    [[noreturn]] void fail(const std::string& what, std::size_t at, const std::string& expected = {}) const {
        throw error(what, where_ + ", byte " + std::to_string(at), expected, "the file may be damaged");
    }

    void read_chunks() {
        std::size_t at = 8;
        bool ended = false, data_over = false;
        while (!ended) {
            if (file_.size() - at < 12) fail("PNG ends early", at, "expected a chunk, found " + std::to_string(file_.size() - at) + " bytes");
            const std::size_t length = big_endian_32(&file_[at]);
            if (length > file_.size() - at - 12)
                fail("PNG ends early", at, "a chunk of " + std::to_string(length) + " bytes, found " + std::to_string(file_.size() - at - 12));
            const std::uint8_t* type = &file_[at + 4];
            const auto content = file_.subspan(at + 8, length);
            const std::string name(reinterpret_cast<const char*>(type), 4);
            if (::crc32(0, type, static_cast<uInt>(length + 4)) != big_endian_32(&file_[at + 8 + length]))
                fail("PNG chunk has a wrong checksum", at, "chunk " + printable(name));
            if ((name == "IHDR") != (at == 8)) fail("PNG header is missing or not the first chunk", at, "chunk " + printable(name));
            if (name != "IDAT" && !data_.empty()) data_over = true;
            if (name == "IHDR") read_header(content, at);
            else if (name == "PLTE") read_palette(content, at);
            else if (name == "tRNS") read_transparency(content, at);
            else if (name == "IDAT") {
                if (data_over) fail("PNG has other chunks between its data chunks", at);
                if (length > 0) data_.push_back(content);
            } else if (name == "IEND") ended = true;
            else if ((type[0] & 0x20) == 0) fail("PNG has an unknown critical chunk", at, "chunk " + printable(name));
            at += 12 + length;
        }
        if (data_.empty()) fail("PNG has no data", at);
        if (colour_ == 3 && palette_.empty()) fail("PNG has no palette", at, "colour type 3 needs a PLTE chunk");
    }

    static std::string printable(std::string name) {
        for (char& c : name)
            if (c < 33 || c > 126) c = '?';
        return name;
    }

    void read_header(std::span<const std::uint8_t> c, std::size_t at) {
        if (c.size() != 13) fail("PNG header has a wrong length", at, "expected 13 bytes, found " + std::to_string(c.size()));
        width_ = big_endian_32(&c[0]);
        height_ = big_endian_32(&c[4]);
        depth_ = c[8];
        colour_ = c[9];
        check_image_size(width_, height_, where_);
        const bool depth_fits = colour_ == 0   ? depth_ == 1 || depth_ == 2 || depth_ == 4 || depth_ == 8 || depth_ == 16
                                : colour_ == 3 ? depth_ == 1 || depth_ == 2 || depth_ == 4 || depth_ == 8
                                : colour_ == 2 || colour_ == 4 || colour_ == 6 ? depth_ == 8 || depth_ == 16
                                                                               : false;
        if (!depth_fits)
            fail("PNG has an unknown colour type or bit depth", at,
                 "found colour type " + std::to_string(colour_) + " with " + std::to_string(depth_) + " bits");
        if (c[10] != 0 || c[11] != 0 || c[12] > 1) fail("PNG has an unknown compression, filter or interlace method", at);
        interlaced_ = c[12] == 1;
    }

    void read_palette(std::span<const std::uint8_t> c, std::size_t at) {
        if (colour_ != 3) return;  // a suggestion for displays with few colours
        if (!palette_.empty() || !data_.empty()) fail("PNG palette is in the wrong place", at);
        if (c.empty() || c.size() % 3 != 0 || c.size() / 3 > (std::size_t{1} << depth_))
            fail("PNG palette has a wrong length", at, "found " + std::to_string(c.size()) + " bytes");
        for (std::size_t i = 0; i < c.size(); i += 3) palette_.push_back({c[i], c[i + 1], c[i + 2], 255});
    }

    void read_transparency(std::span<const std::uint8_t> c, std::size_t at) {
        if (!data_.empty()) fail("PNG transparency comes after the data", at);
        if (colour_ == 3) {
            if (c.size() > palette_.size()) fail("PNG transparency is longer than the palette", at);
            for (std::size_t i = 0; i < c.size(); ++i) palette_[i][3] = c[i];
            has_transparency_ = true;
        } else if (colour_ == 0 || colour_ == 2) {
            if (c.size() != 2 * channels()) fail("PNG transparency has a wrong length", at);
            for (std::size_t i = 0; i < channels(); ++i) key_[i] = static_cast<std::uint16_t>(c[2 * i] << 8 | c[2 * i + 1]);
            has_transparency_ = true;
        } else fail("PNG has an alpha channel and a transparency chunk", at);
    }

    // The filtered rows of all passes. Memory grows with what the stream yields, never with what the header says.
    std::vector<std::uint8_t> inflate_data() const {
        std::size_t expected = 0, stored = 0;
        for (const pass& s : passes()) {
            const std::size_t w = s.width(width_), h = s.height(height_);
            if (w != 0) expected += h * (1 + row_bytes(w));
        }
        for (const auto& d : data_) stored += d.size();
        // Deflate yields at most 258 bytes for 2 bits.
        if (expected / 1032 > stored)
            fail("PNG holds too little data for its size", 8,
                 "at least " + std::to_string(expected / 1032) + " bytes, found " + std::to_string(stored));
        struct inflater {
            z_stream stream{};
            ~inflater() { ::inflateEnd(&stream); }
        } z;
        if (::inflateInit(&z.stream) != Z_OK) throw std::bad_alloc();
        std::vector<std::uint8_t> out(std::min(expected, std::max(std::size_t{1} << 16, 8 * stored)));
        std::size_t have = 0;
        bool more_than_expected = false;
        int status = Z_OK;
        for (const auto& d : data_) {
            z.stream.next_in = const_cast<Bytef*>(d.data());
            z.stream.avail_in = static_cast<uInt>(d.size());
            while (z.stream.avail_in > 0 && status != Z_STREAM_END && !more_than_expected) {
                if (have == out.size() && have < expected) out.resize(std::min(expected, 2 * have));
                std::uint8_t beyond = 0;  // one byte to see whether the stream ends where it should
                const std::size_t room = std::min(out.size() - have, std::size_t{1} << 30);
                z.stream.next_out = room > 0 ? out.data() + have : &beyond;
                z.stream.avail_out = room > 0 ? static_cast<uInt>(room) : 1;
                status = ::inflate(&z.stream, Z_NO_FLUSH);
                if (status != Z_OK && status != Z_STREAM_END && status != Z_BUF_ERROR)
                    fail("PNG data cannot be decompressed", static_cast<std::size_t>(d.data() - file_.data()),
                         z.stream.msg != nullptr ? z.stream.msg : "zlib error " + std::to_string(status));
                if (room > 0) have += room - z.stream.avail_out;
                else more_than_expected = z.stream.avail_out == 0;  // surplus data is ignored, as libpng does
            }
        }
        if (have < expected)
            fail("PNG data ends early", file_.size(), "expected " + std::to_string(expected) + " bytes of rows, found " + std::to_string(have));
        // The last byte may come out before the end of the stream is seen; its checksum must still be there.
        if (status != Z_STREAM_END && !more_than_expected) fail("PNG data has no end", file_.size());
        return out;
    }

    // Undoes a row's filter. `line` and `above` have `padding` zero bytes before them.
    void unfilter(std::uint8_t filter, const std::uint8_t* in, std::uint8_t* line, const std::uint8_t* above, std::size_t bytes, std::size_t row) const {
        const std::size_t pixel = std::max<std::size_t>(1, channels() * depth_ / 8);
        switch (filter) {
            case 0: std::memcpy(line, in, bytes); return;
            case 2:
                for (std::size_t i = 0; i < bytes; ++i) line[i] = static_cast<std::uint8_t>(in[i] + above[i]);
                return;
            case 1: case 3: case 4:
                // The distance to the left neighbour as a constant: the loops carry it in registers.
                if (pixel == 3) unfilter_left<3>(filter, in, line, above, bytes, 3);
                else if (pixel == 4) unfilter_left<4>(filter, in, line, above, bytes, 4);
                else if (pixel == 1) unfilter_left<1>(filter, in, line, above, bytes, 1);
                else unfilter_left<0>(filter, in, line, above, bytes, pixel);
                return;
            default: fail("PNG row has an unknown filter", file_.size(), "row " + std::to_string(row) + ", filter " + std::to_string(filter));
        }
    }

    template <std::size_t Pixel>
    static void unfilter_left(std::uint8_t filter, const std::uint8_t* in, std::uint8_t* line, const std::uint8_t* above, std::size_t bytes, std::size_t n) {
        const std::size_t pixel = Pixel != 0 ? Pixel : n;
        const std::uint8_t* left = line - pixel;
        const std::uint8_t* corner = above - pixel;
        if (filter == 1) {
            for (std::size_t i = 0; i < bytes; ++i) line[i] = static_cast<std::uint8_t>(in[i] + left[i]);
        } else if (filter == 3) {
            for (std::size_t i = 0; i < bytes; ++i) line[i] = static_cast<std::uint8_t>(in[i] + (left[i] + above[i]) / 2);
        } else {
            for (std::size_t i = 0; i < bytes; ++i) {
                const int a = left[i], b = above[i], c = corner[i];
                const int pa = std::abs(b - c), pb = std::abs(a - c), pc = std::abs(a + b - 2 * c);
                const int nearest = pa <= pb && pa <= pc ? a : pb <= pc ? b : c;
                line[i] = static_cast<std::uint8_t>(in[i] + nearest);
            }
        }
    }

    // One row of samples to RGB; pixels are `step` bytes apart in the output.
    void convert_row(const std::uint8_t* in, std::size_t w, std::uint8_t* out, std::size_t step, bool keep_alpha) const {
        const std::size_t size = depth_ == 16 ? 2 : 1;  // of a sample; the high byte comes first
        const auto put = [&](std::uint32_t r, std::uint32_t g, std::uint32_t b, std::uint32_t a) {
            out[0] = keep_alpha ? over_white(r, a) : static_cast<std::uint8_t>(r);
            out[1] = keep_alpha ? over_white(g, a) : static_cast<std::uint8_t>(g);
            out[2] = keep_alpha ? over_white(b, a) : static_cast<std::uint8_t>(b);
            out += step;
        };
        const auto sample = [&](std::size_t i) -> std::uint32_t {
            return depth_ == 16 ? static_cast<std::uint32_t>(in[2 * i] << 8 | in[2 * i + 1]) : in[i];
        };
        if (colour_ == 2 && !has_transparency_ && size == 1 && step == 3) {
            std::memcpy(out, in, 3 * w);
        } else if (colour_ == 2) {
            for (std::size_t x = 0; x < w; ++x) {
                const bool clear = has_transparency_ && sample(3 * x) == key_[0] && sample(3 * x + 1) == key_[1] && sample(3 * x + 2) == key_[2];
                const std::uint8_t* p = in + 3 * x * size;
                put(p[0], p[size], p[2 * size], clear ? 0 : 255);
            }
        } else if (colour_ == 6) {
            for (std::size_t x = 0; x < w; ++x, in += 4 * size) put(in[0], in[size], in[2 * size], in[3 * size]);
        } else if (colour_ == 4) {
            for (std::size_t x = 0; x < w; ++x, in += 2 * size) put(in[0], in[0], in[0], in[size]);
        } else {
            const std::uint32_t largest = (1u << std::min(depth_, 8u)) - 1;
            for (std::size_t x = 0; x < w; ++x) {
                const std::uint32_t v = depth_ >= 8 ? sample(x) : (in[x * depth_ / 8] >> (8 - depth_ - x * depth_ % 8)) & largest;
                if (colour_ == 3) {
                    if (v >= palette_.size())
                        fail("PNG pixel is outside the palette", file_.size(), "colour " + std::to_string(v) + " of " + std::to_string(palette_.size()));
                    const auto& c = palette_[v];
                    put(c[0], c[1], c[2], c[3]);
                } else {
                    const std::uint32_t gray = depth_ == 16 ? v >> 8 : v * 255 / largest;
                    put(gray, gray, gray, has_transparency_ && v == key_[0] ? 0 : 255);
                }
            }
        }
    }

    std::span<const std::uint8_t> file_;
    std::string where_;
    std::size_t width_ = 0, height_ = 0;
    unsigned depth_ = 0, colour_ = 0;
    bool interlaced_ = false, has_transparency_ = false;
    std::vector<std::array<std::uint8_t, 4>> palette_;
    std::uint16_t key_[3] = {};  // the colour that is transparent, in the file's own bit depth
    std::vector<std::span<const std::uint8_t>> data_;
};

// ---- JPEG -----------------------------------------------------------------------------------------------------------

// libjpeg reports errors by a callback that must not return, and exceptions must not cross its C frames. So every call
// into it is made from a function that holds nothing but this object, and the callback jumps back into that function.
class jpeg_decoder {
public:
    jpeg_decoder(std::span<const std::uint8_t> file, const std::string& where) : file_(file), where_(where) {
        info_.err = ::jpeg_std_error(&errors_);
        info_.client_data = this;
        errors_.error_exit = [](j_common_ptr c) { self(c).jump(); };
        errors_.emit_message = [](j_common_ptr c, int level) {
            if (level < 0 && damaging(c->err->msg_code)) self(c).jump();
        };
        errors_.output_message = [](j_common_ptr) {};
        progress_.progress_monitor = [](j_common_ptr c) {
            // A progressive file can ask for a pass over the whole picture in a few bytes, again and again.
            if (self(c).info_.input_scan_number > 500) {
                self(c).too_many_scans_ = true;
                std::longjmp(self(c).back_, 1);
            }
        };
    }
    jpeg_decoder(const jpeg_decoder&) = delete;
    jpeg_decoder& operator=(const jpeg_decoder&) = delete;
    ~jpeg_decoder() { ::jpeg_destroy_decompress(&info_); }

    image decode() {
        if (!read_header()) fail();
        const std::size_t width = info_.image_width, height = info_.image_height;
        check_image_size(width, height, where_);
        if (info_.data_precision != 8) throw error("JPEG has another precision than 8 bits", where_, "found " + std::to_string(info_.data_precision));
        if (info_.num_components != 1 && info_.num_components != 3 && info_.num_components != 4)
            throw error("JPEG is neither gray, nor RGB, nor CMYK", where_, "found " + std::to_string(info_.num_components) + " components");
        // A Huffman code has at least one bit per block of 8 x 8 pixels; arithmetic coding can do with a fraction of one.
        const std::size_t blocks = (width + 7) / 8 * ((height + 7) / 8), bits = file_.size() * 8 * (info_.arith_code ? 64 : 1);
        if (blocks > bits)
            throw error("JPEG holds too little data for its size", where_,
                        std::to_string(width) + " x " + std::to_string(height) + " in " + std::to_string(file_.size()) + " bytes", "the file may be damaged");
        const bool cmyk = info_.num_components == 4;
        info_.out_color_space = cmyk ? JCS_CMYK : JCS_RGB;
        info_.dct_method = JDCT_ISLOW;  // Pillow's, and the reproducible one
        image out{width, height, {}};
        if (!start()) fail();
        out.rgb.resize(width * height * 3);
        if (cmyk) line_.resize(width * 4);
        row_ = cmyk ? line_.data() : out.rgb.data();
        for (std::size_t y = 0; y < height;) {
            if (!read_row()) fail();
            if (rows_read_ == 0) fail();
            if (cmyk) cmyk_row(line_.data(), out.rgb.data() + y * width * 3, width);
            else row_ = out.rgb.data() + (y + 1) * width * 3;
            ++y;
        }
        if (!finish()) fail();
        return out;
    }

private:
    static jpeg_decoder& self(j_common_ptr c) { return *static_cast<jpeg_decoder*>(c->client_data); }

    // Which of libjpeg's warnings mean that pixels are wrong or missing. The others (stray bytes between segments, odd
    // version numbers) are let pass, as Pillow does; so many published photographs have them.
    static bool damaging(int code) {
        switch (code) {
            case JWRN_JPEG_EOF: case JWRN_HIT_MARKER: case JWRN_HUFF_BAD_CODE: case JWRN_ARITH_BAD_CODE:
            case JWRN_MUST_RESYNC: case JWRN_NOT_SEQUENTIAL: case JWRN_BOGUS_PROGRESSION: return true;
            default: return false;
        }
    }
    [[noreturn]] void jump() {
        (*errors_.format_message)(reinterpret_cast<j_common_ptr>(&info_), message_);
        std::longjmp(back_, 1);
    }
    [[noreturn]] void fail() const {
        throw error("JPEG cannot be decoded", where_,
                    too_many_scans_ ? "more than 500 scans" : message_[0] != 0 ? message_ : "libjpeg stopped", "the file may be damaged or cut short");
    }

    bool read_header() {
        if (setjmp(back_) != 0) return false;
        ::jpeg_create_decompress(&info_);
        info_.progress = &progress_;
        ::jpeg_mem_src(&info_, file_.data(), static_cast<unsigned long>(file_.size()));
        return ::jpeg_read_header(&info_, TRUE) == JPEG_HEADER_OK;
    }
    bool start() {
        if (setjmp(back_) != 0) return false;
        return ::jpeg_start_decompress(&info_) != FALSE;
    }
    bool read_row() {
        if (setjmp(back_) != 0) return false;
        rows_read_ = ::jpeg_read_scanlines(&info_, &row_, 1);
        return true;
    }
    bool finish() {
        if (setjmp(back_) != 0) return false;
        return ::jpeg_finish_decompress(&info_) != FALSE;
    }

    // Adobe's CMYK is stored inverted, and so Pillow takes all CMYK to be; its conversion, with its rounding.
    static void cmyk_row(const std::uint8_t* in, std::uint8_t* out, std::size_t width) {
        for (std::size_t x = 0; x < width; ++x, in += 4, out += 3)
            for (std::size_t c = 0; c < 3; ++c) {
                const int light = in[3];
                const int t = (255 - in[c]) * light + 128;
                out[c] = static_cast<std::uint8_t>(light - (((t >> 8) + t) >> 8));
            }
    }

    jpeg_decompress_struct info_{};
    jpeg_error_mgr errors_{};
    jpeg_progress_mgr progress_{};
    std::jmp_buf back_{};
    char message_[JMSG_LENGTH_MAX] = {};
    bool too_many_scans_ = false;
    std::uint8_t* row_ = nullptr;
    unsigned rows_read_ = 0;
    std::vector<std::uint8_t> line_;
    std::span<const std::uint8_t> file_;
    std::string where_;
};

}  // namespace detail

// Decodes a PNG or JPEG held in memory to 8-bit RGB; `where` names it in errors.
// Refused with psae::error: other formats, files that are damaged or cut short, more than max_image_pixels pixels,
// and dimensions that the amount of data cannot justify (before anything is allocated for them).
inline image decode_image(std::span<const std::byte> file, alpha_mode alpha, const std::string& where) {
    static constexpr std::uint8_t png_signature[8] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'};
    const std::span<const std::uint8_t> bytes(reinterpret_cast<const std::uint8_t*>(file.data()), file.size());
    if (bytes.empty()) throw error("image file is empty", where);
    if (bytes.size() >= 8 && std::memcmp(bytes.data(), png_signature, 8) == 0) return detail::png_decoder(bytes, where).decode(alpha);
    if (bytes.size() >= 3 && bytes[0] == 0xff && bytes[1] == 0xd8 && bytes[2] == 0xff) return detail::jpeg_decoder(bytes, where).decode();
    throw error("neither a PNG nor a JPEG file", where, {}, "convert it to one of them");
}

// Reads an image file; the format is told by its content, not by its name. See decode_image.
inline image read_image(const std::filesystem::path& path, alpha_mode alpha = alpha_mode::white) {
    const file_bytes file(path);
    return decode_image({file.data(), file.size()}, alpha, path.string());
}

// A picture as the bytes of a PNG file (8-bit RGB).
inline std::vector<std::uint8_t> encode_png(const image& picture) {
    const std::size_t stride = picture.width * 3;
    if (picture.width == 0 || picture.height == 0 || picture.width > 0x7fffffff || picture.height > 0x7fffffff ||
        picture.rgb.size() != stride * picture.height)
        throw error("picture cannot be written", "", std::to_string(picture.width) + " x " + std::to_string(picture.height) + " with " +
                                                         std::to_string(picture.rgb.size()) + " bytes");
    // Per row the filter with the smallest sum of absolute values, the usual guess at what compresses best.
    std::vector<std::uint8_t> filtered, zeros(stride + 3), trial(stride);
    filtered.reserve((stride + 1) * picture.height);
    for (std::size_t y = 0; y < picture.height; ++y) {
        const std::uint8_t* line = picture.rgb.data() + y * stride;
        const std::uint8_t* above = y == 0 ? zeros.data() : line - stride;
        const std::size_t start = filtered.size();
        std::size_t best = ~std::size_t{0};
        filtered.resize(start + 1 + stride);
        for (const std::uint8_t filter : {0, 1, 2, 4}) {
            std::size_t sum = 0;
            for (std::size_t i = 0; i < stride; ++i) {
                const int a = i < 3 ? 0 : line[i - 3], b = above[i], c = i < 3 ? 0 : above[i - 3];
                const int pa = std::abs(b - c), pb = std::abs(a - c), pc = std::abs(a + b - 2 * c);
                const int guess = filter == 0 ? 0 : filter == 1 ? a : filter == 2 ? b : pa <= pb && pa <= pc ? a : pb <= pc ? b : c;
                trial[i] = static_cast<std::uint8_t>(line[i] - guess);
                sum += static_cast<std::size_t>(std::abs(static_cast<int>(static_cast<std::int8_t>(trial[i]))));
            }
            if (sum < best) {
                best = sum;
                filtered[start] = filter;
                std::copy(trial.begin(), trial.end(), filtered.begin() + static_cast<std::ptrdiff_t>(start) + 1);
            }
        }
    }
    uLongf packed = ::compressBound(static_cast<uLong>(filtered.size()));
    std::vector<std::uint8_t> data(packed);
    if (::compress2(data.data(), &packed, filtered.data(), static_cast<uLong>(filtered.size()), 6) != Z_OK || packed > 0x7fffffff)
        throw error("picture cannot be compressed");
    data.resize(packed);

    std::vector<std::uint8_t> out = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'};
    const auto put_32 = [](std::vector<std::uint8_t>& to, std::size_t v) {
        for (const int shift : {24, 16, 8, 0}) to.push_back(static_cast<std::uint8_t>(v >> shift));
    };
    const auto chunk = [&](const char* type, const std::vector<std::uint8_t>& content) {
        put_32(out, content.size());
        const std::size_t start = out.size();
        out.insert(out.end(), type, type + 4);
        out.insert(out.end(), content.begin(), content.end());
        put_32(out, ::crc32(0, out.data() + start, static_cast<uInt>(out.size() - start)));
    };
    std::vector<std::uint8_t> header;
    put_32(header, picture.width);
    put_32(header, picture.height);
    header.insert(header.end(), {8, 2, 0, 0, 0});
    chunk("IHDR", header);
    chunk("IDAT", data);
    chunk("IEND", {});
    return out;
}

// Writes a picture as PNG; the file appears whole or not at all.
inline void write_png(const std::filesystem::path& path, const image& picture) {
    const std::vector<std::uint8_t> bytes = encode_png(picture);
    atomic_file file(path);
    file.write(bytes.data(), bytes.size());
    file.commit();
}

}  // namespace psae
