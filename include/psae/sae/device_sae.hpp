#pragma once
// Trained SAEs in the memory of a device that computes with them; what sae/inference.hpp does on the CPU.
//
//   psae::cuda device;
//   const psae::device_sae sae(device, weights);                 // weights: sae_weights, as read_sae gives them
//   psae::arena<psae::space::device> scratch;
//   auto z = psae::encode_rows(device, scratch, sae, x, n);      // x, the codes and x_hat are in the device's memory
//   psae::decode_rows(device, scratch, sae, z, x, x_hat);
//
// What takes arrays of the host, on whatever device, takes a view with a remote_sae:
//
//   psae::sae_view sae(weights);
//   sae.remote = std::make_shared<psae::remote_sae_on<psae::cuda>>(device, weights);
//   psae::evaluate_rows(psae::cpu(), host_scratch, sae, tokens, n, sums);

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include <psae/sae/inference.hpp>
#include <psae/sae/sae_in_place.hpp>

namespace psae {

// A copy of an SAE. It is used on the device it was made with.
template <class Backend>
class device_sae : public sae_description {
public:
    device_sae(const Backend& device, const sae_view& sae) : sae_description(sae) {
        make_current(device);
        const auto copy = [&](const float* from, std::size_t count) -> const float* {
            auto& there = copies_.emplace_back(shape<dyn>{count});
            upload(device, there.data(), from, count);
            return there.data();
        };
        arrays_ = {copy(sae.W_enc, d_sae * d_in),
                   copy(sae.b_enc, d_sae),
                   copy(sae.W_dec, d_sae * outputs()),
                   copy(sae.b_dec, outputs()),
                   copy(threshold.data(), threshold.size()),
                   copy(r_mag.data(), r_mag.size()),
                   copy(b_mag.data(), b_mag.size()),
                   copy(W_skip.data(), W_skip.size())};
    }

    const sae_arrays& arrays() const { return arrays_; }

private:
    std::vector<tensor<float, shape<dyn>, Backend::memory>> copies_;
    sae_arrays arrays_;
};

// As on the CPU. The device is waited for.
template <class Backend>
codes_view<float> encode_rows(const Backend& device, arena<Backend::memory>& scratch, const device_sae<Backend>& sae,
                              const float* x, std::size_t n) {
    return detail::encode_rows_with(device, scratch, sae, sae.arrays(), x, n);
}
template <class Backend>
void decode_rows(const Backend& device, arena<Backend::memory>& scratch, const device_sae<Backend>& sae,
                 const codes_view<float>& z, const float* x, float* x_hat) {
    detail::decode_rows_with(device, scratch, sae, sae.arrays(), z, x, x_hat);
}

// An SAE on a device, for arrays of the host.
template <class Backend>
class remote_sae_on final : public remote_sae {
public:
    remote_sae_on(const Backend& device, const sae_view& sae) : device_(device), sae_(device, sae) {}

    std::unique_ptr<sae_in_place> put_in_place(const vision_tower& tower, std::size_t layer) const override {
        const auto* there = dynamic_cast<const tower_on<Backend>*>(&tower);
        if (there == nullptr || there->device().number() != device_.number()) return nullptr;
        return std::make_unique<sae_in_place_on<Backend, tower_on<Backend>, device_sae<Backend>>>(device_, *there,
                                                                                                  layer, sae_);
    }

    codes_view<float> encode(arena<>& scratch, const float* x, std::size_t n) const override {
        begin();
        const float* tokens = uploaded(x, n * sae_.d_in);
        return detail::download_codes(device_, scratch, encode_rows(device_, memory_, sae_, tokens, n));
    }
    void decode(const codes_view<float>& z, const float* x, float* x_hat) const override {
        if (z.tokens == 0) return;
        begin();
        const std::size_t first = z.offsets[0], size = z.tokens * sae_.outputs();
        std::vector<std::size_t> offsets(z.offsets, z.offsets + z.tokens + 1);  // of some tokens among others, too
        for (std::size_t& i : offsets) i -= first;
        codes_view<float> there;
        there.tokens = z.tokens, there.latents = z.latents, there.room = offsets.back();
        there.offsets = uploaded(offsets.data(), offsets.size());
        there.latent = uploaded(z.latent + first, there.room);
        there.value = uploaded(z.value + first, there.room);
        const bool reads_tokens = sae_.scales_tokens() || !sae_.W_skip.empty();
        const float* tokens = reads_tokens ? uploaded(x, z.tokens * sae_.d_in) : nullptr;
        float* out = memory_.template allocate<float>(size);
        decode_rows(device_, memory_, sae_, there, tokens, out);
        download(device_, x_hat, static_cast<const float*>(out), size);
    }

private:
    void begin() const {
        make_current(device_);
        memory_.reset();
    }
    template <class T>
    const T* uploaded(const T* from, std::size_t count) const {
        T* there = memory_.template allocate<T>(count);
        upload(device_, there, from, count);
        return there;
    }

    Backend device_;
    device_sae<Backend> sae_;
    mutable arena<Backend::memory> memory_;
};

}  // namespace psae
