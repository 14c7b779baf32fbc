#pragma once
// psae on the CPU: one include for everything but what reads JSON, whose parser is costly to compile. Include by name:
// vit/load_clip.hpp, vit/read_preprocessing.hpp, vit/zero_shot.hpp, io/safetensors.hpp, io/torch_file.hpp,
// io/sae_file.hpp, io/training_run.hpp, io/zero_shot_accuracy.hpp, io/sae_evaluation.hpp, io/class_latents_file.hpp,
// io/interventions.hpp, io/logit_attributions.hpp; and vit/tokenizer.hpp, which needs utf8proc.

#include <psae/attribution/class_latents.hpp>
#include <psae/attribution/intervention.hpp>
#include <psae/attribution/label_purity.hpp>
#include <psae/attribution/latent_comparison.hpp>
#include <psae/attribution/latent_summary.hpp>
#include <psae/attribution/logit_attribution.hpp>
#include <psae/attribution/patch_map.hpp>
#include <psae/core/arena.hpp>
#include <psae/core/element.hpp>
#include <psae/core/random.hpp>
#include <psae/core/tensor.hpp>
#include <psae/cpu/attention.hpp>
#include <psae/cpu/codes.hpp>
#include <psae/cpu/encode.hpp>
#include <psae/cpu/layer_norm.hpp>
#include <psae/cpu/matmul.hpp>
#include <psae/cpu/patch_embedding.hpp>
#include <psae/cpu/pointwise.hpp>
#include <psae/expr/functors.hpp>
#include <psae/grad/check.hpp>
#include <psae/sae/activation_stream.hpp>
#include <psae/sae/batch_topk.hpp>
#include <psae/sae/device_sae.hpp>
#include <psae/sae/evaluation.hpp>
#include <psae/sae/gated.hpp>
#include <psae/sae/geometric_median.hpp>
#include <psae/sae/inference.hpp>
#include <psae/sae/jump_relu.hpp>
#include <psae/sae/matryoshka.hpp>
#include <psae/sae/patchsae.hpp>
#include <psae/sae/resample.hpp>
#include <psae/sae/standard.hpp>
#include <psae/sae/topk.hpp>
#include <psae/sae/trainer.hpp>
#include <psae/sae/transcoder.hpp>
#include <psae/stage/attention.hpp>
#include <psae/stage/decode.hpp>
#include <psae/stage/layer_norm.hpp>
#include <psae/stage/patch_embedding.hpp>
#include <psae/vit/clip_text.hpp>
#include <psae/vit/clip_vision.hpp>
#include <psae/vit/preprocess.hpp>
