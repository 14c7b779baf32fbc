// The tokenizer against transformers' on 300 strings, from both forms of its files; files that must be refused.
#include <catch2/catch.hpp>

#include <filesystem>
#include <map>

#include <psae/io/atomic_file.hpp>
#include <psae/vit/read_tokenizer.hpp>

#include "../temporary_folder.hpp"

using namespace psae;
namespace fs = std::filesystem;

namespace {

const fs::path golden = fs::path(PSAE_GOLDEN_DIR) / "tokenizer";

struct folder : temporary_folder {
    void write(const std::string& name, const std::string& text) const { write_text(path / name, text); }
    std::string refusal() const {
        try {
            read_tokenizer(path);
        } catch (const error& e) {
            return e.what();
        }
        return "";
    }
};

// The golden vocabulary as tokenizer.json has it; merges as texts or as pairs; how special tokens are looked for.
std::string tokenizer_json(bool pairs, bool normalised) {
    rapidjson::Document out(rapidjson::kObjectType), vocabulary = read_json(golden / "vocab.json");
    auto& a = out.GetAllocator();
    rapidjson::Value model(rapidjson::kObjectType), merges(rapidjson::kArrayType), steps(rapidjson::kArrayType);
    const auto text = [&](const std::string& s) {
        return rapidjson::Value(s.data(), static_cast<rapidjson::SizeType>(s.size()), a);
    };
    tokenizer_tables tables;
    detail::read_merges(golden / "merges.txt", tables);
    for (const auto& [left, right] : tables.merges) {
        if (pairs) {
            rapidjson::Value pair(rapidjson::kArrayType);
            pair.PushBack(text(left), a).PushBack(text(right), a);
            merges.PushBack(pair, a);
        } else {
            merges.PushBack(text(left + " " + right), a);
        }
    }
    for (const char* type : {"NFC", "Replace", "Lowercase"})
        steps.PushBack(rapidjson::Value(rapidjson::kObjectType).AddMember("type", rapidjson::StringRef(type), a), a);
    model.AddMember("type", "BPE", a).AddMember("end_of_word_suffix", "</w>", a);
    model.AddMember("vocab", rapidjson::Value(vocabulary, a), a).AddMember("merges", merges, a);
    rapidjson::Value added(rapidjson::kArrayType);
    for (const char* token : {"<|startoftext|>", "<|endoftext|>"}) {
        rapidjson::Value t(rapidjson::kObjectType);
        t.AddMember("id", vocabulary[token].GetInt(), a).AddMember("content", rapidjson::StringRef(token), a);
        added.PushBack(t.AddMember("normalized", normalised, a), a);
    }
    out.AddMember("added_tokens", added, a).AddMember("model", model, a);
    out.AddMember("normalizer", rapidjson::Value(rapidjson::kObjectType).AddMember("normalizers", steps, a), a);
    return to_text(out);
}

// Every golden string, as transformers of that version tokenizes it; returns how many differ from OpenAI's ids.
std::size_t check_strings(const clip_tokenizer& tokenizer, const char* version) {
    const auto json = read_json(golden / "strings.json");
    std::size_t compared = 0, own = 0;
    for (const auto& entry : json["strings"].GetArray()) {
        const auto* special = find_member(entry, version);
        const auto* whole = find_member(entry, "ids_untruncated");
        const auto numbers = [](const rapidjson::Value& array) {
            std::vector<std::int32_t> ids;
            for (const auto& id : array.GetArray()) ids.push_back(id.GetInt());
            return ids;
        };
        const std::string text = detail::json_text(entry["text"]);
        INFO(text);
        const auto batch = tokenizer.encode(std::span(&text, 1), 77);
        auto expected = numbers(special != nullptr ? *special : entry["ids"]);
        expected.resize(77, tokenizer.padding_id());
        CHECK(batch.ids == expected);
        if (special == nullptr && whole != nullptr) {
            CHECK(tokenizer.encode(text) == numbers(*whole));
            CHECK(batch.truncated == std::vector<std::size_t>{0});
        }
        own += special != nullptr;
        ++compared;
    }
    CHECK(compared == 300);
    return own;
}

}  // namespace

TEST_CASE("golden strings from vocab.json and merges.txt") {
    const auto tokenizer = read_tokenizer(golden);
    CHECK(tokenizer.context() == 77);
    CHECK(tokenizer.padding_id() == 49407);
    CHECK(check_strings(tokenizer, "hf_fast") == 50);
}

TEST_CASE("golden strings from tokenizer.json, merges in both forms, special tokens as in transformers 4 and 5") {
    const folder work;
    for (const bool pairs : {false, true}) {
        work.write("tokenizer.json", tokenizer_json(pairs, !pairs));
        const auto tokenizer = read_tokenizer(work.path);
        CHECK(check_strings(tokenizer, pairs ? "hf_v5" : "hf_fast") == (pairs ? 51 : 50));
    }
}

TEST_CASE("merges agree with the plain loop over all pairs") {
    const auto tokenizer = read_tokenizer(golden);
    tokenizer_tables tables;
    detail::read_merges(golden / "merges.txt", tables);
    const auto vocabulary = read_json(golden / "vocab.json");
    std::map<std::pair<std::string, std::string>, std::size_t> ranks;
    for (std::size_t i = 0; i < tables.merges.size(); ++i) ranks.emplace(tables.merges[i], i);
    std::uint32_t state = 7;
    for (int round = 0; round < 300; ++round) {
        std::string word;
        const std::size_t length = 1 + round % 40;
        while (word.size() < length) word += "aeinorstlz"[(state = state * 1664525u + 1013904223u) >> 24 & 7];
        std::vector<std::string> symbols;
        for (const char c : word) symbols.emplace_back(1, c);
        symbols.back() += "</w>";
        for (;;) {
            std::size_t best = ranks.size(), at = 0;
            for (std::size_t i = 0; i + 1 < symbols.size(); ++i)
                if (const auto r = ranks.find({symbols[i], symbols[i + 1]}); r != ranks.end() && r->second < best)
                    best = r->second, at = i;
            if (best == ranks.size()) break;
            symbols[at] += symbols[at + 1];
            symbols.erase(symbols.begin() + std::ptrdiff_t(at) + 1);
        }
        std::vector<std::int32_t> expected{49406};
        for (const auto& s : symbols) expected.push_back(vocabulary[s.c_str()].GetInt());
        expected.push_back(49407);
        INFO(word);
        CHECK(tokenizer.encode(word) == expected);
    }
}

TEST_CASE("a long piece costs no square of its length") {
    const auto tokenizer = read_tokenizer(golden);
    CHECK(tokenizer.encode(std::string(1 << 20, 'a')).size() > 1000);
}

TEST_CASE("texts: truncation keeps the end token, padding, what is not UTF-8") {
    const auto tokenizer = read_tokenizer(fs::path(PSAE_GOLDEN_DIR) / "clip_tiny");
    const std::vector<std::string> texts{"a", "the rain in the night and the rain in the night", ""};
    const auto short_ids = tokenizer.encode(texts, 6);
    CHECK(short_ids.texts() == 3);
    CHECK(short_ids.truncated == std::vector<std::size_t>{1});
    CHECK(short_ids.ids[5] == tokenizer.padding_id());
    CHECK(short_ids.ids[6] == tokenizer.start_id());
    CHECK(short_ids.ids[11] == tokenizer.end_id());
    CHECK(short_ids.ids[13] == tokenizer.end_id());
    CHECK_THROWS_AS(tokenizer.encode(texts, 1), error);
    for (const std::string bad : {"\xff", "a\xc3", "\xed\xa0\x80", "\xc0\xaf", "\xf4\x90\x80\x80"})
        CHECK_THROWS_WITH(tokenizer.encode(std::vector<std::string>{"fine", bad}, 20),
                          Catch::Contains("text 2") && Catch::Contains("UTF-8"));
}

TEST_CASE("tokenizer files that are missing, malformed or another tokenizer's are refused with their place") {
    const folder work;
    const auto expect = [&](const std::string& part) { CHECK_THAT(work.refusal(), Catch::Contains(part)); };
    expect("no tokenizer found");
    const std::string vocabulary =
        R"({"a": 0, "b": 1, "ab": 2, "b</w>": 3, "ab</w>": 4, "<|startoftext|>": 5, "<|endoftext|>": 6})";
    work.write("vocab.json", vocabulary);
    expect("no tokenizer found");
    work.write("merges.txt", "#version: 0.2\na b\na b</w>\n");
    CHECK(read_tokenizer(work.path).encode("ab") == std::vector<std::int32_t>{5, 4, 6});
    for (const char* bad : {"a\n", "a b c\n", " a b\n", "a  b\n", "a \n"}) {
        work.write("merges.txt", std::string("#version: 0.2\na b\n") + bad);
        expect("merges.txt, line 3");
    }
    work.write("merges.txt", "a q\n");
    expect("merge 1, symbol q");
    work.write("merges.txt", "b a\n");
    expect("merge 1, symbol ba");
    work.write("merges.txt", "#version: 0.2\n");
    expect("no merges");
    work.write("merges.txt", "a b\n");
    const std::pair<const char*, const char*> vocabularies[] = {
        {"{\"a\": 0", "not valid JSON"},
        {"[]", "vocabulary is missing"},
        {R"({"a": 0, "a": 1})", "twice"},
        {R"({"a": "0"})", "symbol a"},
        {R"({"a": -1})", "symbol a"},
        {R"({"a": 1.5})", "symbol a"},
        {R"({"a": 0, "b": 0, "ab": 2})", "used twice"},
        {R"({"a": 0, "b": 1, "ab": 2})", "start token <|startoftext|>"},
    };
    for (const auto& [text, part] : vocabularies) {
        work.write("vocab.json", text);
        expect(part);
    }
    work.write("vocab.json", vocabulary);
    const std::pair<const char*, const char*> configurations[] = {
        {R"({"pad_token": "!"})", "padding token !"},
        {R"({"pad_token": 3})", "pad_token"},
        {R"({"do_lower_case": false})", "do_lower_case"},
        {R"({"model_max_length": 1})", "model_max_length"},
        {R"({"added_tokens_decoder": {"x": {"content": "c"}}})", "added_tokens_decoder"},
        {R"({"added_tokens_decoder": {"7": {"content": "c", "lstrip": true}}})", "lstrip"},
        {R"({"added_tokens_decoder": {"7": {"content": ""}}})", "empty"},
        {R"({"added_tokens_decoder": {"7": {"content": "<|endoftext|>"}}})", "two ids"},
    };
    for (const auto& [text, part] : configurations) {
        work.write("tokenizer_config.json", text);
        expect(part);
    }
    work.write("tokenizer_config.json", R"({"model_max_length": 1e30, "pad_token": {"content": "a"}})");
    CHECK(read_tokenizer(work.path).padding_id() == 0);
    work.write("tokenizer.json", R"({"model": {"type": "WordPiece"}})");
    expect("expected BPE");
    work.write("tokenizer.json", R"({"model": {"type": "BPE", "end_of_word_suffix": "</w>"}})");
    expect("normalizer");
}
