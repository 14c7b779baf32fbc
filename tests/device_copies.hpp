#pragma once
// Arrays of the host in a device's memory, and back. The CPU is a device like others.

#include <cstddef>
#include <vector>

#include <psae/core/tensor.hpp>

template <class T, class Device>
using device_array = psae::tensor<T, psae::shape<psae::dyn>, Device::memory>;

template <class T, class Device>
device_array<T, Device> on_device(const Device& device, const std::vector<T>& x) {
    device_array<T, Device> copy(psae::shape<psae::dyn>{x.size()});
    upload(device, copy.data(), x.data(), x.size());
    return copy;
}
template <class T, class Device>
std::vector<T> on_host(const Device& device, const T* data, std::size_t count) {
    std::vector<T> copy(count);
    download(device, copy.data(), data, count);
    return copy;
}
