#pragma once
// Training runs of the program's variants whose steps are a GPU's (gpu.cu, in a build with CUDA).

#include <memory>

#include <psae/io/training_run.hpp>
#include <psae/sae/batch_topk.hpp>
#include <psae/sae/gated.hpp>
#include <psae/sae/jump_relu.hpp>
#include <psae/sae/matryoshka.hpp>
#include <psae/sae/patchsae.hpp>
#include <psae/sae/topk.hpp>
#include <psae/sae/transcoder.hpp>

namespace patchsae {

// Its thresholds move by about lr a step and L0 is steered to a number, so that short runs get there.
using jump_relu = psae::jump_relu<psae::dyn, psae::dyn, float, psae::jump_relu_form::dictionary_learning>;

using skip_transcoder = psae::transcoder<psae::dyn, psae::dyn, float, psae::dyn, true>;

template <class Variant>
std::unique_ptr<psae::any_training_run> make_gpu_run(Variant sae, const psae::training_options& training,
                                                     psae::training_run_options run, const psae::cpu& host, int gpu,
                                                     psae::precision products, psae::training_rows held_out);

}  // namespace patchsae
