#pragma once
// An SAE in a vision tower: what is decoded from the codes of pictures' tokens, edited or not, goes on in place of the
// tokens. Where tower and SAE are on the same other device than the CPU, tokens and codes stay in its memory.
//
//   const auto in_place = psae::put_in_place(device, tower, layer, sae);
//   in_place->take(tokens, images);                                  // [images, T, width], of hidden state `layer`
//   in_place->add(0);                                                // picture 0 as it is,
//   in_place->add(0, {psae::codes_edit::action::remove, latents});   // and without some latents
//   const auto embeds = in_place->embeddings();                      // [2, projection]

#include <algorithm>
#include <cstddef>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include <psae/cpu/edit_codes.hpp>
#include <psae/cpu/staging.hpp>
#include <psae/sae/inference.hpp>
#include <psae/vit/vision_tower.hpp>

namespace psae {

class sae_in_place {
public:
    virtual ~sae_in_place() = default;
    // Pictures: tokens [images, T, width] of the host, which stay there as long as others are not taken. there: the same
    // in memory of the tower's device, if they are there (vision_tower::finish).
    virtual void take(const float* tokens, std::size_t images, const float* there = nullptr) = 0;
    // A version of picture `image` for the blocks behind the layer: its tokens themselves; or what is decoded from its
    // codes, with what the SAE leaves unexplained of the tokens, x - x_hat, added if asked. psae::error as encode_rows.
    virtual void add(std::size_t image) = 0;
    virtual void add(std::size_t image, const codes_edit& edit, bool error_term = false) = 0;
    // The image embeddings, of unit length, of all versions that were added since the last call: [versions, projection].
    virtual std::vector<float> embeddings() = 0;
    // For what is done on the host: the codes of a picture's tokens without prompts (which are replaced but tell of the
    // model), in memory of the arena, or of this until other pictures are asked for; and the reconstruction of all its
    // tokens, x_hat [T, width], which is also added if `goes_on`.
    virtual codes_view<float> codes(arena<>& scratch, std::size_t image) = 0;
    virtual void reconstruct(std::size_t image, float* x_hat, bool goes_on) = 0;
};

// With arrays in memory of a backend. Tower: tower_on<Backend>, Sae: device_sae<Backend>; on the CPU vision_tower and
// sae_view, which may have their own devices. `device` is the SAE's, whose stream all of it is given: what a tower has
// begun meanwhile goes on beside it.
template <class Backend, class Tower, class Sae>
class sae_in_place_on final : public sae_in_place {
    static constexpr bool on_host = Backend::memory == space::host;
    static constexpr std::size_t encoded_rows = 512;  // at once, since dense codes of more take much memory

public:
    sae_in_place_on(const Backend& device, const Tower& tower, std::size_t layer, const Sae& sae,
                    std::shared_ptr<arena<Backend::memory>> memory = std::make_shared<arena<Backend::memory>>())
        : device_(device),
          tower_(tower),
          layer_(layer),
          sae_(sae),
          size_(tower.tokens() * tower.width()),
          lists_(device),
          shared_(std::move(memory)),
          memory_(*shared_) {}

    void take(const float* tokens, std::size_t images, const float* there) override {
        make_current(device_);
        memory_.reset();
        if constexpr (on_host) {
            x_ = tokens;
        } else if (there != nullptr) {
            x_ = there;
        } else {
            float* copy = memory_.template allocate<float>(images * size_);
            upload(device_, copy, tokens, images * size_);
            x_ = copy;
        }
        images_ = images;
        z_ = {};
        behind_tokens_ = memory_.position();
    }
    void add(std::size_t image) override { assign(device_, next_version(), tokens_of(image)); }
    void add(std::size_t image, const codes_edit& edit, bool error_term) override {
        require_settable(edit.latents, sae_.d_sae);
        encode(image);
        const rows version = next_version();
        const auto mark = memory_.position();
        if (edit.changes_nothing()) decode(codes_of(image), tokens_of(image), version);
        else decode(edit_codes(device_, memory_, codes_of(image), uploaded(edit)), tokens_of(image), version);
        memory_.release_to(mark);
        if (error_term) assign(device_, version, version + unexplained_of(image));
    }
    std::vector<float> embeddings() override {
        run_blocks();
        return std::exchange(embeds_, {});
    }
    codes_view<float> codes(arena<>& scratch, std::size_t image) override {
        encode(image);
        codes_view<float> z = codes_of(image);
        z.tokens = tower_.image_tokens();
        if constexpr (on_host) return z;
        else return detail::download_codes(device_, scratch, z);
    }
    void reconstruct(std::size_t image, float* x_hat, bool goes_on) override {
        add(image, {}, false);
        download(device_, x_hat, version(versions_added_ - 1).data, size_);
        if (!goes_on) --versions_added_;
    }

private:
    using matrix = shape<dyn, dyn>;
    using rows = view<float, matrix, Backend::memory>;
    using const_rows = const_view<float, matrix, Backend::memory>;

    // Of so many pictures.
    matrix shape_of(std::size_t images) const { return matrix{images * tower_.tokens(), tower_.width()}; }
    const_rows tokens_of(std::size_t image) const { return {x_ + image * size_, shape_of(1)}; }
    rows version(std::size_t i) { return {versions_.data() + i * size_, shape_of(1)}; }
    rows next_version() {
        make_current(device_);
        if (versions_.size() == 0) versions_ = decltype(versions_)(shape_of(tower_.pictures_of_pass()));
        if (versions_added_ == tower_.pictures_of_pass()) run_blocks();
        return version(versions_added_++);
    }
    void run_blocks() {
        const std::size_t done = embeds_.size();
        if (versions_added_ == 0) return;
        embeds_.resize(done + versions_added_ * tower_.projection());
        Backend device = device_;
        if constexpr (!on_host) device.products = tower_.device().products;
        make_current(device);
        tower_.embeddings(device, memory_, versions_.data(), versions_added_, layer_, embeds_.data() + done);
        versions_added_ = 0;
    }

    // Makes the codes of some pictures, of which `image` is one, those at hand.
    void encode(std::size_t image) {
        make_current(device_);
        const std::size_t T = tower_.tokens(), most = std::max<std::size_t>(1, encoded_rows / T);
        if (z_.tokens > 0 && image / most * most == first_) return;
        first_ = image / most * most;
        memory_.release_to(behind_tokens_);
        z_ = {};
        z_ = encode_rows(device_, memory_, sae_, x_ + first_ * size_, std::min(most, images_ - first_) * T);
        unexplained_ = nullptr;
    }
    codes_view<float> codes_of(std::size_t image) const {
        codes_view<float> z = z_;
        z.tokens = tower_.tokens();
        z.offsets += (image - first_) * z.tokens;
        return z;
    }
    void decode(const codes_view<float>& z, const const_rows& x, const rows& x_hat) {
        if constexpr (on_host) decode_rows(device_, sae_, z, x.data, x_hat.data);
        else decode_rows(device_, memory_, sae_, z, x.data, x_hat.data);
    }
    // Of the pictures at hand all at once, when first asked for.
    const_rows unexplained_of(std::size_t image) {
        if (unexplained_ == nullptr) {
            const matrix all{z_.tokens, tower_.width()};
            unexplained_ = memory_.template allocate<float>(all.size());
            const rows x_hat{unexplained_, all};
            const const_rows x{x_ + first_ * size_, all};
            decode(z_, x, x_hat);
            assign(device_, x_hat, x - x_hat);
        }
        return {unexplained_ + (image - first_) * size_, shape_of(1)};
    }
    codes_edit uploaded(const codes_edit& edit) {
        if (edit.latents.empty()) return edit;
        return {edit.what, {lists_(edit.latents.data(), edit.latents.size()), edit.latents.size()}};
    }

    Backend device_;
    const Tower& tower_;
    std::size_t layer_;
    std::conditional_t<on_host, Sae, const Sae&> sae_;  // a view of one is copied
    std::size_t size_;                                  // floats of a picture
    tensor<float, matrix, Backend::memory> versions_;
    staged_upload<latent_value, Backend> lists_;
    std::shared_ptr<arena<Backend::memory>> shared_;
    arena<Backend::memory>& memory_;

    const float* x_ = nullptr;
    std::size_t images_ = 0, first_ = 0, versions_added_ = 0;  // first_: of the pictures whose codes are at hand
    typename arena<Backend::memory>::mark behind_tokens_{};
    codes_view<float> z_;
    float* unexplained_ = nullptr;
    std::vector<float> embeds_;
};

// An SAE in a tower whose tokens it takes; both must outlive it. What is put in goes in at `layer`, of a transcoder the
// target; codes do not depend on it. (What a transcoder leaves unexplained of its own tokens has no meaning.)
// memory: of the CPU, which several may share that are used one after the other, each from its take() on.
inline std::unique_ptr<sae_in_place> put_in_place(const cpu& device, const vision_tower& tower, std::size_t layer,
                                                  const sae_view& sae,
                                                  std::shared_ptr<arena<>> memory = std::make_shared<arena<>>()) {
    if (sae.remote != nullptr)
        if (auto there = sae.remote->put_in_place(tower, layer)) return there;
    return std::make_unique<sae_in_place_on<cpu, vision_tower, sae_view>>(device, tower, layer, sae, std::move(memory));
}

}  // namespace psae
