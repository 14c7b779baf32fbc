#pragma once
// The gradient of a parameter as a whole, on the host, wherever its parts are.

#include <vector>

#include <psae/grad/tape.hpp>

#include "device_copies.hpp"

template <class T, class Shape, class Device>
std::vector<T> gradient_on_host(Device& device, const psae::parameter<T, Shape>& p) {
    const std::size_t cols = Shape::rank == 1 ? 1 : p.shape().cols();
    device_array<T, Device> rows(psae::shape<psae::dyn>{p.size()});
    fill(device, rows.data(), p.size(), T(0));
    add_gradient_rows(device, *p.gradient, 0, p.size() / cols, cols, rows.data());
    return on_host(device, static_cast<const T*>(rows.data()), p.size());
}
