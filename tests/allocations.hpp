#pragma once
// allocations(): how often this program has asked for memory, by malloc and its relatives (operator new calls malloc).
// Include it in one source file of a test program: it defines the C library's functions for the whole program.

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdlib>

namespace {
std::atomic<std::size_t> allocation_count{0};
}

#if defined(__SANITIZE_ADDRESS__)
#define PSAE_COUNTS_ALLOCATIONS 0
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define PSAE_COUNTS_ALLOCATIONS 0
#endif
#endif
#ifndef PSAE_COUNTS_ALLOCATIONS
#define PSAE_COUNTS_ALLOCATIONS 1
#endif

#if PSAE_COUNTS_ALLOCATIONS  // AddressSanitizer has its own malloc
extern "C" {
void* __libc_malloc(std::size_t);
void* __libc_calloc(std::size_t, std::size_t);
void* __libc_realloc(void*, std::size_t);
void* __libc_memalign(std::size_t, std::size_t);
void* malloc(std::size_t size) {
    ++allocation_count;
    return __libc_malloc(size);
}
void* calloc(std::size_t count, std::size_t size) {
    ++allocation_count;
    return __libc_calloc(count, size);
}
void* realloc(void* p, std::size_t size) {
    ++allocation_count;
    return __libc_realloc(p, size);
}
void* aligned_alloc(std::size_t alignment, std::size_t size) {
    ++allocation_count;
    return __libc_memalign(alignment, size);
}
int posix_memalign(void** p, std::size_t alignment, std::size_t size) {
    ++allocation_count;
    *p = __libc_memalign(alignment, size);
    return *p == nullptr ? ENOMEM : 0;
}
}
#endif

// Threads to count with. clang's OpenMP runtime asks for memory of its own at every parallel region.
#if defined(__clang__)
inline constexpr int counted_threads = 1;
#else
inline constexpr int counted_threads = 2;
#endif

inline std::size_t allocations() { return allocation_count; }
