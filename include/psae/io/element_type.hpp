#pragma once
// Element types of files, and widening them.

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <psae/core/element.hpp>
#include <psae/core/error.hpp>

namespace psae {

enum class element_type { boolean, i8, u8, i16, u16, i32, u32, i64, u64, f16, bf16, f32, f64 };

inline std::size_t size_of(element_type t) {
    switch (t) {
        case element_type::boolean:
        case element_type::i8:
        case element_type::u8:
            return 1;
        case element_type::i16:
        case element_type::u16:
        case element_type::f16:
        case element_type::bf16:
            return 2;
        case element_type::i32:
        case element_type::u32:
        case element_type::f32:
            return 4;
        default:
            return 8;
    }
}

// Product of the extents; nothing if it does not fit.
inline std::optional<std::size_t> checked_product(const std::vector<std::size_t>& extents, std::size_t start = 1) {
    std::size_t product = start;
    bool zero = start == 0;
    for (const std::size_t e : extents) zero = zero || e == 0;
    if (zero) return 0;
    for (const std::size_t e : extents)
        if (__builtin_mul_overflow(product, e, &product)) return std::nullopt;
    return product;
}

inline std::string shape_text(const std::vector<std::size_t>& shape) {
    std::string text = "[";
    for (std::size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
    return text + "]";
}

template <class T>
constexpr element_type element_type_of() {
    if constexpr (std::is_same_v<T, bool>) return element_type::boolean;
    else if constexpr (std::is_same_v<T, bf16>) return element_type::bf16;
    else if constexpr (std::is_same_v<T, half>) return element_type::f16;
    else if constexpr (std::is_floating_point_v<T>) return sizeof(T) == 4 ? element_type::f32 : element_type::f64;
    else if constexpr (sizeof(T) == 1) return std::is_signed_v<T> ? element_type::i8 : element_type::u8;
    else if constexpr (sizeof(T) == 2) return std::is_signed_v<T> ? element_type::i16 : element_type::u16;
    else if constexpr (sizeof(T) == 4) return std::is_signed_v<T> ? element_type::i32 : element_type::u32;
    else return std::is_signed_v<T> ? element_type::i64 : element_type::u64;
}

// True if the number is a value of the integer type T.
template <class T, class From>
bool fits_integer(From x) {
    if constexpr (std::is_floating_point_v<From>) {
        constexpr From above = From(2) * static_cast<From>(std::uint64_t{1} << (std::numeric_limits<T>::digits - 1));
        const From below = std::is_signed_v<T> ? -above : From(0);
        return x >= below && x < above && x == static_cast<From>(static_cast<T>(x));
    } else {
        return std::in_range<T>(+x);
    }
}

// `count` elements of type `t` at `data` (any alignment), each converted to T. A number that an integer type T cannot
// hold (too large, negative, a fraction, NaN) is an error that names `where` and the element; nothing wraps around.
template <class T>
std::vector<T> convert_elements(element_type t, const std::byte* data, std::size_t count,
                                const std::string& where = {}) {
    std::vector<T> out(count);
    const auto copy = [&]<class From>(From, auto&& widened) {
        for (std::size_t i = 0; i < count; ++i) {
            From x;
            std::memcpy(&x, data + i * sizeof(From), sizeof(From));
            const auto value = widened(x);
            if constexpr (std::is_integral_v<T> && !std::is_same_v<T, bool>)
                if (!fits_integer<T>(value))
                    throw error("value does not fit the integer type it is read as",
                                where + ", element " + std::to_string(i), "found " + std::to_string(value));
            out[i] = static_cast<T>(value);
        }
    };
    const auto same = [](auto x) { return x; };
    switch (t) {
        case element_type::boolean:
            copy(std::uint8_t{}, [](std::uint8_t x) { return x != 0; });
            break;
        case element_type::i8:
            copy(std::int8_t{}, same);
            break;
        case element_type::u8:
            copy(std::uint8_t{}, same);
            break;
        case element_type::i16:
            copy(std::int16_t{}, same);
            break;
        case element_type::u16:
            copy(std::uint16_t{}, same);
            break;
        case element_type::i32:
            copy(std::int32_t{}, same);
            break;
        case element_type::u32:
            copy(std::uint32_t{}, same);
            break;
        case element_type::i64:
            copy(std::int64_t{}, same);
            break;
        case element_type::u64:
            copy(std::uint64_t{}, same);
            break;
        case element_type::f16:
            copy(half{}, [](half x) { return widen(x); });
            break;
        case element_type::bf16:
            copy(bf16{}, [](bf16 x) { return widen(x); });
            break;
        case element_type::f32:
            copy(float{}, same);
            break;
        case element_type::f64:
            copy(double{}, same);
            break;
    }
    return out;
}

// The same for the elements of a tensor of a file, which must be finite if T is a floating-point type and must come
// from one of the expected shape.
template <class T>
std::vector<T> read_elements(element_type t, const std::byte* data, const std::vector<std::size_t>& shape,
                             const std::vector<std::size_t>& expected, const std::string& where) {
    if (shape != expected)
        throw error("tensor has another shape", where,
                    "expected " + shape_text(expected) + ", found " + shape_text(shape));
    auto values = convert_elements<T>(t, data, *checked_product(shape), where);
    if constexpr (std::is_floating_point_v<T>)
        for (std::size_t i = 0; i < values.size(); ++i)
            if (!std::isfinite(values[i]))
                throw error("tensor holds a value that is not finite", where + ", element " + std::to_string(i));
    return values;
}

// One tensor to be written.
struct tensor_to_write {
    std::string name;
    element_type type;
    std::vector<std::size_t> shape;
    const void* data;
};
template <class T>
tensor_to_write to_write(std::string name, std::vector<std::size_t> shape, const T* data) {
    return {std::move(name), element_type_of<T>(), std::move(shape), data};
}

}  // namespace psae
