#pragma once
// The backend that a test is compiled for: the CPU, or with PSAE_TEST_CUDA the GPU (or its emulation). What gradients are
// computed in there, where they are compared with central differences, which are taken in double on the CPU.

#include <type_traits>

#ifdef PSAE_TEST_CUDA
#include <psae/cuda.hpp>
using backend = psae::cuda;
using real = float;
#else
#include <psae/cpu/backend.hpp>
using backend = psae::cpu;
using real = double;
#endif

#include "device_copies.hpp"

inline constexpr psae::space backend_memory = backend::memory;

// Of the largest element of a gradient.
template <class T>
inline constexpr double gradient_tolerance = sizeof(T) == 4 ? 1e-5 : 1e-7;

// What a loss takes beside its parameters, once for the tape in double on the CPU, once for the backend's; `of` gives that
// of the tape of x.
template <class Here, class There>
struct either {
    Here here;
    There there;

    template <class X>
    const auto& of(const X& x) const {
        using tape = std::remove_reference_t<decltype(*x.owner)>;
        if constexpr (std::is_same_v<typename X::value_type, double> && tape::memory == psae::space::host) return here;
        else return there;
    }
};

// Constants: of(x).data().
template <class T, class There = T>
auto constants(const backend& device, const std::vector<T>& values) {
    return either<std::vector<T>, device_array<There, backend>>{
        values, on_device(device, std::vector<There>(values.begin(), values.end()))};
}
