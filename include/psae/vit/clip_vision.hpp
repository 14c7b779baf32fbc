#pragma once
// CLIP's vision tower. Hidden states are numbered as Hugging Face does: 0 is after pre_layrnorm, i the output of block
// i.

#include <algorithm>
#include <cstddef>
#include <string>
#include <vector>

#include <psae/cpu/patch_embedding.hpp>
#include <psae/stage/patch_embedding.hpp>
#include <psae/stage/reduce.hpp>
#include <psae/vit/clip_config.hpp>
#include <psae/vit/deep_prompts.hpp>
#include <psae/vit/transformer_block.hpp>

namespace psae {

// The tower in stages: on a tape in infer mode each runs at once; in train mode the gradient of whatever follows flows
// back to the tokens or the pixels. T is float, or double to check gradients. The weights are frozen.
template <class Config, class T = float>
class clip_vision {
    static constexpr std::size_t d = Config::width, m = Config::mlp, inputs = 3 * Config::patch * Config::patch;
    static constexpr double eps = 1e-5;

public:
    using block_type = transformer_block<T, d, m, Config::heads, typename Config::activation_function>;
    using pixels_shape = shape<dyn, 3, Config::image, Config::image>;
    using tokens_shape = shape<dyn, d>;  // [images * tokens, d]

    // source: as weight_reader takes it.
    template <class Source>
    explicit clip_vision(const Source& source) {
        const weight_reader<Source> all(source, ""), vision = all.below("vision_model.");
        vision.read(class_embedding_, "embeddings.class_embedding");
        vision.pack(W_patch_, vision.values("embeddings.patch_embedding.weight", {d, 3, Config::patch, Config::patch}));
        vision.read(position_, "embeddings.position_embedding.weight");
        vision.read(pre_gain_, pre_shift_, "pre_layrnorm");
        vision.read(post_gain_, post_shift_, "post_layernorm");
        all.read(W_projection_, "visual_projection.weight");
        for (std::size_t i = 0; i < Config::layers; ++i)
            blocks_.emplace_back().read(vision.below("encoder.layers." + std::to_string(i) + "."));
    }

    // Hidden state 0, [images * tokens, d]. pixels: [images, 3, side, side].
    template <operand X>
    auto embed(const X& pixels) const {
        return pre_norm(patch_embedding(pixels, W_patch_, class_embedding_, position_, Config::patch));
    }
    // The layer norm before the blocks, [n, d]. x: any rows of embeddings.
    template <operand X>
    auto pre_norm(const X& x) const {
        return layer_norm(x, pre_gain_, pre_shift_, eps);
    }
    // Hidden state i + 1 from hidden state i. tokens: of an image.
    template <operand X>
    auto block(std::size_t i, const X& x, std::size_t tokens = Config::tokens) const {
        return blocks_[i](x, tokens);
    }
    // Image embeddings [images, projection] from the last hidden state, not normalised. tokens: of an image.
    template <operand X>
    auto project(const X& x, std::size_t tokens = Config::tokens) const {
        return matmul(layer_norm(class_tokens(x, tokens), post_gain_, post_shift_, eps), W_projection_);
    }

private:
    tensor<T, shape<d>> class_embedding_, pre_gain_, pre_shift_, post_gain_, post_shift_;
    tensor<T, shape<Config::tokens, d>> position_;
    packed_matrix<T, shape<d, inputs>> W_patch_;
    packed_matrix<T, shape<Config::projection, d>> W_projection_;
    std::vector<block_type> blocks_;
};

// <e, direction>, e being the image embedding of unit length that follows from one image's hidden state `first`, and its
// gradient with respect to those tokens. tokens, gradient: [each, d]; direction: [projection].
template <class Config, class T>
T embedding_gradient(const cpu& device, arena<>& scratch, const clip_vision<Config, T>& model, const T* tokens,
                     std::size_t first, const T* direction, T* gradient, std::size_t each = Config::tokens) {
    cpu backend = device;
    const auto mark = scratch.position();
    tape<cpu> t(backend, scratch, mode::train);
    using tokens_shape = typename clip_vision<Config, T>::tokens_shape;
    const auto x = t.variable_of(view<const T, tokens_shape>{tokens, tokens_shape{each}});
    auto h = x;
    for (std::size_t i = first; i < Config::layers; ++i) h = model.block(i, h, each);
    const auto e = model.project(h, each);
    const auto value = mean(sum(e * const_view<T, shape<Config::projection>>{direction, {}}) / norm(e));
    t.run();
    backward(t, value);
    std::copy_n(x.adjoint->data, each * Config::width, gradient);
    const T result = *value.data;
    scratch.release_to(mark);
    return result;
}

// A tower whose configuration is known at run time only through this interface; tokens are [images * tokens(),
// width()].
class vision_tower {
public:
    virtual ~vision_tower() = default;
    virtual const char* name() const = 0;
    virtual std::size_t image_size() const = 0;
    virtual std::size_t grid() const = 0;
    virtual std::size_t width() const = 0;
    virtual std::size_t layers() const = 0;
    virtual std::size_t projection() const = 0;
    // Of an image: the class token and the patches, row by row.
    std::size_t image_tokens() const { return grid() * grid() + 1; }
    // Learnt tokens behind them, if the model is adapted by prompts.
    virtual std::size_t prompts() const { return 0; }
    std::size_t tokens() const { return image_tokens() + prompts(); }
    // The hidden_states index of `layer`, which may count from the end; throws psae::error if there is none.
    std::size_t hidden_index(long layer) const {
        const long count = static_cast<long>(layers()) + 1, index = layer < 0 ? layer + count : layer;
        if (index < 0 || index >= count)
            throw error(
                "the model has no such layer", "layer " + std::to_string(layer),
                "hidden states are 0 to " + std::to_string(count - 1) + ", or -" + std::to_string(count) + " to -1");
        return static_cast<std::size_t>(index);
    }
    // Hidden state 0 from pixels [images, 3, side, side].
    virtual void embed(const cpu& device, arena<>& scratch, const float* pixels, std::size_t images,
                       float* tokens) const = 0;
    // Hidden state `first` to hidden state `last`, in place.
    virtual void run(const cpu& device, arena<>& scratch, float* tokens, std::size_t images, std::size_t first,
                     std::size_t last) const = 0;
    // Image embeddings [images, projection()] of the last hidden state, scaled to unit length if asked.
    virtual void project(const cpu& device, arena<>& scratch, const float* tokens, std::size_t images, float* embeds,
                         bool normalised) const = 0;
    // As embedding_gradient, of one image. psae::error if prompts are put in behind hidden state `first`.
    virtual float differentiate(const cpu& device, arena<>& scratch, const float* tokens, std::size_t first,
                                const float* direction, float* gradient) const = 0;
};

// The tower of a configuration behind that interface, for inference. Scratch memory is given back block by block.
// Prompts stand behind the patches; they have no position, but pass the layer norm before the blocks.
template <class Config>
class clip_vision_tower final : public vision_tower {
    using model_type = clip_vision<Config>;

public:
    // psae::error if the prompts do not fit the tower.
    template <class Source>
    explicit clip_vision_tower(const Source& source, deep_prompts prompts = {})
        : model_(source), prompts_(std::move(prompts)) {
        if (prompts_.count == 0) return;
        prompts_.require_fit(Config::width, Config::layers, Config::name);
        arena<> scratch;
        float* first = prompts_.rows[0].data();
        detail::infer(cpu(1), scratch, first, typename model_type::tokens_shape{prompts_.count}, first,
                      [&](const auto& x) { return model_.pre_norm(x); });
    }

    const char* name() const override { return Config::name; }
    std::size_t image_size() const override { return Config::image; }
    std::size_t grid() const override { return Config::grid; }
    std::size_t width() const override { return Config::width; }
    std::size_t layers() const override { return Config::layers; }
    std::size_t projection() const override { return Config::projection; }
    std::size_t prompts() const override { return prompts_.count; }

    void embed(const cpu& device, arena<>& scratch, const float* pixels, std::size_t images,
               float* tokens) const override {
        detail::infer(device, scratch, pixels, typename model_type::pixels_shape{images}, tokens,
                      [&](const auto& x) { return model_.embed(x); });
        if (prompts() == 0) return;
        constexpr std::size_t own = Config::tokens * Config::width;
        for (std::size_t i = images; i-- > 0;)  // to their places among prompts, the last image first
            std::copy_backward(tokens + i * own, tokens + (i + 1) * own,
                               tokens + i * this->tokens() * Config::width + own);
        prompts_.put(0, tokens, images, this->tokens(), Config::tokens);
    }
    void run(const cpu& device, arena<>& scratch, float* tokens, std::size_t images, std::size_t first,
             std::size_t last) const override {
        for (std::size_t i = first; i < last; ++i) {
            if (i > 0) prompts_.put(i, tokens, images, this->tokens(), Config::tokens);
            detail::infer_blocks<Config::width, Config::mlp>(
                device, scratch, tokens, images, this->tokens(), i, i + 1,
                [&](std::size_t b, const auto& x) { return model_.block(b, x, this->tokens()); });
        }
    }
    void project(const cpu& device, arena<>& scratch, const float* tokens, std::size_t images, float* embeds,
                 bool normalised) const override {
        const std::size_t each = this->tokens();
        const typename model_type::tokens_shape extents{images * each};
        if (normalised)
            detail::infer(device, scratch, tokens, extents, embeds, [&](const auto& x) {
                const auto e = model_.project(x, each);
                return e / norm(e);
            });
        else
            detail::infer(device, scratch, tokens, extents, embeds,
                          [&](const auto& x) { return model_.project(x, each); });
    }
    float differentiate(const cpu& device, arena<>& scratch, const float* tokens, std::size_t first,
                        const float* direction, float* gradient) const override {
        if (prompts_.depth() > first)
            throw error("gradient does not pass prompts", Config::name,
                        "they are put in before blocks 0 to " + std::to_string(prompts_.depth() - 1) +
                            ", the tokens are hidden state " + std::to_string(first),
                        "choose a later layer");
        return embedding_gradient(device, scratch, model_, tokens, first, direction, gradient, this->tokens());
    }

private:
    model_type model_;
    deep_prompts prompts_;  // the first after the layer norm
};

}  // namespace psae
