#pragma once
// Random operands on the host and on the device, and results back on the host. Memory of the device starts as NaN.

#include <cstdint>
#include <vector>

#include <catch2/catch.hpp>

#include <psae/core/random.hpp>
#include <psae/cuda/backend.hpp>

#include "../device_copies.hpp"
#include "../difference.hpp"

namespace psae {

using matrix = shape<dyn, dyn>;
using row = shape<dyn>;
using column = shape<dyn, 1>;
using scalar = shape<>;

using ::on_device;
using ::on_host;

template <class T, class Shape>
tensor<T, Shape> random_tensor(const Shape& extents, std::uint64_t seed) {
    tensor<T, Shape> x(extents);
    random_stream random(seed);
    for (T& v : x) v = static_cast<T>(random.normal());
    return x;
}

template <class T, class Shape>
tensor<T, Shape, space::device> on_device(const cuda& device, const tensor<T, Shape>& x) {
    tensor<T, Shape, space::device> copy(x.shape());
    upload(device, copy.data(), x.data(), x.size());
    return copy;
}
template <class T, class Shape>
std::vector<T> on_host(const cuda& device, const tensor<T, Shape, space::device>& x) {
    return on_host(device, x.data(), x.size());
}

// Device memory that reads as NaN.
template <class T, class Shape>
tensor<T, Shape, space::device> spoilt_tensor(const cuda& device, const Shape& extents) {
    tensor<T, Shape, space::device> x(extents);
    detail::check(cudaMemsetAsync(x.data(), 0xff, x.size() * sizeof(T), device.stream()), "test");
    return x;
}
// An arena whose first `bytes` bytes read as NaN.
struct spoilt_arena : arena<space::device> {
    explicit spoilt_arena(const cuda& device, std::size_t bytes = std::size_t{1} << 20) {
        const auto mark = position();
        detail::check(cudaMemsetAsync(allocate<unsigned char>(bytes), 0xff, bytes, device.stream()), "test");
        release_to(mark);
    }
};

}  // namespace psae
