#pragma once
// The CPU backend: a number of threads, and loops over independent tasks. A task writes only its own outputs and its
// work does not depend on who runs it, so the number of threads changes no result of our own kernels.

#include <algorithm>
#include <atomic>
#include <cstddef>

#include <omp.h>

#include <psae/core/arena.hpp>
#include <psae/core/precision.hpp>

namespace psae {

// By what cheaper product encoders screen pre-activations before they compute those that matter in float. The codes are
// the same to the rounding of float.
enum class screening { where_faster, never, by_bf16, by_int16 };

struct cpu {
    static constexpr space memory = space::host;

    // 0 threads: as many as OpenMP would use.
    explicit cpu(int thread_count = 0) : threads(thread_count > 0 ? thread_count : omp_get_max_threads()) {}

    // Calls task(i) for i in [0, count), in parallel.
    template <class Task>
    void parallel_for(std::size_t count, const Task& task) const {
        if (count == 1 || threads == 1) {
            for (std::size_t i = 0; i < count; ++i) once(task, i);
            return;
        }
#pragma omp parallel for schedule(dynamic) num_threads(threads)
        for (std::size_t i = 0; i < count; ++i) once(task, i);
    }

    int threads;
    psae::screening screening = psae::screening::where_faster;
    // Of the products of dense codes in training. Weights, moments and everything else are float; sparse codes are exact
    // in any.
    precision products = precision::fp32;

private:
    // Not inlined: a task is compiled once, not for each of the loops above.
    template <class Task>
    __attribute__((noinline)) static void once(const Task& task, std::size_t i) {
        task(i);
    }
};

// What backends have for memory of their own: between it and the host's, to look at one number in it, and to let the
// calling thread allocate it.
inline void make_current(const cpu&) {}
template <class T>
void upload(const cpu&, T* to, const T* from, std::size_t count) {
    std::copy_n(from, count, to);
}
template <class T>
void download(const cpu&, T* to, const T* from, std::size_t count) {
    std::copy_n(from, count, to);
}
template <class T>
T read(const cpu&, const T* from) {
    return *from;
}

// Calls task(i, scratch) for i in [0, count) in parallel, each thread with `elements` of scratch memory of its own.
template <class T, class Task>
void parallel_with_scratch(const cpu& device, arena<>& scratch, std::size_t count, std::size_t elements,
                           const Task& task) {
    const auto mark = scratch.position();
    const std::size_t workers = std::min<std::size_t>(static_cast<std::size_t>(device.threads), count);
    elements = (elements + 15) / 16 * 16;
    T* memory = scratch.allocate<T>(workers * elements);
    std::atomic<std::size_t> next{0};
    device.parallel_for(workers, [&](std::size_t worker) {
        for (std::size_t i; (i = next.fetch_add(1)) < count;) task(i, memory + worker * elements);
    });
    scratch.release_to(mark);
}

}  // namespace psae
