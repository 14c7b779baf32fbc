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
        return layer_norm(patch_embedding(pixels, W_patch_, class_embedding_, position_, Config::patch), pre_gain_,
                          pre_shift_, eps);
    }
    // Hidden state i + 1 from hidden state i.
    template <operand X>
    auto block(std::size_t i, const X& x) const {
        return blocks_[i](x, Config::tokens);
    }
    // Image embeddings [images, projection] from the last hidden state, not normalised.
    template <operand X>
    auto project(const X& x) const {
        return matmul(layer_norm(class_tokens(x, Config::tokens), post_gain_, post_shift_, eps), W_projection_);
    }

private:
    tensor<T, shape<d>> class_embedding_, pre_gain_, pre_shift_, post_gain_, post_shift_;
    tensor<T, shape<Config::tokens, d>> position_;
    packed_matrix<T, shape<d, inputs>> W_patch_;
    packed_matrix<T, shape<Config::projection, d>> W_projection_;
    std::vector<block_type> blocks_;
};

// <e, direction>, e being the image embedding of unit length that follows from one image's hidden state `first`, and its
// gradient with respect to those tokens. tokens, gradient: [tokens, d]; direction: [projection].
template <class Config, class T>
T embedding_gradient(const cpu& device, arena<>& scratch, const clip_vision<Config, T>& model, const T* tokens,
                     std::size_t first, const T* direction, T* gradient) {
    cpu backend = device;
    const auto mark = scratch.position();
    tape<cpu> t(backend, scratch, mode::train);
    using tokens_shape = typename clip_vision<Config, T>::tokens_shape;
    const auto x = t.variable_of(view<const T, tokens_shape>{tokens, tokens_shape{Config::tokens}});
    auto h = x;
    for (std::size_t i = first; i < Config::layers; ++i) h = model.block(i, h);
    const auto e = model.project(h);
    const auto value = mean(sum(e * const_view<T, shape<Config::projection>>{direction, {}}) / norm(e));
    t.run();
    backward(t, value);
    std::copy_n(x.adjoint->data, Config::tokens * Config::width, gradient);
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
    std::size_t tokens() const { return grid() * grid() + 1; }
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
    // As embedding_gradient, of one image.
    virtual float differentiate(const cpu& device, arena<>& scratch, const float* tokens, std::size_t first,
                                const float* direction, float* gradient) const = 0;
};

// The tower of a configuration behind that interface, for inference. Scratch memory is given back block by block.
template <class Config>
class clip_vision_tower final : public vision_tower {
    using model_type = clip_vision<Config>;

public:
    template <class Source>
    explicit clip_vision_tower(const Source& source) : model_(source) {}

    const char* name() const override { return Config::name; }
    std::size_t image_size() const override { return Config::image; }
    std::size_t grid() const override { return Config::grid; }
    std::size_t width() const override { return Config::width; }
    std::size_t layers() const override { return Config::layers; }
    std::size_t projection() const override { return Config::projection; }

    void embed(const cpu& device, arena<>& scratch, const float* pixels, std::size_t images,
               float* tokens) const override {
        detail::infer(device, scratch, pixels, typename model_type::pixels_shape{images}, tokens,
                      [&](const auto& x) { return model_.embed(x); });
    }
    void run(const cpu& device, arena<>& scratch, float* tokens, std::size_t images, std::size_t first,
             std::size_t last) const override {
        detail::infer_blocks<Config::width, Config::mlp>(
            device, scratch, tokens, images, Config::tokens, first, last,
            [&](std::size_t i, const auto& x) { return model_.block(i, x); });
    }
    void project(const cpu& device, arena<>& scratch, const float* tokens, std::size_t images, float* embeds,
                 bool normalised) const override {
        const typename model_type::tokens_shape extents{images * Config::tokens};
        if (normalised)
            detail::infer(device, scratch, tokens, extents, embeds, [&](const auto& x) {
                const auto e = model_.project(x);
                return e / norm(e);
            });
        else detail::infer(device, scratch, tokens, extents, embeds, [&](const auto& x) { return model_.project(x); });
    }
    float differentiate(const cpu& device, arena<>& scratch, const float* tokens, std::size_t first,
                        const float* direction, float* gradient) const override {
        return embedding_gradient(device, scratch, model_, tokens, first, direction, gradient);
    }

private:
    model_type model_;
};

}  // namespace psae
