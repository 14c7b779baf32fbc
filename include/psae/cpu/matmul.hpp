#pragma once
// x W^T with an epilogue, and its adjoints. For float the product and the steps that oneDNN knows run as one primitive;
// other steps, and double, are a product and one pass of the epilogue's expression.

#include <algorithm>
#include <array>
#include <cstddef>
#include <utility>

#include <psae/cpu/gemm.hpp>
#include <psae/cpu/onednn.hpp>
#include <psae/cpu/pointwise.hpp>
#include <psae/expr/epilogue.hpp>

namespace psae {

// Frozen weights [out, in] in the layout the product reads fastest; for double they stay as they are. Packed once, when
// made; unpacked only by adjoints, into scratch memory.
template <class T, class Shape>
class packed_matrix {
    static_assert(Shape::rank == 2, "psae: weights are a matrix, [out, in]");

public:
    using value_type = T;
    using shape_type = Shape;
    static constexpr bool is_packed = true;

    packed_matrix() = default;
    explicit packed_matrix(view<const T, Shape> W) : extents_(W.shape()) {
        if constexpr (std::is_same_v<T, float>) {
            layout_ = detail::packed_layout(W.rows(), W.cols());
            memory_ = memory_type(psae::shape<dyn>{dnnl_memory_desc_get_size(&layout_) / sizeof(float)});
            detail::onednn_reorder(plain_layout(), W.data, layout_, memory_.data());
        } else {
            memory_ = memory_type(psae::shape<dyn>{W.size()});
            std::copy_n(W.data, W.size(), memory_.data());
        }
    }

    const Shape& shape() const { return extents_; }
    std::size_t rows() const { return extents_.rows(); }
    std::size_t cols() const { return extents_.cols(); }
    const T* packed() const { return memory_.data(); }
    const dnnl_memory_desc_t& layout() const { return layout_; }
    // The weights, row-major, in scratch memory where they are not kept so.
    const T* unpacked(arena<>& scratch) const {
        if constexpr (std::is_same_v<T, float>) {
            T* plain = scratch.allocate<T>(extents_.size());
            detail::onednn_reorder(layout_, memory_.data(), plain_layout(), plain);
            return plain;
        } else {
            return memory_.data();
        }
    }

private:
    using memory_type = tensor<T, psae::shape<dyn>>;
    dnnl_memory_desc_t plain_layout() const { return detail::onednn_matrix(cols(), rows(), dnnl_ba); }

    Shape extents_{};
    memory_type memory_;
    dnnl_memory_desc_t layout_{};
};

namespace detail {

// What oneDNN's primitive takes of an epilogue: a bias first, then steps in any order.
struct fused_epilogue {
    const float* bias = nullptr;
    fused_steps steps{};
    std::array<const void*, 3> residuals{};
    std::size_t step_count = 0, residual_count = 0;

    void add(fused_step step) { steps[step_count++] = step; }
};

// The number of steps after the product itself and its bias.
template <class E>
inline constexpr std::size_t step_count = 1;
template <>
inline constexpr std::size_t step_count<no_epilogue> = 0;
template <class B>
inline constexpr std::size_t step_count<bias_step<B>> = 0;
template <class A, class B>
inline constexpr std::size_t step_count<step_sequence<A, B>> = step_count<A> + step_count<B>;

template <class E>
inline constexpr bool holds_bias = false;
template <class B>
inline constexpr bool holds_bias<bias_step<B>> = true;
template <class A, class B>
inline constexpr bool holds_bias<step_sequence<A, B>> = holds_bias<A> || holds_bias<B>;

// True if oneDNN's primitive does these steps: a bias comes first; a residual is dense memory of the result's shape.
template <class E>
inline constexpr bool fuses = false;
template <>
inline constexpr bool fuses<no_epilogue> = true;
template <class B>
requires requires(B b) { b.data; }
inline constexpr bool fuses<bias_step<B>> = true;
template <class R>
requires(requires(R r) { r.data; } && R::shape_type::rank >= 2 &&
         R::shape_type::static_cols != 1) inline constexpr bool fuses<add_step<R>> = true;
template <>
inline constexpr bool fuses<function_step<quick_gelu>> = true;
template <>
inline constexpr bool fuses<function_step<gelu>> = true;
template <class A, class B>
inline constexpr bool fuses<step_sequence<A, B>> = fuses<A>&& fuses<B> && !holds_bias<B>;

template <class B>
void describe(const bias_step<B>& s, fused_epilogue& e) {
    e.bias = s.b.data;
}
template <class R>
void describe(const add_step<R>& s, fused_epilogue& e) {
    e.residuals[e.residual_count++] = s.r.data;
    e.add(fused_step::residual);
}
inline void describe(const function_step<quick_gelu>&, fused_epilogue& e) { e.add(fused_step::quick_gelu); }
inline void describe(const function_step<gelu>&, fused_epilogue& e) { e.add(fused_step::gelu); }
inline void describe(const no_epilogue&, fused_epilogue&) {}
template <class A, class B>
void describe(const step_sequence<A, B>& s, fused_epilogue& e) {
    describe(s.first, e);
    describe(s.second, e);
}

// The plain product, out = x W^T.
template <class T, class W>
void product(cpu& device, arena<>& scratch, T* out, const T* x, std::size_t n, const W& weights,
             const fused_epilogue& e = {}) {
    const std::size_t columns = weights.rows(), inner = weights.cols();
    if (n == 0) return;
    if constexpr (std::is_same_v<T, float>) {
        const onednn_threads threads(device.threads);
        const float* data;
        dnnl_memory_desc_t layout;
        constexpr bool packed = requires { W::is_packed; };
        if constexpr (packed) {
            data = weights.packed();
            layout = weights.layout();
        } else {
            data = weights.data;
            layout = onednn_matrix(inner, columns, dnnl_ba);
        }
        auto& primitive =
            matmul_primitive::cached({n, inner, columns, packed, e.bias != nullptr, e.steps, device.threads}, layout);
        std::array<const void*, 7> arguments = {x, data, out};
        std::size_t count = 3;
        if (e.bias != nullptr) arguments[count++] = e.bias;
        for (std::size_t i = 0; i < e.residual_count; ++i) arguments[count++] = e.residuals[i];
        primitive(scratch, arguments);
    } else {
        const T* plain;
        if constexpr (requires { W::is_packed; }) plain = weights.unpacked(scratch);
        else plain = weights.data;
        gemm(device, false, true, n, columns, inner, T(1), x, inner, plain, inner, T(0), out, columns);
    }
}

}  // namespace detail

// out [n, out] = epilogue(x W^T). x: [n, in]; W: [out, in], a view or packed.
template <class T, class Shape, class W, epilogue E>
void matmul(cpu& device, arena<>& scratch, view<T, Shape> out, const T* x, const W& weights, const E& e) {
    if constexpr (std::is_same_v<T, float> && detail::fuses<E> &&
                  detail::step_count<E> <= std::tuple_size_v<detail::fused_steps>) {
        detail::fused_epilogue fused;
        detail::describe(e, fused);
        detail::product(device, scratch, out.data, x, out.rows(), weights, fused);
    } else {
        detail::product(device, scratch, out.data, x, out.rows(), weights);
        if constexpr (!std::is_same_v<E, no_epilogue>)
            assign(device, out, e(view<const T, Shape>{out.data, out.shape()}));
    }
}

// dx [n, in] (+)= g W, the adjoint with respect to x. g: [n, out].
template <class T, class W>
void matmul_adjoint_input(cpu& device, arena<>& scratch, T* dx, const T* g, std::size_t n, const W& weights,
                          write how) {
    const auto mark = scratch.position();
    const T* plain;
    if constexpr (requires { W::is_packed; }) plain = weights.unpacked(scratch);
    else plain = weights.data;
    const std::size_t out = weights.rows(), in = weights.cols();
    gemm(device, false, false, n, in, out, T(1), g, out, plain, in, how == write::add ? T(1) : T(0), dx, in);
    scratch.release_to(mark);
}

// dW [out, in] (+)= g^T x, the adjoint with respect to the weights. g: [n, out]; x: [n, in].
template <class T>
void matmul_adjoint_weights(cpu& device, T* dW, const T* g, const T* x, std::size_t n, std::size_t out, std::size_t in,
                            write how) {
    gemm(device, true, false, out, in, n, T(1), g, out, x, in, how == write::add ? T(1) : T(0), dW, in);
}

}  // namespace psae
