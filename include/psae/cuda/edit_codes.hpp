#pragma once
// Codes in which latents are kept, removed or set, on the GPU. Entries stay where they are: those removed become 0, and
// each token gets room for the values that are set, so that nobody has to count.

#include <cstddef>
#include <cstdint>

#include <psae/core/arena.hpp>
#include <psae/cuda/codes.hpp>
#include <psae/sparse/codes_edit.hpp>

namespace psae {

namespace detail {

// The first of `count` ascending elements whose latent(element) is not below f.
template <class Latent>
__device__ std::size_t first_not_below(std::uint32_t f, std::size_t count, const Latent& latent) {
    std::size_t begin = 0;
    while (count > 0) {
        const std::size_t half = count / 2;
        if (latent(begin + half) < f) {
            begin += half + 1;
            count -= half + 1;
        } else {
            count = half;
        }
    }
    return begin;
}

// A block for each token. A value that is set stands before an entry of the same latent, which is 0 then.
template <class T>
__global__ void edit_codes_kernel(std::size_t* offsets, std::uint32_t* latent, T* value, codes_view<T> z,
                                  const latent_value* list, std::size_t listed, codes_edit::action what) {
    const std::size_t token = blockIdx.x, begin = z.offsets[token], count = z.offsets[token + 1] - begin,
                      set = what == codes_edit::action::set ? listed : 0, first = begin - z.offsets[0] + token * set;
    if (threadIdx.x == 0) {
        offsets[token] = first;
        if (token + 1 == z.tokens) offsets[token + 1] = first + count + set;
    }
    for (std::size_t i = threadIdx.x; i < count; i += blockDim.x) {
        const std::uint32_t f = z.latent[begin + i];
        const std::size_t place = first_not_below(f, listed, [=](std::size_t j) { return list[j].latent; });
        const bool is_listed = place < listed && list[place].latent == f;
        const std::size_t to = first + i + (set == 0 ? 0 : place + (is_listed ? 1 : 0));
        latent[to] = f;
        value[to] = is_listed == (what == codes_edit::action::keep) ? z.value[begin + i] : T(0);
    }
    for (std::size_t j = threadIdx.x; j < set; j += blockDim.x) {
        const std::uint32_t f = list[j].latent;
        const std::size_t to =
            first + j + first_not_below(f, count, [&](std::size_t i) { return z.latent[begin + i]; });
        latent[to] = f;
        value[to] = list[j].value;
    }
}

}  // namespace detail

// As on the CPU, but with entries that are 0 in place of those that are removed, and of latents that are known to be
// settable (require_settable): it cannot look at the list.
inline codes_view<float> edit_codes(const cuda& device, arena<space::device>& scratch, const codes_view<float>& z,
                                    const codes_edit& edit) {
    codes_view<float> edited;
    edited.tokens = z.tokens, edited.latents = z.latents;
    edited.room = z.room + (edit.what == codes_edit::action::set ? z.tokens * edit.latents.size() : 0);
    auto* offsets = scratch.allocate<std::size_t>(z.tokens + 1);
    auto* latent = scratch.allocate<std::uint32_t>(edited.room);
    auto* value = scratch.allocate<float>(edited.room);
    edited.offsets = offsets, edited.latent = latent, edited.value = value;
    launch(device, detail::edit_codes_kernel<float>, detail::blocks_of(z.tokens, 1), detail::threads_of_entries(z), 0,
           offsets, latent, value, z, edit.latents.data(), edit.latents.size(), edit.what);
    return edited;
}

}  // namespace psae
