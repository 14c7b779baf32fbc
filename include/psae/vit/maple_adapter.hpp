#pragma once
// Adapters of MaPLe (Khattak et al., MaPLe: multi-modal prompt learning, 2023), as its training code saves them
// (model.pth.tar-N): a learnt context of the texts, whose projections are prompts of the pictures, both deep.
//
//   const maple_adapter adapter("model.pth.tar-5");
//   const auto tower = load_clip_vision(directory, {}, &adapter);
//   const auto text = load_clip_text(directory, {}, &adapter);

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <psae/io/torch_file.hpp>
#include <psae/vit/clip_weights.hpp>
#include <psae/vit/deep_prompts.hpp>

namespace psae {

// The prompts, computed in float (MaPLe's code rounds them to half), and what weights of the model itself the file holds:
// MaPLe saves all but the token embedding, as OpenAI names them below image_encoder and text_encoder. What it saves of the
// texts of its training classes (token_prefix, token_suffix) is left out: they are made anew from the names of classes.
class maple_adapter {
public:
    // psae::error if a tensor is missing, of another shape than the others ask for, or not finite.
    explicit maple_adapter(const std::filesystem::path& path) : file_(path) {
        if (file_.contains("state_dict.prompt_learner.ctx")) prefix_ = "state_dict.";
        if (!is_in(file_))
            throw error("not an adapter of MaPLe", path.string(),
                        "expected tensors ctx and proj.weight under state_dict.prompt_learner");
        const auto& ctx = file_.at(learner("ctx"));
        if (ctx.shape.size() != 2 || ctx.shape[0] == 0 || ctx.shape[1] == 0)
            throw error("learnt context is no matrix", path.string() + ", tensor " + ctx.name,
                        "expected [tokens, width], found " + shape_text(ctx.shape));
        const auto& weight = file_.at(learner("proj.weight"));
        if (weight.shape.size() != 2 || weight.shape[0] == 0)
            throw error("projection is no matrix", path.string() + ", tensor " + weight.name,
                        "expected [vision width, text width], found " + shape_text(weight.shape));
        text_.count = vision_.count = ctx.shape[0];
        text_.width = ctx.shape[1];
        vision_.width = weight.shape[0];
        add("ctx", "proj");
        const std::string deep = "compound_prompts_text.";
        const auto of_deeper = std::count_if(file_.entries().begin(), file_.entries().end(), [&](const auto& tensor) {
            return tensor.name.starts_with(learner(deep));
        });
        for (std::ptrdiff_t i = 0; i < of_deeper; ++i)  // one that is missing among them is an error
            add(deep + std::to_string(i), "compound_prompt_projections." + std::to_string(i));
    }

    // Whether a file is an adapter, or means to be one.
    static bool is_in(const torch_file& file) {
        const auto under = [&](const std::string& prefix) {
            return file.contains(prefix + "prompt_learner.ctx") && file.contains(prefix + "prompt_learner.proj.weight");
        };
        return under("state_dict.") || under("");
    }
    const std::string& path() const { return file_.path(); }
    const deep_prompts& text() const { return text_; }
    const deep_prompts& vision() const { return vision_; }
    const torch_file& file() const { return file_; }

    // The tensor of the file that takes the place of the model's; by the name OpenAI gives it. Not contained: none.
    std::string name_of(std::string_view openai) const {
        constexpr std::string_view visual = "visual.";
        if (openai.starts_with(visual)) return prefix_ + "image_encoder." + std::string(openai.substr(visual.size()));
        return prefix_ + (openai == "logit_scale" ? "" : "text_encoder.") + std::string(openai);
    }

    // psae::error, which names both, unless it was made for a model of these widths and numbers of blocks, whose texts
    // have room for its context.
    void require_fit(std::size_t vision_width, std::size_t vision_layers, std::size_t text_width,
                     std::size_t text_layers, std::size_t context, const std::string& model) const {
        if (text_.count + 2 > context)  // beside the start and the end token
            throw error(
                "learnt context is too long for the model", path() + ", tensor " + learner("ctx") + ", and " + model,
                "expected at most " + std::to_string(context - 2) + " tokens, found " + std::to_string(text_.count));
        if (vision_.width == vision_width && text_.width == text_width &&
            text_.depth() <= std::min(vision_layers, text_layers))
            return;
        const auto both = [](std::size_t vision, std::size_t text) {
            return std::to_string(vision) + " and " + std::to_string(text);
        };
        throw error("adapter and model do not fit", path() + " and " + model,
                    "the adapter is for widths of " + both(vision_.width, text_.width) + " (vision and text) and " +
                        std::to_string(text_.depth()) + " blocks, the model has " + both(vision_width, text_width) +
                        " and " + both(vision_layers, text_layers) + " blocks",
                    "it belongs to another model");
    }

private:
    std::string learner(const std::string& name) const { return prefix_ + "prompt_learner." + name; }
    // Prompts of the texts, and of the pictures by a linear layer from these.
    void add(const std::string& prompts, const std::string& projection) {
        const std::size_t n = text_.count, from = text_.width, to = vision_.width;
        text_.rows.push_back(file_.read<float>(learner(prompts), {n, from}));
        const auto weight = file_.read<float>(learner(projection + ".weight"), {to, from}),
                   bias = file_.read<float>(learner(projection + ".bias"), {to});
        const auto& x = text_.rows.back();
        auto& y = vision_.rows.emplace_back();
        for (std::size_t i = 0; i < n; ++i)
            for (std::size_t o = 0; o < to; ++o) {
                double sum = bias[o];
                for (std::size_t c = 0; c < from; ++c) sum += double(x[i * from + c]) * double(weight[o * from + c]);
                y.push_back(static_cast<float>(sum));
            }
    }

    torch_file file_;
    std::string prefix_;
    deep_prompts text_, vision_;
};

// A source of weights as weight_reader takes it: a model's directory, and in place of its weights those that an adapter
// (nullptr: none) brings along.
class adapted_weights {
public:
    adapted_weights(const std::filesystem::path& directory, const maple_adapter* adapter)
        : own_(directory), adapter_(adapter) {}

    std::vector<float> read(std::string_view name, const std::vector<std::size_t>& shape) const {
        if (adapter_ != nullptr) {
            openai_tensor from = openai_name(name);
            from.name = adapter_->name_of(from.name);
            if (adapter_->file().contains(from.name)) return read_openai<float>(adapter_->file(), from, shape);
        }
        return own_.read(name, shape);
    }

private:
    clip_weights own_;
    const maple_adapter* adapter_;
};

}  // namespace psae
