#pragma once
// CLIP's vision tower. Hidden states are numbered as Hugging Face does: 0 is after pre_layrnorm, i the output of block
// i.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <psae/cpu/patch_embedding.hpp>
#include <psae/cpu/staging.hpp>
#include <psae/stage/patch_embedding.hpp>
#include <psae/stage/reduce.hpp>
#include <psae/vit/clip_config.hpp>
#include <psae/vit/deep_prompts.hpp>
#include <psae/vit/transformer_block.hpp>
#include <psae/vit/vision_tower.hpp>

namespace psae {

// The tower in stages: on a tape in infer mode each runs at once; in train mode the gradient of whatever follows flows
// back to the tokens or the pixels. T is float, or double to check gradients. The weights are frozen, in the memory of a
// backend.
template <class Config, class T = float, class Backend = cpu>
class clip_vision {
    static constexpr std::size_t d = Config::width, m = Config::mlp, inputs = 3 * Config::patch * Config::patch;
    static constexpr double eps = 1e-5;

public:
    using block_type = transformer_block<T, d, m, Config::heads, typename Config::activation_function, Backend>;
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

    // In all of these, Operand is the type in which activations that only products read are written: T, or bf16.

    // Hidden state 0, [images * tokens, d]. pixels: [images, 3, side, side].
    template <class Operand = T, operand X>
    auto embed(const X& pixels) const {
        return pre_norm(patch_embedding<Operand>(pixels, W_patch_, class_embedding_, position_, Config::patch));
    }
    // The layer norm before the blocks, [n, d]. x: any rows of embeddings.
    template <operand X>
    auto pre_norm(const X& x) const {
        return layer_norm(x, pre_gain_, pre_shift_, eps);
    }
    // Hidden state i + 1 from hidden state i. tokens: of an image; place: see transformer_block.
    template <class Operand = T, operand X>
    auto block(std::size_t i, const X& x, std::size_t tokens = Config::tokens, T* place = nullptr) const {
        return blocks_[i].template operator()<Operand>(x, tokens, place);
    }
    // Image embeddings [images, projection] from the last hidden state, not normalised. tokens: of an image.
    template <class Operand = T, operand X>
    auto project(const X& x, std::size_t tokens = Config::tokens) const {
        return matmul(layer_norm<Operand>(class_tokens(x, tokens), post_gain_, post_shift_, eps), W_projection_);
    }

private:
    typename block_type::template row<d> class_embedding_, pre_gain_, pre_shift_, post_gain_, post_shift_;
    tensor<T, shape<Config::tokens, d>, Backend::memory> position_;
    typename block_type::template matrix<d, inputs> W_patch_;
    typename block_type::template matrix<Config::projection, d> W_projection_;
    std::vector<block_type> blocks_;
};

// <e, direction>, e being the image embedding of unit length that follows from one image's hidden state `first`, and its
// gradient with respect to those tokens. tokens, gradient: [each, d]; direction: [projection]; all in memory of the
// backend.
template <class Config, class T, class Backend>
T embedding_gradient(const Backend& device, arena<Backend::memory>& scratch,
                     const clip_vision<Config, T, Backend>& model, const T* tokens, std::size_t first,
                     const T* direction, T* gradient, std::size_t each = Config::tokens) {
    Backend backend = device;
    const auto mark = scratch.position();
    arena<> records_elsewhere;
    tape<Backend> t(backend, scratch, detail::arena_of_records(scratch, records_elsewhere), mode::train);
    using tokens_shape = shape<dyn, Config::width>;
    const auto x = t.variable_of(const_view<T, tokens_shape, Backend::memory>{tokens, tokens_shape{each}});
    auto h = x;
    for (std::size_t i = first; i < Config::layers; ++i) h = model.block(i, h, each);
    const auto e = model.project(h, each);
    const auto value =
        mean(sum(e * const_view<T, shape<Config::projection>, Backend::memory>{direction, {}}) / norm(e));
    t.run();
    backward(t, value);
    assign(backend, view<T, tokens_shape, Backend::memory>{gradient, tokens_shape{each}},
           const_view<T, tokens_shape, Backend::memory>{x.adjoint->data, tokens_shape{each}});
    const T result = read(backend, value.data);
    scratch.release_to(mark);
    return result;
}

namespace detail {

// The arrays of passes that are under way.
template <class Backend>
struct staged_passes {
    explicit staged_passes(const Backend& device) : pixels(device), pictures(device), tokens(device) {}
    staged_upload<float, Backend> pixels;
    staged_upload<std::uint8_t, Backend> pictures;
    staged_download<float, Backend> tokens;
};
template <>
struct staged_passes<cpu> {
    explicit staged_passes(const cpu&) {}
};

}  // namespace detail

// The tower of a configuration behind that interface, for inference. Scratch memory is given back block by block.
// Prompts stand behind the patches; they have no position, but pass the layer norm before the blocks.
// On the CPU it computes where and with as many threads as it is told; on another device it has its own memory there,
// and takes and gives arrays of the host.
template <class Config, class Backend = cpu>
class clip_vision_tower : public tower_on<Backend> {
    using model_type = clip_vision<Config, float, Backend>;
    using tokens_shape = typename model_type::tokens_shape;
    static constexpr bool on_host = Backend::memory == space::host;
    static constexpr std::size_t pixels_of_image = 3 * Config::image * Config::image;

public:
    // psae::error if the prompts do not fit the tower.
    template <class Source>
    explicit clip_vision_tower(const Source& source, const deep_prompts& prompts = {},
                               const Backend& device = Backend())
        : tower_on<Backend>(device), model_(source), prompts_(prompts.count), passes_(device) {
        if (prompts_ == 0) return;
        prompts.require_fit(Config::width, Config::layers, Config::name);
        make_current(device);
        for (const auto& rows : prompts.rows) {
            prompt_rows_.emplace_back(shape<dyn>{rows.size()});
            upload(device, prompt_rows_.back().data(), rows.data(), rows.size());
        }
        float* first = prompt_rows_[0].data();
        arena<Backend::memory> scratch;
        infer_in(device, scratch, first, tokens_shape{prompts_}, first,
                 [&](const auto& x, auto) { return model_.pre_norm(x); });
    }

    const char* name() const override { return Config::name; }
    std::size_t image_size() const override { return Config::image; }
    std::size_t grid() const override { return Config::grid; }
    std::size_t width() const override { return Config::width; }
    std::size_t layers() const override { return Config::layers; }
    std::size_t projection() const override { return Config::projection; }
    std::size_t prompts() const override { return prompts_; }
    std::size_t pictures_of_pass() const override { return on_host ? 8 : 64; }

    void embed(const cpu& device, arena<>& scratch, const float* pixels, std::size_t images,
               float* tokens) const override {
        compute(device, scratch, pixels, images * pixels_of_image, tokens, images * floats_of_image(),
                [&](const auto& backend, auto& memory, const float* x, float* out) {
                    embed_in(backend, memory, x, images, out);
                });
    }
    void run(const cpu& device, arena<>& scratch, float* tokens, std::size_t images, std::size_t first,
             std::size_t last) const override {
        if constexpr (on_host) {
            run_in(device, scratch, tokens, images, first, last);
        } else if (first < last) {
            const std::size_t size = images * floats_of_image();
            this->restart();
            float* x = this->uploaded(tokens, size);
            run_in(this->device_, this->memory_, x, images, first, last);
            download(this->device_, tokens, x, size);
        }
    }
    bool asynchronous() const override { return !on_host; }
    void begin(const cpu& device, arena<>& scratch, const float* pixels, std::size_t images, std::size_t layer,
               float* tokens) const override {
        if constexpr (on_host) {
            vision_tower::begin(device, scratch, pixels, images, layer, tokens);
        } else {
            this->restart();
            begin_there(passes_.pixels(pixels, images * pixels_of_image), images, layer, tokens);
        }
    }
    void begin(const cpu& device, arena<>& scratch, std::span<const image> pictures, const preprocessing& how,
               std::size_t layer, float* tokens) const override {
        if constexpr (on_host) {
            vision_tower::begin(device, scratch, pictures, how, layer, tokens);
        } else {
            this->require_size(how);
            this->restart();
            float* pixels = this->memory_.template allocate<float>(pictures.size() * pixels_of_image);
            preprocess(this->device_, this->memory_, passes_.pictures, pictures, how, pixels);
            begin_there(pixels, pictures.size(), layer, tokens);
        }
    }
    const float* finish(float* tokens) const override {
        if constexpr (on_host) return nullptr;
        else return passes_.tokens.finish(tokens);
    }
    void project(const cpu& device, arena<>& scratch, const float* tokens, std::size_t images, float* embeds,
                 bool normalised) const override {
        compute(device, scratch, tokens, images * floats_of_image(), embeds, images * Config::projection,
                [&](const auto& backend, auto& memory, const float* x, float* out) {
                    project_in(backend, memory, x, images, out, normalised);
                });
    }
    using tower_on<Backend>::embeddings;
    void embeddings(const Backend& device, arena<Backend::memory>& scratch, float* tokens, std::size_t images,
                    std::size_t layer, float* embeds) const override {
        const std::size_t size = images * Config::projection;
        const auto mark = scratch.position();
        run_in(device, scratch, tokens, images, layer, Config::layers);
        if constexpr (on_host) {
            project_in(device, scratch, tokens, images, embeds, true);
        } else {
            float* there = scratch.template allocate<float>(size);
            project_in(device, scratch, tokens, images, there, true);
            download(device, embeds, there, size);
        }
        scratch.release_to(mark);
    }
    float differentiate(const cpu& device, arena<>& scratch, const float* tokens, std::size_t first,
                        const float* direction, float* gradient) const override {
        require_no_prompts(first);
        const std::size_t each = this->tokens(), size = each * Config::width;
        if constexpr (on_host) {
            return embedding_gradient(device, scratch, model_, tokens, first, direction, gradient, each);
        } else {
            this->restart();
            float *x = this->uploaded(tokens, size), *along = this->uploaded(direction, Config::projection),
                  *dx = this->memory_.template allocate<float>(size);
            const float value = embedding_gradient(this->device_, this->memory_, model_, static_cast<const float*>(x),
                                                   first, static_cast<const float*>(along), dx, each);
            download(this->device_, gradient, dx, size);
            return value;
        }
    }

    void differentiate_path(const cpu& device, arena<>& scratch, const float* end, const float* change,
                            std::span<const float> absent, std::size_t first, const float* direction,
                            float* gradient) const override {
        require_no_prompts(first);
        if constexpr (on_host) {
            differentiate_path_in(device, scratch, end, change, absent, first, direction, gradient);
        } else {
            const std::size_t size = floats_of_image();
            this->restart();
            const float *from = this->uploaded(end, size), *along = this->uploaded(change, size),
                        *to = this->uploaded(direction, Config::projection);
            float* mean = this->memory_.template allocate<float>(size);
            differentiate_path_in(this->device_, this->memory_, from, along, absent, first, to, mean);
            download(this->device_, gradient, mean, size);
        }
    }

private:
    std::size_t floats_of_image() const { return this->tokens() * Config::width; }
    void require_no_prompts(std::size_t first) const {
        if (prompt_rows_.size() > first)
            throw error("gradient does not pass prompts", Config::name,
                        "they are put in before blocks 0 to " + std::to_string(prompt_rows_.size() - 1) +
                            ", the tokens are hidden state " + std::to_string(first),
                        "choose a later layer");
    }

    // stages(x, std::type_identity of the operands' type) to `out`. This and what follows: in memory of the backend.
    template <class Shape, class Stages>
    static void infer_in(const Backend& backend, arena<Backend::memory>& memory, const float* x, const Shape& extents,
                         float* out, const Stages& stages) {
        detail::with_operand_type(backend, [&](auto operands) {
            detail::infer(backend, memory, x, extents, out, [&](const auto& input) { return stages(input, operands); });
        });
    }
    // Hidden state 0, the prompts of the embeddings behind each picture's own tokens.
    void embed_in(Backend backend, arena<Backend::memory>& memory, const float* pixels, std::size_t images,
                  float* tokens) const {
        constexpr std::size_t own_tokens = Config::tokens, d = Config::width;
        const auto mark = memory.position();
        float* own = prompts_ == 0 ? tokens : memory.template allocate<float>(images * own_tokens * d);
        infer_in(backend, memory, pixels, typename model_type::pixels_shape{images}, own,
                 [&]<class Operand>(const auto& x, std::type_identity<Operand>) {
                     return model_.template embed<Operand>(x);
                 });
        if (prompts_ > 0) {
            put_rows(backend, tokens, images, this->tokens(), 0, own, own_tokens, own_tokens, d);
            put_prompts(backend, 0, tokens, images);
        }
        memory.release_to(mark);
    }
    // Those of block i, if it has some.
    void put_prompts(Backend& backend, std::size_t i, float* tokens, std::size_t images) const {
        if (i < prompt_rows_.size())
            put_rows(backend, tokens, images, this->tokens(), Config::tokens, prompt_rows_[i].data(), 0, prompts_,
                     Config::width);
    }
    // A pass from pixels in the device's memory, whose tokens are then on their way.
    void begin_there(const float* pixels, std::size_t images, std::size_t layer, float* tokens) const {
        const std::size_t size = images * floats_of_image();
        float* x = passes_.tokens.next(size);
        embed_in(this->device_, this->memory_, pixels, images, x);
        run_in(this->device_, this->memory_, x, images, 0, layer);
        passes_.tokens.send(tokens, size);
    }
    // Blocks first .. last, in place.
    void run_in(Backend backend, arena<Backend::memory>& memory, float* tokens, std::size_t images, std::size_t first,
                std::size_t last) const {
        for (std::size_t i = first, end; i < last; i = end) {
            if (i > 0) put_prompts(backend, i, tokens, images);
            end = prompt_rows_.size() > i + 1 ? i + 1 : last;  // the next prompts, if any, are put in there
            detail::with_operand_type(backend, [&]<class Operand>(std::type_identity<Operand>) {
                detail::infer_blocks<Config::width>(backend, memory, tokens, images, this->tokens(),
                                                    sizeof(Operand) * Config::mlp, i, end,
                                                    [&](std::size_t b, const auto& h, float* place) {
                                                        model_.template block<Operand>(b, h, this->tokens(), place);
                                                    });
            });
        }
    }
    void project_in(const Backend& backend, arena<Backend::memory>& memory, const float* tokens, std::size_t images,
                    float* embeds, bool normalised) const {
        const std::size_t each = this->tokens();
        const tokens_shape extents{images * each};
        if (normalised)
            infer_in(backend, memory, tokens, extents, embeds,
                     [&]<class Operand>(const auto& x, std::type_identity<Operand>) {
                         const auto e = model_.template project<Operand>(x, each);
                         return e / norm(e);
                     });
        else
            infer_in(backend, memory, tokens, extents, embeds,
                     [&]<class Operand>(const auto& x, std::type_identity<Operand>) {
                         return model_.template project<Operand>(x, each);
                     });
    }
    void differentiate_path_in(Backend backend, arena<Backend::memory>& memory, const float* end, const float* change,
                               std::span<const float> absent, std::size_t first, const float* direction,
                               float* gradient) const {
        using rows = view<float, tokens_shape, Backend::memory>;
        using const_rows = const_view<float, tokens_shape, Backend::memory>;
        const tokens_shape extents{this->tokens()};
        const std::size_t size = floats_of_image();
        const auto mark = memory.position();
        float *tokens = memory.template allocate<float>(size), *own = memory.template allocate<float>(size);
        const float share = 1 / static_cast<float>(absent.size());
        fill(backend, gradient, size, 0.0f);
        for (const float a : absent) {
            assign(backend, rows{tokens, extents}, const_rows{end, extents} - a * const_rows{change, extents});
            embedding_gradient(backend, memory, model_, static_cast<const float*>(tokens), first, direction, own,
                               this->tokens());
            assign(backend, rows{gradient, extents}, share * const_rows{own, extents}, write::add);
        }
        memory.release_to(mark);
    }
    // f(backend, memory, x, out) on arrays of the host. x: [inputs], out: [outputs].
    template <class F>
    void compute(const cpu& device, arena<>& scratch, const float* x, std::size_t inputs, float* out,
                 std::size_t outputs, const F& f) const {
        if constexpr (on_host) {
            f(device, scratch, x, out);
        } else {
            this->restart();
            const float* in = this->uploaded(x, inputs);
            float* result = this->memory_.template allocate<float>(outputs);
            f(this->device_, this->memory_, in, result);
            download(this->device_, out, result, outputs);
        }
    }

    model_type model_;
    std::size_t prompts_;
    std::vector<tensor<float, shape<dyn>, Backend::memory>> prompt_rows_;  // the first after the layer norm
    mutable detail::staged_passes<Backend> passes_;                        // of an asynchronous tower
};

}  // namespace psae
