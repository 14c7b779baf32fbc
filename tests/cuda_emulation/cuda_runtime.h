#pragma once
// An emulation of the CUDA runtime, for tests: put this folder first on the include path, and the headers of psae/cuda
// compile with a plain C++ compiler and run on the CPU. It lets the kernels' logic be tested on machines without a GPU.
//
// A grid runs block by block, each thread of a block as a fiber of its own. A barrier waits for all threads of the
// block, an exchange (__shfl_sync and so on) for all 32 lanes of the warp. Threads run in ascending order in one block
// and in descending order in the next, and so do the blocks of one grid and of the next.
//
// What it finds, at once and with a message: threads that part at a barrier or at an exchange, or end before one; a host
// and a device pointer mixed up in a copy; launches with too many threads or too much shared memory. What it finds as a
// crash: reads and writes past the end of an allocation or of a block's dynamic shared memory, freed memory, and host
// code that touches device memory, which is accessible only while something runs on the device. Uninitialised memory
// shows as NaN: memory of pools, page-locked memory of the host and, for each block, dynamic shared memory are filled
// with 0xff bytes. A stream does nothing of what it is given (a copy of page-locked memory included) until it must: at a
// synchronisation, or at an event that somebody waits for. So where a wait between streams, or between a stream and the
// host, is missing, one reads what the other has not written yet.
// What it does not find: races (of a missing barrier only what shows in the two orders of threads), kernels that are
// handed a host pointer, misaligned loads, asynchronous errors, and all that concerns speed.

#include <algorithm>
#include <chrono>
#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include <sys/mman.h>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

// Without memory for the fiber's frames of its own, AddressSanitizer must be told of every change of stacks.
#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define CUDA_EMULATION_ASAN 1
#endif
#elif defined(__SANITIZE_ADDRESS__)
#define CUDA_EMULATION_ASAN 1
#endif
#ifdef CUDA_EMULATION_ASAN
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)

// Types ---------------------------------------------------------------------------------------------------------------

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
#define CUDA_EMULATION_VECTORS(T, name)                          \
    struct alignas(2 * sizeof(T)) name##2 {                      \
        T x, y;                                                  \
    };                                                           \
    struct alignas(sizeof(T) < 8 ? 4 * sizeof(T) : 16) name##4 { \
        T x, y, z, w;                                            \
    };                                                           \
    inline name##2 make_##name##2(T x, T y) { return {x, y}; }   \
    inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
CUDA_EMULATION_VECTORS(float, float)
CUDA_EMULATION_VECTORS(double, double)
CUDA_EMULATION_VECTORS(int, int)
CUDA_EMULATION_VECTORS(unsigned, uint)
CUDA_EMULATION_VECTORS(unsigned short, ushort)
#undef CUDA_EMULATION_VECTORS

enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorInsufficientDriver = 35,
    cudaErrorNoDevice = 100,
    cudaErrorStreamCaptureUnsupported = 900
};
inline const char* cudaGetErrorName(cudaError_t e) {
    return e == cudaSuccess                     ? "cudaSuccess"
           : e == cudaErrorInvalidValue         ? "cudaErrorInvalidValue"
           : e == cudaErrorMemoryAllocation     ? "cudaErrorMemoryAllocation"
           : e == cudaErrorInvalidConfiguration ? "cudaErrorInvalidConfiguration"
           : e == cudaErrorInsufficientDriver   ? "cudaErrorInsufficientDriver"
           : e == cudaErrorNoDevice             ? "cudaErrorNoDevice"
                                                : "cudaErrorStreamCaptureUnsupported";
}
inline const char* cudaGetErrorString(cudaError_t e) { return cudaGetErrorName(e); }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaPeekAtLastError() { return cudaSuccess; }

inline uint3 threadIdx{}, blockIdx{};
inline dim3 blockDim{}, gridDim{};
inline constexpr int warpSize = 32;

namespace cuda_emulation {

[[noreturn]] __attribute__((format(printf, 1, 2))) inline void fail(const char* format, ...) {
    std::fputs("CUDA emulation: ", stderr);
    va_list arguments;
    va_start(arguments, format);
    std::vfprintf(stderr, format, arguments);
    va_end(arguments);
    std::fputs("\n", stderr);
    std::abort();
}

// Device memory -------------------------------------------------------------------------------------------------------

inline constexpr std::size_t page = 4096;

struct allocation {
    char* mapping;  // ends with a page that is never accessible
    std::size_t usable, bytes;
};
inline std::map<const void*, allocation> allocations;
inline std::size_t pool_bytes = 0, most_pool_bytes = 0;  // of the allocations, those from a memory pool
inline int depth_of_access = 0;

inline void allow(int protection) {
    for (const auto& [data, a] : allocations) mprotect(a.mapping, a.usable, protection);
}
// While one lives, device memory can be accessed.
struct access {
    access() {
        if (depth_of_access++ == 0) allow(PROT_READ | PROT_WRITE);
    }
    ~access() {
        if (--depth_of_access == 0) allow(PROT_NONE);
    }
    access(const access&) = delete;
};

inline void* allocate(std::size_t bytes, bool spoil) {
    const std::size_t rounded = (bytes + 63) / 64 * 64, usable = (rounded + page - 1) / page * page;
    void* mapping = mmap(nullptr, usable + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED) return nullptr;
    if (spoil) std::memset(mapping, 0xff, usable);
    char* data = static_cast<char*>(mapping) + usable - rounded;
    mprotect(mapping, usable + page, PROT_NONE);
    allocations[data] = {static_cast<char*>(mapping), usable, bytes};
    if (depth_of_access > 0) mprotect(mapping, usable, PROT_READ | PROT_WRITE);
    return data;
}
inline void release(void* p) {
    if (p == nullptr) return;
    const auto found = allocations.find(p);
    if (found == allocations.end()) fail("memory is released that was never allocated, or twice");
    munmap(found->second.mapping, found->second.usable + page);
    allocations.erase(found);
}
// The allocation that holds p, or null.
inline const allocation* allocation_of(const void* p) {
    auto next = allocations.upper_bound(p);
    if (next == allocations.begin()) return nullptr;
    const auto& [data, a] = *--next;
    return static_cast<const char*>(p) < static_cast<const char*>(data) + (a.bytes == 0 ? 1 : a.bytes) ? &a : nullptr;
}

// Threads -------------------------------------------------------------------------------------------------------------

inline constexpr std::size_t stack_bytes = std::size_t{256} << 10;  // of addresses: only what is used takes memory
inline constexpr unsigned most_threads = 1024, lanes = 32;

#if defined(__x86_64__)
using context = void*;  // where the stack of one who waits ends; its registers stand there
// Goes on with `to`; returns when somebody goes on with `from`.
__attribute__((naked, noinline)) inline void change([[maybe_unused]] context* from, [[maybe_unused]] context to) {
    asm volatile(
        "pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
        "movq %rsp, (%rdi)\n movq %rsi, %rsp\n"
        "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret\n");
}
inline void change(context& from, context& to) { change(&from, to); }
inline void start(context& c, char* stack, std::size_t bytes, void (*entry)()) {
    void** top = reinterpret_cast<void**>(stack + bytes) - 8;  // entry finds the stack as after a call
    for (int i = 0; i < 8; ++i) top[i] = nullptr;
    top[6] = reinterpret_cast<void*>(entry);
    c = top;
}
#else
using context = ucontext_t;
inline void change(context& from, context& to) { swapcontext(&from, &to); }
inline void start(context& c, char* stack, std::size_t bytes, void (*entry)()) {
    getcontext(&c);
    c.uc_stack.ss_sp = stack;
    c.uc_stack.ss_size = bytes;
    makecontext(&c, entry, 0);
}
#endif

enum class state { ready, at_barrier, at_exchange, ended };

struct thread {
    context where;
    char* stack = nullptr;
    state now = state::ended;
    const char* operation = "";  // what it waits at
    const char* file = "";
    int line = 0;
    unsigned exchanges = 0;             // how many it has taken part in
    std::uint64_t deposit[2] = {0, 0};  // what it gave to the last two
    void* asan_frames = nullptr;
};

struct machine {
    std::vector<thread> threads{most_threads};
    context scheduler;
    unsigned running = 0;
    void (*body)(const void*) = nullptr;
    const void* kernel_call = nullptr;
    char *shared_end = nullptr, *shared = nullptr;  // the block's dynamic shared memory
    std::uint64_t launches = 0;
    std::map<const void*, std::size_t> shared_limits;
    void* asan_frames = nullptr;
    const void* scheduler_stack = nullptr;
    std::size_t scheduler_stack_bytes = 0;
};
inline machine& gpu() {
    static machine m;
    return m;
}

inline void before_change([[maybe_unused]] void** frames, [[maybe_unused]] const void* stack,
                          [[maybe_unused]] std::size_t bytes) {
#ifdef CUDA_EMULATION_ASAN
    __sanitizer_start_switch_fiber(frames, stack, bytes);
#endif
}
inline void after_change([[maybe_unused]] void* frames, [[maybe_unused]] const void** stack,
                         [[maybe_unused]] std::size_t* bytes) {
#ifdef CUDA_EMULATION_ASAN
    __sanitizer_finish_switch_fiber(frames, stack, bytes);
#endif
}

// Called by a thread: lets others run until the scheduler comes back to it.
__attribute__((noinline)) inline void yield() {
    machine& m = gpu();
    thread& self = m.threads[m.running];
    asm volatile("" ::: "memory");
    before_change(&self.asan_frames, m.scheduler_stack, m.scheduler_stack_bytes);
    change(self.where, m.scheduler);
    after_change(self.asan_frames, &m.scheduler_stack, &m.scheduler_stack_bytes);
    asm volatile("" ::: "memory");
}
inline void thread_main() {
    machine& m = gpu();
    after_change(nullptr, &m.scheduler_stack, &m.scheduler_stack_bytes);
    for (;;) {  // a block after the other
        m.body(m.kernel_call);
        m.threads[m.running].now = state::ended;
        yield();
    }
}
inline void resume(unsigned t) {
    machine& m = gpu();
    thread& next = m.threads[t];
    m.running = t;
    threadIdx = {t, 0, 0};
    before_change(&m.asan_frames, next.stack, stack_bytes);
    change(m.scheduler, next.where);
    after_change(m.asan_frames, nullptr, nullptr);
}

inline void wait(state at, const char* operation, const char* file, int line) {
    thread& self = gpu().threads[gpu().running];
    self.now = at;
    self.operation = operation;
    self.file = file;
    self.line = line;
    yield();
}

[[noreturn]] inline void parted(const thread& a, const thread& b) {
    const auto of = [](const thread& t) { return static_cast<unsigned>(&t - gpu().threads.data()); };
    const auto what = [](const thread& t) {
        return t.now == state::ended ? "has ended; it last waited at" : "waits at";
    };
    fail("threads part: block (%u, %u): thread %u %s %s (%s:%d), thread %u %s %s (%s:%d)", blockIdx.x, blockIdx.y,
         of(a), what(a), a.operation, a.file, a.line, of(b), what(b), b.operation, b.file, b.line);
}
inline void require_same(const thread& a, const thread& b) {
    const auto equal = [](const char* x, const char* y) { return x == y || std::strcmp(x, y) == 0; };
    if (a.now != b.now ||
        (a.now != state::ended && (a.line != b.line || !equal(a.file, b.file) || !equal(a.operation, b.operation))))
        parted(a, b);
}

// Runs the threads [first, last) of a warp until all of them have ended or wait at a barrier.
inline void run_warp(unsigned first, unsigned last, bool backwards) {
    auto& threads = gpu().threads;
    for (;;) {
        for (unsigned i = first; i < last; ++i) resume(backwards ? first + last - 1 - i : i);
        for (unsigned i = first + 1; i < last; ++i)
            if (threads[i].now == state::at_exchange || threads[first].now == state::at_exchange)
                require_same(threads[first], threads[i]);
        if (threads[first].now != state::at_exchange) return;
        if (last - first != lanes)
            fail("%s (%s:%d) in a warp of %u lanes", threads[first].operation, threads[first].file, threads[first].line,
                 last - first);
        for (unsigned i = first; i < last; ++i) threads[i].now = state::ready;
    }
}

inline void run_block(unsigned count, bool backwards) {
    auto& threads = gpu().threads;
    for (unsigned t = 0; t < count; ++t) {
        threads[t].now = state::ready;
        threads[t].operation = threads[t].file = "nothing";
    }
    const unsigned warps = (count + lanes - 1) / lanes;
    do {
        for (unsigned i = 0; i < warps; ++i) {
            const unsigned first = (backwards ? warps - 1 - i : i) * lanes;
            run_warp(first, first + lanes < count ? first + lanes : count, backwards);
        }
        for (unsigned t = 1; t < count; ++t) require_same(threads[0], threads[t]);
    } while (threads[0].now != state::ended);
}

inline constexpr std::size_t most_shared = std::size_t{227} << 10, shared_without_asking = std::size_t{48} << 10;

inline bool can_run(dim3 grid, dim3 block, std::size_t shared_bytes, const void* kernel) {
    if (depth_of_access > 0) fail("a kernel is started by a kernel");
    const auto limit = gpu().shared_limits.find(kernel);
    return grid.x > 0 && grid.y > 0 && grid.z == 1 && grid.x <= 0x7fffffffu && grid.y <= 65535 && block.x > 0 &&
           block.x <= most_threads && block.y == 1 && block.z == 1 &&
           shared_bytes <= (limit == gpu().shared_limits.end() ? shared_without_asking : limit->second);
}
inline void run_grid(dim3 grid, dim3 block, std::size_t shared_bytes, void (*body)(const void*),
                     const void* kernel_call) {
    machine& m = gpu();
    const access open;
    if (m.shared_end == nullptr) {
        const std::size_t usable = (most_shared + page - 1) / page * page;
        m.shared_end = static_cast<char*>(
                           mmap(nullptr, usable + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)) +
                       usable;
        mprotect(m.shared_end, page, PROT_NONE);
    }
    for (unsigned t = 0; t < block.x; ++t) {
        thread& one = m.threads[t];
        if (one.stack != nullptr) continue;
        char* mapping = static_cast<char*>(mmap(nullptr, page + stack_bytes, PROT_READ | PROT_WRITE,
                                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
        mprotect(mapping, page, PROT_NONE);
        one.stack = mapping + page;
        // Stacks that all begin at the same offset in a page would take turns in a few places of the cache.
        start(one.where, one.stack, stack_bytes - t % 16 * 256, thread_main);
    }
    m.body = body;
    m.kernel_call = kernel_call;
    m.shared = m.shared_end - (shared_bytes + 15) / 16 * 16;
    gridDim = grid;
    blockDim = block;
    const bool blocks_backwards = m.launches++ % 2 == 1;
    const std::uint64_t blocks = std::uint64_t{grid.x} * grid.y;
    for (std::uint64_t i = 0; i < blocks; ++i) {
        const std::uint64_t b = blocks_backwards ? blocks - 1 - i : i;
        blockIdx = {static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x), 0};
        std::memset(m.shared, 0xff, static_cast<std::size_t>(m.shared_end - m.shared));
        run_block(block.x, (i + m.launches) % 2 == 0);
    }
}

// Gives `value` to the warp and returns what the lane `from` gave.
template <class T>
T exchange(unsigned mask, T value, unsigned from, const char* operation, const char* file, int line) {
    static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
    if (mask != 0xffffffffu) fail("%s (%s:%d) without the full mask", operation, file, line);
    auto& threads = gpu().threads;
    const unsigned self = gpu().running, turn = threads[self].exchanges++ % 2;
    std::memcpy(&threads[self].deposit[turn], &value, sizeof(T));
    wait(state::at_exchange, operation, file, line);
    T result;
    std::memcpy(&result, &threads[self / lanes * lanes + from].deposit[turn], sizeof(T));
    return result;
}

}  // namespace cuda_emulation

// In kernels ----------------------------------------------------------------------------------------------------------

inline void __syncthreads(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    cuda_emulation::wait(cuda_emulation::state::at_barrier, "__syncthreads", file, line);
}
inline void __syncwarp(unsigned mask = 0xffffffffu, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    cuda_emulation::exchange(mask, 0, 0, "__syncwarp", file, line);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, const char* file = __builtin_FILE(),
                              int line = __builtin_LINE()) {
    using namespace cuda_emulation;
    const unsigned self = gpu().running, turn = gpu().threads[self].exchanges % 2;
    exchange(mask, predicate, 0, "__ballot_sync", file, line);
    unsigned result = 0;
    for (unsigned lane = 0; lane < lanes; ++lane) {
        int of_lane;
        std::memcpy(&of_lane, &gpu().threads[self / lanes * lanes + lane].deposit[turn], sizeof(int));
        result |= unsigned{of_lane != 0} << lane;
    }
    return result;
}
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, const char* file = __builtin_FILE(),
              int line = __builtin_LINE()) {
    const unsigned lane = threadIdx.x % 32, w = static_cast<unsigned>(width);
    return cuda_emulation::exchange(mask, value, lane / w * w + static_cast<unsigned>(source) % w, "__shfl_sync", file,
                                    line);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, const char* file = __builtin_FILE(),
                   int line = __builtin_LINE()) {
    const unsigned lane = threadIdx.x % 32, w = static_cast<unsigned>(width);
    return cuda_emulation::exchange(mask, value, lane % w + delta < w ? lane + delta : lane, "__shfl_down_sync", file,
                                    line);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, const char* file = __builtin_FILE(),
                  int line = __builtin_LINE()) {
    const unsigned lane = threadIdx.x % 32, w = static_cast<unsigned>(width),
                   other = lane ^ static_cast<unsigned>(lane_mask);
    return cuda_emulation::exchange(mask, value, other < lane / w * w + w ? other : lane, "__shfl_xor_sync", file,
                                    line);
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline unsigned __float_as_uint(float x) { return __builtin_bit_cast(unsigned, x); }
inline float __uint_as_float(unsigned x) { return __builtin_bit_cast(float, x); }
template <class T>
T __ldg(const T* p) {
    return *p;
}
// A store that the caches treat as any other.
template <class T>
void __stwb(T* to, T value) {
    *to = value;
}
// One operating-system thread runs everything, so these need not be atomic.
inline unsigned atomicAdd(unsigned* p, unsigned x) { return std::exchange(*p, *p + x); }
inline unsigned long long atomicAdd(unsigned long long* p, unsigned long long x) { return std::exchange(*p, *p + x); }
inline float atomicAdd(float* p, float x) { return std::exchange(*p, *p + x); }
inline unsigned atomicMax(unsigned* p, unsigned x) { return std::exchange(*p, *p < x ? x : *p); }
inline unsigned atomicOr(unsigned* p, unsigned x) { return std::exchange(*p, *p | x); }

// The host's side -----------------------------------------------------------------------------------------------------

namespace cuda_emulation {

// What a stream was given and has not done yet.
struct work_queue {
    std::deque<std::function<void()>> waiting;
    std::uint64_t given = 0, done = 0;

    void give(std::function<void()> work) {
        waiting.push_back(std::move(work));
        ++given;
    }
    // Does the first `count` things of all that it was ever given.
    void run_to(std::uint64_t count) {
        while (done < count) {
            const auto work = std::move(waiting.front());
            waiting.pop_front();
            ++done;
            work();
        }
    }
};
inline std::set<std::shared_ptr<work_queue>> queues;
inline void run_everything() {
    for (const auto& q : queues) q->run_to(q->given);
}

}  // namespace cuda_emulation

// What a stream was given while it was captured.
struct cudaGraph_stub {
    std::vector<std::function<void()>> work;
};
using cudaGraph_t = cudaGraph_stub*;
struct cudaStream_stub {
    std::shared_ptr<cuda_emulation::work_queue> queue;
    cudaGraph_t capture = nullptr;
};
using cudaStream_t = cudaStream_stub*;
struct cudaEvent_stub {
    std::shared_ptr<cuda_emulation::work_queue> queue;  // of the stream it was recorded on
    std::uint64_t given = 0;                            // what was given to it before
    std::shared_ptr<std::chrono::steady_clock::time_point> reached;
};
using cudaEvent_t = cudaEvent_stub*;
struct cudaMemPool_stub;
using cudaMemPool_t = cudaMemPool_stub*;

struct cudaDeviceProp {
    char name[64];
    int major, minor, multiProcessorCount, l2CacheSize, warpSize, maxThreadsPerBlock;
    std::size_t totalGlobalMem, sharedMemPerBlock, sharedMemPerBlockOptin;
};
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) {
    *p = {"emulation",
          9,
          0,
          2,
          1 << 20,
          32,
          1024,
          std::size_t{1} << 32,
          cuda_emulation::shared_without_asking,
          cuda_emulation::most_shared};
    return cudaSuccess;
}
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
inline cudaError_t cudaGetDevice(int* number) { return *number = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
struct cudaPointerAttributes {
    int device;
};
inline cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* a, const void*) {
    return a->device = 0, cudaSuccess;
}
inline cudaError_t cudaDeviceSynchronize() { return cuda_emulation::run_everything(), cudaSuccess; }

namespace cuda_emulation {

// The null stream does at once what it is given.
template <class Work>
void give(cudaStream_t s, Work&& work) {
    if (s == nullptr) work();
    else if (s->capture != nullptr) s->capture->work.emplace_back(std::forward<Work>(work));
    else s->queue->give(std::forward<Work>(work));
}
inline cudaError_t finish(cudaStream_t s) {
    if (s != nullptr && s->capture != nullptr) return cudaErrorStreamCaptureUnsupported;
    if (s != nullptr) s->queue->run_to(s->queue->given);
    return cudaSuccess;
}

}  // namespace cuda_emulation

inline constexpr unsigned cudaStreamNonBlocking = 1, cudaEventDisableTiming = 2;
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, unsigned) {
    *s = new cudaStream_stub{std::make_shared<cuda_emulation::work_queue>(), nullptr};
    return cuda_emulation::queues.insert((*s)->queue), cudaSuccess;
}
inline cudaError_t cudaStreamDestroy(cudaStream_t s) {
    cuda_emulation::finish(s);
    cuda_emulation::queues.erase(s->queue);
    return delete s, cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t s) { return cuda_emulation::finish(s); }
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned) { return *e = new cudaEvent_stub, cudaSuccess; }
inline cudaError_t cudaEventCreate(cudaEvent_t* e) { return cudaEventCreateWithFlags(e, 0); }
inline cudaError_t cudaEventDestroy(cudaEvent_t e) { return delete e, cudaSuccess; }
inline cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s = nullptr) {
    e->reached = std::make_shared<std::chrono::steady_clock::time_point>();
    cuda_emulation::give(s, [at = e->reached] { *at = std::chrono::steady_clock::now(); });
    e->queue = s == nullptr ? nullptr : s->queue;
    e->given = s == nullptr ? 0 : s->queue->given;
    return cudaSuccess;
}
inline cudaError_t cudaEventSynchronize(cudaEvent_t e) {
    if (e->queue != nullptr) e->queue->run_to(e->given);
    return cudaSuccess;
}
inline cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned = 0) {
    cuda_emulation::give(s, [at = *e]() mutable { cudaEventSynchronize(&at); });
    return cudaSuccess;
}
inline cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t from, cudaEvent_t to) {
    return *ms = std::chrono::duration<float, std::milli>(*to->reached - *from->reached).count(), cudaSuccess;
}

enum cudaStreamCaptureMode {
    cudaStreamCaptureModeGlobal,
    cudaStreamCaptureModeThreadLocal,
    cudaStreamCaptureModeRelaxed
};
namespace cuda_emulation {
inline int captures = 0;
}
inline cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode) {
    if (s == nullptr || s->capture != nullptr) return cudaErrorStreamCaptureUnsupported;
    ++cuda_emulation::captures;
    return s->capture = new cudaGraph_stub, cudaSuccess;
}
inline cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t* graph) {
    if (s->capture == nullptr) return cudaErrorInvalidValue;
    --cuda_emulation::captures;
    return *graph = std::exchange(s->capture, nullptr), cudaSuccess;
}
using cudaGraphExec_t = cudaGraph_t;
inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long = 0) {
    return *exec = new cudaGraph_stub(*graph), cudaSuccess;
}
inline cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return delete graph, cudaSuccess; }
inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
    cuda_emulation::run_everything();
    return cudaGraphDestroy(exec);
}
inline cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t s) {
    for (const auto& work : exec->work) cuda_emulation::give(s, work);
    return cudaSuccess;
}

enum cudaMemAllocationType { cudaMemAllocationTypePinned = 1 };
enum cudaMemLocationType { cudaMemLocationTypeDevice = 1 };
enum cudaMemPoolAttr {
    cudaMemPoolAttrReleaseThreshold = 4,
    cudaMemPoolAttrUsedMemCurrent = 7,
    cudaMemPoolAttrUsedMemHigh = 8
};
struct cudaMemLocation {
    cudaMemLocationType type;
    int id;
};
struct cudaMemPoolProps {
    cudaMemAllocationType allocType;
    cudaMemLocation location;
};
inline cudaError_t cudaMemPoolCreate(cudaMemPool_t* pool, const cudaMemPoolProps*) {
    static char one;
    return *pool = reinterpret_cast<cudaMemPool_t>(&one), cudaSuccess;
}
inline cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr which, void*) {
    if (which == cudaMemPoolAttrUsedMemHigh) cuda_emulation::most_pool_bytes = cuda_emulation::pool_bytes;
    return cudaSuccess;
}
inline cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t, cudaMemPoolAttr which, void* value) {
    *static_cast<unsigned long long*>(value) =
        which == cudaMemPoolAttrUsedMemHigh ? cuda_emulation::most_pool_bytes : cuda_emulation::pool_bytes;
    return cudaSuccess;
}
// Not spoilt: what is never touched costs nothing to open and to close.
inline cudaError_t cudaMalloc(void** p, std::size_t bytes) {
    *p = cuda_emulation::allocate(bytes, false);
    return *p == nullptr ? cudaErrorMemoryAllocation : cudaSuccess;
}
template <class T>
cudaError_t cudaMalloc(T** p, std::size_t bytes) {
    return cudaMalloc(reinterpret_cast<void**>(p), bytes);
}
inline cudaError_t cudaMallocFromPoolAsync(void** p, std::size_t bytes, cudaMemPool_t, cudaStream_t) {
    if (cuda_emulation::captures > 0) return cudaErrorStreamCaptureUnsupported;
    *p = cuda_emulation::allocate(bytes, true);
    if (*p != nullptr) {
        cuda_emulation::pool_bytes += bytes;
        cuda_emulation::most_pool_bytes = std::max(cuda_emulation::most_pool_bytes, cuda_emulation::pool_bytes);
    }
    return *p == nullptr ? cudaErrorMemoryAllocation : cudaSuccess;
}
inline cudaError_t cudaFree(void* p) {
    cuda_emulation::run_everything();
    return cuda_emulation::release(p), cudaSuccess;
}
inline cudaError_t cudaFreeAsync(void* p, cudaStream_t) {
    if (const auto* a = cuda_emulation::allocation_of(p)) cuda_emulation::pool_bytes -= a->bytes;
    return cudaFree(p);
}

namespace cuda_emulation {

inline std::map<const char*, std::size_t> page_locked;  // memory of the host, and its bytes
inline bool is_page_locked(const void* p) {
    auto next = page_locked.upper_bound(static_cast<const char*>(p));
    if (next == page_locked.begin()) return false;
    --next;
    return static_cast<const char*>(p) < next->first + next->second;
}

}  // namespace cuda_emulation

inline cudaError_t cudaMallocHost(void** p, std::size_t bytes) {
    *p = std::malloc(bytes == 0 ? 1 : bytes);
    if (*p == nullptr) return cudaErrorMemoryAllocation;
    std::memset(*p, 0xff, bytes);
    cuda_emulation::page_locked[static_cast<const char*>(*p)] = bytes;
    return cudaSuccess;
}
inline cudaError_t cudaFreeHost(void* p) {
    cuda_emulation::run_everything();
    cuda_emulation::page_locked.erase(static_cast<const char*>(p));
    return std::free(p), cudaSuccess;
}

enum cudaMemcpyKind {
    cudaMemcpyHostToHost,
    cudaMemcpyHostToDevice,
    cudaMemcpyDeviceToHost,
    cudaMemcpyDeviceToDevice,
    cudaMemcpyDefault
};
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, cudaStream_t s) {
    if (bytes == 0) return cudaSuccess;
    const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice,
               from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (kind != cudaMemcpyDefault && to_device != (cuda_emulation::allocation_of(to) != nullptr))
        cuda_emulation::fail("a copy to the %s gets an address of the other", to_device ? "device" : "host");
    if (kind != cudaMemcpyDefault && from_device != (cuda_emulation::allocation_of(from) != nullptr))
        cuda_emulation::fail("a copy from the %s gets an address of the other", from_device ? "device" : "host");
    cuda_emulation::give(s, [=] {
        const cuda_emulation::access open;
        std::memmove(to, from, bytes);
    });
    const auto returns_before = [](const void* p) {
        return cuda_emulation::allocation_of(p) != nullptr || cuda_emulation::is_page_locked(p);
    };
    return returns_before(to) && returns_before(from) ? cudaSuccess : cuda_emulation::finish(s);
}
inline cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
    return cudaMemcpyAsync(to, from, bytes, kind, nullptr);
}
inline cudaError_t cudaMemsetAsync(void* p, int value, std::size_t bytes, cudaStream_t s) {
    if (bytes == 0) return cudaSuccess;
    if (cuda_emulation::allocation_of(p) == nullptr) cuda_emulation::fail("cudaMemsetAsync of host memory");
    cuda_emulation::give(s, [=] {
        const cuda_emulation::access open;
        std::memset(p, value, bytes);
    });
    return cudaSuccess;
}
inline cudaError_t cudaMemset(void* p, int value, std::size_t bytes) {
    return cudaMemsetAsync(p, value, bytes, nullptr);
}

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
inline cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int value) {
    if (value < 0 || static_cast<std::size_t>(value) > cuda_emulation::most_shared) return cudaErrorInvalidValue;
    cuda_emulation::gpu().shared_limits[kernel] = static_cast<std::size_t>(value);
    return cudaSuccess;
}

// Host and device are one compiler's here.
inline cudaError_t cudaFuncGetParamInfo(const void*, std::size_t, std::size_t*, std::size_t*) {
    return cudaErrorInvalidValue;
}

struct cudaLaunchAttribute;
struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    std::size_t dynamicSmemBytes;
    cudaStream_t stream;
    cudaLaunchAttribute* attrs;
    unsigned numAttrs;
};
template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* configuration, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
    static_assert((std::is_trivially_copyable_v<Parameters> && ...), "kernel parameters are copied byte by byte");
    static_assert((sizeof(Parameters) + ... + 0) <= 4096, "too many bytes of kernel parameters");
    const auto& [grid, block, shared_bytes, stream, attributes, attribute_count] = *configuration;
    if (!cuda_emulation::can_run(grid, block, shared_bytes, reinterpret_cast<const void*>(kernel)))
        return cudaErrorInvalidConfiguration;
    const std::tuple<Parameters...> parameters(std::forward<Arguments>(arguments)...);
    const auto call = [kernel, parameters] { std::apply(kernel, parameters); };
    cuda_emulation::give(stream, [call, grid = grid, block = block, shared_bytes = shared_bytes] {
        cuda_emulation::run_grid(
            grid, block, shared_bytes, [](const void* c) { (*static_cast<decltype(call)*>(c))(); }, &call);
    });
    return cudaSuccess;
}
