#pragma once
// The backend that a test is compiled for: the CPU, or with PSAE_TEST_CUDA the GPU (or its emulation).

#ifdef PSAE_TEST_CUDA
#include <psae/cuda.hpp>
using backend = psae::cuda;
#else
#include <psae/cpu/backend.hpp>
using backend = psae::cpu;
#endif

#include "device_copies.hpp"

inline constexpr psae::space backend_memory = backend::memory;
