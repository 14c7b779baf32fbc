#pragma once
// CLIP's towers from a Hugging Face directory: config.json picks the compiled-in configuration, clip_weights finds the
// weights.

#include <cmath>
#include <filesystem>
#include <memory>
#include <string>

#include <psae/vit/clip_text.hpp>
#include <psae/vit/clip_vision.hpp>
#include <psae/vit/maple_adapter.hpp>
#include <psae/vit/read_tokenizer.hpp>

namespace psae {

// What a CLIP config.json says of the vision tower: pixels of a side, patch side, hidden size, blocks, heads, hidden
// size of the MLP, size of the image embedding; "quick_gelu" or another name; epsilon of the layer norms.
struct clip_numbers {
    std::size_t image, patch, width, layers, heads, mlp, projection;
    std::string activation;
    double eps;
};

// The same of the text tower: token ids, positions, and so on. eos_token_id: see text_tower::end_position.
struct clip_text_numbers {
    std::size_t vocabulary, context, width, layers, heads, mlp, projection;
    std::string activation;
    double eps;
    long eos_token_id;
};

namespace detail {

// A tower's part of a config.json. Numbers that are no whole ones from 1 to 1000000 are errors.
class tower_fields {
public:
    tower_fields(const rapidjson::Value& config, const char* part, const std::string& where)
        : config_(config), part_(find_member(config, part)), name_(part), where_(where) {
        if (part_ == nullptr || !part_->IsObject())
            throw error("not a CLIP configuration", where, std::string("expected an object ") + part);
    }
    std::size_t number(const char* key, double otherwise) const {
        return checked(name_ + "." + key, json_number(*part_, key, otherwise, where_));
    }
    std::size_t projection() const {
        const double of_part = json_number(*part_, "projection_dim", 512, where_);
        return checked("projection_dim", json_number(config_, "projection_dim", of_part, where_));
    }
    std::string activation() const { return json_string(*part_, "hidden_act", "quick_gelu", where_); }
    double eps() const { return json_number(*part_, "layer_norm_eps", 1e-5, where_); }

private:
    std::size_t checked(const std::string& key, double v) const {
        if (!(v >= 1 && v <= 1e6) || v != std::floor(v))
            throw error("configuration field is out of range", where_ + ", " + key,
                        "expected an integer from 1 to 1000000");
        return static_cast<std::size_t>(v);
    }

    const rapidjson::Value& config_;
    const rapidjson::Value* part_;
    std::string name_, where_;
};

}  // namespace detail

// Reads a config.json. psae::error if it is none of CLIP's, or a number is not a whole one from 1 to 1000000.
// Defaults are those of transformers' CLIPVisionConfig: fields that equal them are left out of saved files.
inline clip_numbers read_clip_numbers(const std::filesystem::path& path) {
    const auto json = read_json(path);
    const detail::tower_fields f(json, "vision_config", path.string());
    return {f.number("image_size", 224),
            f.number("patch_size", 32),
            f.number("hidden_size", 768),
            f.number("num_hidden_layers", 12),
            f.number("num_attention_heads", 12),
            f.number("intermediate_size", 3072),
            f.projection(),
            f.activation(),
            f.eps()};
}
inline clip_text_numbers read_clip_text_numbers(const std::filesystem::path& path) {
    const auto json = read_json(path);
    const detail::tower_fields f(json, "text_config", path.string());
    return {f.number("vocab_size", 49408),
            f.number("max_position_embeddings", 77),
            f.number("hidden_size", 512),
            f.number("num_hidden_layers", 12),
            f.number("num_attention_heads", 8),
            f.number("intermediate_size", 2048),
            f.projection(),
            f.activation(),
            f.eps(),
            static_cast<long>(f.number("eos_token_id", 49407))};
}

namespace detail {

class field_differences {
public:
    void compare(const char* field, const std::string& own, const std::string& file) {
        if (own == file) return;
        text += (count++ ? ", " : "") + std::string(field) + " " + own + " (file: " + file + ")";
    }
    void compare(const char* field, std::size_t own, std::size_t file) {
        compare(field, std::to_string(own), std::to_string(file));
    }
    // What both towers have.
    template <class Config, class Numbers>
    void compare_blocks(const Numbers& n) {
        compare("hidden_size", Config::width, n.width);
        compare("num_hidden_layers", Config::layers, n.layers);
        compare("num_attention_heads", Config::heads, n.heads);
        compare("intermediate_size", Config::mlp, n.mlp);
        compare("projection_dim", Config::projection, n.projection);
        compare("hidden_act", Config::activation == mlp_activation::quick_gelu ? "quick_gelu" : "gelu", n.activation);
        if (n.eps != 1e-5) compare("layer_norm_eps", "1e-05", std::to_string(n.eps));
    }
    std::string text;
    std::size_t count = 0;
};

}  // namespace detail

// The fields in which a configuration differs from the file, and how many: "image_size 224 (file: 336), ...".
template <class Config>
std::string differences(const clip_numbers& n, std::size_t& count) {
    detail::field_differences d;
    d.compare("image_size", Config::image, n.image);
    d.compare("patch_size", Config::patch, n.patch);
    d.compare_blocks<Config>(n);
    count = d.count;
    return d.text;
}
template <class Config>
std::string differences(const clip_text_numbers& n, std::size_t& count) {
    detail::field_differences d;
    d.compare("vocab_size", Config::vocabulary, n.vocabulary);
    d.compare("max_position_embeddings", Config::context, n.context);
    d.compare_blocks<Config>(n);
    count = d.count;
    return d.text;
}

namespace detail {

// make(configuration) for the configuration of the list that has these numbers. psae::error naming the differing fields
// of the nearest one if none has.
template <class Tower, class Numbers, class Make, class... Config>
std::unique_ptr<Tower> make_tower(const Numbers& numbers, const std::string& where, config_list<Config...>,
                                  const Make& make) {
    std::unique_ptr<Tower> tower;
    std::size_t least = ~std::size_t{0};
    std::string nearest;
    const auto consider = [&]<class C>(C c) {
        std::size_t count = 0;
        const std::string text = differences<C>(numbers, count);
        if (count < least) {
            least = count;
            nearest = std::string(C::name) + " differs in " + text;
        }
        if (count == 0 && tower == nullptr) tower = make(c);
    };
    (consider(Config{}), ...);
    if (tower == nullptr)
        throw error("no compiled-in configuration fits this model", where, nearest,
                    "`patchsae info DIR` prints the line to compile in with -DPSAE_MODELS=FILE");
    return tower;
}

}  // namespace detail

// psae::error, which names both, if an adapter (nullptr: none) is not for the model of a directory.
inline void require_fit(const maple_adapter* adapter, const std::filesystem::path& directory) {
    if (adapter == nullptr) return;
    const auto vision = read_clip_numbers(directory / "config.json");
    const auto text = read_clip_text_numbers(directory / "config.json");
    adapter->require_fit(vision.width, vision.layers, text.width, text.layers, text.context, directory.string());
}

// The model of a directory, as an adapter (nullptr: none) changes it, on a device. Throws psae::error naming the
// differing fields of the nearest configuration if none fits, and for an adapter of another model.
template <class List = known_clip_configs, class Backend = cpu>
std::unique_ptr<vision_tower> load_clip_vision(const std::filesystem::path& directory, List list = {},
                                               const maple_adapter* adapter = nullptr,
                                               const Backend& device = Backend()) {
    const auto path = directory / "config.json";
    require_fit(adapter, directory);
    return detail::make_tower<vision_tower>(read_clip_numbers(path), path.string(), list, [&]<class C>(C) {
        return std::make_unique<clip_vision_tower<C, Backend>>(
            adapted_weights(directory, adapter), adapter == nullptr ? deep_prompts{} : adapter->vision(), device);
    });
}

// The text side of a model.
struct clip_text_model {
    clip_tokenizer tokenizer;
    std::unique_ptr<text_tower> tower;
    float scale;  // of cosines to logits: exp(logit_scale)

    // Token ids as the tower takes them, for embed_texts.
    token_ids tokenize(std::span<const std::string> texts) const {
        return tokenizer.encode(texts, std::min(tokenizer.context(), tower->context()));
    }
};

// As load_clip_vision; psae::error also if the tokenizer has ids that the model does not have.
template <class List = known_clip_text_configs>
clip_text_model load_clip_text(const std::filesystem::path& directory, List list = {},
                               const maple_adapter* adapter = nullptr) {
    const auto path = directory / "config.json";
    require_fit(adapter, directory);
    const auto numbers = read_clip_text_numbers(path);
    auto tokenizer = read_tokenizer(directory);
    if (tokenizer.largest_id() >= numbers.vocabulary)
        throw error("tokenizer and model disagree", directory.string(),
                    "the model has " + std::to_string(numbers.vocabulary) + " token ids, the tokenizer's largest is " +
                        std::to_string(tokenizer.largest_id()));
    const adapted_weights weights(directory, adapter);
    auto tower = detail::make_tower<text_tower>(numbers, path.string(), list, [&]<class C>(C) {
        return std::make_unique<clip_text_tower<C>>(weights, adapter == nullptr ? deep_prompts{} : adapter->text());
    });
    tower->eos_token_id = numbers.eos_token_id;
    const float scale = std::exp(weights.read("logit_scale", {})[0]);
    if (!(scale > 0) || !std::isfinite(scale))
        throw error("logit_scale is out of range", directory.string() + ", tensor logit_scale",
                    "expected a number whose exponential is finite and above 0");
    return {std::move(tokenizer), std::move(tower), scale};
}

}  // namespace psae
