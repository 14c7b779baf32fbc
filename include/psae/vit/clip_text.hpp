#pragma once
// CLIP's text tower: a causal transformer over the token ids of a text, whose embedding is read at its end token.
// Hidden states are numbered as Hugging Face does: 0 is token + position, i the output of block i.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <string>
#include <vector>

#include <psae/stage/reduce.hpp>
#include <psae/vit/clip_config.hpp>
#include <psae/vit/deep_prompts.hpp>
#include <psae/vit/token_ids.hpp>
#include <psae/vit/transformer_block.hpp>

namespace psae {

// The tower in stages, as clip_vision is.
template <class Config, class T = float>
class clip_text {
    static constexpr std::size_t d = Config::width;
    static constexpr double eps = 1e-5;

public:
    using block_type = transformer_block<T, d, Config::mlp, Config::heads, typename Config::activation_function>;
    using tokens_shape = shape<dyn, d>;

    // source: as weight_reader takes it.
    template <class Source>
    explicit clip_text(const Source& source) {
        const weight_reader<Source> all(source, ""), text = all.below("text_model.");
        text.read(token_, "embeddings.token_embedding.weight");
        text.read(position_, "embeddings.position_embedding.weight");
        text.read(final_gain_, final_shift_, "final_layer_norm");
        all.read(W_projection_, "text_projection.weight");
        for (std::size_t i = 0; i < Config::layers; ++i) {
            block_type& b = blocks_.emplace_back();
            b.causal = true;
            b.read(text.below("encoder.layers." + std::to_string(i) + "."));
        }
    }

    // Hidden state 0 of one token, [d], to out.
    void embed(std::size_t id, std::size_t position, T* out) const { place(token_.data() + id * d, position, out); }
    // The same of a token's embedding, [d].
    void place(const T* token, std::size_t position, T* out) const {
        for (std::size_t c = 0; c < d; ++c) out[c] = token[c] + position_[position * d + c];
    }
    // Hidden state i + 1 from hidden state i: [texts * tokens, d]. place: see transformer_block.
    template <operand X>
    auto block(std::size_t i, const X& x, std::size_t tokens, T* place = nullptr) const {
        return blocks_[i](x, tokens, place);
    }
    // The last layer norm, [n, d]. x: any rows of the last hidden state.
    template <operand X>
    auto final_norm(const X& x) const {
        return layer_norm(x, final_gain_, final_shift_, eps);
    }
    // Text embeddings [n, projection], not normalised. x: the rows of the last hidden state at the end tokens, [n, d].
    template <operand X>
    auto project(const X& x) const {
        return matmul(final_norm(x), W_projection_);
    }

private:
    tensor<T, shape<Config::vocabulary, d>> token_;
    tensor<T, shape<Config::context, d>> position_;
    tensor<T, shape<d>> final_gain_, final_shift_;
    packed_matrix<T, shape<Config::projection, d>> W_projection_;
    std::vector<block_type> blocks_;
};

// A text tower whose configuration is known at run time only through this interface; tokens are [texts * tokens,
// width()], and `tokens` may be any number up to context(): what follows a text's end token does not change it.
class text_tower {
public:
    virtual ~text_tower() = default;
    virtual const char* name() const = 0;
    virtual std::size_t vocabulary() const = 0;
    virtual std::size_t context() const = 0;
    virtual std::size_t width() const = 0;
    virtual std::size_t layers() const = 0;
    virtual std::size_t projection() const = 0;
    // Learnt tokens that take the place of those behind the start token, if the model is adapted by prompts. A text must
    // have so many before its end token.
    virtual std::size_t prompts() const { return 0; }
    // Hidden state 0 of `count` token ids, the first at position 0. Ids must be below vocabulary().
    virtual void embed(const std::int32_t* ids, std::size_t count, float* tokens) const = 0;
    // Hidden state `first` to hidden state `last`, in place.
    virtual void run(const cpu& device, arena<>& scratch, float* tokens, std::size_t texts, std::size_t tokens_each,
                     std::size_t first, std::size_t last) const = 0;
    // The last layer norm of n rows of the last hidden state, in place.
    virtual void final_norm(const cpu& device, arena<>& scratch, float* rows, std::size_t n) const = 0;
    // Text embeddings [n, projection()] of the rows of the last hidden state at the end tokens [n, width()], scaled to
    // unit length if asked.
    virtual void project(const cpu& device, arena<>& scratch, const float* rows, std::size_t n, float* embeds,
                         bool normalised) const = 0;

    // The position of a text's end token, where transformers' CLIPTextModel reads the embedding: the first end token.
    // With eos_token_id 2 (in the configurations published with CLIP, although it is no id of the end token) it is the
    // first token of the largest id instead. psae::error if the text has no end token.
    std::size_t end_position(const std::int32_t* ids, std::size_t count) const {
        const auto found = eos_token_id == 2 ? std::max_element(ids, ids + count)
                                             : std::find(ids, ids + count, static_cast<std::int32_t>(eos_token_id));
        if (found == ids + count)
            throw error("text has no end token", "token ids",
                        "expected the id " + std::to_string(eos_token_id) + " among " + std::to_string(count) + " ids");
        return static_cast<std::size_t>(found - ids);
    }
    long eos_token_id = 2;
};

// The tower of a configuration behind that interface, for inference.
template <class Config>
class clip_text_tower final : public text_tower {
    using model_type = clip_text<Config>;

public:
    // psae::error if the prompts do not fit the tower.
    template <class Source>
    explicit clip_text_tower(const Source& source, deep_prompts prompts = {})
        : model_(source), prompts_(std::move(prompts)) {
        if (prompts_.count == 0) return;
        prompts_.require_fit(Config::width, Config::layers, Config::name);
        float* first = prompts_.rows[0].data();
        for (std::size_t i = 0; i < prompts_.count; ++i)
            model_.place(first + i * Config::width, i + 1, first + i * Config::width);
    }

    const char* name() const override { return Config::name; }
    std::size_t vocabulary() const override { return Config::vocabulary; }
    std::size_t context() const override { return Config::context; }
    std::size_t width() const override { return Config::width; }
    std::size_t layers() const override { return Config::layers; }
    std::size_t projection() const override { return Config::projection; }
    std::size_t prompts() const override { return prompts_.count; }

    void embed(const std::int32_t* ids, std::size_t count, float* tokens) const override {
        for (std::size_t t = 0; t < count; ++t)
            model_.embed(static_cast<std::size_t>(ids[t]), t, tokens + t * Config::width);
        prompts_.put(0, tokens, 1, count, 1);
    }
    void run(const cpu& device, arena<>& scratch, float* tokens, std::size_t texts, std::size_t tokens_each,
             std::size_t first, std::size_t last) const override {
        for (std::size_t i = first; i < last; ++i) {
            if (i > 0) prompts_.put(i, tokens, texts, tokens_each, 1);
            detail::infer_blocks<Config::width>(
                device, scratch, tokens, texts, tokens_each, sizeof(float) * Config::mlp, i, i + 1,
                [&](std::size_t b, const auto& x, float* place) { model_.block(b, x, tokens_each, place); });
        }
    }
    void final_norm(const cpu& device, arena<>& scratch, float* rows, std::size_t n) const override {
        detail::infer(device, scratch, rows, typename model_type::tokens_shape{n}, rows,
                      [&](const auto& x) { return model_.final_norm(x); });
    }
    void project(const cpu& device, arena<>& scratch, const float* rows, std::size_t n, float* embeds,
                 bool normalised) const override {
        const typename model_type::tokens_shape extents{n};
        if (normalised)
            detail::infer(device, scratch, rows, extents, embeds, [&](const auto& x) {
                const auto e = model_.project(x);
                return e / norm(e);
            });
        else detail::infer(device, scratch, rows, extents, embeds, [&](const auto& x) { return model_.project(x); });
    }

private:
    model_type model_;
    deep_prompts prompts_;  // the first with their positions
};

// Text embeddings [texts, projection], of unit length unless asked otherwise. Texts of similar length run together, and
// no further than the last end token among them. psae::error for an id outside the vocabulary, for more ids than the
// tower has positions, and for a text shorter than its prompts.
inline std::vector<float> embed_texts(const cpu& device, const text_tower& tower, const token_ids& texts,
                                      bool normalised = true) {
    constexpr std::size_t most_texts = 64;
    const std::size_t n = texts.texts(), context = texts.context, d = tower.width(), p = tower.projection();
    if (context > tower.context())
        throw error(
            "texts are longer than the model takes", tower.name(),
            "expected at most " + std::to_string(tower.context()) + " token ids, found " + std::to_string(context));
    for (std::size_t i = 0; i < texts.ids.size(); ++i)
        if (texts.ids[i] < 0 || static_cast<std::size_t>(texts.ids[i]) >= tower.vocabulary())
            throw error(
                "token id is out of range",
                "text " + std::to_string(i / context) + ", position " + std::to_string(i % context),
                "expected 0 to " + std::to_string(tower.vocabulary() - 1) + ", found " + std::to_string(texts.ids[i]),
                "the tokenizer belongs to another model");
    std::vector<std::size_t> ends(n), order(n);
    for (std::size_t i = 0; i < n; ++i) {
        ends[i] = tower.end_position(texts.ids.data() + i * context, context);
        if (ends[i] <= tower.prompts())
            throw error("text is shorter than the learnt context", "text " + std::to_string(i),
                        "expected at least " + std::to_string(tower.prompts()) +
                            " tokens, whose place it takes, found " + std::to_string(ends[i] == 0 ? 0 : ends[i] - 1));
    }
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return ends[a] < ends[b]; });
    std::vector<float> embeds(n * p), x, rows, some(most_texts * p);
    arena<> scratch;
    for (std::size_t first = 0; first < n; first += most_texts) {
        const std::size_t count = std::min(most_texts, n - first), tokens = ends[order[first + count - 1]] + 1;
        scratch.reset();
        x.resize(count * tokens * d);
        rows.resize(count * d);
        for (std::size_t i = 0; i < count; ++i)
            tower.embed(texts.ids.data() + order[first + i] * context, tokens, x.data() + i * tokens * d);
        tower.run(device, scratch, x.data(), count, tokens, 0, tower.layers());
        for (std::size_t i = 0; i < count; ++i)
            std::copy_n(x.data() + (i * tokens + ends[order[first + i]]) * d, d, rows.data() + i * d);
        tower.project(device, scratch, rows.data(), count, some.data(), normalised);
        for (std::size_t i = 0; i < count; ++i)
            std::copy_n(some.data() + i * p, p, embeds.data() + order[first + i] * p);
    }
    return embeds;
}

}  // namespace psae
