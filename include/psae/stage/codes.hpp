#pragma once
// Codes from codes, on the same support; sets of latents; numbers by latent.

#include <psae/stage/encode.hpp>

namespace psae {

namespace detail {

// The adjoint of codes as an expression over their entries.
template <class T>
struct entries_node {
    using value_type = T;
    using shape_type = psae::shape<dyn, dyn>;
    static constexpr bool is_over_codes = true;

    const T* data;  // by entry
    codes_record<T>* codes;
    std::size_t tokens, latents;

    PSAE_FN shape_type shape() const { return shape_type{tokens, latents}; }
    template <class P>
    PSAE_FN T load(P p) const {
        if constexpr (requires { p.entry; }) return data[p.entry];
        else return T(0);  // only named by the node concept
    }
};

template <class N, class Codes>
struct evaluate_codes_stage {
    using T = typename Codes::value_type;
    N argument;
    Codes z;
    T* value = nullptr;  // by entry, or of the tile at hand

    template <class Tape>
    void forward(Tape& t) {
        const codes_record<T>& from = *codes_of(argument);
        codes_record<T>& codes = *z.codes;
        if (!from.dense()) {
            value = t.arena().template allocate<T>(from.entries.room);
            codes_assign(t.device(), value, from.entries, argument, write::overwrite);
            codes.entries = from.entries;
            codes.entries.value = value;
            codes.tokens = from.tokens;
            codes.fired = t.arena().template allocate<std::uint32_t>(z.latents);
            count_active(t.device(), t.arena(), codes.fired, codes.entries);
            return;
        }
        if (from.tile.first == 0) {
            value = t.arena().template allocate<T>(from.tokens * from.support->tile_latents);
            codes.tokens = from.tokens;
            codes.fired = t.arena().template allocate<std::uint32_t>(z.latents);
        }
        again(t);
        count_active(t.device(), t.arena(), codes.fired + codes.tile.first, codes.tile);
    }
    template <class Tape>
    void again(Tape& t) {
        const codes_tile<T>& from = codes_of(argument)->tile;
        codes_assign(t.device(), value, from, argument, write::overwrite);
        z.codes->tile = {from.tokens, from.first, from.count, value, true};
    }
    template <class Tape>
    void backward(Tape& t) {
        if (std::exchange(z.adjoint->written, false))
            accumulate_gradients(t, argument,
                                 entries_node<T>{z.adjoint->data, codes_of(argument), z.tokens, z.latents});
    }
};

template <class Codes>
struct strongest_stage {
    using T = typename Codes::value_type;
    Codes from, z;
    std::size_t k;
    const T* weight;
    template <class Tape>
    void forward(Tape& t) {
        const codes_view<T>& entries = from.codes->entries;
        T* value = t.arena().template allocate<T>(entries.room);
        keep_strongest(t.device(), t.arena(), value, entries, k, weight);
        z.codes->entries = entries;
        z.codes->entries.value = value;
        z.codes->tokens = from.tokens;
        z.codes->fired = t.arena().template allocate<std::uint32_t>(z.latents);
        count_active(t.device(), t.arena(), z.codes->fired, z.codes->entries);
    }
    template <class Tape>
    void backward(Tape& t) {
        if (!z.adjoint->written) return;
        const entries_node<T> g{z.adjoint->data, from.codes, z.tokens, z.latents},
            kept{z.codes->entries.value, from.codes, z.tokens, z.latents};
        accumulate_gradients(t, from, make_map(where_not_zero{}, g, kept));
    }

    struct where_not_zero {  // not private: nvcc takes no private types into kernels
        PSAE_FN T value(T g, T kept) const { return kept != 0 ? g : T(0); }
    };
};

// Codes on the support of others, not filled yet.
template <class T, class Tape>
codes_variable<T, Tape> same_support(Tape& t, codes_record<T>& of, std::size_t tokens, std::size_t latents) {
    auto* codes = t.make(codes_record<T>{});
    codes->support = of.support;
    return {&t, codes, t.make(gradient<T>{}), tokens, latents};
}

template <class Codes>
struct silent_stage {
    latent_set set;
    Codes z;
    std::uint32_t* index;
    std::size_t* count;
    template <class Tape>
    void forward(Tape& t) {
        keep_silent(t.device(), index, count, set, z.codes->fired);
    }
    template <class Tape>
    void backward(Tape&) {}
};

template <class Out>
struct size_stage {
    latent_set set;
    Out out;
    template <class Tape>
    void forward(Tape& t) {
        copy_size(t.device(), out.storage, set);
    }
    template <class Tape>
    void backward(Tape&) {}
};

}  // namespace detail

// The expression over codes computed once, as codes. It has to be 0 where its codes have no entry; where it is 0
// although they have one, the latent counts as not active, and its gradient still flows.
template <operand X>
requires over_codes<node_t<X>>
auto evaluate(const X& x) {
    const auto n = as_node(x);
    using N = std::remove_const_t<decltype(n)>;
    using T = typename N::value_type;
    auto& t = detail::require_tape(n);
    auto& from = *detail::codes_of(n);
    const auto z = detail::same_support<T>(t, from, n.shape().rows(), n.shape().cols());
    t.record_reader(from, detail::latest_stage(n),
                    detail::evaluate_codes_stage<N, std::remove_const_t<decltype(z)>>{n, z});
    return z;
}

// The k largest values of each token, by weight[f] * value where there are weights [d_sae]; of equal ones, those of lower
// latents.
template <class T, class Tape>
auto strongest(const codes_variable<T, Tape>& from, std::size_t k, const T* weight = nullptr) {
    from.codes->support->entries_needed = true;
    const auto z = detail::same_support<T>(*from.owner, *from.codes, from.tokens, from.latents);
    from.owner->record(detail::strongest_stage<codes_variable<T, Tape>>{from, z, k, weight});
    return z;
}

// The Euclidean norm of each latent's row of a parameter [d_sae, d], as numbers by latent, [d_sae], that stand beside
// codes: sum(z * row_norms(x, W_dec)) is an L1 term that scaling a latent does not change. x: an operand on the tape.
// They are computed here and now. Their gradient is in proportion to the rows and never stored.
template <operand X, class T, class Shape>
auto row_norms(const X& x, const parameter<T, Shape>& W) {
    auto& t = detail::require_tape(as_node(x));
    constexpr space Space = std::remove_reference_t<decltype(t)>::memory;
    using norms_shape = shape<Shape::static_extent(0)>;
    const std::size_t rows = W.shape().rows();
    auto norms = t.variable_of(
        view<T, norms_shape, Space>{t.arena().template allocate<T>(rows), norms_shape::from_extents(&rows)});
    row_norms(t.device(), norms.storage, W.data(), rows, W.shape().cols());
    if (W.gradient != nullptr) {
        auto** last = &W.gradient->multiples;
        while (*last != nullptr) last = &(*last)->next;
        *last = t.make(row_multiples<T>{norms.adjoint, norms.storage, W.data(), nullptr});
    }
    return norms;
}

// A row of an expression of parameters, [d_sae], as memory an activation can read; its gradient is not taken.
template <operand X, operand P>
auto values_of(const X& x, const P& p) {
    return evaluate(stop_gradient(on_tape_of(x, p))).data;
}

// The latents of the set that are active for no token of z.
template <class T, class Tape>
latent_set silent(latent_set set, const codes_variable<T, Tape>& z) {
    auto& t = *z.owner;
    auto* index = t.arena().template allocate<std::uint32_t>(z.latents);
    auto* count = t.arena().template allocate<std::size_t>(1);
    t.record(detail::silent_stage<codes_variable<T, Tape>>{set, z, index, count});
    return {index, count, set.room};
}

// The number of latents of the set: a scalar without a gradient.
template <class T, class Tape>
auto size_of(latent_set set, const codes_variable<T, Tape>& z) {
    auto out = z.owner->template result<T>(shape<>{});
    z.owner->record(detail::size_stage<decltype(out)>{set, out});
    return stop_gradient(out);
}

}  // namespace psae
