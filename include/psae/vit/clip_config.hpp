#pragma once
// CLIP vision towers as compile-time configurations. A configuration is a struct of constants; a list of them is
// matched against a config.json.

#include <cstddef>
#include <type_traits>

#include <psae/expr/functors.hpp>

namespace psae {

enum class mlp_activation { quick_gelu, gelu };

template <std::size_t Image, std::size_t Patch, std::size_t Width, std::size_t Layers, std::size_t Heads,
          std::size_t Mlp, std::size_t Projection, mlp_activation Activation = mlp_activation::quick_gelu>
struct clip_vision_config {
    static_assert(Image % Patch == 0 && Width % Heads == 0,
                  "psae: the image is a whole number of patches, the width of heads");
    static constexpr std::size_t image = Image, patch = Patch, width = Width, layers = Layers, heads = Heads, mlp = Mlp;
    static constexpr std::size_t projection = Projection, grid = Image / Patch, tokens = grid * grid + 1;
    static constexpr mlp_activation activation = Activation;
    using activation_function = std::conditional_t<Activation == mlp_activation::quick_gelu, quick_gelu, gelu>;
};

struct clip_vit_b16 : clip_vision_config<224, 16, 768, 12, 12, 3072, 512> {
    static constexpr const char* name = "ViT-B/16";
};
struct clip_vit_b32 : clip_vision_config<224, 32, 768, 12, 12, 3072, 512> {
    static constexpr const char* name = "ViT-B/32";
};
struct clip_vit_l14 : clip_vision_config<224, 14, 1024, 24, 16, 4096, 768> {
    static constexpr const char* name = "ViT-L/14";
};
struct clip_vit_l14_336 : clip_vision_config<336, 14, 1024, 24, 16, 4096, 768> {
    static constexpr const char* name = "ViT-L/14-336";
};
// The demo model of data/tiny-clip.
struct clip_tiny_demo : clip_vision_config<112, 8, 192, 6, 3, 768, 128> {
    static constexpr const char* name = "tiny-clip";
};
// The randomly initialised model of the tests.
struct clip_tiny_test : clip_vision_config<32, 8, 64, 4, 4, 256, 24> {
    static constexpr const char* name = "test";
};

// Further models: PSAE_MODELS names a file of lines
//   PSAE_CLIP_MODEL(identifier, image, patch, width, layers, heads, mlp, projection, mlp_activation::quick_gelu)
// as `patchsae info DIR` prints them. It must be the same in every file of a program.
#ifdef PSAE_MODELS
#define PSAE_CLIP_MODEL(IDENTIFIER, ...)                  \
    struct IDENTIFIER : clip_vision_config<__VA_ARGS__> { \
        static constexpr const char* name = #IDENTIFIER;  \
    };
#include PSAE_MODELS
#undef PSAE_CLIP_MODEL
#endif

template <class... Config>
struct config_list {};
using known_clip_configs =
    config_list<clip_vit_b16, clip_vit_b32, clip_vit_l14, clip_vit_l14_336, clip_tiny_demo, clip_tiny_test
#ifdef PSAE_MODELS
#define PSAE_CLIP_MODEL(IDENTIFIER, ...) , IDENTIFIER
#include PSAE_MODELS
#undef PSAE_CLIP_MODEL
#endif
                >;

}  // namespace psae
