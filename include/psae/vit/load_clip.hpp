#pragma once
// A vision tower from a Hugging Face CLIP directory: config.json picks the compiled-in configuration, safetensors hold
// the weights.

#include <cmath>
#include <filesystem>
#include <memory>
#include <string>

#include <psae/io/safetensors.hpp>
#include <psae/vit/clip_vision.hpp>

namespace psae {

// What a CLIP config.json says of the vision tower: pixels of a side, patch side, hidden size, blocks, heads, hidden
// size of the MLP, size of the image embedding; "quick_gelu" or another name; epsilon of the layer norms.
struct clip_numbers {
    std::size_t image, patch, width, layers, heads, mlp, projection;
    std::string activation;
    double eps;
};

// Reads a config.json. psae::error if it is none of CLIP's, or a number is not a whole one from 1 to 1000000.
inline clip_numbers read_clip_numbers(const std::filesystem::path& path) {
    const auto json = read_json(path);
    const std::string where = path.string();
    const auto* vision = find_member(json, "vision_config");
    if (vision == nullptr || !vision->IsObject())
        throw error("not a CLIP configuration", where, "expected an object vision_config");
    const auto checked = [&](const std::string& key, double v) {
        if (!(v >= 1 && v <= 1e6) || v != std::floor(v))
            throw error("configuration field is out of range", where + ", " + key,
                        "expected an integer from 1 to 1000000");
        return static_cast<std::size_t>(v);
    };
    const auto number = [&](const char* key, double otherwise) {
        return checked(std::string("vision_config.") + key, json_number(*vision, key, otherwise, where));
    };
    // Defaults are those of transformers' CLIPVisionConfig: fields that equal them are left out of saved files.
    const double projection =
        json_number(json, "projection_dim", json_number(*vision, "projection_dim", 512, where), where);
    return {number("image_size", 224),
            number("patch_size", 32),
            number("hidden_size", 768),
            number("num_hidden_layers", 12),
            number("num_attention_heads", 12),
            number("intermediate_size", 3072),
            checked("projection_dim", projection),
            json_string(*vision, "hidden_act", "quick_gelu", where),
            json_number(*vision, "layer_norm_eps", 1e-5, where)};
}

// The fields in which a configuration differs from the file, and how many: "image_size 224 (file: 336), ...".
template <class Config>
std::string differences(const clip_numbers& n, std::size_t& count) {
    std::string text;
    count = 0;
    const auto compare = [&](const char* field, std::size_t own, std::size_t file) {
        if (own == file) return;
        text += (count++ ? ", " : "") + std::string(field) + " " + std::to_string(own) +
                " (file: " + std::to_string(file) + ")";
    };
    compare("image_size", Config::image, n.image);
    compare("patch_size", Config::patch, n.patch);
    compare("hidden_size", Config::width, n.width);
    compare("num_hidden_layers", Config::layers, n.layers);
    compare("num_attention_heads", Config::heads, n.heads);
    compare("intermediate_size", Config::mlp, n.mlp);
    compare("projection_dim", Config::projection, n.projection);
    const std::string own = Config::activation == mlp_activation::quick_gelu ? "quick_gelu" : "gelu";
    if (own != n.activation) text += (count++ ? ", " : "") + ("hidden_act " + own) + " (file: " + n.activation + ")";
    if (n.eps != 1e-5)
        text += (count++ ? ", " : "") + std::string("layer_norm_eps 1e-05 (file: ") + std::to_string(n.eps) + ")";
    return text;
}

// Throws psae::error naming the differing fields of the nearest configuration if none fits.
template <class... Config>
std::unique_ptr<vision_tower> load_clip_vision(const std::filesystem::path& directory, config_list<Config...>) {
    const auto path = directory / "config.json";
    const auto numbers = read_clip_numbers(path);
    std::unique_ptr<vision_tower> tower;
    std::size_t least = ~std::size_t{0};
    std::string nearest;
    const auto consider = [&]<class C>(C) {
        std::size_t count = 0;
        const std::string text = differences<C>(numbers, count);
        if (count < least) {
            least = count;
            nearest = std::string(C::name) + " differs in " + text;
        }
        if (count == 0 && tower == nullptr)
            tower = std::make_unique<clip_vision_tower<C>>(safetensors_directory(directory));
    };
    (consider(Config{}), ...);
    if (tower == nullptr)
        throw error("no compiled-in configuration fits this model", path.string(), nearest,
                    "`patchsae info DIR` prints the line to compile in with -DPSAE_MODELS=FILE");
    return tower;
}

inline std::unique_ptr<vision_tower> load_clip_vision(const std::filesystem::path& directory) {
    return load_clip_vision(directory, known_clip_configs{});
}

}  // namespace psae
