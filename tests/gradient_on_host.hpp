#pragma once
// Gradients on the host, wherever they are computed.

#include <limits>
#include <vector>

#include <psae/grad/check.hpp>
#include <psae/sae/parameter_copies.hpp>

#include "device_copies.hpp"

// The gradient of a parameter as a whole, on the host, wherever its parts are.
template <class T, class Shape, class Device>
std::vector<T> gradient_on_host(Device& device, const psae::parameter<T, Shape>& p) {
    const std::size_t cols = Shape::rank == 1 ? 1 : p.shape().cols();
    device_array<T, Device> rows(psae::shape<psae::dyn>{p.size()});
    fill(device, rows.data(), p.size(), T(0));
    add_gradient_rows(device, *p.gradient, 0, p.size() / cols, cols, rows.data());
    return on_host(device, static_cast<const T*>(rows.data()), p.size());
}

template <class T>
struct loss_and_gradients {
    double loss;
    std::vector<std::vector<T>> gradients;  // of all parameters of the model, in order
};

// A loss, which takes tokens bound to a tape of the device, and its gradients. tokens: of the host. The tape's memory reads
// as NaN before something is written there.
template <class Device, class Model, class Loss, class T, class Shape>
loss_and_gradients<T> differentiate(Device& device, Model& model, const Loss& loss, psae::view<const T, Shape> tokens,
                                    psae::codes_form form = psae::codes_form::by_density) {
    using namespace psae;
    parameter_copies copies(model, device);
    const auto standing_in = copies.stand_in();
    arena<Device::memory> scratch;
    arena<> records;
    constexpr std::size_t poisoned = 1 << 15;
    const auto start = scratch.position();
    fill(device, scratch.template allocate<T>(poisoned), poisoned, std::numeric_limits<T>::quiet_NaN());
    scratch.release_to(start);
    tape<Device> t(device, scratch, records, mode::train);
    t.form = form;
    model.each_parameter([&](const char*, auto& p) { t.collect(p); });
    const auto there = on_device(device, std::vector<T>(tokens.data, tokens.data + tokens.size()));
    const auto result = evaluate(loss(t.input(const_view<T, Shape, Device::memory>{there.data(), tokens.shape()})));
    t.run();
    backward(t, result);
    loss_and_gradients<T> found{static_cast<double>(read(device, result.data)), {}};
    model.each_parameter([&](const char*, auto& p) {
        found.gradients.push_back(gradient_on_host(device, p));
        p.gradient = nullptr;
    });
    return found;
}
