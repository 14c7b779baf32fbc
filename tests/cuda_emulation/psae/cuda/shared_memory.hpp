#pragma once
// In the place of the header of this name: the emulation's shared memory.

#include <cuda_runtime.h>

namespace psae::detail {

template <class T>
T* shared_memory() {
    return reinterpret_cast<T*>(cuda_emulation::gpu().shared);
}

}  // namespace psae::detail
