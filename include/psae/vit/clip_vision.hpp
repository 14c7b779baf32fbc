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

    // The weights by their Hugging Face names, from anything with read(name, shape) that gives a vector of floats, such
    // as safetensors_directory. Its error names the tensor that is missing or misshapen.
    template <class Source>
    explicit clip_vision(const Source& source) {
        const auto read = [&](const std::string& name, const std::vector<std::size_t>& shape) {
            return source.read("vision_model." + name, shape);
        };
        fill(class_embedding_, read("embeddings.class_embedding", {d}));
        pack(W_patch_, read("embeddings.patch_embedding.weight", {d, 3, Config::patch, Config::patch}));
        fill(position_, read("embeddings.position_embedding.weight", {Config::tokens, d}));
        const auto norm = [&](const std::string& name, tensor<T, shape<d>>& gain, tensor<T, shape<d>>& shift) {
            fill(gain, read(name + ".weight", {d}));
            fill(shift, read(name + ".bias", {d}));
        };
        norm("pre_layrnorm", pre_gain_, pre_shift_);
        norm("post_layernorm", post_gain_, post_shift_);
        pack(W_projection_, source.read("visual_projection.weight", {Config::projection, d}));
        for (std::size_t i = 0; i < Config::layers; ++i) {
            const std::string layer = "encoder.layers." + std::to_string(i) + ".";
            block_type& b = blocks_.emplace_back();
            b.eps = eps;
            norm(layer + "layer_norm1", b.gain_1, b.shift_1);
            norm(layer + "layer_norm2", b.gain_2, b.shift_2);
            std::vector<float> qkv, qkv_bias;
            for (const char* part : {"q_proj", "k_proj", "v_proj"}) {
                const auto weight = read(layer + "self_attn." + part + ".weight", {d, d}),
                           bias = read(layer + "self_attn." + part + ".bias", {d});
                qkv.insert(qkv.end(), weight.begin(), weight.end());
                qkv_bias.insert(qkv_bias.end(), bias.begin(), bias.end());
            }
            pack(b.W_qkv, qkv);
            fill(b.b_qkv, qkv_bias);
            pack(b.W_out, read(layer + "self_attn.out_proj.weight", {d, d}));
            fill(b.b_out, read(layer + "self_attn.out_proj.bias", {d}));
            pack(b.W_1, read(layer + "mlp.fc1.weight", {m, d}));
            fill(b.b_1, read(layer + "mlp.fc1.bias", {m}));
            pack(b.W_2, read(layer + "mlp.fc2.weight", {d, m}));
            fill(b.b_2, read(layer + "mlp.fc2.bias", {d}));
        }
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
    template <class Shape>
    static void fill(tensor<T, Shape>& to, const std::vector<float>& from) {
        std::copy(from.begin(), from.end(), to.begin());
    }
    template <class Shape>
    static void pack(packed_matrix<T, Shape>& to, const std::vector<float>& from) {
        tensor<T, Shape> plain;
        fill(plain, from);
        to = packed_matrix<T, Shape>(std::as_const(plain).view());
    }

    tensor<T, shape<d>> class_embedding_, pre_gain_, pre_shift_, post_gain_, post_shift_;
    tensor<T, shape<Config::tokens, d>> position_;
    packed_matrix<T, shape<d, inputs>> W_patch_;
    packed_matrix<T, shape<Config::projection, d>> W_projection_;
    std::vector<block_type> blocks_;
};

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
        infer(device, scratch, pixels, typename model_type::pixels_shape{images}, tokens,
              [&](const auto& x) { return model_.embed(x); });
    }
    void run(const cpu& device, arena<>& scratch, float* tokens, std::size_t images, std::size_t first,
             std::size_t last) const override {
        // A few pictures at a time, so that the widest activations, [rows, mlp], stay in the second-level cache.
        constexpr std::size_t most_bytes = 5 << 19;
        constexpr std::size_t at_once =
            std::max<std::size_t>(1, most_bytes / (sizeof(float) * Config::mlp * Config::tokens));
        for (std::size_t i = first; i < last; ++i)
            for (std::size_t image = 0; image < images; image += at_once) {
                float* x = tokens + image * Config::tokens * Config::width;
                infer(device, scratch, x,
                      typename model_type::tokens_shape{std::min(at_once, images - image) * Config::tokens}, x,
                      [&](const auto& state) { return model_.block(i, state); });
            }
    }
    void project(const cpu& device, arena<>& scratch, const float* tokens, std::size_t images, float* embeds,
                 bool normalised) const override {
        const typename model_type::tokens_shape extents{images * Config::tokens};
        if (normalised)
            infer(device, scratch, tokens, extents, embeds, [&](const auto& x) {
                const auto e = model_.project(x);
                return e / norm(e);
            });
        else infer(device, scratch, tokens, extents, embeds, [&](const auto& x) { return model_.project(x); });
    }

private:
    // out = stages(x); what the stages used is given back.
    template <class Shape, class Stages>
    static void infer(const cpu& device, arena<>& scratch, const float* x, const Shape& extents, float* out,
                      const Stages& stages) {
        cpu backend = device;
        const auto mark = scratch.position();
        tape<cpu> t(backend, scratch, mode::infer);
        const auto result = stages(t.input(view<const float, Shape>{x, extents}));
        assign(backend, view<float, typename decltype(result)::shape_type>{out, result.shape()}, result);
        scratch.release_to(mark);
    }

    model_type model_;
};

}  // namespace psae
