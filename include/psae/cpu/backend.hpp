#pragma once
// The CPU backend: a number of threads, and loops over independent tasks. A task writes only its own outputs and its
// work does not depend on who runs it, so the number of threads changes no result of our own kernels.

#include <cstddef>

#include <omp.h>

#include <psae/core/tensor.hpp>

namespace psae {

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

private:
    // Not inlined: a task is compiled once, not for each of the loops above.
    template <class Task>
    __attribute__((noinline)) static void once(const Task& task, std::size_t i) {
        task(i);
    }
};

}  // namespace psae
