#pragma once
// Matrix products on the GPU, by cuBLASLt. What it takes for a product (descriptions, and the algorithm that its
// heuristic names) is looked up once for a shape and kept with the backend.

#include <compare>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <type_traits>

#include <cublasLt.h>

#include <psae/core/arena.hpp>
#include <psae/core/element.hpp>
#include <psae/cuda/rows.hpp>
#include <psae/expr/node.hpp>

namespace psae {

namespace detail {

// A product as cuBLASLt sees it.
struct product_shape {
    cudaDataType_t operands, result;
    cublasComputeType_t compute;
    bool transpose_a, transpose_b;
    std::size_t M, N, K, lda, ldb, ldc;
    std::uint32_t alignment_a, alignment_b, alignment_added, alignment_c, alignment_bias;  // in bytes; 0: no bias

    auto operator<=>(const product_shape&) const = default;
};

// What the address is a multiple of, up to 16 bytes: which more a piece of an arena has is chance, and would let the
// heuristic choose one way in one step and another in the next.
inline std::uint32_t alignment_of(const void* p) {
    const auto address = reinterpret_cast<std::uintptr_t>(p) | 16;
    return static_cast<std::uint32_t>(address & (~address + 1));
}

// cuBLASLt's matrices are column-major: row-major [M, N] is its [N, M]. So C = op(A) op(B) is computed as
// C^T = op(B)^T op(A)^T, B being its first operand.
class product_plan {
public:
    // bias: for its alignment, which the heuristic looks at; null if there is none.
    product_plan(const cuda& device, const product_shape& s, const void* bias) {
        const cudaDataType_t scale = s.result == CUDA_R_64F ? CUDA_R_64F : CUDA_R_32F;
        check(cublasLtMatmulDescCreate(out(what_), s.compute, scale), "product");
        set(CUBLASLT_MATMUL_DESC_TRANSA, s.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N);
        set(CUBLASLT_MATMUL_DESC_TRANSB, s.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N);
        if (bias != nullptr) {
            set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
            set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
        }
        const auto layout = [](owner<cublasLtMatrixLayout_t>& to, cudaDataType_t type, std::size_t rows,
                               std::size_t cols, std::size_t ld) {
            check(cublasLtMatrixLayoutCreate(out(to), type, cols, rows, static_cast<std::int64_t>(ld)), "product");
        };
        layout(a_, s.operands, s.transpose_a ? s.K : s.M, s.transpose_a ? s.M : s.K, s.lda);
        layout(b_, s.operands, s.transpose_b ? s.N : s.K, s.transpose_b ? s.K : s.N, s.ldb);
        layout(c_, s.result, s.M, s.N, s.ldc);

        owner<cublasLtMatmulPreference_t> preference;
        check(cublasLtMatmulPreferenceCreate(out(preference)), "product");
        const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
            check(cublasLtMatmulPreferenceSetAttribute(preference.get(), attribute, &value, sizeof(value)), "product");
        };
        prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, std::uint64_t{cuda::workspace_bytes});
        prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, s.alignment_b);
        prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, s.alignment_a);
        prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, s.alignment_added);
        prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, s.alignment_c);
        cublasLtMatmulHeuristicResult_t found{};
        int count = 0;
        check(cublasLtMatmulAlgoGetHeuristic(device.blas(), what_.get(), b_.get(), a_.get(), c_.get(), c_.get(),
                                             preference.get(), 1, &found, &count),
              "product");
        if (count == 0)
            throw error("cuBLAS knows no way to compute a matrix product", "product",
                        std::to_string(s.M) + " x " + std::to_string(s.N) + " x " + std::to_string(s.K));
        algorithm_ = found.algo;
    }

    // C = alpha op(A) op(B) + beta * added + bias.
    template <class Scale>
    void run(const cuda& device, Scale alpha, const void* A, const void* B, Scale beta, const void* added,
             const void* bias, void* C) {
        if (bias != nullptr) set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
        check(cublasLtMatmul(device.blas(), what_.get(), &alpha, B, b_.get(), A, a_.get(), &beta, added, c_.get(), C,
                             c_.get(), &algorithm_, device.workspace(), cuda::workspace_bytes, device.stream()),
              "product");
    }

private:
    struct destroy {
        void operator()(cublasLtMatmulDesc_t d) const { cublasLtMatmulDescDestroy(d); }
        void operator()(cublasLtMatrixLayout_t l) const { cublasLtMatrixLayoutDestroy(l); }
        void operator()(cublasLtMatmulPreference_t p) const { cublasLtMatmulPreferenceDestroy(p); }
    };
    template <class Handle>
    using owner = std::unique_ptr<std::remove_pointer_t<Handle>, destroy>;
    // Where a C function is to put a handle.
    template <class Owner>
    struct out_handle {
        Owner& to;
        typename Owner::pointer made = nullptr;
        operator typename Owner::pointer *() { return &made; }
        ~out_handle() { to.reset(made); }
    };
    template <class Owner>
    static out_handle<Owner> out(Owner& to) {
        return {to};
    }
    template <class Value>
    void set(cublasLtMatmulDescAttributes_t attribute, Value value) {
        check(cublasLtMatmulDescSetAttribute(what_.get(), attribute, &value, sizeof(value)), "product");
    }

    owner<cublasLtMatmulDesc_t> what_;
    owner<cublasLtMatrixLayout_t> a_, b_, c_;
    cublasLtMatmulAlgo_t algorithm_{};
};

class product_plans {
public:
    // f(plan), one thread at a time.
    template <class F>
    void with(const cuda& device, const product_shape& s, const void* bias, const F& f) {
        const std::lock_guard lock(one_at_a_time_);
        auto found = plans_.find(s);
        if (found == plans_.end()) {
            constexpr std::size_t most = 1024;  // so that products of ever new shapes do not fill the memory
            if (plans_.size() == most) plans_.clear();
            found = plans_.try_emplace(s, device, s, bias).first;
        }
        f(found->second);
    }

private:
    std::mutex one_at_a_time_;
    std::map<product_shape, product_plan> plans_;
};

}  // namespace detail

inline detail::product_plans& cuda::product_plans() const {
    std::call_once(of_->plans_made, [&] { of_->product_plans = std::make_shared<detail::product_plans>(); });
    return *of_->product_plans;
}

namespace detail {

template <class T>
inline constexpr cudaDataType_t cuda_type = CUDA_R_32F;
template <>
inline constexpr cudaDataType_t cuda_type<double> = CUDA_R_64F;
template <>
inline constexpr cudaDataType_t cuda_type<bf16> = CUDA_R_16BF;

// What products of T are summed in.
template <class T>
using sum_of_products = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <class T>
cublasComputeType_t compute_type(const cuda& device) {
    if (std::is_same_v<T, double>) return CUBLAS_COMPUTE_64F;
    return std::is_same_v<T, float> && device.products == precision::tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32
                                                                          : CUBLAS_COMPUTE_32F;
}

// C [rows, cols] = factor * added + bias; a factor of 0 reads nothing.
template <class T, class Scale>
__global__ void scale_kernel(T* C, const T* added, const T* bias, std::size_t cols, std::size_t ldc, Scale factor) {
    for (std::size_t col = threadIdx.x; col < cols; col += blockDim.x) {
        const std::size_t at = blockIdx.x * ldc + col;
        const Scale b = bias == nullptr ? Scale(0) : element_cast<Scale>(bias[col]);
        C[at] = element_cast<T>(factor == Scale(0) ? b : factor * element_cast<Scale>(added[at]) + b);
    }
}

// out[i] = x[i] rounded, `width` of them for each thread.
template <unsigned width>
__global__ void round_kernel(bf16* out, const float* x, std::size_t count) {
    const std::size_t first = (std::size_t{blockIdx.x} * blockDim.x + threadIdx.x) * width;
    if (first + width <= count) {
        const auto values = load_pack<width>(x + first);
        row_pack<bf16, width> rounded;
        for (unsigned i = 0; i < width; ++i) rounded.of[i] = to_bf16(values.of[i]);
        store_pack(out + first, rounded);
    } else {
        for (std::size_t i = first; i < count; ++i) out[i] = to_bf16(x[i]);
    }
}

}  // namespace detail

// What a product adds to itself on the way to memory: a row, [N], and a matrix in the place of C's own values.
template <class T>
struct product_sums {
    const T* bias = nullptr;
    const T* added = nullptr;
};

// C [M, N] = alpha * op(A) op(B) + beta * C (or sums.added, of C's layout) + sums.bias, row-major with leading dimensions
// lda, ldb, ldc; op transposes where asked. beta = 0 overwrites C whatever it holds. Floats are multiplied as they are,
// or cut to TF32 where device.products is that; operands in bf16 are summed in float, and the result is float or bf16.
template <class T, class Result>
void gemm(const cuda& device, bool transpose_a, bool transpose_b, std::size_t M, std::size_t N, std::size_t K,
          detail::sum_of_products<T> alpha, const T* A, std::size_t lda, const T* B, std::size_t ldb,
          detail::sum_of_products<T> beta, Result* C, std::size_t ldc, const product_sums<Result>& sums = {}) {
    using namespace detail;
    static_assert(std::is_same_v<T, Result> || (std::is_same_v<T, bf16> && std::is_same_v<Result, float>),
                  "psae: gemm: the result is of the operands' type, or float of bf16");
    if (M == 0 || N == 0) return;
    const Result* added = sums.added == nullptr ? C : sums.added;
    if (K == 0) {
        launch(device, scale_kernel<Result, sum_of_products<T>>, static_cast<unsigned>(M), 256, 0, C, added, sums.bias,
               N, ldc, beta);
        return;
    }
    const product_shape what{cuda_type<T>,
                             cuda_type<Result>,
                             compute_type<T>(device),
                             transpose_a,
                             transpose_b,
                             M,
                             N,
                             K,
                             lda,
                             ldb,
                             ldc,
                             alignment_of(A),
                             alignment_of(B),
                             alignment_of(added),
                             alignment_of(C),
                             sums.bias == nullptr ? 0 : alignment_of(sums.bias)};
    device.product_plans().with(device, what, sums.bias,
                                [&](product_plan& plan) { plan.run(device, alpha, A, B, beta, added, sums.bias, C); });
}

// out[i] = x[i] rounded. out, x: [count].
inline void round_to_bf16(const cuda& device, bf16* out, const float* x, std::size_t count) {
    constexpr unsigned threads = 256;
    const bool wide = detail::alignment_of(x) >= 16 && detail::alignment_of(out) >= 8;
    launch(device, wide ? detail::round_kernel<4> : detail::round_kernel<1>,
           detail::blocks_of(count, threads * (wide ? 4 : 1)), threads, 0, out, x, count);
}

// x [count] rounded, in scratch memory.
inline const bf16* rounded(const cuda& device, arena<space::device>& scratch, const float* x, std::size_t count) {
    auto* copy = scratch.allocate<bf16>(count);
    round_to_bf16(device, copy, x, count);
    return copy;
}

// What `product` multiplies: numbers, and where they have been rounded to bf16 already.
template <class T>
struct product_operand {
    const T* values;
    const bf16* rounded = nullptr;

    product_operand(const T* x) : values(x) {}
    product_operand(const T* x, const bf16* y) : values(x), rounded(y) {}
    // Without the first `count` numbers.
    product_operand from(std::size_t count) const {
        return {values + count, rounded == nullptr ? nullptr : rounded + count};
    }
};

// x [count] for several products in the precision of the device: where that is bf16, rounded once, in scratch memory.
template <class T>
product_operand<T> operand_of_products(const cuda& device, arena<space::device>& scratch, const T* x,
                                       std::size_t count) {
    if constexpr (std::is_same_v<T, float>)
        if (device.products == precision::bf16) return {x, rounded(device, scratch, x, count)};
    return x;
}

// C [M, N] (+)= op(A) op(B) + bias without gaps, in the precision of the device; operands that are still to be rounded
// are in scratch memory. bias: [N], or null.
template <class T>
void product(const cuda& device, arena<space::device>& scratch, bool transpose_a, bool transpose_b, std::size_t M,
             std::size_t N, std::size_t K, std::type_identity_t<product_operand<T>> A,
             std::type_identity_t<product_operand<T>> B, write mode, T* C,
             const std::type_identity_t<T>* bias = nullptr) {
    using namespace detail;
    const bool in_epilogue = N > 1 && K > 1;  // cuBLASLt is not asked to add to products of vectors
    const auto multiply = [&](const auto* a, const auto* b) {
        gemm(device, transpose_a, transpose_b, M, N, K, T(1), a, transpose_a ? M : K, b, transpose_b ? K : N,
             mode == write::add ? T(1) : T(0), C, N, {in_epilogue ? bias : nullptr, nullptr});
    };
    const auto mark = scratch.position();
    if constexpr (std::is_same_v<T, float>) {
        if (device.products == precision::bf16)
            multiply(A.rounded != nullptr ? A.rounded : rounded(device, scratch, A.values, M * K),
                     B.rounded != nullptr ? B.rounded : rounded(device, scratch, B.values, N * K));
        else multiply(A.values, B.values);
    } else {
        multiply(A.values, B.values);
    }
    scratch.release_to(mark);
    if (bias != nullptr && !in_epilogue)
        launch(device, scale_kernel<T, sum_of_products<T>>, static_cast<unsigned>(M), 256, 0, C, C, bias, N, N, T(1));
}

}  // namespace psae
