#pragma once
// x W^T with an epilogue on the GPU, and its adjoints. cuBLASLt adds a bias and a residual itself; what else an epilogue
// does is a pass of its own over the product.

#include <cstddef>
#include <type_traits>

#include <psae/cuda/gemm.hpp>
#include <psae/cuda/pointwise.hpp>
#include <psae/expr/epilogue.hpp>
#include <psae/stage/matmul.hpp>

namespace psae {

// Numbers that do not change, in bf16: rounded when they are first asked for.
class rounded_copy {
public:
    const bf16* of(const cuda& device, const float* x, std::size_t count) const {
        if (memory_.size() == 0) {
            device.make_current();
            memory_ = tensor<bf16, shape<dyn>, space::device>(shape<dyn>{count});
            round_to_bf16(device, memory_.data(), x, count);
            device.synchronise();  // other streams may read it next
        }
        return memory_.data();
    }

private:
    mutable tensor<bf16, shape<dyn>, space::device> memory_;
};

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
    const bf16* rounded(const cuda& device) const requires std::is_same_v<T, float> {
        return rounded_.of(device, memory_.data(), memory_.size());
    }

private:
    tensor<T, Shape, space::device> memory_;
    rounded_copy rounded_;
};

// A frozen bias [out] in device memory.
template <class T, class Shape>
class device_row : public tensor<T, Shape, space::device> {
public:
    using tensor<T, Shape, space::device>::tensor;
    const bf16* rounded(const cuda& device) const requires std::is_same_v<T, float> {
        return rounded_.of(device, this->data(), this->size());
    }

private:
    rounded_copy rounded_;
};
template <class T, class Shape>
struct device_row_node : const_view<T, Shape, space::device> {
    const device_row<T, Shape>* owner;
};
template <class T, class Shape>
device_row_node<T, Shape> as_node(const device_row<T, Shape>& row) {
    return {row.view(), &row};
}

template <>
struct weights_of<cuda> {
    template <class T, class Shape>
    using packed = device_matrix<T, Shape>;
    template <class T, class Shape>
    using bias = device_row<T, Shape>;
};

namespace detail {

// The memory of weights: a view's, or a device_matrix's.
template <class W>
const typename W::value_type* memory_of_weights(const W& weights) {
    if constexpr (requires { W::is_packed; }) return weights.data();
    else return weights.data;
}

// Weights as operands beside T: rounded for bf16, in scratch memory where they are no device_matrix.
template <class T, class W>
const T* operand_of_weights(const cuda& device, arena<space::device>& scratch, const W& weights) {
    if constexpr (std::is_same_v<T, typename W::value_type>) return memory_of_weights(weights);
    else if constexpr (requires { W::is_packed; }) return weights.rounded(device);
    else return psae::rounded(device, scratch, weights.data, weights.size());
}

// Whether a step adds a row, or a whole matrix, of numbers in memory.
template <class B>
inline constexpr bool is_row = false;
template <class B>
requires requires(const B& b) { b.data; }
inline constexpr bool is_row<B> = B::shape_type::rank == 1 && B::shape_type::static_cols != 1;
template <class R>
inline constexpr bool is_matrix = is_dense<R>&& R::shape_type::static_cols != 1;

// The numbers of an epilogue that cuBLASLt knows: none, a bias, or a bias and a residual.
template <class T>
product_sums<T> sums_of(const no_epilogue&) {
    return {};
}
template <class T, class B>
requires is_row<B> product_sums<T> sums_of(const bias_step<B>& e) { return {e.b.data, nullptr}; }
template <class T, class B, class R>
requires(is_row<B>&& is_matrix<R>) product_sums<T> sums_of(const step_sequence<bias_step<B>, add_step<R>>& e) {
    return {e.first.b.data, e.second.r.data};
}
template <class E, class T>
concept epilogue_of_sums = requires(const E& e) {
    sums_of<T>(e);
};

// The bias and the function of an epilogue whose result is rounded.
struct identity {
    template <class T>
    PSAE_FN T value(T x) const {
        return x;
    }
};
template <class B>
auto function_of(const bias_step<B>&) {
    return identity{};
}
template <class B, class F>
F function_of(const step_sequence<bias_step<B>, function_step<F>>& e) {
    return e.second.f;
}
template <class B>
const B& bias_of(const bias_step<B>& e) {
    static_assert(is_row<B>, "psae: matmul rounds its result after a bias in memory");
    return e.b;
}
template <class First, class Second>
const auto& bias_of(const step_sequence<First, Second>& e) {
    return bias_of(e.first);
}
// A bias as a product of bf16 adds it, in scratch memory where it is not a device_row.
template <class B>
const bf16* rounded_bias(const cuda& device, arena<space::device>& scratch, const B& b) {
    if constexpr (requires { b.owner; }) return b.owner->rounded(device);
    else return rounded(device, scratch, b.data, b.size());
}

// x = f(x + bias) in float, rounded again: x [rows, cols], bias [cols]. A thread goes down `width` columns, every
// gridDim.y-th row of them.
template <unsigned width, class F>
__global__ void bias_and_function_kernel(bf16* x, const float* bias, F f, std::size_t rows, std::size_t cols) {
    const std::size_t col = (std::size_t{blockIdx.x} * blockDim.x + threadIdx.x) * width;
    if (col >= cols) return;
    float biases[width];
    for (unsigned i = 0; i < width; ++i) biases[i] = bias[col + i];
    for (std::size_t row = blockIdx.y; row < rows; row += gridDim.y) {
        auto values = load_pack<width>(x + row * cols + col);
        for (unsigned i = 0; i < width; ++i) values.of[i] = to_bf16(f.value(widen(values.of[i]) + biases[i]));
        store_pack(x + row * cols + col, values);
    }
}

template <class F>
void add_bias_and_apply(const cuda& device, bf16* x, const float* bias, const F& f, std::size_t rows,
                        std::size_t cols) {
    constexpr unsigned threads = 128;
    constexpr std::size_t rows_of_block = 8;
    const bool wide = has_wide_rows(x, cols);
    const unsigned width = wide ? wide_pack<bf16> : 1;
    launch(device, wide ? bias_and_function_kernel<wide_pack<bf16>, F> : bias_and_function_kernel<1, F>,
           dim3(blocks_of(cols, threads * width), blocks_up_to(65535, rows, rows_of_block)), threads, 0, x, bias, f,
           rows, cols);
}

}  // namespace detail

// out [n, out] = epilogue(x W^T). x: [n, in]; weights: [out, in]. Products of bf16 take x rounded: a matrix of bf16, or
// floats that are rounded on the way. A result in bf16 is that of such products with a bias, or a bias and a function.
template <class X, class T, class Shape, class W, epilogue E>
void matmul(const cuda& device, arena<space::device>& scratch, view<T, Shape, space::device> out, const X* x,
            const W& weights, const E& e) {
    using namespace detail;
    const std::size_t n = out.rows(), columns = weights.rows(), in = weights.cols();
    const auto mark = scratch.position();
    if constexpr (std::is_same_v<X, float>)
        if (device.products == precision::bf16) {
            matmul(device, scratch, out, rounded(device, scratch, x, n * in), weights, e);
            scratch.release_to(mark);
            return;
        }
    const X* W_operand = operand_of_weights<X>(device, scratch, weights);
    const auto multiply = [&](const product_sums<T>& sums) {
        const sum_of_products<X> beta = sums.added == nullptr ? 0 : 1;
        gemm(device, false, true, n, columns, in, 1, x, in, W_operand, in, beta, out.data, columns, sums);
    };
    const bool matrices = columns > 1 && in > 1;  // cuBLASLt is not asked to add to products of vectors
    if constexpr (std::is_same_v<T, bf16>) {
        const auto& bias = bias_of(e);
        const auto f = function_of(e);
        if (matrices && std::is_same_v<decltype(f), const identity>) {
            multiply({rounded_bias(device, scratch, bias), nullptr});
        } else {
            multiply({});
            add_bias_and_apply(device, out.data, bias.data, f, n, columns);
        }
    } else {
        bool done = false;
        if constexpr (epilogue_of_sums<E, T>)
            if (matrices) {
                multiply(sums_of<T>(e));
                done = true;
            }
        if (!done) {
            multiply({});
            if constexpr (!std::is_same_v<E, no_epilogue>)
                assign(device, out, e(view<const T, Shape, space::device>{out.data, out.shape()}));
        }
    }
    scratch.release_to(mark);
}

// dx [n, in] (+)= g W, the adjoint with respect to x. g: [n, out].
template <class T, class W>
void matmul_adjoint_input(const cuda& device, arena<space::device>& scratch, T* dx, const T* g, std::size_t n,
                          const W& weights, write how) {
    const std::size_t out = weights.rows(), in = weights.cols();
    const auto multiply = [&]<class X>(const X* of_result) {
        gemm(device, false, false, n, in, out, 1, of_result, out,
             detail::operand_of_weights<X>(device, scratch, weights), in, how == write::add ? 1 : 0, dx, in);
    };
    const auto mark = scratch.position();
    if constexpr (std::is_same_v<T, float>) {
        if (device.products == precision::bf16) multiply(rounded(device, scratch, g, n * out));
        else multiply(g);
    } else {
        multiply(g);
    }
    scratch.release_to(mark);
}

// dW [out, in] (+)= g^T x, the adjoint with respect to the weights, never of bf16. g: [n, out]; x: [n, in].
template <class T>
void matmul_adjoint_weights(const cuda& device, T* dW, const T* g, const T* x, std::size_t n, std::size_t out,
                            std::size_t in, write how) {
    gemm(device, true, false, out, in, n, T(1), g, out, x, in, how == write::add ? T(1) : T(0), dW, in);
}

}  // namespace psae
