#pragma once
// The CUDA backend: a stream of one GPU. Everything runs on it in order; nothing here waits for it but what says so, so
// a caller may capture a sequence of calls as a graph. Kernels take the backend first, as on the CPU, and device pointers.

#include <cstddef>
#include <memory>
#include <mutex>
#include <string>

#include <cublasLt.h>
#include <cuda_runtime.h>

#include <psae/core/arena.hpp>
#include <psae/core/precision.hpp>

namespace psae {

namespace detail {

class product_plans;  // gemm.hpp

// Memory is given back, which waits for the whole device, only while no stream is captured: held by whoever does either.
inline std::recursive_mutex& capture_or_release() {
    static std::recursive_mutex one_at_a_time;
    return one_at_a_time;
}

// Where there is no GPU or no driver for it, whatever is asked for first says so: memory or a device.
inline void require_gpu(cudaError_t status, const char* what) {
    if (status != cudaSuccess)
        throw error("no GPU can be used", what, cudaGetErrorString(status),
                    "run on the CPU, or look at what nvidia-smi says");
}
inline void check(cudaError_t status, const char* what) {
    if (status == cudaErrorNoDevice || status == cudaErrorInsufficientDriver) require_gpu(status, what);
    if (status != cudaSuccess)
        throw error("CUDA: " + std::string(cudaGetErrorString(status)), what, cudaGetErrorName(status),
                    "an earlier kernel may be at fault: with CUDA_LAUNCH_BLOCKING=1 each reports for itself");
}
inline void check(cublasStatus_t status, const char* what) {
    if (status != CUBLAS_STATUS_SUCCESS)
        throw error("cuBLAS: " + std::string(cublasLtGetStatusString(status)), what, cublasLtGetStatusName(status));
}

}  // namespace detail

// Memory of the calling thread's current device (see cuda::make_current), of a pool of our own that keeps what it has once
// got from the system.
template <>
struct memory_space<space::device> {
    static void* allocate(std::size_t bytes) {
        void* p = nullptr;
        const std::string what = std::to_string(bytes) + " bytes of the GPU's memory";
        detail::check(cudaMallocFromPoolAsync(&p, bytes == 0 ? 64 : bytes, pool(), nullptr), what.c_str());
        detail::check(cudaMemsetAsync(p, 0, bytes, nullptr), "memory of the GPU");
        detail::check(cudaStreamSynchronize(nullptr), "memory of the GPU");  // usable on every stream from here on
        return p;
    }
    static void release(void* p, std::size_t) {
        int current = 0;
        cudaPointerAttributes of{};
        if (cudaGetDevice(&current) != cudaSuccess || cudaPointerGetAttributes(&of, p) != cudaSuccess) return;
        const std::lock_guard lock(detail::capture_or_release());
        cudaSetDevice(of.device);
        cudaDeviceSynchronize();  // whatever stream still uses it
        cudaFreeAsync(p, nullptr);
        cudaSetDevice(current);
    }
    static void copy_from_host(void* to, const void* from, std::size_t bytes) {
        detail::check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, nullptr), "copy to the GPU");
        detail::check(cudaStreamSynchronize(nullptr), "copy to the GPU");
    }
    // Bytes of the current device's pool that are in use, and the most that were since the start or restart_peak(). Waits
    // for the device.
    struct bytes_in_use {
        std::size_t now, most;
    };
    static bytes_in_use in_use() {
        const std::lock_guard lock(detail::capture_or_release());
        detail::check(cudaDeviceSynchronize(), "memory of the GPU");
        unsigned long long now = 0, most = 0;
        detail::check(cudaMemPoolGetAttribute(pool(), cudaMemPoolAttrUsedMemCurrent, &now), "memory of the GPU");
        detail::check(cudaMemPoolGetAttribute(pool(), cudaMemPoolAttrUsedMemHigh, &most), "memory of the GPU");
        return {now, most};
    }
    static void restart_peak() {
        unsigned long long none = 0;
        detail::check(cudaMemPoolSetAttribute(pool(), cudaMemPoolAttrUsedMemHigh, &none), "memory of the GPU");
    }

private:
    // Of the current device; made when first asked for, and kept as long as the process.
    static cudaMemPool_t pool() {
        constexpr int most_devices = 64;
        static cudaMemPool_t pools[most_devices] = {};
        static std::mutex one_at_a_time;
        const std::lock_guard lock(one_at_a_time);
        int number = 0;
        detail::check(cudaGetDevice(&number), "memory of the GPU");
        if (number >= most_devices) throw error("too many GPUs", "memory of the GPU", std::to_string(number));
        if (pools[number] == nullptr) {
            cudaMemPoolProps properties{};
            properties.allocType = cudaMemAllocationTypePinned;
            properties.location = {cudaMemLocationTypeDevice, number};
            detail::check(cudaMemPoolCreate(&pools[number], &properties), "memory of the GPU");
            unsigned long long keep = ~0ULL;
            detail::check(cudaMemPoolSetAttribute(pools[number], cudaMemPoolAttrReleaseThreshold, &keep),
                          "memory of the GPU");
        }
        return pools[number];
    }
};

// Copies share the stream. Several threads may use it, unless one of them trains: a graph that it records would have in it
// what the others give, so it wants a stream of its own. psae::error where there is no GPU, no driver or one that is too
// old.
class cuda {
public:
    static constexpr space memory = space::device;

    explicit cuda(int number = 0) : of_(std::make_shared<context>(number)) {}

    // A thread allocates on the device that is current for it. Whoever runs on this one calls it before that; what is
    // given to the stream does so by itself.
    void make_current() const { detail::check(cudaSetDevice(of_->number), "CUDA device"); }
    cudaStream_t stream() const {
        make_current();
        return of_->stream;
    }
    cublasLtHandle_t blas() const { return of_->blas; }
    // Scratch memory of cuBLAS, for one product at a time of this stream.
    void* workspace() const { return of_->workspace; }
    int number() const { return of_->number; }
    static constexpr std::size_t workspace_bytes = std::size_t{32} << 20;
    // What products have looked up (gemm.hpp).
    detail::product_plans& product_plans() const;
    int multiprocessors() const { return of_->properties.multiProcessorCount; }
    std::size_t l2_bytes() const { return static_cast<std::size_t>(of_->properties.l2CacheSize); }
    const char* name() const { return of_->properties.name; }
    // Waits until all that was asked for is done; errors of kernels are thrown here at the latest.
    void synchronise() const { detail::check(cudaStreamSynchronize(stream()), "synchronise"); }

    precision products = precision::fp32;

private:
    struct context {
        explicit context(int which) : number(which) {
            int count = 0;
            const cudaError_t status = cudaGetDeviceCount(&count);
            detail::require_gpu(status == cudaSuccess && count == 0 ? cudaErrorNoDevice : status, "CUDA");
            if (number < 0 || number >= count)
                throw error("no such GPU", "CUDA device " + std::to_string(number),
                            "there are " + std::to_string(count));
            detail::check(cudaSetDevice(number), "CUDA device");
            detail::check(cudaGetDeviceProperties(&properties, number), "CUDA device");
            detail::check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "CUDA stream");
            detail::check(cublasLtCreate(&blas), "cuBLAS");
            detail::check(cudaMalloc(&workspace, workspace_bytes), "workspace of cuBLAS");
        }
        context(const context&) = delete;
        context& operator=(const context&) = delete;
        ~context() {
            cudaSetDevice(number);
            cudaStreamSynchronize(stream);
            product_plans.reset();
            cudaFree(workspace);
            cublasLtDestroy(blas);
            cudaStreamDestroy(stream);
        }
        int number;
        cudaDeviceProp properties{};
        cudaStream_t stream = nullptr;
        cublasLtHandle_t blas = nullptr;
        void* workspace = nullptr;
        std::once_flag plans_made;
        std::shared_ptr<detail::product_plans> product_plans;
    };
    std::shared_ptr<context> of_;
};

namespace detail {

// nvcc's two compilers do not lay out every type alike (core/shape.hpp). Kernels would read other numbers than they were
// given, so what has another size on the device is refused.
template <class... Parameters>
bool require_same_sizes(void (*kernel)(Parameters...)) {
    std::size_t number = 0;
    const auto require = [&](std::size_t here) {
        std::size_t offset = 0, there = 0;
        const cudaError_t status =
            cudaFuncGetParamInfo(reinterpret_cast<const void*>(kernel), number++, &offset, &there);
        if (status == cudaSuccess && here != there)
            throw error("a kernel's parameter is laid out differently on the device",
                        "parameter " + std::to_string(number),
                        "host " + std::to_string(here) + " bytes, device " + std::to_string(there),
                        "expressions and activations must have no [[no_unique_address]] member");
    };
    (require(sizeof(Parameters)), ...);
    return true;
}

}  // namespace detail

// Starts kernel<<<blocks, threads, shared_bytes>>>(arguments...) on the device's stream; nothing for no blocks. The
// arguments are converted to the kernel's parameters. blocks: x, up to 2^31 - 1, and y.
template <class... Parameters, class... Arguments>
void launch(const cuda& device, void (*kernel)(Parameters...), dim3 blocks, unsigned threads, std::size_t shared_bytes,
            const Arguments&... arguments) {
    if (blocks.x == 0 || blocks.y == 0) return;
    static const bool same_sizes [[maybe_unused]] = detail::require_same_sizes(kernel);
    constexpr std::size_t shared_without_asking = std::size_t{48} << 10;
    if (shared_bytes > shared_without_asking)
        detail::check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                           cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)),
                      "shared memory of a kernel");
    cudaLaunchConfig_t configuration{};
    configuration.gridDim = blocks;
    configuration.blockDim = dim3(threads);
    configuration.dynamicSmemBytes = shared_bytes;
    configuration.stream = device.stream();
    detail::check(cudaLaunchKernelEx(&configuration, kernel, static_cast<Parameters>(arguments)...), "kernel");
}

namespace detail {

// How many blocks of `each` make up count.
inline unsigned blocks_of(std::size_t count, std::size_t each) {
    return static_cast<unsigned>((count + each - 1) / each);
}

}  // namespace detail

// Copies between host and device in the order of the stream, done when they return; `read` looks at one number.
template <class T>
void upload(const cuda& device, T* to, const T* from, std::size_t count) {
    detail::check(cudaMemcpyAsync(to, from, count * sizeof(T), cudaMemcpyHostToDevice, device.stream()), "upload");
    device.synchronise();
}
template <class T>
void download(const cuda& device, T* to, const T* from, std::size_t count) {
    detail::check(cudaMemcpyAsync(to, from, count * sizeof(T), cudaMemcpyDeviceToHost, device.stream()), "download");
    device.synchronise();
}
inline void make_current(const cuda& device) { device.make_current(); }
template <class T>
T read(const cuda& device, const T* from) {
    T value;
    download(device, &value, from, 1);
    return value;
}

}  // namespace psae
