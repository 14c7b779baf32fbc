#pragma once
// A block's shared memory, as much as its launch asked for.

namespace psae::detail {

template <class T>
__device__ T* shared_memory() {
    extern __shared__ __align__(16) unsigned char block_memory[];
    return reinterpret_cast<T*>(block_memory);
}

}  // namespace psae::detail
