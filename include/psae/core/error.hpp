#pragma once
// The one exception type of psae.

#include <stdexcept>
#include <string>
#include <utility>

namespace psae {

// Thrown for everything that comes from outside and is not as it must be: files, images, configurations, arguments,
// run-time shapes. The text reads "WHAT (WHERE): EXPECTED; HINT"; empty parts are left out.
//   what      what is wrong                      "tensor is shorter than its shape says"
//   where     file, tensor name, offset          "model.safetensors, tensor visual_projection.weight, byte 1032"
//   expected  what was expected and what found   "expected 98304 bytes, found 512"
//   hint      what to do about it                "the download may be incomplete"
class error : public std::runtime_error {
public:
    explicit error(const std::string& what, const std::string& where = {}, const std::string& expected = {},
                   const std::string& hint = {})
        : std::runtime_error(compose(what, where, expected, hint)) {}

private:
    static std::string compose(std::string text, const std::string& where, const std::string& expected,
                               const std::string& hint) {
        if (!where.empty()) text += " (" + where + ")";
        if (!expected.empty()) text += ": " + expected;
        if (!hint.empty()) text += "; " + hint;
        return text;
    }
};

}  // namespace psae
