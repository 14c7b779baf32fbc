#pragma once
// What the formats of SAE files share. A format is a struct that recognises its files, reads and writes them:
//
//   static bool recognise(path);                        // by names and first bytes
//   static sae_weights read(path);                      // psae::error for what is damaged or not supported
//   static void write(path, const sae_view&);           // psae::error, before anything is written, for what the format
//                                                       // cannot express
//   static std::optional<bool> centring(description);   // whether its SAEs centre their input; nothing: as they like
//   static constexpr bool is_directory, has_rescaling;  // has_rescaling: sae_description::rescaled can be expressed

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <filesystem>
#include <iterator>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <psae/core/transpose.hpp>
#include <psae/io/json.hpp>
#include <psae/sae/inference.hpp>

namespace psae {

// By the names of the tools whose files they are.
enum class sae_format { patchsae, saelens, saev, sparsify, dictionary_learning };
inline constexpr const char* sae_format_names[] = {"patchsae", "saelens", "saev", "sparsify", "dictionary_learning"};
inline const char* name_of(sae_format format) { return sae_format_names[static_cast<std::size_t>(format)]; }

// The directory that the files of an SAE are in, which may be given as it or as one of them.
inline std::filesystem::path sae_directory(const std::filesystem::path& given) {
    if (std::filesystem::is_directory(given)) return given;
    return given.has_parent_path() ? given.parent_path() : ".";
}

namespace detail {

// An extent or a k of a configuration.
inline std::size_t sae_extent(const rapidjson::Value& object, const char* key, const std::string& where) {
    const std::size_t n = json_size(object, key, where);
    if (n < 1 || n > 1'000'000'000)
        throw error("configuration field is out of range", where + ", key " + key, "1 to 1000000000");
    return n;
}
inline void require_k(const sae_description& s, const std::string& where) {
    if (s.k < 1 || s.k > s.d_sae)
        throw error("configuration field is out of range", where + ", key k",
                    "1 to d_sae " + std::to_string(s.d_sae) + ", found " + std::to_string(s.k));
}
// A configuration, which must be an object.
inline rapidjson::Document read_sae_json(const std::filesystem::path& path) {
    auto json = read_json(path);
    if (!json.IsObject()) throw error("not an SAE's configuration", path.string(), "expected a JSON object");
    return json;
}
[[noreturn]] inline void refuse_sae(const std::string& where, const std::string& key, const std::string& found,
                                    const std::string& expected) {
    throw error("SAE is of a kind that cannot be read", where + ", key " + key,
                "expected " + expected + ", found " + found);
}

// Whether a format can express an SAE is asked property by property.
struct expressible {
    sae_format format;
    const std::filesystem::path& path;

    void require(bool can, const std::string& found, const std::string& expected, const std::string& hint = "") const {
        if (!can)
            throw error(std::string("SAE cannot be expressed in the format ") + name_of(format),
                        path.string() + ", " + found, "expected " + expected, hint);
    }
    void require_architecture(const sae_description& s, std::initializer_list<const char*> known) const {
        std::string text;
        for (const char* name : known) text += (text.empty() ? "" : " or ") + std::string(name);
        require(std::find(known.begin(), known.end(), s.architecture) != known.end(), "architecture " + s.architecture,
                text);
    }
    void require_centring(const sae_description& s, bool centred) const {
        require(s.centred_input == centred, s.centred_input ? "input centred by b_dec" : "input not centred",
                centred ? "an input centred by b_dec" : "an input that is not centred",
                "fold it into b_enc (convert --fold), which keeps the codes up to rounding");
    }
    void require_plain_input(const sae_description& s) const {
        require(s.scaling == input_scaling::none, "normalised input", "an input that is not normalised");
    }
    void require_sae(const sae_description& s) const {
        require(!s.is_transcoder(), "transcoder", "an SAE");
        require(s.W_skip.empty(), "skip connection W_skip", "none");
    }
    void require_rectified(const sae_description& s) const {
        require(s.rectified, "top-k without ReLU", "top-k of ReLU");
    }
    void require_not_rescaled(const sae_description& s) const {
        require(!s.rescaled, "codes rescaled by the norms of the decoder rows", "codes that are not",
                "fold them into the weights (convert --fold), which keeps the codes up to rounding");
    }
};

// The number of a layer that is all of a text. One that no model has, of more than six digits, is none.
inline std::optional<long> layer_number(std::string_view text) {
    long value = 0;
    const char* end = text.data() + text.size();
    const auto read = std::from_chars(text.data(), end, value);
    const bool good = read.ec == std::errc() && read.ptr == end && std::abs(value) < 1'000'000;
    return good ? std::optional(value) : std::nullopt;
}

}  // namespace detail

}  // namespace psae
