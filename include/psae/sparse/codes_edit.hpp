#pragma once
// Edits of codes: of all latents only some are kept, some are removed, or some are set to a value.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include <psae/core/error.hpp>

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

// psae::error unless these can be set in codes of so many latents: latents that exist, each once and ascending, finite
// values.
inline void require_settable(std::span<const latent_value> values, std::size_t latents) {
    for (std::size_t i = 0; i < values.size(); ++i) {
        const auto& [f, v] = values[i];
        const std::string where = "latent " + std::to_string(f);
        if (f >= latents) throw error("no such latent", where, "0 to " + std::to_string(latents - 1));
        if (!std::isfinite(v)) throw error("value of a latent is not finite", where);
        if (i > 0 && f <= values[i - 1].latent)
            throw error("latents to set are not ascending", where, "expected each of them once");
    }
}

}  // namespace psae
