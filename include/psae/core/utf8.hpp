#pragma once
// UTF-8, one character at a time.

#include <cstddef>
#include <string_view>

namespace psae {

// The number of bytes of the character that begins the text, which goes to `code`; 0, and `code` stays, if the text
// is empty or no character begins it (a stray or missing byte, an overlong form, a surrogate, beyond U+10FFFF).
inline std::size_t utf8_character(std::string_view text, char32_t& code) {
    static constexpr char32_t smallest[] = {0, 0, 0x80, 0x800, 0x10000};  // by length; below it the form is overlong
    if (text.empty()) return 0;
    const auto c = static_cast<unsigned char>(text[0]);
    const std::size_t length = c < 0x80 ? 1 : c >= 0xf8 ? 0 : c >= 0xf0 ? 4 : c >= 0xe0 ? 3 : c >= 0xc0 ? 2 : 0;
    if (length > text.size()) return 0;
    char32_t value = length < 2 ? c : c & (0xffu >> (length + 1));
    for (std::size_t i = 1; i < length; ++i) {
        const auto next = static_cast<unsigned char>(text[i]);
        if ((next & 0xc0) != 0x80) return 0;
        value = value << 6 | (next & 63);
    }
    if (length == 0 || value < smallest[length] || value > 0x10ffff || (value >= 0xd800 && value < 0xe000)) return 0;
    code = value;
    return length;
}

inline bool is_utf8(std::string_view text) {
    char32_t code = 0;
    while (!text.empty()) {
        const std::size_t length = utf8_character(text, code);
        if (length == 0) return false;
        text.remove_prefix(length);
    }
    return true;
}

}  // namespace psae
