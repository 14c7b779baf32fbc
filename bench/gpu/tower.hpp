#pragma once
// CLIP's ViT-B/16 to the layer that SAEs are trained on (hidden state -2), and SAEs that share its tokens.
#include <cstddef>
#include <memory>
#include <type_traits>
#include <vector>

#include <psae/vit/clip_vision.hpp>

#include "../random_weights.hpp"
#include "sae.hpp"

namespace psae_bench {

// Config: as clip_vit_b16. Pixels and tokens are the device's.
template <class Config>
class hooked_tower {
public:
    explicit hooked_tower(std::size_t images)
        : images_(images), tokens_(shape<dyn>{images * Config::tokens * Config::width}), model_(random_weights{}) {}

    std::size_t rows() const { return images_ * Config::tokens; }
    const float* tokens() const { return tokens_.data(); }
    static constexpr std::size_t blocks = Config::layers - 1;

    void run(const psae::cuda& device, const float* pixels) {
        scratch_.reset();
        float* x = tokens_.data();
        detail::with_operand_type(device, [&]<class Operand>(std::type_identity<Operand>) {
            detail::infer(device, scratch_, pixels, typename model_type::pixels_shape{images_}, x,
                          [&](const auto& p) { return model_.template embed<Operand>(p); });
            detail::infer_blocks<Config::width>(device, scratch_, x, images_, Config::tokens,
                                                sizeof(Operand) * Config::mlp, 0, blocks,
                                                [&](std::size_t b, const auto& h, float* place) {
                                                    model_.template block<Operand>(b, h, Config::tokens, place);
                                                });
        });
    }
    double flops() const {
        constexpr double n = Config::tokens, d = Config::width, m = Config::mlp, patch = Config::patch;
        return 2 * double(images_) *
               (double(blocks) * (4 * n * d * d + 2 * n * d * m + 2 * n * n * d) + (n - 1) * 3 * patch * patch * d);
    }

private:
    using model_type = clip_vision<Config, float, psae::cuda>;
    std::size_t images_;
    device_numbers<float> tokens_;
    model_type model_;
    arena<space::device> scratch_;
};

// Floor: its operations at the rate of one large product. Goal: 60% of that rate.
template <class Config>
void time_tower(measurement& m, std::size_t images, std::size_t largest_product) {
    hooked_tower<Config> tower(images);
    const auto pixels = random_numbers(m.device, images * 3 * Config::image * Config::image, 6);
    const double product = 2.0 * double(largest_product) * double(largest_product) * double(largest_product),
                 flops_per_ms = product / m.product_ms(false, true, largest_product, largest_product, largest_product);
    m.row(std::string(Config::name) + " to the hooked layer, " + std::to_string(images) + " images",
          m.median([&] { tower.run(m.device, pixels.data()); }), tower.flops() / flops_per_ms,
          "its operations at the rate of a large product", m.device.products == precision::bf16 ? 1 / 0.6 : 0);
}

// Eight SAEs that train on the same tokens. Floor: the tower once and eight times one step alone.
template <class Config>
void time_eight(measurement& m, std::size_t images) {
    hooked_tower<Config> tower(images);
    const auto pixels = random_numbers(m.device, images * 3 * Config::image * Config::image, 6);
    const const_view<float, shape<dyn, dyn>, space::device> x{tower.tokens(), shape<dyn, dyn>{tower.rows(), m.d}};
    std::vector<topk<>> saes;
    for (int i = 0; i < 8; ++i) saes.push_back(random_topk(m, 64));
    std::vector<std::unique_ptr<trainer<topk<>, psae::cuda>>> runs;
    for (topk<>& sae : saes)
        runs.push_back(std::make_unique<trainer<topk<>, psae::cuda>>(sae, training_options{.lr = 1e-6}, m.device));
    const double tower_ms = m.median([&] { tower.run(m.device, pixels.data()); }),
                 step_ms = m.median([&] { runs[0]->step(x); });
    m.row("8 TopK SAEs on one stream of tokens", m.median([&] {
        tower.run(m.device, pixels.data());
        for (auto& run : runs) run->step(x);
    }),
          tower_ms + 8 * step_ms, "the tower and eight steps, one after another", 1.05);
}

}  // namespace psae_bench
