#pragma once
// numpy's .npy (versions 1 to 3) and .npz. Read: booleans, integers, floats of either byte order, C or Fortran order,
// and unicode or byte strings; structured types and objects are refused. Write: plain numbers and strings, C order.

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <psae/core/utf8.hpp>
#include <psae/io/element_type.hpp>
#include <psae/io/zip.hpp>

namespace psae {

struct array {
    element_type type = element_type::f32;
    std::vector<std::size_t> shape;
    std::vector<std::byte> data;       // C order, native
    std::vector<std::string> strings;  // instead of data for unicode (as UTF-8) and byte-string arrays
    std::size_t size() const { return *checked_product(shape); }
};

// The elements converted to T; an error for strings and for numbers that an integer type T cannot hold.
template <class T = float>
std::vector<T> values(const array& a) {
    if (!a.strings.empty())
        throw error("array holds strings where numbers are expected", "array of shape " + shape_text(a.shape));
    return convert_elements<T>(a.type, a.data.data(), a.data.size() / size_of(a.type));
}
inline std::vector<float> to_floats(const array& a) { return values<float>(a); }

namespace detail {

struct npy_type {
    element_type type;
    bool swapped, strings;
    std::size_t item;  // bytes
};

inline npy_type parse_descr(const std::string& descr, const std::string& where) {
    const auto refuse = [&] {
        return error("array has an element type that is not read", where, "'" + descr + "'",
                     "booleans, integers, floats and strings are");
    };
    if (descr.size() < 3 || std::string_view("<>|=").find(descr[0]) == std::string_view::npos) throw refuse();
    const bool swapped = descr[0] == '>';
    std::size_t item = 0;
    for (const char c : descr.substr(2)) {
        if (c < '0' || c > '9' || item > 100'000'000) throw refuse();
        item = item * 10 + static_cast<std::size_t>(c - '0');
    }
    using t = element_type;
    if (descr[1] == 'U') return {t::u32, swapped, true, item * 4};
    if (descr[1] == 'S') return {t::u8, false, true, item};
    struct known {
        char kind;
        std::size_t item;
        element_type type;
    };
    for (const known& k :
         {known{'b', 1, t::boolean}, known{'i', 1, t::i8}, known{'i', 2, t::i16}, known{'i', 4, t::i32},
          known{'i', 8, t::i64}, known{'u', 1, t::u8}, known{'u', 2, t::u16}, known{'u', 4, t::u32},
          known{'u', 8, t::u64}, known{'f', 2, t::f16}, known{'f', 4, t::f32}, known{'f', 8, t::f64}})
        if (k.kind == descr[1] && k.item == item) return {k.type, swapped && item > 1, false, item};
    throw refuse();
}

// The header's Python dictionary: exactly the keys descr (a string), fortran_order (True or False) and shape (a tuple).
class npy_header {
public:
    npy_header(std::string_view text, const std::string& where) : text_(text), where_(where) {
        expect('{');
        for (;;) {
            skip();
            if (peek() == '}') break;
            const std::string key = quoted();
            expect(':');
            if (key == "descr" && !has_descr_) has_descr_ = true, descr = quoted();
            else if (key == "fortran_order" && !has_order_) has_order_ = true, fortran = boolean();
            else if (key == "shape" && !has_shape_) has_shape_ = true, tuple();
            else throw bad();
            skip();
            if (peek() == ',') ++at_;
        }
        ++at_;
        skip();
        if (at_ != text_.size() || !has_descr_ || !has_order_ || !has_shape_) throw bad();
    }
    std::string descr;
    bool fortran = false;
    std::vector<std::size_t> shape;

private:
    error bad() const { return error("npy header is not understood", where_ + ", header byte " + std::to_string(at_)); }
    char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
    void skip() {
        while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n')) ++at_;
    }
    void expect(char c) {
        skip();
        if (peek() != c) throw bad();
        ++at_;
    }
    std::string quoted() {
        skip();
        const char quote = peek();
        if (quote != '\'' && quote != '"') throw bad();
        const std::size_t end = text_.find(quote, at_ + 1);
        if (end == std::string_view::npos) throw bad();
        const std::string s(text_.substr(at_ + 1, end - at_ - 1));
        at_ = end + 1;
        return s;
    }
    bool boolean() {
        skip();
        for (const bool value : {true, false}) {
            const std::string_view word = value ? "True" : "False";
            if (text_.substr(at_, word.size()) == word) {
                at_ += word.size();
                return value;
            }
        }
        throw bad();
    }
    void tuple() {
        expect('(');
        for (;;) {
            skip();
            if (peek() == ')') break;
            std::size_t value = 0, digits = 0;
            while (std::isdigit(static_cast<unsigned char>(peek()))) {
                if (__builtin_mul_overflow(value, 10, &value) ||
                    __builtin_add_overflow(value, text_[at_] - '0', &value))
                    throw bad();
                ++at_;
                ++digits;
            }
            if (digits == 0 || shape.size() == 64) throw bad();
            shape.push_back(value);
            skip();
            if (peek() == ',') ++at_;
            else if (peek() != ')') throw bad();
        }
        ++at_;
    }
    std::string_view text_;
    const std::string& where_;
    std::size_t at_ = 0;
    bool has_descr_ = false, has_order_ = false, has_shape_ = false;
};

inline void append_utf8(std::string& s, std::uint32_t c) {
    if (c < 0x80) s += char(c);
    else if (c < 0x800) (s += char(0xc0 | c >> 6)) += char(0x80 | (c & 63));
    else if (c < 0x10000) ((s += char(0xe0 | c >> 12)) += char(0x80 | (c >> 6 & 63))) += char(0x80 | (c & 63));
    else
        (((s += char(0xf0 | c >> 18)) += char(0x80 | (c >> 12 & 63))) += char(0x80 | (c >> 6 & 63))) +=
            char(0x80 | (c & 63));
}

// What an npy header says of the data behind it.
struct npy_layout {
    npy_type type;
    std::vector<std::size_t> shape;
    bool fortran;
    std::size_t start, count;  // first byte of the data, number of elements
};

// Reads the header from the first `given` of `size` bytes; the data must fill the rest exactly.
inline npy_layout read_npy_layout(const std::byte* bytes, std::size_t given, std::size_t size,
                                  const std::string& where) {
    const auto byte = [&](std::size_t i) { return static_cast<std::size_t>(bytes[i]); };
    if (given < 12 || std::memcmp(bytes, "\x93NUMPY", 6) != 0)
        throw error("not an npy array", where, "it does not begin with \\x93NUMPY");
    const std::size_t version = byte(6), prefix = version == 1 ? 10 : 12;
    if (version < 1 || version > 3 || byte(7) != 0)
        throw error("npy version is not known", where, std::to_string(version));
    std::size_t length = byte(8) | byte(9) << 8;
    if (version > 1) length |= byte(10) << 16 | byte(11) << 24;
    if (length > given - prefix)
        throw error("npy header is longer than the file", where, std::to_string(length) + " bytes");
    const npy_header header({reinterpret_cast<const char*>(bytes) + prefix, length}, where);
    const npy_type type = parse_descr(header.descr, where);
    const std::size_t available = size - prefix - length;
    const auto count = checked_product(header.shape);
    const auto total = count ? checked_product({*count}, type.item) : std::nullopt;
    if (!total || *total != available || (type.item == 0 && *count > available))
        throw error("array's data do not match its shape", where,
                    "shape " + shape_text(header.shape) + " of '" + header.descr + "', " + std::to_string(available) +
                        " bytes");
    return {type, header.shape, header.fortran, prefix + length, *count};
}

inline array parse_npy(const std::byte* bytes, std::size_t size, const std::string& where) {
    const npy_layout header = read_npy_layout(bytes, size, size, where);
    const npy_type type = header.type;
    const std::size_t* count = &header.count;
    const std::byte* data = bytes + header.start;
    const std::size_t available = size - header.start;
    array a{type.type, header.shape, {data, data + available}, {}};
    const std::size_t word = size_of(type.type);
    if (type.swapped)
        for (std::size_t i = 0; i < available; i += word)
            std::reverse(a.data.begin() + std::ptrdiff_t(i), a.data.begin() + std::ptrdiff_t(i + word));
    if (header.fortran && header.shape.size() > 1 && *count > 0) {
        std::vector<std::byte> c_order(available);
        std::vector<std::size_t> index(header.shape.size(), 0);
        for (std::size_t i = 0; i < *count; ++i) {
            std::size_t from = 0;
            for (std::size_t k = header.shape.size(); k-- > 0;) from = from * header.shape[k] + index[k];
            std::memcpy(c_order.data() + i * type.item, a.data.data() + from * type.item, type.item);
            for (std::size_t k = header.shape.size(); k-- > 0 && ++index[k] == header.shape[k];) index[k] = 0;
        }
        a.data = std::move(c_order);
    }
    if (type.strings) {
        for (std::size_t i = 0; i < *count; ++i) {
            const std::byte* p = a.data.data() + i * type.item;
            std::size_t length = type.item;  // padding is the zeros at the end; zeros inside belong to the string
            while (length > 0 && p[length - 1] == std::byte{0}) --length;
            std::string s;
            if (type.type == element_type::u8) s.assign(reinterpret_cast<const char*>(p), length);
            else
                for (std::size_t j = 0; j < length; j += 4) {
                    std::uint32_t c;
                    std::memcpy(&c, p + j, 4);
                    if (c > 0x10ffff || (c >= 0xd800 && c < 0xe000))
                        throw error("unicode array holds an invalid character",
                                    where + ", element " + std::to_string(i), "code point " + std::to_string(c));
                    append_utf8(s, c);
                }
            a.strings.push_back(std::move(s));
        }
        a.data.clear();
    }
    return a;
}

inline std::string npy_head(const std::string& descr, const std::vector<std::size_t>& shape) {
    std::string text = "{'descr': '" + descr + "', 'fortran_order': False, 'shape': (";
    for (std::size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
    text += shape.size() == 1 ? ",), }" : "), }";
    text.append(63 - (10 + text.size()) % 64, ' ');
    text += '\n';
    std::string head("\x93NUMPY\x01\0", 8);
    head += char(text.size() & 255);
    head += char(text.size() >> 8);
    return head + text;
}

template <class T>
std::string npy_descr() {
    switch (element_type_of<T>()) {
        case element_type::boolean:
            return "|b1";
        case element_type::i8:
            return "|i1";
        case element_type::u8:
            return "|u1";
        case element_type::f16:
            return "<f2";
        case element_type::bf16:
            return "<u2";
        default:
            return std::string("<") +
                   (std::is_floating_point_v<T> ? 'f'
                    : std::is_signed_v<T>       ? 'i'
                                                : 'u') +
                   std::to_string(sizeof(T));
    }
}

}  // namespace detail

inline array read_npy(const std::filesystem::path& path) {
    const file_bytes bytes(path);
    return detail::parse_npy(bytes.data(), bytes.size(), path.string());
}

namespace detail {

inline array read_npz_entry(const zip_reader& zip, const std::string& entry) {
    const std::string where = zip.path() + ", array " + entry;
    const auto bytes = zip.read(entry, [&](const std::byte* first, std::size_t given, std::size_t size) {
        read_npy_layout(first, given, size, where);
    });
    return parse_npy(bytes.data(), bytes.size(), where);
}

}  // namespace detail

// One array of an .npz.
inline array read_npz(const std::filesystem::path& path, const std::string& name) {
    return detail::read_npz_entry(zip_reader(path), name + ".npy");
}

// All arrays of an .npz by name, without the ".npy" of their entries.
inline std::map<std::string, array> read_npz(const std::filesystem::path& path) {
    const zip_reader zip(path);
    std::map<std::string, array> arrays;
    for (const std::string& entry : zip.names()) {
        if (!entry.ends_with(".npy"))
            throw error("npz archive holds something else than arrays", path.string() + ", entry " + entry);
        arrays.emplace(entry.substr(0, entry.size() - 4), detail::read_npz_entry(zip, entry));
    }
    return arrays;
}

// Writes arrays one after the other; the file appears on close().
class npz_writer {
public:
    explicit npz_writer(const std::filesystem::path& path, bool deflated = false)
        : zip_(path, deflated), path_(path.string()) {}

    // The product of the shape's extents elements at `data`, in C order.
    template <class T>
    void add(const std::string& name, const T* data, const std::vector<std::size_t>& shape) {
        const auto bytes = checked_product(shape, sizeof(T));
        if (!bytes) throw error("array is too large", path_ + ", array " + name, "shape " + shape_text(shape));
        zip_.add(name + ".npy", detail::npy_head(detail::npy_descr<T>(), shape), data, *bytes);
    }
    // The same with the number of elements checked against the shape.
    template <class T>
    void add(const std::string& name, std::span<const T> data, const std::vector<std::size_t>& shape) {
        if (checked_product(shape) != data.size())
            throw error("array's data do not match its shape", path_ + ", array " + name,
                        "shape " + shape_text(shape) + ", " + std::to_string(data.size()) + " elements");
        add(name, data.data(), shape);
    }
    template <class T>
    void add(const std::string& name, const std::vector<T>& data) {
        add(name, data.data(), {data.size()});
    }
    // A unicode array, one string an element (UTF-8 in, UTF-32 in the file).
    void add(const std::string& name, const std::vector<std::string>& strings) {
        std::vector<std::u32string> wide;
        std::size_t longest = 1;
        for (const auto& s : strings) {
            wide.push_back(decode_utf8(s));
            longest = std::max(longest, wide.back().size());
        }
        std::u32string flat;
        for (auto& w : wide) {
            w.resize(longest, U'\0');
            flat += w;
        }
        zip_.add(name + ".npy", detail::npy_head("<U" + std::to_string(longest), {strings.size()}), flat.data(),
                 flat.size() * 4);
    }
    // A byte string without dimensions, as scipy stores the name of a sparse format.
    void add_bytes(const std::string& name, const std::string& bytes) {
        zip_.add(name + ".npy", detail::npy_head("|S" + std::to_string(bytes.size()), {}), bytes.data(), bytes.size());
    }
    void close() { zip_.close(); }

private:
    // What is not UTF-8 (a file name may be anything) becomes U+FFFD, one for each byte.
    static std::u32string decode_utf8(std::string_view s) {
        std::u32string out;
        while (!s.empty()) {
            char32_t code = 0;
            const std::size_t length = utf8_character(s, code);
            out += length > 0 ? code : U'\ufffd';
            s.remove_prefix(std::max<std::size_t>(length, 1));
        }
        return out;
    }
    zip_writer zip_;
    std::string path_;
};

// A sparse matrix [rows, cols] as scipy.sparse.save_npz writes CSR; scipy.sparse.load_npz reads it. indptr has rows + 1
// entries, from 0 to the number of values, none below the one before; every index is below cols.
inline void write_scipy_csr(const std::filesystem::path& path, const std::vector<float>& data,
                            const std::vector<std::int32_t>& indices, const std::vector<std::int64_t>& indptr,
                            std::size_t rows, std::size_t cols) {
    const auto require = [&](bool holds, const char* what) {
        if (!holds) throw error("arrays do not describe a CSR matrix", path.string(), what);
    };
    require(indices.size() == data.size(), "expected as many indices as values");
    require(indptr.size() == rows + 1 && indptr.front() == 0 && indptr.back() == static_cast<std::int64_t>(data.size()),
            "expected an indptr of rows + 1 entries from 0 to the number of values");
    require(std::is_sorted(indptr.begin(), indptr.end()), "expected an indptr that does not fall");
    require(std::all_of(indices.begin(), indices.end(),
                        [&](std::int32_t i) { return i >= 0 && static_cast<std::size_t>(i) < cols; }),
            "expected indices from 0 to the number of columns");
    npz_writer out(path);
    if (indptr.back() <= 0x7fffffff)
        out.add("indptr", std::vector<std::int32_t>(indptr.begin(), indptr.end())), out.add("indices", indices);
    else out.add("indptr", indptr), out.add("indices", std::vector<std::int64_t>(indices.begin(), indices.end()));
    out.add_bytes("format", "csr");
    out.add("shape", std::vector<std::int64_t>{static_cast<std::int64_t>(rows), static_cast<std::int64_t>(cols)});
    out.add("data", data);
    out.close();
}

}  // namespace psae
