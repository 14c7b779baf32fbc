#include <psae/cuda.hpp>

#include <psae/sae/device_sae.hpp>
#include <psae/vit/load_clip.hpp>

#include "encoders.hpp"
#include "gpu.hpp"
#include "gpu_runs.hpp"

namespace patchsae {

int count_gpus() {
    int count = 0;
    return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

std::unique_ptr<psae::vision_tower> load_gpu_model(const std::filesystem::path& directory,
                                                   const psae::maple_adapter* adapter, int gpu,
                                                   psae::precision products) {
    psae::cuda device(gpu);
    device.products = products;
    return psae::load_clip_vision(directory, psae::known_clip_configs{}, adapter, device);
}

std::shared_ptr<const psae::remote_sae> load_gpu_sae(const psae::sae_view& sae, int gpu) {
    return std::make_shared<psae::remote_sae_on<psae::cuda>>(psae::cuda(gpu), sae);
}

template <class Variant>
std::unique_ptr<psae::any_training_run> make_gpu_run(Variant sae, const psae::training_options& training,
                                                     psae::training_run_options run, const psae::cpu& host, int gpu,
                                                     psae::precision products, psae::training_rows held_out) {
    psae::cuda device(gpu);
    device.products = products;
    return std::make_unique<psae::training_run<Variant, psae::cuda>>(std::move(sae), training, std::move(run), host,
                                                                     device, held_out);
}

#define PATCHSAE_GPU_RUN(...)                                                                                        \
    template std::unique_ptr<psae::any_training_run> make_gpu_run(__VA_ARGS__, const psae::training_options&,        \
                                                                  psae::training_run_options, const psae::cpu&, int, \
                                                                  psae::precision, psae::training_rows)
PATCHSAE_GPU_RUN(psae::patchsae<>);
PATCHSAE_GPU_RUN(psae::topk<>);
PATCHSAE_GPU_RUN(psae::batch_topk<>);
PATCHSAE_GPU_RUN(psae::matryoshka<psae::batch_topk<>>);
PATCHSAE_GPU_RUN(jump_relu);
PATCHSAE_GPU_RUN(psae::gated<>);
PATCHSAE_GPU_RUN(psae::transcoder<>);
PATCHSAE_GPU_RUN(skip_transcoder);
#undef PATCHSAE_GPU_RUN

}  // namespace patchsae
