#pragma once
// What evaluating an expression takes, on any backend.

#include <psae/expr/node.hpp>

namespace psae::detail {

// Refuses codes, which have values at their entries only (position by position they would read as zeros), and leaves
// that stand in other memory.
template <class E, space Space>
constexpr void require_dense() {
    static_assert(!over_codes<E>, "psae: codes are not dense: sum(...) or decode(...) them first");
    static_assert(stands_in<E, Space>, "psae: an expression mixes memory of the host and of a device");
}

// True if evaluating `n` into [begin, end) reads that memory at other positions than the one being written.
template <class N>
bool reads_elsewhere(const N& n, const void* begin, const void* end) {
    if constexpr (requires { n.data; }) {  // a view, or a leaf that is one
        const void *first = n.data, *last = n.data + n.size();
        const bool overlaps = first < end && begin < last;
        return overlaps && !(first == begin && last == end);
    } else if constexpr (requires { n.argument; }) {  // stop_gradient
        return reads_elsewhere(n.argument, begin, end);
    } else if constexpr (requires { n.arguments; }) {
        return reads_elsewhere(n.arguments, begin, end);
    } else if constexpr (requires { n.first; }) {  // the pack of arguments of a map_node
        return reads_elsewhere(n.first, begin, end) || reads_elsewhere(n.rest, begin, end);
    } else {
        return false;
    }
}

// Throws psae::error unless e can be evaluated into `out`: e broadcasts to its shape, and does not read its memory at
// other positions than the one written (there is never a silent temporary).
template <class T, class Shape, space Space, node E>
void require_assignable(const view<T, Shape, Space>& out, const E& e) {
    require_dense<E, Space>();
    static_assert(compatible_shapes<broadcast_t<Shape, typename E::shape_type>, Shape>,
                  "psae: the expression is larger than what it is assigned to");
    require_same_shape(broadcast(out.shape(), e.shape()), out.shape(), "assignment");
    if (reads_elsewhere(e, out.data, out.data + out.size()))
        throw error("an expression reads the memory it is written to at other positions", "assignment", "",
                    "assign to another tensor first");
}

}  // namespace psae::detail
