#pragma once
// The parameters of an SAE in the memory of the device that computes with them.
//
//   parameter_copies copies(sae, device);        // copies them there
//   const auto standing_in = copies.stand_in();  // while it lives, sae's parameters are the copies
//   ... tapes on the device ...
//   copies.read();                               // the host's are as the copies now
//
// Where the device is the host, there is nothing to copy and all of this does nothing.

#include <cstddef>
#include <vector>

#include <psae/grad/tape.hpp>

namespace psae {

template <class Variant, class Backend>
class parameter_copies {
    using T = typename Variant::value_type;
    static constexpr bool needed = Backend::memory != space::host;

public:
    parameter_copies(Variant& sae, Backend& device) : sae_(sae), device_(device) {
        if constexpr (needed)
            sae_.each_parameter([&](const char*, auto& p) { copies_.emplace_back(shape<dyn>{p.size()}); });
        write();
    }

    // From the host to the device, and back.
    void write() {
        each([&](auto& p, T* copy) { upload(device_, copy, p.value.data(), p.size()); });
    }
    void read() {
        each([&](auto& p, T* copy) { download(device_, p.value.data(), copy, p.size()); });
    }

    class standing_in {
    public:
        explicit standing_in(parameter_copies& copies) : copies_(copies) {
            copies_.each([](auto& p, T* copy) { p.on_device = copy; });
        }
        standing_in(const standing_in&) = delete;
        standing_in& operator=(const standing_in&) = delete;
        ~standing_in() {
            copies_.each([](auto& p, T*) { p.on_device = nullptr; });
        }

    private:
        parameter_copies& copies_;
    };
    standing_in stand_in() { return standing_in(*this); }

private:
    template <class F>
    void each(const F& f) {
        std::size_t i = 0;
        if constexpr (needed) sae_.each_parameter([&](const char*, auto& p) { f(p, copies_[i++].data()); });
    }

    Variant& sae_;
    Backend& device_;
    std::vector<tensor<T, shape<dyn>, Backend::memory>> copies_;
};

}  // namespace psae
