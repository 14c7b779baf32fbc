#pragma once
// The backend that a test is compiled for: the CPU, or with PSAE_TEST_CUDA the GPU (or its emulation). And arrays of
// the host in its memory.

#include <vector>

#ifdef PSAE_TEST_CUDA
#include <psae/cuda.hpp>
using backend = psae::cuda;
#else
#include <psae/cpu/backend.hpp>
using backend = psae::cpu;
#endif

#include <psae/core/tensor.hpp>

inline constexpr psae::space backend_memory = backend::memory;

template <class T>
psae::tensor<T, psae::shape<psae::dyn>, backend_memory> on_backend(const backend& device, const std::vector<T>& x) {
    psae::tensor<T, psae::shape<psae::dyn>, backend_memory> copy(psae::shape<psae::dyn>{x.size()});
    upload(device, copy.data(), x.data(), x.size());
    return copy;
}
template <class T>
std::vector<T> on_host(const backend& device, const T* data, std::size_t count) {
    std::vector<T> copy(count);
    download(device, copy.data(), data, count);
    return copy;
}
