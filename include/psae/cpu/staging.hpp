#pragma once
// Arrays of the host for the CPU: they stay where they are.

#include <cstddef>

#include <psae/core/staging.hpp>
#include <psae/cpu/backend.hpp>

namespace psae {

template <class T>
class staged_upload<T, cpu> {
public:
    explicit staged_upload(const cpu&) {}
    const T* operator()(const T* from, std::size_t) { return from; }
};

}  // namespace psae
