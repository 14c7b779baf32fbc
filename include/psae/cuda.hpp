#pragma once
// The CUDA backend, for sources that nvcc compiles. psae.hpp and its folders stand beside it and need no CUDA.

#include <psae/cuda/attention.hpp>
#include <psae/cuda/backend.hpp>
#include <psae/cuda/bf16_attention.hpp>
#include <psae/cuda/codes.hpp>
#include <psae/cuda/edit_codes.hpp>
#include <psae/cuda/encode.hpp>
#include <psae/cuda/gemm.hpp>
#include <psae/cuda/graph.hpp>
#include <psae/cuda/layer_norm.hpp>
#include <psae/cuda/matmul.hpp>
#include <psae/cuda/patch_embedding.hpp>
#include <psae/cuda/pointwise.hpp>
#include <psae/cuda/preprocess.hpp>
#include <psae/cuda/staging.hpp>
#include <psae/cuda/training.hpp>
