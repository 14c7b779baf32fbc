#pragma once
// CLIP's byte-pair tokenizer, as Hugging Face's CLIPTokenizerFast (what CLIPProcessor loads) computes it: NFC, runs of
// white space to one space, lower case; pieces by the pattern
//   's|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+
// and the bytes of each piece merged by rank (Sennrich et al., Neural machine translation of rare words with subword
// units, 2016), the last one marked with </w>. OpenAI's own tokenizer and the slow one of transformers first repair texts
// with ftfy (curly quotes become straight, for one); this one does not.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <queue>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include <utf8proc.h>

#include <psae/core/error.hpp>
#include <psae/vit/token_ids.hpp>

namespace psae {

// A token that stands for itself in a text. normalised: it is looked for after the text was normalised, in any case
// then; otherwise before, letter by letter.
struct special_token {
    std::string content;
    std::int32_t id;
    bool normalised = true;
};

// What a tokenizer is made of. Symbols write a byte as GPT-2 does, as one printable character.
struct tokenizer_tables {
    std::unordered_map<std::string, std::int32_t> vocabulary;
    std::vector<std::pair<std::string, std::string>> merges;  // by rank
    std::vector<special_token> special;
    std::string start = "<|startoftext|>", end = "<|endoftext|>", padding = "<|endoftext|>";
    std::size_t context = 77;  // token ids of a text, start and end included
    std::string where;         // names the files in errors
};

namespace detail {

inline void append_utf8(std::string& text, char32_t c) {
    utf8proc_uint8_t bytes[4];
    text.append(reinterpret_cast<const char*>(bytes),
                static_cast<std::size_t>(utf8proc_encode_char(static_cast<utf8proc_int32_t>(c), bytes)));
}

// The characters that stand for bytes (GPT-2): printable ones of Latin-1 for themselves, the others from U+0100 on.
inline std::array<std::string, 256> byte_characters() {
    std::array<std::string, 256> characters;
    char32_t next = 0x100;
    for (unsigned b = 0; b < 256; ++b) {
        const bool printable = (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
        append_utf8(characters[b], printable ? b : next++);
    }
    return characters;
}

enum class character { space, letter, number, other };
inline character kind_of(char32_t c) {
    // White_Space of the Unicode character database, PropList.txt.
    if ((c >= 0x09 && c <= 0x0d) || c == 0x20 || c == 0x85 || c == 0xa0 || c == 0x1680 ||
        (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000)
        return character::space;
    switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
        case UTF8PROC_CATEGORY_LU:
        case UTF8PROC_CATEGORY_LL:
        case UTF8PROC_CATEGORY_LT:
        case UTF8PROC_CATEGORY_LM:
        case UTF8PROC_CATEGORY_LO:
            return character::letter;
        case UTF8PROC_CATEGORY_ND:
        case UTF8PROC_CATEGORY_NL:
        case UTF8PROC_CATEGORY_NO:
            return character::number;
        default:
            return character::other;
    }
}

// NFC, white space to single spaces, lower case. psae::error if the text is not UTF-8.
inline std::u32string normalise_text(std::string_view text) {
    if (text.empty()) return {};
    const auto* bytes = reinterpret_cast<const utf8proc_uint8_t*>(text.data());
    const auto size = static_cast<utf8proc_ssize_t>(text.size());
    constexpr auto options = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    for (utf8proc_ssize_t at = 0; at < size;) {
        utf8proc_int32_t c = 0;
        const auto used = utf8proc_iterate(bytes + at, size - at, &c);
        if (used <= 0) throw error("text is not UTF-8", "byte " + std::to_string(at));
        at += used;
    }
    const auto need = utf8proc_decompose(bytes, size, nullptr, 0, options);
    if (need < 0) throw error("text cannot be normalised", {}, utf8proc_errmsg(need));
    std::vector<utf8proc_int32_t> points(static_cast<std::size_t>(need) + 1);
    utf8proc_decompose(bytes, size, points.data(), need, options);
    points.resize(static_cast<std::size_t>(utf8proc_normalize_utf32(points.data(), need, options)));
    std::u32string out;
    for (const auto point : points) {
        const auto c = static_cast<char32_t>(point);
        if (kind_of(c) == character::space) {
            if (out.empty() || out.back() != U' ') out += U' ';
        } else if (c == 0x130) {  // the one character whose lower case is two
            out += U"i\u0307";
        } else {
            out += static_cast<char32_t>(utf8proc_tolower(point));
        }
    }
    return out;
}

// The pieces of a normalised text, by the pattern above.
template <class F>
void each_piece(std::u32string_view text, const F& f) {
    static constexpr std::u32string_view contractions[] = {U"'s", U"'t", U"'re", U"'ve", U"'m", U"'ll", U"'d"};
    for (std::size_t at = 0; at < text.size();) {
        const character kind = kind_of(text[at]);
        std::size_t length = 1;
        const auto* contraction = std::find_if(std::begin(contractions), std::end(contractions),
                                               [&](const auto& c) { return text.substr(at).starts_with(c); });
        if (contraction != std::end(contractions)) {
            length = contraction->size();
        } else if (kind == character::letter || kind == character::other) {
            while (at + length < text.size() && kind_of(text[at + length]) == kind) ++length;
        }
        if (kind != character::space) f(text.substr(at, length));
        at += length;
    }
}

}  // namespace detail

class clip_tokenizer {
public:
    // psae::error if a merge's symbols or result, or a start, end or padding token are not in the vocabulary, or two
    // symbols have one id.
    explicit clip_tokenizer(tokenizer_tables tables) : special_(std::move(tables.special)), context_(tables.context) {
        std::unordered_set<std::int32_t> ids;
        const auto add_id = [&](const std::string& symbol, std::int32_t id) {
            if (id < 0 || !ids.insert(id).second)
                throw error("token id is negative or used twice", tables.where,
                            "symbol " + symbol + ", id " + std::to_string(id));
            largest_ = std::max(largest_, id);
        };
        for (const auto& [symbol, id] : tables.vocabulary) add_id(symbol, id);
        for (const special_token& s : special_)
            if (const auto known = tables.vocabulary.find(s.content); known == tables.vocabulary.end())
                add_id(s.content, s.id);
            else if (known->second != s.id)
                throw error("special token has two ids", tables.where + ", token " + s.content,
                            std::to_string(known->second) + " and " + std::to_string(s.id));
        const auto find = [&](const std::string& symbol, const char* role) {
            for (const special_token& s : special_)
                if (s.content == symbol) return s.id;
            const auto known = tables.vocabulary.find(symbol);
            if (known == tables.vocabulary.end())
                throw error("token is not in the vocabulary", tables.where, role + (" " + symbol),
                            "the files belong to different tokenizers, or one is incomplete");
            return known->second;
        };
        start_ = find(tables.start, "start token");
        end_ = find(tables.end, "end token");
        padding_ = find(tables.padding, "padding token");
        for (const std::string* name : {&tables.start, &tables.end})
            if (std::none_of(special_.begin(), special_.end(), [&](const auto& s) { return s.content == *name; }))
                special_.push_back({*name, find(*name, "")});
        for (std::size_t rank = 0; rank < tables.merges.size(); ++rank) {
            const auto& [a, b] = tables.merges[rank];
            const auto symbol = [&](const std::string& s) {
                return find(s, ("merge " + std::to_string(rank + 1) + ", symbol").c_str());
            };
            const std::int32_t left = symbol(a), right = symbol(b);
            // A pair that is listed twice keeps its first rank.
            merges_.emplace(pair_key(left, right), merge{rank, symbol(a + b)});
        }
        // A byte that is no symbol becomes CLIP's unknown token, which is the end token.
        const auto characters = detail::byte_characters();
        for (std::size_t byte = 0; byte < 256; ++byte)
            for (const bool last : {false, true}) {
                const auto known = tables.vocabulary.find(characters[byte] + (last ? "</w>" : ""));
                byte_ids_[last][byte] = known == tables.vocabulary.end() ? end_ : known->second;
            }
        for (const special_token& s : special_) {
            std::u32string wanted = detail::normalise_text(s.content);
            if (s.content.empty()) throw error("special token is empty", tables.where);
            if (s.normalised) normalised_special_.push_back({std::move(wanted), s.id});
        }
    }

    std::int32_t start_id() const { return start_; }
    std::int32_t end_id() const { return end_; }
    std::int32_t padding_id() const { return padding_; }
    std::size_t largest_id() const { return static_cast<std::size_t>(largest_); }
    // Token ids of a text, start and end included, that the model was trained for.
    std::size_t context() const { return context_; }

    // The token ids of a text of any length, start and end included. psae::error if it is not UTF-8.
    std::vector<std::int32_t> encode(std::string_view text) const {
        std::vector<std::int32_t> ids{start_};
        std::size_t begin = 0;
        for (std::size_t at = 0; at <= text.size();) {
            const special_token* found = nullptr;
            for (const special_token& s : special_)
                if (!s.normalised && text.substr(at).starts_with(s.content) &&
                    (found == nullptr || s.content.size() > found->content.size()))
                    found = &s;
            if (found != nullptr || at == text.size()) {
                encode_normalised(detail::normalise_text(text.substr(begin, at - begin)), ids);
                if (found == nullptr) break;
                ids.push_back(found->id);
                begin = at += found->content.size();
            } else {
                ++at;
            }
        }
        ids.push_back(end_);
        return ids;
    }

    // The token ids of texts, padded to `context` each; a longer text is cut and keeps the end token last. psae::error
    // naming the text if one is not UTF-8.
    token_ids encode(std::span<const std::string> texts, std::size_t context) const {
        if (context < 2) throw error("context is too short", "tokenizer", "expected at least 2 token ids");
        token_ids out;
        out.context = context;
        for (std::size_t i = 0; i < texts.size(); ++i) {
            std::vector<std::int32_t> ids;
            try {
                ids = encode(texts[i]);
            } catch (const error& e) {
                throw error("text cannot be tokenized", "text " + std::to_string(i + 1), e.what());
            }
            if (ids.size() > context) {
                out.truncated.push_back(i);
                ids[context - 1] = end_;
            }
            ids.resize(context, padding_);
            out.ids.insert(out.ids.end(), ids.begin(), ids.end());
        }
        return out;
    }

private:
    struct merge {
        std::size_t rank;
        std::int32_t result;
    };
    static std::uint64_t pair_key(std::int32_t a, std::int32_t b) {
        return static_cast<std::uint64_t>(static_cast<std::uint32_t>(a)) << 32 | static_cast<std::uint32_t>(b);
    }

    void encode_normalised(std::u32string_view text, std::vector<std::int32_t>& ids) const {
        std::size_t begin = 0;
        for (std::size_t at = 0; at <= text.size();) {
            const std::pair<std::u32string, std::int32_t>* found = nullptr;
            for (const auto& s : normalised_special_)
                if (text.substr(at).starts_with(s.first) && (found == nullptr || s.first.size() > found->first.size()))
                    found = &s;
            if (found != nullptr || at == text.size()) {
                detail::each_piece(text.substr(begin, at - begin),
                                   [&](std::u32string_view piece) { encode_piece(piece, ids); });
                if (found == nullptr) break;
                ids.push_back(found->second);
                begin = at += found->first.size();
            } else {
                ++at;
            }
        }
    }

    // Merges the pair of the lowest rank, of equals the leftmost, until none is left. A queue of pairs and a list of the
    // symbols that stand: a long piece costs n log n.
    void encode_piece(std::u32string_view piece, std::vector<std::int32_t>& ids) const {
        std::string bytes;
        for (const char32_t c : piece) detail::append_utf8(bytes, c);
        constexpr std::size_t none = std::numeric_limits<std::size_t>::max();
        const std::size_t n = bytes.size();
        struct symbol {
            std::int32_t id;
            std::size_t before, after;
            bool stands = true;
        };
        struct candidate {
            std::size_t rank, left, right;
            std::int32_t left_id, right_id, result;
            bool operator>(const candidate& o) const { return std::pair(rank, left) > std::pair(o.rank, o.left); }
        };
        std::vector<symbol> symbols(n);
        for (std::size_t i = 0; i < n; ++i)
            symbols[i] = {byte_ids_[i + 1 == n][static_cast<unsigned char>(bytes[i])], i == 0 ? none : i - 1,
                          i + 1 == n ? none : i + 1};
        std::priority_queue<candidate, std::vector<candidate>, std::greater<>> queue;
        const auto consider = [&](std::size_t left, std::size_t right) {
            if (left == none || right == none) return;
            const std::int32_t a = symbols[left].id, b = symbols[right].id;
            if (const auto m = merges_.find(pair_key(a, b)); m != merges_.end())
                queue.push({m->second.rank, left, right, a, b, m->second.result});
        };
        for (std::size_t i = 0; i + 1 < n; ++i) consider(i, i + 1);
        for (; !queue.empty();) {
            const candidate c = queue.top();
            queue.pop();
            symbol &left = symbols[c.left], &right = symbols[c.right];
            // One of the two may have been merged with its other neighbour since.
            if (!left.stands || !right.stands || left.id != c.left_id || right.id != c.right_id) continue;
            left.id = c.result;
            left.after = right.after;
            right.stands = false;
            if (right.after != none) symbols[right.after].before = c.left;
            consider(left.before, c.left);
            consider(c.left, left.after);
        }
        for (const symbol& s : symbols)
            if (s.stands) ids.push_back(s.id);
    }

    std::vector<special_token> special_;
    std::vector<std::pair<std::u32string, std::int32_t>> normalised_special_;
    std::unordered_map<std::uint64_t, merge> merges_;
    std::array<std::array<std::int32_t, 256>, 2> byte_ids_{};  // by whether it ends its piece, and byte
    std::int32_t start_ = 0, end_ = 0, padding_ = 0, largest_ = 0;
    std::size_t context_;
};

}  // namespace psae
