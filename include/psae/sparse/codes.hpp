#pragma once
// Codes: the sparse activations of a batch of tokens. For each token its active (latent, value) pairs, latents
// ascending; and the same entries seen from the latents, which is what weight gradients need. No interface takes a
// dense [tokens, latents].

#include <cstddef>
#include <cstdint>

#include <psae/core/annotations.hpp>

namespace psae {

// An entry of codes as a position of an expression: its token, its latent, the value that stands there and its place
// among all entries (or in the tile).
template <class T>
struct codes_position {
    std::size_t row, col;
    T value;
    std::size_t entry;
};

// Trivially copyable; the memory belongs to whoever made it (the arena of a tape). n tokens, d_sae latents, nnz
// entries. What has one element for each entry has room for `room` of them: on the CPU exactly nnz, on a GPU, where nnz
// is known to the device, nnz at least.
template <class T>
struct codes_view {
    std::size_t tokens = 0, latents = 0;
    const std::size_t* offsets = nullptr;   // [n + 1]: token t has the entries offsets[t] .. offsets[t + 1]
    const std::uint32_t* latent = nullptr;  // [nnz]
    const T* value = nullptr;               // [nnz]
    // The latent-major view: latent f has by_latent[latent_offsets[f] .. latent_offsets[f + 1]], tokens ascending.
    const std::size_t* latent_offsets = nullptr;     // [d_sae + 1]
    const std::uint32_t* token_by_latent = nullptr;  // [nnz]
    const std::uint32_t* entry_by_latent = nullptr;  // [nnz]: index into latent / value
    std::size_t room = 0;

    PSAE_FN std::size_t entries() const { return tokens == 0 ? 0 : offsets[tokens]; }
};

// A chunk of codes in dense form: the latents first .. first + count of all tokens. A value of 0 is no entry, unless the
// entries are everywhere.
template <class T>
struct codes_tile {
    std::size_t tokens = 0, first = 0, count = 0;
    const T* value = nullptr;  // [n, count]
    bool everywhere = false;

    PSAE_FN bool has(T v) const { return everywhere || v != 0; }
};

// The latents first .. end.
struct latent_range {
    static constexpr std::size_t unbounded = ~std::size_t{0};
    std::size_t first = 0, end = unbounded;

    PSAE_FN bool is_everything() const { return first == 0 && end == unbounded; }
    PSAE_FN bool has(std::size_t latent) const { return latent >= first && latent < end; }
};

// A set of latents known when it is used: ascending indices and their number, in memory that a stage may fill, and a
// number that the host knows them not to exceed.
struct latent_set {
    const std::uint32_t* index = nullptr;
    const std::size_t* count = nullptr;
    std::size_t room = ~std::size_t{0};
};

// Room that an encoder works in on a device whose numbers the host would have to wait for. Under an elementwise activation:
// places for each token's entries, and for all entries together. Under a top-k of the whole batch: for what is above the
// bound so far, and for what is sorted in the end. A top-k of each token needs none.
struct selection_room {
    std::size_t candidates = 0, entries = 0;
};

// How an encoder gets to know that room. `expected`: it counts on that, and waits for nothing; if null, it waits and takes
// what is needed. The others are memory of the device, or null.
struct selection_plan {
    const selection_room* expected = nullptr;
    selection_room* needed = nullptr;    // becomes what would have been enough
    std::uint32_t* too_small = nullptr;  // becomes 1 if the room expected was not; the codes are of no use then
};

// `count` of `all` rows, spread evenly: the j-th of them.
struct spread_evenly {
    std::size_t all, count;
    PSAE_FN std::size_t operator()(std::size_t j) const { return j * all / count; }
};

}  // namespace psae
