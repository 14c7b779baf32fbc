#pragma once
// Matrix products on the CPU: oneDNN for float, a plain blocked loop for double (gradient checks).

#include <algorithm>
#include <cstddef>

#include <dnnl.h>

#include <psae/cpu/backend.hpp>

namespace psae {

// C [M, N] = alpha * op(A) op(B) + beta * C, row-major with leading dimensions lda, ldb, ldc; op transposes where
// asked. beta = 0 overwrites C whatever it holds.
inline void gemm(const cpu& device, bool transpose_a, bool transpose_b, std::size_t M, std::size_t N, std::size_t K,
                 float alpha, const float* A, std::size_t lda, const float* B, std::size_t ldb, float beta, float* C,
                 std::size_t ldc) {
    if (M == 0 || N == 0) return;
    // oneDNN asks OpenMP for the number of threads; the setting is the calling thread's own.
    const int threads_before = omp_get_max_threads();
    omp_set_num_threads(device.threads);
    const auto i = [](std::size_t n) { return static_cast<dnnl_dim_t>(n); };
    const dnnl_status_t status = dnnl_sgemm(transpose_a ? 'T' : 'N', transpose_b ? 'T' : 'N', i(M), i(N), i(K), alpha,
                                            A, i(lda), B, i(ldb), beta, C, i(ldc));
    omp_set_num_threads(threads_before);
    if (status != dnnl_success)
        throw error("oneDNN refused a matrix product", "gemm", "status " + std::to_string(status));
}

inline void gemm(const cpu& device, bool transpose_a, bool transpose_b, std::size_t M, std::size_t N, std::size_t K,
                 double alpha, const double* A, std::size_t lda, const double* B, std::size_t ldb, double beta,
                 double* C, std::size_t ldc) {
    constexpr std::size_t block = 16;
    device.parallel_for((M + block - 1) / block, [&](std::size_t b) {
        for (std::size_t m = b * block; m < std::min(M, (b + 1) * block); ++m)
            for (std::size_t n = 0; n < N; ++n) {
                double sum = 0;
                for (std::size_t k = 0; k < K; ++k)
                    sum += (transpose_a ? A[k * lda + m] : A[m * lda + k]) *
                           (transpose_b ? B[n * ldb + k] : B[k * ldb + n]);
                C[m * ldc + n] = alpha * sum + (beta == 0 ? 0.0 : beta * C[m * ldc + n]);
            }
    });
}

}  // namespace psae
