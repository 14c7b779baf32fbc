#pragma once
// The tokenizer of a Hugging Face directory: tokenizer.json, or vocab.json and merges.txt.

#include <algorithm>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>

#include <psae/io/json.hpp>
#include <psae/vit/tokenizer.hpp>

namespace psae {

namespace detail {

inline std::string json_text(const rapidjson::Value& v) { return {v.GetString(), v.GetStringLength()}; }

inline void read_vocabulary(const rapidjson::Value* json, const std::string& where, tokenizer_tables& to) {
    if (json == nullptr || !json->IsObject() || json->ObjectEmpty())
        throw error("vocabulary is missing", where, "expected an object of symbols and ids");
    require_unique_keys(*json, where);
    for (const auto& m : json->GetObject()) {
        if (!m.value.IsInt() || m.value.GetInt() < 0)
            throw error("token id is not a non-negative integer", where + ", symbol " + json_text(m.name),
                        found_json(m.value));
        to.vocabulary.emplace(json_text(m.name), m.value.GetInt());
    }
}

// Two symbols and the space between them.
inline std::pair<std::string, std::string> parse_merge(std::string_view line, const std::string& where) {
    const auto space = line.find(' ');
    if (space == 0 || space == line.npos || space + 1 == line.size() || line.find(' ', space + 1) != line.npos)
        throw error("merge is not two symbols", where, "expected two symbols and a space between them");
    return {std::string(line.substr(0, space)), std::string(line.substr(space + 1))};
}

inline void read_merges(const std::filesystem::path& path, tokenizer_tables& to) {
    const file_bytes bytes(path);
    const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    std::size_t line_number = 0;
    for (std::size_t at = 0; at < text.size();) {
        const std::size_t end = std::min(text.find('\n', at), text.size());
        std::string_view line = text.substr(at, end - at);
        at = end + 1;
        ++line_number;
        if (line.ends_with('\r')) line.remove_suffix(1);
        if (line.empty() || line.starts_with("#version")) continue;
        to.merges.push_back(parse_merge(line, path.string() + ", line " + std::to_string(line_number)));
    }
    if (to.merges.empty()) throw error("file holds no merges", path.string());
}

// A token of a configuration: its text, or an object with its text as "content". Nothing if the key is not there.
inline void read_token(const rapidjson::Value& json, const char* key, const std::string& where, std::string& to) {
    const auto* v = find_member(json, key);
    if (v != nullptr && v->IsObject()) v = find_member(*v, "content");
    if (v == nullptr) return;
    if (!v->IsString())
        throw error("configuration field is not a token", where + ", key " + key,
                    "expected a text or an object with content, " + found_json(*v));
    to = json_text(*v);
}

inline special_token read_special(const rapidjson::Value& json, std::int32_t id, const std::string& where) {
    for (const char* key : {"lstrip", "rstrip", "single_word"})
        if (json_bool(json, key, false, where))
            throw error("this tokenizer is not implemented", where + ", key " + key, "expected false");
    return {json_string(json, "content", "", where), id, json_bool(json, "normalized", true, where)};
}

// tokenizer.json. psae::error if its model or normaliser is not CLIP's.
inline void read_tokenizer_json(const std::filesystem::path& path, tokenizer_tables& to) {
    const auto json = read_json(path);
    const std::string where = path.string();
    const auto* model = find_member(json, "model");
    if (model == nullptr || !model->IsObject()) throw error("not a tokenizer", where, "expected an object model");
    const auto require = [&](const rapidjson::Value& object, const char* key, const std::string& expected) {
        const std::string found = json_string(object, key, "", where);
        if (found != expected)
            throw error("this tokenizer is not implemented", where + ", key " + key,
                        "expected " + expected + " as CLIP has it, found " + found);
    };
    if (find_member(*model, "type") != nullptr) require(*model, "type", "BPE");
    require(*model, "end_of_word_suffix", "</w>");
    require(*model, "continuing_subword_prefix", "");
    const auto* normaliser = find_member(json, "normalizer");
    const auto* steps = normaliser == nullptr ? nullptr : find_member(*normaliser, "normalizers");
    if (steps == nullptr || !steps->IsArray() || steps->Size() != 3)
        throw error("this tokenizer is not implemented", where + ", key normalizer",
                    "expected CLIP's sequence of NFC, Replace and Lowercase");
    for (rapidjson::SizeType i = 0; i < 3; ++i)
        require((*steps)[i], "type", i == 0 ? "NFC" : i == 1 ? "Replace" : "Lowercase");
    read_vocabulary(find_member(*model, "vocab"), where + ", vocab", to);
    const auto* merges = find_member(*model, "merges");
    if (merges == nullptr || !merges->IsArray() || merges->Empty())
        throw error("merges are missing", where, "expected an array model.merges");
    for (rapidjson::SizeType i = 0; i < merges->Size(); ++i) {
        // Written as one text up to tokenizers 0.19, as a pair since.
        const auto& m = (*merges)[i];
        const std::string at = where + ", merge " + std::to_string(i + 1);
        if (m.IsString()) to.merges.push_back(parse_merge({m.GetString(), m.GetStringLength()}, at));
        else if (m.IsArray() && m.Size() == 2 && m[0].IsString() && m[1].IsString())
            to.merges.emplace_back(json_text(m[0]), json_text(m[1]));
        else throw error("merge is not two symbols", at, found_json(m));
    }
    if (const auto* added = find_member(json, "added_tokens")) {
        if (!added->IsArray()) throw error("configuration field is not an array", where + ", key added_tokens");
        for (const auto& token : added->GetArray()) {
            const auto* id = find_member(token, "id");
            if (id == nullptr || !id->IsInt() || id->GetInt() < 0)
                throw error("added token has no id", where + ", key added_tokens", found_json(token));
            to.special.push_back(read_special(token, id->GetInt(), where + ", key added_tokens"));
        }
    }
}

}  // namespace detail

// tokenizer.json is preferred where both forms are there, as transformers does. tokenizer_config.json and
// special_tokens_map.json, if there, name the start, end and padding token and the number of ids of a text (CLIP's 77
// otherwise). psae::error naming file and place for what is missing or malformed, or another tokenizer than CLIP's.
inline clip_tokenizer read_tokenizer(const std::filesystem::path& directory) {
    tokenizer_tables tables;
    const auto whole = directory / "tokenizer.json", vocabulary = directory / "vocab.json",
               merges = directory / "merges.txt";
    std::error_code ignored;
    const auto there = [&](const std::filesystem::path& p) { return std::filesystem::exists(p, ignored); };
    const bool one_file = there(whole);
    tables.where = one_file ? whole.string() : vocabulary.string() + " and " + merges.string();
    if (one_file) {
        detail::read_tokenizer_json(whole, tables);
    } else {
        if (!there(vocabulary) || !there(merges))
            throw error("no tokenizer found", directory.string(),
                        "expected tokenizer.json, or vocab.json and merges.txt");
        const auto json = read_json(vocabulary);
        detail::read_vocabulary(&json, vocabulary.string(), tables);
        detail::read_merges(merges, tables);
    }
    for (const char* name : {"special_tokens_map.json", "tokenizer_config.json"}) {
        const auto path = directory / name;
        if (!there(path)) continue;
        const auto json = read_json(path);
        const std::string where = path.string();
        detail::read_token(json, "bos_token", where, tables.start);
        detail::read_token(json, "eos_token", where, tables.end);
        detail::read_token(json, "pad_token", where, tables.padding);
        if (!json_bool(json, "do_lower_case", true, where))
            throw error("this tokenizer is not implemented", where + ", key do_lower_case", "expected true");
        // A number beyond any text stands for "no limit" in files of transformers.
        const double context = json_number(json, "model_max_length", double(tables.context), where);
        if (!(context >= 2))
            throw error("configuration field is out of range", where + ", key model_max_length",
                        "expected a number of at least 2");
        tables.context = static_cast<std::size_t>(std::min(context, 1e6));
        const auto* added = find_member(json, "added_tokens_decoder");
        if (added == nullptr || one_file) continue;
        if (!added->IsObject()) throw error("configuration field is not an object", where + ", added_tokens_decoder");
        for (const auto& m : added->GetObject()) {
            const std::string id = detail::json_text(m.name);
            if (id.empty() || id.size() > 7 || id.find_first_not_of("0123456789") != id.npos)
                throw error("token id is not a number", where + ", added_tokens_decoder", "found " + id);
            tables.special.push_back(
                detail::read_special(m.value, std::stoi(id), where + ", added_tokens_decoder " + id));
        }
    }
    return clip_tokenizer(std::move(tables));
}

}  // namespace psae
