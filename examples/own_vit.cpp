// A vision transformer of one's own: its sizes as a type, its weights from anywhere, its tokens into an autoencoder.
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include <psae/psae.hpp>
#include <psae/vit/clip_vision.hpp>

// The sizes are constants, so every shape in the model is known to the compiler:
// image and patch side, width, blocks, heads, width of the perceptrons, projection, activation.
struct my_vit : psae::clip_vision_config<48, 8, 96, 4, 3, 384, 32, psae::mlp_activation::gelu> {
    static constexpr const char* name = "my ViT";
};

// Weights come from any object with read(name, shape). Here they are random; psae::clip_weights("folder") of
// <psae/vit/clip_weights.hpp> reads them from a Hugging Face checkpoint under the same names.
struct random_weights {
    psae::random_stream& random;
    std::vector<float> read(const std::string& name, const std::vector<std::size_t>& shape) const {
        std::size_t size = 1;
        for (const std::size_t extent : shape) size *= extent;
        const bool gain = name.find("norm") != std::string::npos && name.find("weight") != std::string::npos;
        std::vector<float> values(size, gain ? 1.0f : 0.0f);
        if (shape.size() > 1)
            for (float& v : values) v = random.normal() / std::sqrt(static_cast<float>(size / shape[0]));
        return values;
    }
};

int main() {
    using namespace psae;
    random_stream random(0);
    cpu device;
    arena<> scratch;  // memory of a forward pass

    const clip_vision<my_vit> vit(random_weights{random});
    using pixels_shape = shape<dyn, 3, my_vit::image, my_vit::image>;
    tensor<float, pixels_shape> pixels{pixels_shape{16}};
    for (float& v : pixels) v = random.normal();

    // One forward pass, stage by stage: the hidden state after block 2, before the last two blocks.
    tape<cpu> stages(device, scratch, mode::infer);
    const auto tokens = vit.block(1, vit.block(0, vit.embed(stages.input(std::as_const(pixels).view()))));
    const auto embeddings = vit.project(vit.block(3, vit.block(2, tokens)));
    std::printf("%s: tokens %s, embeddings %s\n", my_vit::name, to_string(tokens.shape()).c_str(),
                to_string(embeddings.shape()).c_str());

    // The tokens train an autoencoder: 96 -> 384 latents, the 8 strongest of each token.
    topk<my_vit::width, 384> sae;
    sae.k = 8;
    sae.initialise(random);
    trainer run(sae, {.lr = 3e-3, .warmup_steps = 10}, device);
    step_metrics m;
    for (int step = 0; step < 100; ++step) m = run.step(view<const float, shape<dyn, my_vit::width>>(tokens));
    std::printf("step %zu: loss %.4f, L0 %.1f, explained variance %.3f\n", m.step + 1, m.loss, m.l0,
                m.explained_variance);
}
