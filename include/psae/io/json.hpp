#pragma once
// JSON through RapidJSON: parsed iteratively (hostile nesting costs no stack), and typed reading with errors that name file and key.

#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>

#include <rapidjson/document.h>
#include <rapidjson/error/en.h>
#include <rapidjson/stringbuffer.h>
#include <rapidjson/prettywriter.h>
#include <rapidjson/writer.h>

#include <psae/io/file_bytes.hpp>

namespace psae {

// Parses text; `where` names it in errors.
inline rapidjson::Document parse_json(std::string_view text, const std::string& where) {
    rapidjson::Document document;
    document.Parse<rapidjson::kParseIterativeFlag | rapidjson::kParseValidateEncodingFlag | rapidjson::kParseFullPrecisionFlag>(
        text.data(), text.size());
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

// Typed members; a missing one takes the default, one of another type is an error.
inline double json_number(const rapidjson::Value& object, const char* key, double otherwise, const std::string& where) {
    const auto* v = find_member(object, key);
    if (v == nullptr) return otherwise;
    if (!v->IsNumber()) throw error("configuration field is not a number", where + ", key " + key);
    return v->GetDouble();
}
inline std::string json_string(const rapidjson::Value& object, const char* key, const std::string& otherwise, const std::string& where) {
    const auto* v = find_member(object, key);
    if (v == nullptr) return otherwise;
    if (!v->IsString()) throw error("configuration field is not a string", where + ", key " + key);
    return {v->GetString(), v->GetStringLength()};
}
inline bool json_bool(const rapidjson::Value& object, const char* key, bool otherwise, const std::string& where) {
    const auto* v = find_member(object, key);
    if (v == nullptr) return otherwise;
    if (!v->IsBool()) throw error("configuration field is not true or false", where + ", key " + key);
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
