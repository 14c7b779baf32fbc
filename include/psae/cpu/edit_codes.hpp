#pragma once
// Codes in which latents are kept, removed or set.

#include <cstddef>
#include <cstdint>

#include <psae/core/arena.hpp>
#include <psae/cpu/backend.hpp>
#include <psae/sparse/codes.hpp>
#include <psae/sparse/codes_edit.hpp>

namespace psae {

// Edited codes to be decoded, in memory of the arena. z: of some tokens among others, too.
// psae::error as require_settable.
inline codes_view<float> edit_codes(const cpu&, arena<>& scratch, const codes_view<float>& z, const codes_edit& edit) {
    require_settable(edit.latents, z.latents);
    using action = codes_edit::action;
    const bool sets = edit.what == action::set;
    const std::size_t most =
        z.tokens == 0 ? 0 : z.offsets[z.tokens] - z.offsets[0] + (sets ? z.tokens * edit.latents.size() : 0);
    auto* offsets = scratch.allocate<std::size_t>(z.tokens + 1);
    auto* latent = scratch.allocate<std::uint32_t>(most);
    auto* value = scratch.allocate<float>(most);
    std::size_t entries = 0;
    const auto put = [&](std::uint32_t f, float v) {
        latent[entries] = f;
        value[entries++] = v;
    };
    offsets[0] = 0;
    for (std::size_t t = 0; t < z.tokens; ++t) {
        auto next = edit.latents.begin();
        const auto pass_listed = [&](auto&& until) {
            for (; next != edit.latents.end() && until(next->latent); ++next)
                if (sets) put(next->latent, next->value);
        };
        for (std::size_t i = z.offsets[t]; i < z.offsets[t + 1]; ++i) {
            pass_listed([&](std::uint32_t f) { return f < z.latent[i]; });
            const bool listed = next != edit.latents.end() && next->latent == z.latent[i];
            if (listed == (edit.what == action::keep)) put(z.latent[i], z.value[i]);
        }
        pass_listed([](std::uint32_t) { return true; });
        offsets[t + 1] = entries;
    }
    codes_view<float> edited;
    edited.tokens = z.tokens, edited.latents = z.latents, edited.room = entries;
    edited.offsets = offsets, edited.latent = latent, edited.value = value;
    return edited;
}

}  // namespace psae
