#pragma once
// Activations of an encoder: which pre-activations h it keeps, with which value, and d value / dh from the value.
//
// Optional members: `active` and `value` may take the latent's number after h; `k` asks for the k largest of each token,
// `batch_entries(n)` for as many of a whole batch of n tokens, both among the active ones and by rank(value, latent)
// where there is one. Of what does neither, `zero_is_inactive` says that no value kept is 0, so that a dense tile of
// codes needs no mask, and `everywhere` that a tile may hold every h, active or not, since all that reads these codes
// is 0 where they are not. `rising` says that active, value and rank rise with h (or stay): an encoder may then drop
// latents by a bound of h.

#include <cmath>
#include <cstddef>
#include <cstdint>

#include <psae/core/annotations.hpp>

namespace psae {

struct relu {
    static constexpr bool zero_is_inactive = true, rising = true;
    template <class T>
    PSAE_FN bool active(T h) const {
        return h > 0;
    }
    template <class T>
    PSAE_FN T value(T h) const {
        return h;
    }
    template <class T>
    PSAE_FN T derivative(T) const {
        return T(1);
    }
};
// exp(h) for every latent: what ghost gradients use on dead latents.
struct exponential_activation {
    template <class T>
    PSAE_FN bool active(T) const {
        return true;
    }
    template <class T>
    PSAE_FN T value(T h) const {
        return std::exp(h);
    }
    template <class T>
    PSAE_FN T derivative(T z) const {
        return z;
    }
};
// The k largest ReLU(h) of each token; fewer where fewer are positive. (Top-k of h and then ReLU is the same.)
struct top_k : relu {
    std::size_t k;
    constexpr top_k(std::size_t number) : k(number) {}
};
// Top-k by weight[f] * h (or its ReLU), for weights above zero: the entries with the largest are kept, and their value
// is h itself. weight: [d_sae], read when the encoder runs. (SAELens' rescale_acts_by_decoder_norm multiplies by the
// norms of the decoder rows before the selection and divides by them before decoding. What is decoded, and its
// gradient, is h: the norms only choose.)
template <class T>
struct weighted_top_k : top_k {
    const T* weight;
    bool rectified = true;  // false: negative values may be among the largest
    PSAE_FN bool active(T h) const { return !rectified || h > 0; }
    PSAE_FN T rank(T value, std::uint32_t latent) const { return weight[latent] * value; }
};
// The mean_k * n largest ReLU(h) of a batch of n tokens (rounded down), so that a token may have more and another less.
// Bussmann et al., BatchTopK sparse autoencoders, arXiv 2412.06410.
struct batch_top_k : relu {
    double mean_k;
    constexpr batch_top_k(double mean) : mean_k(mean) {}
    std::size_t batch_entries(std::size_t tokens) const {
        return static_cast<std::size_t>(mean_k * static_cast<double>(tokens));
    }
};
// The same by weight[f] * h.
template <class T>
struct weighted_batch_top_k : batch_top_k {
    const T* weight;
    PSAE_FN T rank(T value, std::uint32_t latent) const { return weight[latent] * value; }
};
// h itself where h > floor[f]. For codes that are a function of h which is 0 at and below the floor, and whose
// derivatives are: JumpReLU with the window of its pseudo-derivative. floor: [d_sae], read when the encoder runs.
template <class T>
struct above {
    static constexpr bool everywhere = true, rising = true;
    const T* floor;
    PSAE_FN bool active(T h, std::size_t latent) const { return h > floor[latent]; }
    PSAE_FN T value(T h) const { return h; }
    PSAE_FN T derivative(T) const { return T(1); }
};
// h itself where h < ceiling[f].
template <class T>
struct below {
    static constexpr bool everywhere = true;
    const T* ceiling;
    PSAE_FN bool active(T h, std::size_t latent) const { return h < ceiling[latent]; }
    PSAE_FN T value(T h) const { return h; }
    PSAE_FN T derivative(T) const { return T(1); }
};

namespace detail {

template <class A, class T>
PSAE_FN bool is_active(const A& activation, T h, std::size_t latent) {
    if constexpr (requires { activation.active(h, latent); }) return activation.active(h, latent);
    else return activation.active(h);
}
template <class A, class T>
PSAE_FN T value_of(const A& activation, T h, std::size_t latent) {
    if constexpr (requires { activation.value(h, latent); }) return activation.value(h, latent);
    else return activation.value(h);
}
template <class A, class T>
PSAE_FN T rank_of(const A& activation, T value, std::uint32_t latent) {
    if constexpr (requires { activation.rank(value, latent); }) return activation.rank(value, latent);
    else return value;
}

template <class A>
concept selects_per_token = requires(const A& a) {
    a.k;
};
template <class A>
concept selects_per_batch = requires(const A& a) {
    a.batch_entries(std::size_t{1});
};
template <class A>
concept elementwise = !selects_per_token<A> && !selects_per_batch<A>;

template <class A>
constexpr bool is_rising() {
    if constexpr (requires { A::rising; }) return A::rising;
    else return false;
}
template <class A>
constexpr bool is_everywhere() {
    if constexpr (requires { A::everywhere; }) return A::everywhere;
    else return false;
}
template <class A>
constexpr bool can_be_dense() {
    if constexpr (!elementwise<A>) return false;
    else if constexpr (requires { A::zero_is_inactive; }) return A::zero_is_inactive;
    else return is_everywhere<A>();
}

}  // namespace detail

}  // namespace psae
