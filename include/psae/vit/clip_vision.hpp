#pragma once
// CLIP's vision tower. Hidden states are numbered as Hugging Face does: 0 is after pre_layrnorm, i the output of block
// i.

#include <cmath>
#include <cstddef>
#include <vector>

#include <psae/core/arena.hpp>
#include <psae/cpu/transformer.hpp>
#include <psae/vit/clip_config.hpp>

namespace psae {

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

// The weights, in Hugging Face's layout: linear weights are [out, in]; queries, keys and values are stacked.
template <class Config>
struct clip_vision_weights {
    struct block {
        std::vector<float> norm1_gain, norm1_bias, qkv, qkv_bias, out, out_bias, norm2_gain, norm2_bias, fc1, fc1_bias,
            fc2, fc2_bias;
    };
    std::vector<float> class_embedding, patch, position, pre_gain, pre_bias, post_gain, post_bias, projection;
    std::vector<block> blocks;

    // From anything with read(name, shape), such as safetensors_directory; an error names the tensor that is missing or
    // misshapen.
    template <class Source>
    static clip_vision_weights load(const Source& source) {
        constexpr std::size_t d = Config::width, m = Config::mlp;
        const auto get = [&](const std::string& name, std::vector<std::size_t> shape) {
            return source.read("vision_model." + name, shape);
        };
        clip_vision_weights w;
        w.class_embedding = get("embeddings.class_embedding", {d});
        w.patch = get("embeddings.patch_embedding.weight", {d, 3, Config::patch, Config::patch});
        w.position = get("embeddings.position_embedding.weight", {Config::tokens, d});
        w.pre_gain = get("pre_layrnorm.weight", {d});
        w.pre_bias = get("pre_layrnorm.bias", {d});
        w.post_gain = get("post_layernorm.weight", {d});
        w.post_bias = get("post_layernorm.bias", {d});
        w.projection = source.read("visual_projection.weight", {Config::projection, d});
        for (std::size_t i = 0; i < Config::layers; ++i) {
            const std::string p = "encoder.layers." + std::to_string(i) + ".";
            block b;
            b.norm1_gain = get(p + "layer_norm1.weight", {d});
            b.norm1_bias = get(p + "layer_norm1.bias", {d});
            for (const char* part : {"q_proj", "k_proj", "v_proj"}) {
                const auto weight = get(p + "self_attn." + part + ".weight", {d, d}),
                           bias = get(p + "self_attn." + part + ".bias", {d});
                b.qkv.insert(b.qkv.end(), weight.begin(), weight.end());
                b.qkv_bias.insert(b.qkv_bias.end(), bias.begin(), bias.end());
            }
            b.out = get(p + "self_attn.out_proj.weight", {d, d});
            b.out_bias = get(p + "self_attn.out_proj.bias", {d});
            b.norm2_gain = get(p + "layer_norm2.weight", {d});
            b.norm2_bias = get(p + "layer_norm2.bias", {d});
            b.fc1 = get(p + "mlp.fc1.weight", {m, d});
            b.fc1_bias = get(p + "mlp.fc1.bias", {m});
            b.fc2 = get(p + "mlp.fc2.weight", {d, m});
            b.fc2_bias = get(p + "mlp.fc2.bias", {d});
            w.blocks.push_back(std::move(b));
        }
        return w;
    }
};

template <class Config>
class clip_vision final : public vision_tower {
public:
    explicit clip_vision(clip_vision_weights<Config> weights) : w_(std::move(weights)) {}

    const char* name() const override { return Config::name; }
    std::size_t image_size() const override { return Config::image; }
    std::size_t grid() const override { return Config::grid; }
    std::size_t width() const override { return Config::width; }
    std::size_t layers() const override { return Config::layers; }
    std::size_t projection() const override { return Config::projection; }

    void embed(const cpu& device, arena<>& scratch, const float* pixels, std::size_t images,
               float* tokens) const override {
        patch_embedding(device, scratch, tokens, pixels, w_.patch.data(), w_.class_embedding.data(), w_.position.data(),
                        images, Config::image, Config::patch, d);
        layer_norm(device, tokens, tokens, w_.pre_gain.data(), w_.pre_bias.data(), images * Config::tokens, d, eps);
    }

    void run(const cpu& device, arena<>& scratch, float* x, std::size_t images, std::size_t first,
             std::size_t last) const override {
        const auto mark = scratch.position();
        const std::size_t n = images * Config::tokens;
        float* normed = scratch.allocate<float>(n * d);
        float* wide = scratch.allocate<float>(n * std::max(3 * d, m));
        for (std::size_t i = first; i < last; ++i) {
            const auto& b = w_.blocks[i];
            layer_norm(device, normed, x, b.norm1_gain.data(), b.norm1_bias.data(), n, d, eps);
            linear(device, wide, normed, b.qkv, n, 3 * d, d, 0);
            add_bias(device, wide, b.qkv_bias.data(), n, 3 * d);
            attention(device, scratch, normed, wide, images, Config::tokens, d, Config::heads);
            add_bias(device, x, b.out_bias.data(), n, d);
            linear(device, x, normed, b.out, n, d, d, 1);
            layer_norm(device, normed, x, b.norm2_gain.data(), b.norm2_bias.data(), n, d, eps);
            linear(device, wide, normed, b.fc1, n, m, d, 0);
            add_bias_and_activate(device, wide, b.fc1_bias.data(), n, m, Config::activation);
            add_bias(device, x, b.fc2_bias.data(), n, d);
            linear(device, x, wide, b.fc2, n, d, m, 1);
        }
        scratch.release_to(mark);
    }

    void project(const cpu& device, arena<>& scratch, const float* tokens, std::size_t images, float* embeds,
                 bool normalised) const override {
        const auto mark = scratch.position();
        float* pooled = scratch.allocate<float>(images * d);
        for (std::size_t i = 0; i < images; ++i) std::copy_n(tokens + i * Config::tokens * d, d, pooled + i * d);
        layer_norm(device, pooled, pooled, w_.post_gain.data(), w_.post_bias.data(), images, d, eps);
        linear(device, embeds, pooled, w_.projection, images, Config::projection, d, 0);
        if (normalised)
            for (std::size_t i = 0; i < images; ++i) {
                float* row = embeds + i * Config::projection;
                double squares = 0;
                for (std::size_t c = 0; c < Config::projection; ++c) squares += double(row[c]) * double(row[c]);
                const auto length = static_cast<float>(std::sqrt(squares));
                for (std::size_t c = 0; c < Config::projection; ++c) row[c] /= length;
            }
        scratch.release_to(mark);
    }

private:
    static constexpr std::size_t d = Config::width, m = Config::mlp;
    static constexpr float eps = 1e-5f;

    // y (+)= x W^T. x: [n, in], W: [out, in], y: [n, out].
    static void linear(const cpu& device, float* y, const float* x, const std::vector<float>& W, std::size_t n,
                       std::size_t out, std::size_t in, float beta) {
        gemm(device, false, true, n, out, in, 1.0f, x, in, W.data(), in, beta, y, out);
    }

    clip_vision_weights<Config> w_;
};

}  // namespace psae
