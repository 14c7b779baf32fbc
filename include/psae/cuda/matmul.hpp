#pragma once
// x W^T with an epilogue on the GPU, and its adjoints: a product, then one pass of the epilogue.

#include <cstddef>
#include <type_traits>

#include <psae/cuda/gemm.hpp>
#include <psae/cuda/pointwise.hpp>
#include <psae/expr/epilogue.hpp>
#include <psae/stage/matmul.hpp>

namespace psae {

// Frozen weights [out, in] in device memory, row-major: what packed weights are on the CPU.
template <class T, class Shape>
class device_matrix {
    static_assert(Shape::rank == 2, "psae: weights are a matrix, [out, in]");

public:
    using value_type = T;
    using shape_type = Shape;
    static constexpr bool is_packed = true;

    device_matrix() = default;
    // A copy of W, which is host memory. Done when the constructor returns.
    explicit device_matrix(view<const T, Shape> W) : memory_(W.shape()) {
        memory_space<space::device>::copy_from_host(memory_.data(), W.data, W.size() * sizeof(T));
    }

    const Shape& shape() const { return memory_.shape(); }
    std::size_t rows() const { return memory_.rows(); }
    std::size_t cols() const { return memory_.cols(); }
    const T* data() const { return memory_.data(); }

private:
    tensor<T, Shape, space::device> memory_;
};

template <>
struct weights_of<cuda> {
    template <class T, class Shape>
    using packed = device_matrix<T, Shape>;
};

namespace detail {

// The memory of weights: a view's, or a device_matrix's.
template <class W>
const typename W::value_type* memory_of_weights(const W& weights) {
    if constexpr (requires { W::is_packed; }) return weights.data();
    else return weights.data;
}

}  // namespace detail

// out [n, out] = epilogue(x W^T). x: [n, in]; weights: [out, in].
template <class T, class Shape, class W, epilogue E>
void matmul(const cuda& device, arena<space::device>&, view<T, Shape, space::device> out, const T* x, const W& weights,
            const E& e) {
    const std::size_t columns = weights.rows(), in = weights.cols();
    gemm(device, false, true, out.rows(), columns, in, T(1), x, in, detail::memory_of_weights(weights), in, T(0),
         out.data, columns);
    if constexpr (!std::is_same_v<E, no_epilogue>)
        assign(device, out, e(view<const T, Shape, space::device>{out.data, out.shape()}));
}

// dx [n, in] (+)= g W, the adjoint with respect to x. g: [n, out].
template <class T, class W>
void matmul_adjoint_input(const cuda& device, arena<space::device>&, T* dx, const T* g, std::size_t n, const W& weights,
                          write how) {
    const std::size_t out = weights.rows(), in = weights.cols();
    gemm(device, false, false, n, in, out, T(1), g, out, detail::memory_of_weights(weights), in,
         how == write::add ? T(1) : T(0), dx, in);
}

// dW [out, in] (+)= g^T x, the adjoint with respect to the weights. g: [n, out]; x: [n, in].
template <class T>
void matmul_adjoint_weights(const cuda& device, T* dW, const T* g, const T* x, std::size_t n, std::size_t out,
                            std::size_t in, write how) {
    gemm(device, true, false, out, in, n, T(1), g, out, x, in, how == write::add ? T(1) : T(0), dW, in);
}

}  // namespace psae
