#pragma once
// Lazy pointwise expressions.
//
// A node is trivially copyable and says what stands at a position: `shape()` and `load(position)`. Views are nodes, so
// are constants, variables of a tape and map_node<F, A...>, which applies a functor to the values of other nodes.
// Nothing is computed until an expression is assigned or reduced. A functor is an empty (or small) struct that holds
// the value and the derivative together:
//
//   struct square_functor {
//       template <class T> PSAE_FN T value(T x) const { return x * x; }
//       template <class T> PSAE_FN partials<T, 1> derivative(T x) const { return {{2 * x}}; }
//   };
//
// Owners are not nodes: an lvalue tensor is taken as a view of it, an rvalue tensor does not compile, so
// `auto y = a + b` cannot dangle on a temporary.

#include <cstddef>
#include <type_traits>
#include <utility>

#include <psae/core/tensor.hpp>

namespace psae {

// The partial derivatives of a functor, one per argument.
template <class T, std::size_t N>
struct partials {
    T d[N];
};

// What a kernel does with what already stands in its output.
enum class write { overwrite, add };

template <class N>
concept node = std::is_trivially_copyable_v<N> && requires(const N& n) {
    typename N::value_type;
    typename N::shape_type;
    n.shape();
    n.load(position{});
};

// True if some leaf of the expression wants a gradient.
template <class N>
inline constexpr bool differentiable = false;
template <class N>
requires requires { N::is_differentiable; }
inline constexpr bool differentiable<N> = N::is_differentiable;

// True if the expression stands on the support of sparse codes.
template <class N>
inline constexpr bool over_codes = false;
template <class N>
requires requires { N::is_over_codes; }
inline constexpr bool over_codes<N> = N::is_over_codes;

namespace detail {

template <class N, space Space>
constexpr bool leaf_stands_in() {
    if constexpr (requires { N::is_anywhere; }) return true;
    else if constexpr (requires { N::memory; }) return N::memory == Space;
    else return true;
}

}  // namespace detail

// True if no leaf of the expression stands in other memory. (The memory of a parameter is that of the tape it is used
// on.)
template <class N, space Space>
inline constexpr bool stands_in = detail::leaf_stands_in<N, Space>();

// The same number everywhere.
template <class T>
struct constant_node {
    using value_type = T;
    using shape_type = psae::shape<>;
    T number;
    PSAE_FN psae::shape<> shape() const { return {}; }
    template <class P>
    PSAE_FN T load(P) const {
        return number;
    }
};

namespace detail {

// Merges two last extents, of which either may be broadcast (statically 1) or dyn; 0 marks a contradiction.
constexpr std::size_t merge_extents(std::size_t a, std::size_t b) {
    if (a == 1 || b == dyn) return a == 1 ? b : a;
    if (b == 1 || a == dyn) return b == 1 ? a : b;
    return a == b ? a : 0;
}
// The other extents are equal: nothing repeats rows but a rank that is lower.
constexpr std::size_t merge_leading(std::size_t a, std::size_t b) { return a == dyn || a == b ? b : b == dyn ? a : 0; }
template <std::size_t... A, std::size_t... B>
constexpr std::size_t merge_extent(std::size_t i, shape<A...>, shape<B...>) {
    const std::size_t a = shape<A...>::static_extent(i), b = shape<B...>::static_extent(i);
    return i + 1 == sizeof...(A) ? merge_extents(a, b) : merge_leading(a, b);
}

template <std::size_t... I, class A, class B>
auto merge_shapes(std::index_sequence<I...>, A, B) {
    static_assert(((merge_extent(I, A{}, B{}) != 0) && ...), "psae: these two shapes do not broadcast: extents differ");
    return shape<merge_extent(I, A{}, B{})...>{};
}

// The cases are told apart by ranks: nvcc 13 loses specialisations that are constrained by the lengths of packs.
template <class A, class B>
struct broadcast_shapes {
    static_assert(A::rank == B::rank,
                  "psae: these two shapes do not broadcast: ranks differ (only scalars and rank-1 rows do)");
    using type = decltype(merge_shapes(std::make_index_sequence<A::rank>(), A{}, B{}));
};
template <class A, class B>
requires(A::rank == 1 && B::rank > 1) struct broadcast_shapes<A, B> {
    static_assert(merge_extents(A::static_cols, B::static_cols) != 0,
                  "psae: a row does not broadcast over this shape: last extents differ");
    using type = B;
};
template <class A, class B>
requires(A::rank > 1 && B::rank == 1) struct broadcast_shapes<A, B> : broadcast_shapes<B, A> {
};
template <class A, class B>
requires(A::rank == 0 && B::rank > 0) struct broadcast_shapes<A, B> {
    using type = B;
};
template <class A, class B>
requires(A::rank > 0 && B::rank == 0) struct broadcast_shapes<A, B> {
    using type = A;
};

template <class A, class B>
using broadcast_t = typename broadcast_shapes<A, B>::type;

// The run-time extents of the broadcast shape; throws where two extents contradict.
template <class A, class B>
broadcast_t<A, B> broadcast(const A& a, const B& b) {
    using result = broadcast_t<A, B>;
    std::size_t extents[result::rank + 1] = {};
    for (std::size_t i = 0; i != result::rank; ++i) {
        const std::size_t from_end = result::rank - 1 - i;
        const bool in_a = from_end + 1 <= A::rank, in_b = from_end + 1 <= B::rank;
        const std::size_t ia = A::rank - 1 - from_end, ib = B::rank - 1 - from_end;
        const std::size_t ea = in_a ? a.extent(ia) : 1, eb = in_b ? b.extent(ib) : 1;
        const bool a_broadcasts = !in_a || (from_end == 0 && A::static_extent(ia) == 1),
                   b_broadcasts = !in_b || (from_end == 0 && B::static_extent(ib) == 1);
        if (ea != eb && !a_broadcasts && !b_broadcasts)
            throw error("shapes do not broadcast", "", to_string(a) + " against " + to_string(b));
        extents[i] = a_broadcasts ? eb : ea;
    }
    return result::from_extents(extents);
}

template <class A>
const A& broadcast(const A& a) {
    return a;
}
template <class A, class B, class C, class... More>
auto broadcast(const A& a, const B& b, const C& c, const More&... more) {
    return broadcast(broadcast(a, b), c, more...);
}

// The shape that the shapes of these nodes broadcast to.
template <class... A>
using broadcast_all_t = std::remove_cvref_t<decltype(broadcast(std::declval<typename A::shape_type>()...))>;

// A trivially copyable tuple of nodes.
template <class... A>
struct node_pack;
template <>
struct node_pack<> {};
template <class A>
struct node_pack<A> {
    static constexpr node_pack<> rest{};
    A first;
};
template <class A, class B, class... More>
struct node_pack<A, B, More...> {
    A first;
    node_pack<B, More...> rest;
};
template <std::size_t I, class A, class... More>
PSAE_FN const auto& get(const node_pack<A, More...>& pack) {
    if constexpr (I == 0) return pack.first;
    else return get<I - 1>(pack.rest);
}

}  // namespace detail

// A functor applied to the values of its arguments at each position.
template <class F, class... A>
struct map_node : private detail::part_of<F, map_node<F, A...>>,
                  private detail::part_of<detail::broadcast_all_t<A...>, map_node<F, A...>> {
    using value_type = typename std::common_type<typename A::value_type...>::type;
    using shape_type = detail::broadcast_all_t<A...>;
    static constexpr bool is_differentiable = (differentiable<A> || ...);
    static constexpr bool is_over_codes = (over_codes<A> || ...);

    detail::node_pack<A...> arguments;

    map_node(const F& functor, const detail::node_pack<A...>& arguments, const shape_type& extents)
        : detail::part_of<F, map_node>(functor), detail::part_of<shape_type, map_node>(extents), arguments(arguments) {}

    PSAE_FN auto functor() const { return detail::part_of<F, map_node>::part(); }
    PSAE_FN shape_type shape() const { return detail::part_of<shape_type, map_node>::part(); }
    template <class P>
    PSAE_FN value_type load(P p) const {
        return load(p, std::index_sequence_for<A...>{});
    }

private:
    template <class P, std::size_t... I>
    PSAE_FN value_type load(P p, std::index_sequence<I...>) const {
        return functor().value(static_cast<value_type>(detail::get<I>(arguments).load(p))...);
    }
};

template <class F, class... A, space Space>
inline constexpr bool stands_in<map_node<F, A...>, Space> = (stands_in<A, Space> && ...);

// The value as it is, its gradient zero: the `detach` of other frameworks.
template <class A>
struct stopped_node {
    using value_type = typename A::value_type;
    using shape_type = typename A::shape_type;
    static constexpr bool is_over_codes = over_codes<A>;
    A argument;
    PSAE_FN auto shape() const { return argument.shape(); }
    template <class P>
    PSAE_FN value_type load(P p) const {
        return argument.load(p);
    }
};
template <class A, space Space>
inline constexpr bool stands_in<stopped_node<A>, Space> = stands_in<A, Space>;

// What an operand becomes inside an expression. Types that own or stand for memory add overloads.
template <node N>
const N& as_node(const N& n) {
    return n;
}
template <class T, class Shape, space Space>
const_view<T, Shape, Space> as_node(const tensor<T, Shape, Space>& t) {
    return t.view();
}
template <class T, class Shape, space Space>
void as_node(const tensor<T, Shape, Space>&& t) = delete;

template <class X>
concept operand = requires(const X& x) {
    requires node<std::remove_cvref_t<decltype(as_node(x))>>;
};
template <class X>
using node_t = std::remove_cvref_t<decltype(as_node(std::declval<const X&>()))>;

namespace detail {

template <class A>
node_pack<A> pack_nodes(const A& one) {
    return {one};
}
template <class A, class... More>
node_pack<A, More...> pack_nodes(const A& first, const More&... rest) {
    return {first, pack_nodes(rest...)};
}
template <class F, class... A>
map_node<F, A...> make_map(const F& f, const A&... a) {
    return {f, pack_nodes(a...), broadcast(a.shape()...)};
}

// Refuses temporaries that own memory, with a message that says what to do.
template <class X>
constexpr void refuse_temporary_owner() {
    using plain = std::remove_cvref_t<X>;
    static_assert(node<plain> || std::is_lvalue_reference_v<X>,
                  "psae: an expression would outlive this temporary tensor: give the tensor a name first");
}

}  // namespace detail

// map(f, a, b, ...): the functor f at every position of the arguments.
template <class F, class... X>
requires(operand<std::remove_cvref_t<X>>&&...) auto map(const F& f, X&&... x) {
    (detail::refuse_temporary_owner<X&&>(), ...);
    return detail::make_map(f, as_node(x)...);
}

}  // namespace psae
