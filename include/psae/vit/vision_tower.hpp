#pragma once
// A vision tower behind an interface that does not know its configuration.

#include <cstddef>
#include <span>
#include <string>

#include <psae/core/arena.hpp>
#include <psae/core/error.hpp>
#include <psae/cpu/backend.hpp>
#include <psae/vit/preprocess.hpp>

namespace psae {

// A tower whose configuration is known at run time only through this interface; tokens are [images * tokens(),
// width()]. All arrays are the host's, whatever device computes. On another device than the CPU, one call at a time.
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
    // How many pictures go through it at a time. The number stays, since what a product rounds may depend on it.
    virtual std::size_t pictures_of_pass() const = 0;
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
    // Hidden state `layer` from pixels in two steps: the tokens are there when finish(tokens) returns. An asynchronous
    // tower has copied the pixels when begin() returns, and computes while the host goes on; others are done by then. At
    // most two passes may be begun; one that is never finished makes room for the second one after it.
    virtual void begin(const cpu& device, arena<>& scratch, const float* pixels, std::size_t images, std::size_t layer,
                       float* tokens) const {
        embed(device, scratch, pixels, images, tokens);
        run(device, scratch, tokens, images, 0, layer);
    }
    // The same from decoded pictures, preprocessed where the tower computes; they are others' by then, too. psae::error if
    // their crop is not image_size().
    virtual void begin(const cpu& device, arena<>& scratch, std::span<const image> pictures, const preprocessing& how,
                       std::size_t layer, float* tokens) const {
        require_size(how);
        const std::size_t each = 3 * how.crop * how.crop;
        float* pixels = scratch.allocate<float>(pictures.size() * each);
        device.parallel_for(pictures.size(), [&](std::size_t i) { preprocess(pictures[i], how, pixels + i * each); });
        begin(device, scratch, pixels, pictures.size(), layer, tokens);
    }
    // Where the same tokens are in memory of an asynchronous tower's device, until the second begin() behind theirs; or null.
    virtual const float* finish(float*) const { return nullptr; }
    virtual bool asynchronous() const { return false; }
    // Image embeddings [images, projection()] of the last hidden state, scaled to unit length if asked.
    virtual void project(const cpu& device, arena<>& scratch, const float* tokens, std::size_t images, float* embeds,
                         bool normalised) const = 0;
    // Those of unit length that follow from hidden state `layer`. The tokens are gone afterwards.
    virtual void embeddings(const cpu& device, arena<>& scratch, float* tokens, std::size_t images, std::size_t layer,
                            float* embeds) const {
        run(device, scratch, tokens, images, layer, layers());
        project(device, scratch, tokens, images, embeds, true);
    }
    // As embedding_gradient, of one image. psae::error if prompts are put in behind hidden state `first`.
    virtual float differentiate(const cpu& device, arena<>& scratch, const float* tokens, std::size_t first,
                                const float* direction, float* gradient) const = 0;
    // The mean of that gradient over tokens end - a change for each of `absent`.
    virtual void differentiate_path(const cpu& device, arena<>& scratch, const float* end, const float* change,
                                    std::span<const float> absent, std::size_t first, const float* direction,
                                    float* gradient) const = 0;

protected:
    void require_size(const preprocessing& how) const {
        if (how.crop != image_size())
            throw error("pictures are cropped to another size than the model's", name(),
                        "expected " + std::to_string(image_size()) + ", found " + std::to_string(how.crop));
    }
};

// A tower on another device than the CPU, which works on arrays in memory of that device, too. One call at a time.
template <class Backend>
class tower_on : public vision_tower {
public:
    explicit tower_on(const Backend& device) : device_(device) {}
    const Backend& device() const { return device_; }
    // As above, of tokens in the device's memory; embeds are the host's.
    virtual void embeddings(const Backend& device, arena<Backend::memory>& scratch, float* tokens, std::size_t images,
                            std::size_t layer, float* embeds) const = 0;
    void embeddings(const cpu&, arena<>&, float* tokens, std::size_t images, std::size_t layer,
                    float* embeds) const override {
        restart();
        float* there = uploaded(tokens, images * this->tokens() * width());
        embeddings(device_, memory_, there, images, layer, embeds);
    }

protected:
    void restart() const {
        make_current(device_);
        memory_.reset();
    }
    float* uploaded(const float* from, std::size_t count) const {
        float* there = memory_.template allocate<float>(count);
        upload(device_, there, from, count);
        return there;
    }

    Backend device_;
    mutable arena<Backend::memory> memory_;
};
template <>
class tower_on<cpu> : public vision_tower {
public:
    explicit tower_on(const cpu&) {}
};

}  // namespace psae
