#pragma once
// The one exception type of psae.

#include <stdexcept>
#include <string>
#include <string_view>

namespace psae {

// Thrown for everything that comes from outside and is not as it must be: files, images, configurations, arguments,
// run-time shapes. The text reads "WHAT (WHERE): EXPECTED; HINT"; empty parts are left out.
//   what      what is wrong                      "tensor is shorter than its shape says"
//   where     file, tensor name, offset          "model.safetensors, tensor visual_projection.weight, byte 1032"
//   expected  what was expected and what found   "expected 98304 bytes, found 512"
//   hint      what to do about it                "the download may be incomplete"
class error : public std::runtime_error {
public:
    // Not inlined, and of views: what a check costs the compiler, and the caches, at every place that can fail.
    __attribute__((noinline, cold)) explicit error(std::string_view what, std::string_view where = {},
                                                   std::string_view expected = {}, std::string_view hint = {})
        : std::runtime_error(compose(what, where, expected, hint)) {}

private:
    static std::string compose(std::string_view what, std::string_view where, std::string_view expected,
                               std::string_view hint) {
        std::string text(what);
        if (!where.empty()) text.append(" (").append(where).append(")");
        if (!expected.empty()) text.append(": ").append(expected);
        if (!hint.empty()) text.append("; ").append(hint);
        return text;
    }
};

}  // namespace psae
