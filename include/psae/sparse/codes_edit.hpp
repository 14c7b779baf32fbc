#pragma once
// Edits of codes: of all latents only some are kept, some are removed, or some are set to a value.

#include <cstddef>
#include <cstdint>
#include <span>

namespace psae {

// A latent and the value it is set to.
struct latent_value {
    std::uint32_t latent;
    float value;
};

// Latents that are kept (and all others removed), removed, or set to these values, on every token. They are ascending,
// each once, in the memory of the codes; values matter to `set` alone. The default changes nothing.
struct codes_edit {
    enum class action { keep, remove, set };
    action what = action::remove;
    std::span<const latent_value> latents{};

    bool changes_nothing() const { return what != action::keep && latents.empty(); }
};

}  // namespace psae
