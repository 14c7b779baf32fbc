#pragma once
// What the program lets a GPU compute, in a build with CUDA: gpu.cu, which nvcc compiles apart from the rest.

#include <filesystem>
#include <memory>

#include <psae/sae/inference.hpp>
#include <psae/vit/clip_vision.hpp>
#include <psae/vit/maple_adapter.hpp>

namespace patchsae {

// How many GPUs can be used; 0 if there is no driver.
int count_gpus();

// As psae::load_clip_vision: a tower that runs on that GPU.
std::unique_ptr<psae::vision_tower> load_gpu_model(const std::filesystem::path& directory,
                                                   const psae::maple_adapter* adapter, int gpu,
                                                   psae::precision products);

// A copy of a trained SAE that encodes and decodes on that GPU.
std::shared_ptr<const psae::remote_sae> load_gpu_sae(const psae::sae_view& sae, int gpu);

}  // namespace patchsae
