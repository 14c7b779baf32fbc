#pragma once
// What of cuBLASLt is used, by plain loops that sum in double.

#include <cmath>

#include <cuda_runtime.h>

enum cublasStatus_t { CUBLAS_STATUS_SUCCESS = 0, CUBLAS_STATUS_INVALID_VALUE = 7, CUBLAS_STATUS_NOT_SUPPORTED = 15 };
inline const char* cublasLtGetStatusName(cublasStatus_t s) {
    return s == CUBLAS_STATUS_SUCCESS         ? "CUBLAS_STATUS_SUCCESS"
           : s == CUBLAS_STATUS_INVALID_VALUE ? "CUBLAS_STATUS_INVALID_VALUE"
                                              : "CUBLAS_STATUS_NOT_SUPPORTED";
}
inline const char* cublasLtGetStatusString(cublasStatus_t s) { return cublasLtGetStatusName(s); }

enum cudaDataType_t { CUDA_R_32F = 0, CUDA_R_64F = 1, CUDA_R_16BF = 14 };
using cudaDataType = cudaDataType_t;
enum cublasComputeType_t { CUBLAS_COMPUTE_32F = 68, CUBLAS_COMPUTE_32F_FAST_TF32 = 77, CUBLAS_COMPUTE_64F = 70 };
enum cublasOperation_t { CUBLAS_OP_N = 0, CUBLAS_OP_T = 1 };
enum cublasLtMatmulDescAttributes_t {
    CUBLASLT_MATMUL_DESC_TRANSA = 3,
    CUBLASLT_MATMUL_DESC_TRANSB = 4,
    CUBLASLT_MATMUL_DESC_EPILOGUE = 7,
    CUBLASLT_MATMUL_DESC_BIAS_POINTER = 8
};
enum cublasLtEpilogue_t { CUBLASLT_EPILOGUE_DEFAULT = 1, CUBLASLT_EPILOGUE_BIAS = 4 };
enum cublasLtMatmulPreferenceAttributes_t {
    CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES = 1,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES = 5,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES = 6,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES = 7,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES = 8
};

struct cublasLtMatmulDescOpaque_t {
    cublasComputeType_t compute;
    cudaDataType_t scale;
    cublasOperation_t operation[2];
    cublasLtEpilogue_t epilogue;
    const void* bias;  // of the result's type
    bool operator==(const cublasLtMatmulDescOpaque_t&) const = default;
};
struct cublasLtMatrixLayoutOpaque_t {
    cudaDataType_t type;
    std::uint64_t rows, cols;
    std::int64_t ld;
};
struct cublasLtMatmulPreferenceOpaque_t {
    std::uint64_t workspace;
    std::uint32_t alignment[4];
};
struct cublasLtContext;
using cublasLtHandle_t = cublasLtContext*;
using cublasLtMatmulDesc_t = cublasLtMatmulDescOpaque_t*;
using cublasLtMatrixLayout_t = cublasLtMatrixLayoutOpaque_t*;
using cublasLtMatmulPreference_t = cublasLtMatmulPreferenceOpaque_t*;
// What was looked up, so that a product of other operands is noticed.
struct cublasLtMatmulAlgo_t {
    cublasLtMatmulDescOpaque_t what;
    cublasLtMatrixLayoutOpaque_t a, b, c;
    std::uint32_t alignment[4];
};
struct cublasLtMatmulHeuristicResult_t {
    cublasLtMatmulAlgo_t algo;
    std::size_t workspaceSize;
    cublasStatus_t state;
};

inline cublasStatus_t cublasLtCreate(cublasLtHandle_t* h) {
    static char one;
    return *h = reinterpret_cast<cublasLtHandle_t>(&one), CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtDestroy(cublasLtHandle_t) { return CUBLAS_STATUS_SUCCESS; }
inline cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* d, cublasComputeType_t compute,
                                               cudaDataType_t scale) {
    if ((compute == CUBLAS_COMPUTE_64F) != (scale == CUDA_R_64F)) return CUBLAS_STATUS_NOT_SUPPORTED;
    *d = new cublasLtMatmulDescOpaque_t{compute, scale, {CUBLAS_OP_N, CUBLAS_OP_N}, CUBLASLT_EPILOGUE_DEFAULT, nullptr};
    return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t d) { return delete d, CUBLAS_STATUS_SUCCESS; }
inline cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t d, cublasLtMatmulDescAttributes_t which,
                                                     const void* value, std::size_t bytes) {
    const auto set = [&](auto& attribute) {
        if (bytes != sizeof(attribute)) return CUBLAS_STATUS_INVALID_VALUE;
        std::memcpy(&attribute, value, bytes);
        return CUBLAS_STATUS_SUCCESS;
    };
    if (which == CUBLASLT_MATMUL_DESC_EPILOGUE) return set(d->epilogue);
    if (which == CUBLASLT_MATMUL_DESC_BIAS_POINTER) return set(d->bias);
    return set(d->operation[which - CUBLASLT_MATMUL_DESC_TRANSA]);
}
inline cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* l, cudaDataType_t type, std::uint64_t rows,
                                                 std::uint64_t cols, std::int64_t ld) {
    if (rows == 0 || cols == 0 || static_cast<std::uint64_t>(ld) < rows) return CUBLAS_STATUS_INVALID_VALUE;
    return *l = new cublasLtMatrixLayoutOpaque_t{type, rows, cols, ld}, CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t l) { return delete l, CUBLAS_STATUS_SUCCESS; }
inline cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* p) {
    return *p = new cublasLtMatmulPreferenceOpaque_t{0, {256, 256, 256, 256}}, CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t p) {
    return delete p, CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t p,
                                                           cublasLtMatmulPreferenceAttributes_t which,
                                                           const void* value, std::size_t bytes) {
    const bool workspace = which == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
    if (bytes != (workspace ? sizeof(p->workspace) : sizeof(p->alignment[0]))) return CUBLAS_STATUS_INVALID_VALUE;
    std::memcpy(workspace ? static_cast<void*>(&p->workspace)
                          : &p->alignment[which - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES],
                value, bytes);
    return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t what,
                                                     cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                                     cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t,
                                                     cublasLtMatmulPreference_t preference, int,
                                                     cublasLtMatmulHeuristicResult_t* results, int* count) {
    *results = {{*what, *a, *b, *c, {}}, preference->workspace, CUBLAS_STATUS_SUCCESS};
    std::memcpy(results->algo.alignment, preference->alignment, sizeof(preference->alignment));
    return *count = 1, CUBLAS_STATUS_SUCCESS;
}

namespace cuda_emulation {

inline std::size_t size_of(cudaDataType_t type) { return type == CUDA_R_64F ? 8 : type == CUDA_R_32F ? 4 : 2; }
inline double load(const void* data, cudaDataType_t type, std::uint64_t at) {
    if (type == CUDA_R_64F) return static_cast<const double*>(data)[at];
    if (type == CUDA_R_32F) return double{static_cast<const float*>(data)[at]};
    return double{__builtin_bit_cast(float, std::uint32_t{static_cast<const std::uint16_t*>(data)[at]} << 16)};
}
// Rounds once from double; bf16 after float.
inline void store(void* data, cudaDataType_t type, std::uint64_t at, double value) {
    if (type == CUDA_R_64F) static_cast<double*>(data)[at] = value;
    else if (type == CUDA_R_32F) static_cast<float*>(data)[at] = static_cast<float>(value);
    else {
        const auto bits = __builtin_bit_cast(std::uint32_t, static_cast<float>(value));
        static_cast<std::uint16_t*>(data)[at] = static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
}
// An element of an operand, as the units multiply it.
inline double operand(const void* data, const cublasLtMatrixLayoutOpaque_t& l, bool transpose, std::uint64_t row,
                      std::uint64_t col, cublasComputeType_t compute) {
    const auto ld = static_cast<std::uint64_t>(l.ld);
    const double value = load(data, l.type, transpose ? row * ld + col : col * ld + row);
    if (compute != CUBLAS_COMPUTE_32F_FAST_TF32) return value;
    const auto bits = __builtin_bit_cast(std::uint32_t, static_cast<float>(value)) & ~0x1fffu;
    return double{__builtin_bit_cast(float, bits)};
}
inline void multiply(const cublasLtMatmulDescOpaque_t& what, const cublasLtMatmulAlgo_t& of, double alpha,
                     const void* A, const void* B, double beta, const void* C, void* D) {
    const bool ta = what.operation[0] == CUBLAS_OP_T, tb = what.operation[1] == CUBLAS_OP_T;
    const std::uint64_t m = of.c.rows, n = of.c.cols, k = ta ? of.a.rows : of.a.cols;
    if ((ta ? of.a.cols : of.a.rows) != m || (tb ? of.b.rows : of.b.cols) != n || (tb ? of.b.cols : of.b.rows) != k)
        fail("cuBLASLt: the shapes of a product do not fit");
    std::vector<double> a(m * k), b(k * n);
    for (std::uint64_t i = 0; i < m; ++i)
        for (std::uint64_t j = 0; j < k; ++j) a[i * k + j] = operand(A, of.a, ta, i, j, what.compute);
    for (std::uint64_t j = 0; j < n; ++j)
        for (std::uint64_t i = 0; i < k; ++i) b[j * k + i] = operand(B, of.b, tb, i, j, what.compute);
    for (std::uint64_t j = 0; j < n; ++j)
        for (std::uint64_t i = 0; i < m; ++i) {
            double sum = 0;
            for (std::uint64_t l = 0; l < k; ++l) sum += a[i * k + l] * b[j * k + l];
            sum *= alpha;
            const std::uint64_t at = j * static_cast<std::uint64_t>(of.c.ld) + i;
            if (beta != 0) sum += beta * load(C, of.c.type, at);
            if (what.epilogue == CUBLASLT_EPILOGUE_BIAS) sum += load(what.bias, of.c.type, i);
            store(D, of.c.type, at, sum);
        }
}

}  // namespace cuda_emulation

inline cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t what, const void* alpha, const void* A,
                                     cublasLtMatrixLayout_t a, const void* B, cublasLtMatrixLayout_t b,
                                     const void* beta, const void* C, cublasLtMatrixLayout_t c, void* D,
                                     cublasLtMatrixLayout_t d, const cublasLtMatmulAlgo_t* algo, void* workspace,
                                     std::size_t workspace_bytes, cudaStream_t stream) {
    using cuda_emulation::fail;
    const auto alignment_of = [](const void* p) {
        return reinterpret_cast<std::uintptr_t>(p) & -reinterpret_cast<std::uintptr_t>(p);
    };
    auto looked_up = *what;  // but for the bias, of which only its alignment matters
    if (algo != nullptr) looked_up.bias = algo->what.bias;
    if (algo == nullptr || algo->what != looked_up || algo->a.rows != a->rows || algo->b.cols != b->cols ||
        algo->c.ld != c->ld)
        fail("cuBLASLt: a product by an algorithm that was looked up for another");
    if (c != d) fail("cuBLASLt: the emulation takes one layout for what is added and the result");
    const void* operands[] = {A, B, C, D};
    for (int i = 0; i < 4; ++i)
        if (reinterpret_cast<std::uintptr_t>(operands[i]) % algo->alignment[i] != 0)
            fail("cuBLASLt: an operand is less aligned than was said");
    const auto require_device = [](const void* data, std::size_t bytes) {
        if (cuda_emulation::allocation_of(data) == nullptr ||
            cuda_emulation::allocation_of(static_cast<const char*>(data) + bytes - 1) !=
                cuda_emulation::allocation_of(data))
            fail("cuBLASLt: an operand is not in device memory");
    };
    for (const auto& [data, layout] : {std::pair<const void*, cublasLtMatrixLayout_t>{A, a}, {B, b}, {C, c}, {D, d}})
        require_device(data, ((layout->cols - 1) * static_cast<std::uint64_t>(layout->ld) + layout->rows) *
                                 cuda_emulation::size_of(layout->type));
    if (what->epilogue == CUBLASLT_EPILOGUE_BIAS) {
        require_device(what->bias, c->rows * cuda_emulation::size_of(c->type));
        if (alignment_of(what->bias) < alignment_of(algo->what.bias) && alignment_of(what->bias) < 16)
            fail("cuBLASLt: a bias is less aligned than the one that was looked up");
    }
    const auto scalar = [&](const void* x) {
        return what->scale == CUDA_R_64F ? *static_cast<const double*>(x) : double{*static_cast<const float*>(x)};
    };
    cuda_emulation::give(stream, [=, product = *what, by = *algo, alpha = scalar(alpha), beta = scalar(beta)] {
        const cuda_emulation::access open;
        if (workspace_bytes > 0) std::memset(workspace, 0xff, workspace_bytes < 4096 ? workspace_bytes : 4096);
        cuda_emulation::multiply(product, by, alpha, A, B, beta, C, D);
    });
    return CUBLAS_STATUS_SUCCESS;
}
