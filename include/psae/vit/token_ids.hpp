#pragma once
// Texts as token ids: what a tokenizer gives and a text tower takes.

#include <cstddef>
#include <cstdint>
#include <vector>

namespace psae {

struct token_ids {
    std::size_t context = 0;             // ids of each text, padding included
    std::vector<std::int32_t> ids;       // [texts, context]
    std::vector<std::size_t> truncated;  // the texts that were longer and lost their end, in order

    std::size_t texts() const { return context == 0 ? 0 : ids.size() / context; }
};

}  // namespace psae
