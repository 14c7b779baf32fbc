#pragma once
// Adapted forms of the golden pipeline's model: a small MaPLe checkpoint, and weights that were changed.

#include <psae/core/random.hpp>
#include <psae/io/safetensors.hpp>
#include <psae/io/torch_file.hpp>

#include "program.hpp"

namespace program {

// A checkpoint of MaPLe for widths of 64 and 48: two tokens of context on two blocks, drawn from `seed`.
inline void write_adapter(const fs::path& path, std::uint64_t seed, float size = 1, std::size_t vision_width = 64) {
    constexpr std::size_t n = 2, width = 48;
    psae::random_stream random(seed);
    const auto drawn = [&](std::size_t count, double deviation) {
        std::vector<float> values(count);
        for (float& v : values) v = static_cast<float>(deviation * random.normal());
        return values;
    };
    const auto ctx = drawn(n * width, 0.5), deep = drawn(n * width, 0.5);
    const auto proj = drawn(vision_width * width, size * 0.2), projection = drawn(vision_width * width, size * 0.2),
               bias = drawn(vision_width, size * 0.1);
    const std::string learner = "prompt_learner.";
    psae::write_torch(
        path, psae::torch_value::dict{
                  {"state_dict",
                   psae::torch_value::state_dict(
                       {psae::to_write(learner + "ctx", {n, width}, ctx.data()),
                        psae::to_write(learner + "proj.weight", {vision_width, width}, proj.data()),
                        psae::to_write(learner + "proj.bias", {vision_width}, bias.data()),
                        psae::to_write(learner + "compound_prompts_text.0", {n, width}, deep.data()),
                        psae::to_write(learner + "compound_prompt_projections.0.weight", {vision_width, width},
                                       projection.data()),
                        psae::to_write(learner + "compound_prompt_projections.0.bias", {vision_width}, bias.data())})},
                  {"epoch", 2}});
}

// The pipeline's model with a tensor multiplied by a number.
inline void write_changed_model(const fs::path& to, const std::string& tensor, float factor) {
    const fs::path from = golden / "pipeline" / "model";
    fs::create_directories(to);
    for (const auto& entry : fs::directory_iterator(from))
        if (entry.path().filename() != "model.safetensors") fs::copy_file(entry.path(), to / entry.path().filename());
    const psae::safetensors_file file(from / "model.safetensors");
    std::vector<std::vector<float>> values;
    std::vector<psae::tensor_to_write> tensors;
    values.reserve(file.entries().size());
    for (const auto& e : file.entries()) {
        if (e.type != psae::element_type::f16 && e.type != psae::element_type::f32) continue;
        values.push_back(file.read(e.name, e.shape));
        if (e.name == tensor)
            for (float& v : values.back()) v *= factor;
        tensors.push_back(psae::to_write(e.name, e.shape, values.back().data()));
    }
    psae::write_safetensors(to / "model.safetensors", tensors);
}

}  // namespace program
