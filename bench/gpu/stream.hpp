#pragma once
// From pictures to a trained SAE: JPEGs in memory are decoded and preprocessed by the CPU's threads while the GPU computes
// the tower and the SAE's step of the pictures before.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <psae/cuda/staging.hpp>
#include <psae/io/image.hpp>
#include <psae/vit/preprocess.hpp>

#include "tower.hpp"

namespace psae_bench {

// JPEGs of waves and noise, of the size of most of ImageNet's pictures.
inline std::vector<std::string> synthetic_jpegs(std::size_t count) {
    std::vector<std::string> files;
    random_stream random(7);
    for (std::size_t n = 0; n < count; ++n) {
        image picture;
        picture.width = 500;
        picture.height = 375;
        const float across = 0.05f + 0.05f * random.uniform(), down = 0.05f + 0.05f * random.uniform();
        for (std::size_t y = 0; y < picture.height; ++y)
            for (std::size_t x = 0; x < picture.width; ++x)
                for (std::size_t c = 0; c < 3; ++c)
                    picture.rgb.push_back(static_cast<std::uint8_t>(
                        128 + 80 * std::sin(across * float(x) + down * float(y) + float(c)) + 20 * random.uniform()));
        files.push_back(encode_jpeg(picture, 90));
    }
    return files;
}

// Floor: the slower of the CPU's part and the GPU's, each alone.
template <class Config>
void time_stream(measurement& m, std::size_t images) {
    const psae::cpu host;
    const auto files = synthetic_jpegs(images);
    const preprocessing how{Config::image, Config::image};
    const std::size_t pixels = 3 * Config::image * Config::image;
    staged_upload<float, psae::cuda> upload(m.device);
    const auto send_next = [&] {
        float* to = upload.next(images * pixels);
        host.parallel_for(images, [&](std::size_t i) {
            const auto* bytes = reinterpret_cast<const std::uint8_t*>(files[i].data());
            preprocess(detail::decode_jpeg(bytes, files[i].size(), "synthetic picture"), how, to + i * pixels);
        });
        return upload.send(images * pixels);
    };
    hooked_tower<Config> tower(images);
    topk<> sae = random_topk(m, 64);
    trainer<topk<>, psae::cuda> run(sae, {.lr = 1e-6, .dead_after = 1000000}, m.device);
    const const_view<float, shape<dyn, dyn>, space::device> x{tower.tokens(), shape<dyn, dyn>{tower.rows(), m.d}};
    const float* now = send_next();
    const auto start = [&] {
        tower.run(m.device, now);
        run.start(x, x);
    };
    const double cpu_ms = m.median(send_next), gpu_ms = m.median([&] {
        start();
        run.finish();
    }),
                 both_ms = m.median([&] {
                     start();
                     now = send_next();
                     run.finish();
                 });
    m.row("JPEGs to a trained SAE, " + std::to_string(images) + " a step", both_ms, std::max(cpu_ms, gpu_ms),
          cpu_ms > gpu_ms ? "the CPU's part alone, decoding" : "the GPU's part alone, tower and step", 1.1);
}

}  // namespace psae_bench
