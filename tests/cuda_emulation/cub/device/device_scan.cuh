#pragma once
// What of CUB's scans is used.

#include <cuda_runtime.h>

namespace cub {

struct DeviceScan {
    // Asked without storage, says how much it wants. In place is allowed.
    template <class Input, class Output, class Count>
    static cudaError_t ExclusiveSum(void* storage, std::size_t& bytes, Input in, Output out, Count count,
                                    cudaStream_t stream) {
        const std::size_t n = static_cast<std::size_t>(count), wanted = 512 + n / 64 * 8;
        if (storage == nullptr) return bytes = wanted, cudaSuccess;
        if (bytes < wanted) return cudaErrorInvalidValue;
        cuda_emulation::give(stream, [=] {
            const cuda_emulation::access open;
            std::memset(storage, 0xff, wanted);
            auto sum = std::remove_cv_t<std::remove_reference_t<decltype(in[0])>>{};
            for (std::size_t i = 0; i < n; ++i) {
                const auto one = in[i];
                out[i] = sum;
                sum += one;
            }
        });
        return cudaSuccess;
    }
};

}  // namespace cub
