#pragma once
// Annotations that let one function serve host and device. Only attributes vary with the compiler,
// never a function's body: a body that does is an ODR violation once .cpp and .cu files are linked.

#if defined(__CUDACC__)
#define PSAE_FN __host__ __device__ __forceinline__
#else
#define PSAE_FN __attribute__((always_inline)) inline
#endif

// The same for what the host alone can do, such as work on vectors of its own.
#define PSAE_HOST_FN __attribute__((always_inline)) inline
