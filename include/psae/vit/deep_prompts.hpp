#pragma once
// Learnt tokens of a tower: rows that are the same in every sequence, put in with the embeddings and put in anew before
// each of the first blocks (Jia et al., Visual prompt tuning, 2022; on both towers of CLIP: Khattak et al., MaPLe:
// multi-modal prompt learning, 2023). Behind the last of these blocks they go on as other tokens do.

#include <algorithm>
#include <cstddef>
#include <string>
#include <vector>

#include <psae/core/error.hpp>

namespace psae {

struct deep_prompts {
    std::size_t count = 0, width = 0;      // count 0: none
    std::vector<std::vector<float>> rows;  // [depth][count, width]: with the embeddings, then before blocks 1 ..

    std::size_t depth() const { return rows.size(); }
    // Those of block i, if it has some, at rows `at` .. of each sequence. tokens: [sequences, each, width].
    void put(std::size_t i, float* tokens, std::size_t sequences, std::size_t each, std::size_t at) const {
        if (i >= depth()) return;
        for (std::size_t s = 0; s < sequences; ++s)
            std::copy(rows[i].begin(), rows[i].end(), tokens + (s * each + at) * width);
    }
    // psae::error unless they are those of a tower of this width with so many blocks; `tower` names it.
    void require_fit(std::size_t tower_width, std::size_t layers, const std::string& tower) const {
        if (width != tower_width || depth() == 0 || depth() > layers)
            throw error("prompts and model do not fit", tower,
                        "the prompts are " + std::to_string(width) + " wide for " + std::to_string(depth()) +
                            " blocks, the tower is " + std::to_string(tower_width) + " wide and has " +
                            std::to_string(layers),
                        "they belong to another model");
    }
};

}  // namespace psae
