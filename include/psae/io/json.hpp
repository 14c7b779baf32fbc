#pragma once
// JSON through RapidJSON: parsed iteratively (hostile nesting costs no stack), and typed reading with errors that name
// file and key.

#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>
#include <unordered_set>

#include <rapidjson/document.h>
#include <rapidjson/error/en.h>
#include <rapidjson/prettywriter.h>
#include <rapidjson/stringbuffer.h>
#include <rapidjson/writer.h>

#include <psae/io/file_bytes.hpp>

namespace psae {

// Nesting beyond this is refused: no file of ours comes near, and what walks a document later may recurse.
inline constexpr std::size_t json_depth_limit = 100;

namespace detail {

// Arrays and objects open at once, strings skipped. It runs before the parser, so hostile nesting builds nothing.
inline void check_json_depth(std::string_view text, const std::string& where) {
    std::size_t depth = 0;
    bool quoted = false;
    for (std::size_t i = 0; i < text.size(); ++i) {
        const char c = text[i];
        if (quoted) {
            if (c == '\\') ++i;
            else if (c == '"') quoted = false;
        } else if (c == '"') {
            quoted = true;
        } else if (c == '[' || c == '{') {
            if (++depth > json_depth_limit)
                throw error("JSON is nested too deeply", where + ", byte " + std::to_string(i),
                            "expected at most " + std::to_string(json_depth_limit) + " levels");
        } else if ((c == ']' || c == '}') && depth > 0) {
            --depth;
        } else if (c == '\0') {  // RapidJSON takes it for the end and would ignore what follows
            throw error("not valid JSON", where + ", byte " + std::to_string(i), "found a zero byte");
        }
    }
}

}  // namespace detail

// Parses text; `where` names it in errors.
inline rapidjson::Document parse_json(std::string_view text, const std::string& where) {
    detail::check_json_depth(text, where);
    rapidjson::Document document;
    document.Parse<rapidjson::kParseIterativeFlag | rapidjson::kParseValidateEncodingFlag |
                   rapidjson::kParseFullPrecisionFlag>(text.data(), text.size());
    if (document.HasParseError())
        throw error("not valid JSON", where + ", byte " + std::to_string(document.GetErrorOffset()),
                    rapidjson::GetParseError_En(document.GetParseError()));
    return document;
}
inline rapidjson::Document read_json(const std::filesystem::path& path) {
    const file_bytes bytes(path);
    return parse_json({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, path.string());
}

// The member `key` of an object, or null.
inline const rapidjson::Value* find_member(const rapidjson::Value& object, const char* key) {
    if (!object.IsObject()) return nullptr;
    const auto m = object.FindMember(key);
    return m == object.MemberEnd() || m->value.IsNull() ? nullptr : &m->value;
}

// An error if the object names a key twice (find_member would silently take the first).
inline void require_unique_keys(const rapidjson::Value& object, const std::string& where) {
    std::unordered_set<std::string_view> seen;
    for (const auto& m : object.GetObject())
        if (const std::string_view key(m.name.GetString(), m.name.GetStringLength()); !seen.insert(key).second)
            throw error("JSON object names a key twice", where + ", key " + std::string(key));
}

namespace detail {

// "found ...", cut where it is long.
inline std::string found_json(const rapidjson::Value& value) {
    rapidjson::StringBuffer buffer;
    rapidjson::Writer<rapidjson::StringBuffer> writer(buffer);
    value.Accept(writer);
    const std::string text(buffer.GetString(), buffer.GetSize());
    return "found " + (text.size() > 80 ? text.substr(0, 80) + "..." : text);
}

}  // namespace detail

// Typed members; a missing one takes the default, one of another type is an error.
inline double json_number(const rapidjson::Value& object, const char* key, double otherwise, const std::string& where) {
    const auto* v = find_member(object, key);
    if (v == nullptr) return otherwise;
    if (!v->IsNumber())
        throw error("configuration field is not a number", where + ", key " + key, detail::found_json(*v));
    return v->GetDouble();
}
// A member that counts something: an integer, not negative. Without a default it must be there.
inline std::size_t json_size(const rapidjson::Value& object, const char* key, const std::string& where) {
    const auto* v = find_member(object, key);
    if (v == nullptr)
        throw error("configuration field is missing", where + ", key " + key, "expected a non-negative integer");
    if (!v->IsUint64())
        throw error("configuration field is not a non-negative integer", where + ", key " + key,
                    detail::found_json(*v));
    return v->GetUint64();
}
inline std::size_t json_size(const rapidjson::Value& object, const char* key, std::size_t otherwise,
                             const std::string& where) {
    return find_member(object, key) == nullptr ? otherwise : json_size(object, key, where);
}
inline std::string json_string(const rapidjson::Value& object, const char* key, const std::string& otherwise,
                               const std::string& where) {
    const auto* v = find_member(object, key);
    if (v == nullptr) return otherwise;
    if (!v->IsString())
        throw error("configuration field is not a string", where + ", key " + key, detail::found_json(*v));
    return {v->GetString(), v->GetStringLength()};
}
inline bool json_bool(const rapidjson::Value& object, const char* key, bool otherwise, const std::string& where) {
    const auto* v = find_member(object, key);
    if (v == nullptr) return otherwise;
    if (!v->IsBool())
        throw error("configuration field is not true or false", where + ", key " + key, detail::found_json(*v));
    return v->GetBool();
}

inline std::string to_text(const rapidjson::Value& value) {
    rapidjson::StringBuffer buffer;
    rapidjson::PrettyWriter<rapidjson::StringBuffer> writer(buffer);
    writer.SetIndent(' ', 2);
    value.Accept(writer);
    return std::string(buffer.GetString(), buffer.GetSize()) + "\n";
}

}  // namespace psae
