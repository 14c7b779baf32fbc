#pragma once
// CLIP's weights under their Hugging Face names, from a directory whose files have these or OpenAI's.

#include <algorithm>
#include <array>
#include <cctype>
#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <psae/core/transpose.hpp>
#include <psae/io/model_weights.hpp>

namespace psae {

// Where OpenAI's models have a tensor of Hugging Face's: under this name; transposed, or as the rows of a third (0
// queries, 1 keys, 2 values; -1 for all).
struct openai_tensor {
    std::string name;
    bool transposed = false;
    int third = -1;
};

// An unknown name stays as it is.
inline openai_tensor openai_name(std::string_view name) {
    using names = std::pair<std::string_view, std::string_view>;
    static constexpr names whole[] = {
        {"vision_model.embeddings.class_embedding", "visual.class_embedding"},
        {"vision_model.embeddings.patch_embedding.weight", "visual.conv1.weight"},
        {"vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"},
        {"text_model.embeddings.token_embedding.weight", "token_embedding.weight"},
        {"text_model.embeddings.position_embedding.weight", "positional_embedding"}};
    static constexpr names starts[] = {{"vision_model.pre_layrnorm.", "visual.ln_pre."},
                                       {"vision_model.post_layernorm.", "visual.ln_post."},
                                       {"text_model.final_layer_norm.", "ln_final."}};
    static constexpr names blocks[] = {{"vision_model.encoder.layers.", "visual.transformer.resblocks."},
                                       {"text_model.encoder.layers.", "transformer.resblocks."}};
    static constexpr names parts[] = {{"layer_norm1.", "ln_1."},
                                      {"layer_norm2.", "ln_2."},
                                      {"mlp.fc1.", "mlp.c_fc."},
                                      {"mlp.fc2.", "mlp.c_proj."},
                                      {"self_attn.out_proj.", "attn.out_proj."}};
    static constexpr std::string_view thirds[] = {"self_attn.q_proj.", "self_attn.k_proj.", "self_attn.v_proj."};
    const auto renamed = [](const names& n, std::string_view from) {
        return std::string(n.second) + std::string(from.substr(n.first.size()));
    };
    if (name == "visual_projection.weight") return {"visual.proj", true};
    if (name == "text_projection.weight") return {"text_projection", true};
    for (const auto& n : whole)
        if (name == n.first) return {std::string(n.second)};
    for (const auto& n : starts)
        if (name.starts_with(n.first)) return {renamed(n, name)};
    for (const auto& n : blocks) {
        if (!name.starts_with(n.first)) continue;
        const std::size_t dot = name.find('.', n.first.size());
        if (dot == name.npos) break;
        const std::string block = renamed(n, name.substr(0, dot + 1));
        const std::string_view part = name.substr(dot + 1);
        for (const auto& p : parts)
            if (part.starts_with(p.first)) return {block + renamed(p, part)};
        for (int third = 0; third < 3; ++third)
            if (const auto t = thirds[third]; part.starts_with(t))
                return {block + "attn.in_proj_" + std::string(part.substr(t.size())), false, third};
    }
    return {std::string(name)};
}

// A tensor in Hugging Face's shape from a file (with read(name, shape)) that has it as OpenAI's models do. An error names
// it as the file does.
template <class T, class File>
std::vector<T> read_openai(const File& file, const openai_tensor& from, const std::vector<std::size_t>& shape) {
    if (from.transposed) {
        if (shape.size() != 2) return file.template read<T>(from.name, shape);  // an error
        const std::size_t rows = shape[0], columns = shape[1];
        return transpose(file.template read<T>(from.name, {columns, rows}).data(), columns, rows);
    }
    if (from.third < 0 || shape.empty()) return file.template read<T>(from.name, shape);
    auto stacked = shape;
    stacked[0] *= 3;
    const auto values = file.template read<T>(from.name, stacked);
    const auto size = static_cast<std::ptrdiff_t>(values.size() / 3);
    return {values.begin() + from.third * size, values.begin() + (from.third + 1) * size};
}

// A source of weights as weight_reader takes it.
class clip_weights {
public:
    // Throws psae::error as model_weights does.
    explicit clip_weights(const std::filesystem::path& directory) : files_(directory) {}

    const model_weights& files() const { return files_; }
    bool has_openai_names() const { return files_.contains("visual.conv1.weight"); }

    // By the Hugging Face name and shape; an error names the tensor as the file does.
    template <class T = float>
    std::vector<T> read(std::string_view name, const std::vector<std::size_t>& shape) const {
        if (!has_openai_names()) return files_.read<T>(name, shape);
        return read_openai<T>(files_, openai_name(name), shape);
    }

private:
    model_weights files_;
};

}  // namespace psae
