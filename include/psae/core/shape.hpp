#pragma once
// Shapes: a pack of extents, each known to the compiler or `dyn` (known at run time).
//
//   shape<dyn, 197, 768> s{8};     // only the dyn extents are given and stored
//   s.rank == 3; s.extent(0) == 8; s.size() == 8 * 197 * 768; s.rows() == 8 * 197; s.cols() == 768
//
// Loops run over (row, col): rows() is the product of all extents but the last, cols() is the last.

#include <cstddef>
#include <string>
#include <type_traits>

#include <psae/core/annotations.hpp>
#include <psae/core/error.hpp>

namespace psae {

// An extent that is known at run time only.
inline constexpr std::size_t dyn = ~std::size_t{0};

namespace detail {

// A T as a base of Owner, in place of a member with [[no_unique_address]]: nvcc 13 gives such members an address in
// kernels, where everything behind them is then looked for in the wrong place. Each of these types stands once in its
// owner and nowhere else, so no two empty ones of a type have to be kept at different addresses.
template <class T, class Owner, bool = std::is_empty_v<T>>
class part_of {
public:
    part_of() = default;
    PSAE_FN part_of(const T& value) : value_(value) {}
    PSAE_FN const T& part() const { return value_; }

private:
    T value_{};
};
template <class T, class Owner>
class part_of<T, Owner, true> {
public:
    part_of() = default;
    PSAE_FN part_of(const T&) {}
    PSAE_FN T part() const { return T{}; }
};

template <std::size_t Count>
struct dynamic_extents {
    std::size_t values[Count] = {};
};
template <>
struct dynamic_extents<0> {};

}  // namespace detail

template <std::size_t... N>
class shape : detail::dynamic_extents<(std::size_t{0} + ... + (N == dyn ? 1 : 0))> {
public:
    static constexpr std::size_t rank = sizeof...(N);
    static constexpr std::size_t rank_dynamic = (std::size_t{0} + ... + (N == dyn ? 1 : 0));

    // Extent i as the compiler knows it: a number or dyn.
    static constexpr PSAE_FN std::size_t static_extent(std::size_t i) {
        constexpr std::size_t extents[rank + 1] = {N..., 1};
        return extents[i];
    }
    // The last extent as the compiler knows it; 1 for a scalar.
    static constexpr std::size_t static_cols = [] {
        std::size_t last = 1;
        ((last = N), ...);
        return last;
    }();

    shape() = default;

    // The dyn extents, first to last. (A fully static shape is default-constructed.)
    template <class... Extent>
    requires(sizeof...(Extent) == rank_dynamic && rank_dynamic > 0) constexpr PSAE_FN explicit shape(Extent... extents)
        : detail::dynamic_extents<rank_dynamic>{{static_cast<std::size_t>(extents)...}} {}

    // The shape with these extents (rank of them); the static ones must agree.
    static constexpr PSAE_FN shape from_extents(const std::size_t* extents) {
        shape s{};
        if constexpr (rank_dynamic > 0) {
            std::size_t slot = 0;
            for (std::size_t i = 0; i < rank; ++i)
                if (static_extent(i) == dyn) s.values[slot++] = extents[i];
        }
        return s;
    }

    constexpr PSAE_FN std::size_t extent(std::size_t i) const {
        if constexpr (rank_dynamic == 0) {
            return static_extent(i);
        } else {
            if (static_extent(i) != dyn) return static_extent(i);
            std::size_t slot = 0;
            for (std::size_t j = 0; j < i; ++j) slot += static_extent(j) == dyn;
            return this->values[slot];
        }
    }
    constexpr PSAE_FN std::size_t size() const {
        std::size_t product = 1;
        for (std::size_t i = 0; i != rank; ++i) product *= extent(i);
        return product;
    }
    constexpr PSAE_FN std::size_t rows() const {
        std::size_t product = 1;
        for (std::size_t left = rank; left > 1; --left) product *= extent(rank - left);
        return product;
    }
    constexpr PSAE_FN std::size_t cols() const {
        if constexpr (rank == 0) return 1;
        else return extent(rank - 1);
    }

    friend constexpr bool operator==(const shape& a, const shape& b) {
        for (std::size_t i = 0; i != rank; ++i)
            if (a.extent(i) != b.extent(i)) return false;
        return true;
    }
};

namespace detail {

// No specialisation that is constrained by the lengths of packs: nvcc 13 loses such.
template <class A, class B>
constexpr bool same_extents() {
    if constexpr (A::rank != B::rank) {
        return false;
    } else {
        for (std::size_t i = 0; i != A::rank; ++i) {
            const std::size_t a = A::static_extent(i), b = B::static_extent(i);
            if (a != b && a != dyn && b != dyn) return false;
        }
        return true;
    }
}

}  // namespace detail

// True if the two shapes can be equal at run time: same rank, no static extent in contradiction.
template <class A, class B>
inline constexpr bool compatible_shapes = detail::same_extents<A, B>();

// "[8, 197, 768]", for messages.
template <std::size_t... N>
std::string to_string(const shape<N...>& s) {
    std::string text = "[";
    for (std::size_t i = 0; i != sizeof...(N); ++i) {
        if (i != 0) text += ", ";
        text += std::to_string(s.extent(i));
    }
    return text + "]";
}

// Equal at run time, or an error that names both.
template <class A, class B>
void require_same_shape(const A& a, const B& b, const char* where) {
    static_assert(compatible_shapes<A, B>, "psae: these two shapes can never be equal");
    for (std::size_t i = 0; i != A::rank; ++i)
        if (a.extent(i) != b.extent(i)) throw error("shapes differ", where, to_string(a) + " against " + to_string(b));
}

}  // namespace psae
