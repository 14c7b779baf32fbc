#pragma once
// CLIP's towers as compile-time configurations. A configuration is a struct of constants; a list of them is matched
// against a config.json.

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

// Text towers. Vocabulary: number of token ids; Context: number of positions.
template <std::size_t Vocabulary, std::size_t Context, std::size_t Width, std::size_t Layers, std::size_t Heads,
          std::size_t Mlp, std::size_t Projection, mlp_activation Activation = mlp_activation::quick_gelu>
struct clip_text_config {
    static_assert(Width % Heads == 0, "psae: the width is a whole number of heads");
    static constexpr std::size_t vocabulary = Vocabulary, context = Context, width = Width, layers = Layers;
    static constexpr std::size_t heads = Heads, mlp = Mlp, projection = Projection;
    static constexpr mlp_activation activation = Activation;
    using activation_function = std::conditional_t<Activation == mlp_activation::quick_gelu, quick_gelu, gelu>;
};

// Of ViT-B/16 and ViT-B/32.
struct clip_text_base : clip_text_config<49408, 77, 512, 12, 8, 2048, 512> {
    static constexpr const char* name = "ViT-B text";
};
// Of ViT-L/14 and ViT-L/14-336.
struct clip_text_large : clip_text_config<49408, 77, 768, 12, 12, 3072, 768> {
    static constexpr const char* name = "ViT-L text";
};
struct clip_text_tiny_demo : clip_text_config<2514, 32, 128, 3, 2, 512, 128> {
    static constexpr const char* name = "tiny-clip text";
};
struct clip_text_tiny_test : clip_text_config<610, 20, 48, 2, 4, 192, 24> {
    static constexpr const char* name = "test text";
};
struct clip_text_pipeline_test : clip_text_config<610, 77, 48, 2, 4, 96, 24> {
    static constexpr const char* name = "pipeline test text";
};

// Further models: PSAE_MODELS names a file of lines
//   PSAE_CLIP_MODEL(identifier, image, patch, width, layers, heads, mlp, projection, mlp_activation::quick_gelu)
//   PSAE_CLIP_TEXT_MODEL(identifier, vocabulary, context, width, layers, heads, mlp, projection, activation as above)
// as `patchsae info DIR` prints them. It must be the same in every file of a program.
#ifdef PSAE_MODELS
#define PSAE_NAMED_CONFIG(IDENTIFIER, ...)               \
    struct IDENTIFIER : __VA_ARGS__ {                    \
        static constexpr const char* name = #IDENTIFIER; \
    };
#define PSAE_CLIP_MODEL(IDENTIFIER, ...) PSAE_NAMED_CONFIG(IDENTIFIER, clip_vision_config<__VA_ARGS__>)
#define PSAE_CLIP_TEXT_MODEL(IDENTIFIER, ...) PSAE_NAMED_CONFIG(IDENTIFIER, clip_text_config<__VA_ARGS__>)
#include PSAE_MODELS
#undef PSAE_CLIP_TEXT_MODEL
#undef PSAE_CLIP_MODEL
#undef PSAE_NAMED_CONFIG
#endif

template <class... Config>
struct config_list {};
using known_clip_configs =
    config_list<clip_vit_b16, clip_vit_b32, clip_vit_l14, clip_vit_l14_336, clip_tiny_demo, clip_tiny_test
#ifdef PSAE_MODELS
#define PSAE_CLIP_MODEL(IDENTIFIER, ...) , IDENTIFIER
#define PSAE_CLIP_TEXT_MODEL(...)
#include PSAE_MODELS
#undef PSAE_CLIP_TEXT_MODEL
#undef PSAE_CLIP_MODEL
#endif
                >;
using known_clip_text_configs =
    config_list<clip_text_base, clip_text_large, clip_text_tiny_demo, clip_text_tiny_test, clip_text_pipeline_test
#ifdef PSAE_MODELS
#define PSAE_CLIP_MODEL(...)
#define PSAE_CLIP_TEXT_MODEL(IDENTIFIER, ...) , IDENTIFIER
#include PSAE_MODELS
#undef PSAE_CLIP_TEXT_MODEL
#undef PSAE_CLIP_MODEL
#endif
                >;

}  // namespace psae
