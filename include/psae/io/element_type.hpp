#pragma once
// Element types of files, and widening them.

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include <psae/core/element.hpp>
#include <psae/core/error.hpp>

namespace psae {

enum class element_type { boolean, i8, u8, i16, u16, i32, u32, i64, u64, f16, bf16, f32, f64 };

inline std::size_t size_of(element_type t) {
    switch (t) {
        case element_type::boolean: case element_type::i8: case element_type::u8: return 1;
        case element_type::i16: case element_type::u16: case element_type::f16: case element_type::bf16: return 2;
        case element_type::i32: case element_type::u32: case element_type::f32: return 4;
        default: return 8;
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

// `count` elements of type `t` at `data` (any alignment), each converted to T.
template <class T>
std::vector<T> convert_elements(element_type t, const std::byte* data, std::size_t count) {
    std::vector<T> out(count);
    const auto copy = [&]<class From>(From, auto&& widened) {
        for (std::size_t i = 0; i < count; ++i) {
            From x;
            std::memcpy(&x, data + i * sizeof(From), sizeof(From));
            out[i] = static_cast<T>(widened(x));
        }
    };
    const auto same = [](auto x) { return x; };
    switch (t) {
        case element_type::boolean: copy(std::uint8_t{}, [](std::uint8_t x) { return x != 0; }); break;
        case element_type::i8: copy(std::int8_t{}, same); break;
        case element_type::u8: copy(std::uint8_t{}, same); break;
        case element_type::i16: copy(std::int16_t{}, same); break;
        case element_type::u16: copy(std::uint16_t{}, same); break;
        case element_type::i32: copy(std::int32_t{}, same); break;
        case element_type::u32: copy(std::uint32_t{}, same); break;
        case element_type::i64: copy(std::int64_t{}, same); break;
        case element_type::u64: copy(std::uint64_t{}, same); break;
        case element_type::f16: copy(half{}, [](half x) { return widen(x); }); break;
        case element_type::bf16: copy(bf16{}, [](bf16 x) { return widen(x); }); break;
        case element_type::f32: copy(float{}, same); break;
        case element_type::f64: copy(double{}, same); break;
    }
    return out;
}

}  // namespace psae
