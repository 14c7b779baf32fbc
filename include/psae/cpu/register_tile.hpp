#pragma once
// The inner loops of matrix products: a tile of the result stays in registers while it is summed up.

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include <psae/core/vector_math.hpp>

namespace psae::detail {

#if defined(__AVX512F__)
inline constexpr std::size_t vector_bytes = 64;
#elif defined(__AVX__)
inline constexpr std::size_t vector_bytes = 32;
#else
inline constexpr std::size_t vector_bytes = 16;  // what every machine has; wider ones would change the ABI
#endif

// 6 rows by 4 vectors take 24 of AVX-512's 32 registers, 6 by 2 take 12 of the 16 elsewhere. In each step of a sum a
// tile loads `vectors` vectors of B and one element of A for each row.
template <class T, std::size_t Bytes = vector_bytes>
struct register_tile {
    typedef T vector __attribute__((vector_size(Bytes), may_alias));
    static constexpr std::size_t lanes = Bytes / sizeof(T), rows = 6, vectors = Bytes == 64 ? 4 : 2;
    static constexpr std::size_t columns = vectors * lanes;

    // n rounded up to whole vectors.
    static constexpr std::size_t padded(std::size_t n) { return (n + lanes - 1) / lanes * lanes; }

    // exp of each element: fast_exp's polynomial, written for vectors, which nvcc refuses in what is for devices too.
    PSAE_HOST_FN static vector exponential(vector x) {
        if constexpr (std::is_same_v<T, float>) {
            typedef std::int32_t integers __attribute__((vector_size(Bytes)));
            x = x < vector{} - 87.0f ? vector{} - 87.0f : x;
            x = x > vector{} + 88.0f ? vector{} + 88.0f : x;
            const vector n = (x * 1.44269504088896341f + 12582912.0f) - 12582912.0f;
            const vector r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
            vector p = r * 1.9875691500e-4f + 1.3981999507e-3f;
            p = p * r + 8.3334519073e-3f;
            p = p * r + 4.1665795894e-2f;
            p = p * r + 1.6666665459e-1f;
            p = p * r + 5.0000001201e-1f;
            p = p * r * r + r + 1.0f;
            return p * __builtin_bit_cast(vector, (__builtin_convertvector(n, integers) + 127) << 23);
        } else {
            for (std::size_t lane = 0; lane < lanes; ++lane) x[lane] = fast_exp(x[lane]);
            return x;
        }
    }

    // C [rows, Vectors * lanes] (+)= A [rows, inner] B [inner, Vectors * lanes]; B and C are aligned. With every eighth
    // row of B, one cache line of `next` is fetched to the second-level cache: inner / 8 lines in all.
    template <std::size_t Vectors, bool Add = false>
    static void product(T* C, std::size_t ldc, const T* A, std::size_t lda, const T* B, std::size_t ldb,
                        std::size_t inner, const void* next = nullptr) {
        vector sum[rows][Vectors] = {};
        if constexpr (Add)
            for (std::size_t r = 0; r < rows; ++r)
                for (std::size_t v = 0; v < Vectors; ++v)
                    sum[r][v] = *reinterpret_cast<const vector*>(C + r * ldc + v * lanes);
        std::size_t k = 0;
        for (const char* line = static_cast<const char*>(next); k + 8 <= inner; k += 8, line += 64) {
            __builtin_prefetch(line, 0, 2);
#ifndef __CUDACC__  // which does not know it, and leaves host code to a compiler that does
#pragma GCC unroll 8
#endif
            for (std::size_t i = 0; i < 8; ++i) add_outer_product(sum, A + k + i, lda, B + (k + i) * ldb);
        }
        for (; k < inner; ++k) add_outer_product(sum, A + k, lda, B + k * ldb);
        for (std::size_t r = 0; r < rows; ++r)
            for (std::size_t v = 0; v < Vectors; ++v) *reinterpret_cast<vector*>(C + r * ldc + v * lanes) = sum[r][v];
    }

    // sum += a column of A by a row of B.
    template <std::size_t Vectors>
    PSAE_HOST_FN static void add_outer_product(vector (&sum)[rows][Vectors], const T* A, std::size_t lda, const T* B) {
        vector b[Vectors];
        for (std::size_t v = 0; v < Vectors; ++v) b[v] = *reinterpret_cast<const vector*>(B + v * lanes);
        for (std::size_t r = 0; r < rows; ++r) {
            const vector a = A[r * lda] - vector{};
            for (std::size_t v = 0; v < Vectors; ++v) sum[r][v] += a * b[v];
        }
    }

    // C = A B for a number of rows that is a multiple of `rows`, and of columns that is a multiple of `lanes`.
    static void product(T* C, std::size_t ldc, const T* A, std::size_t lda, const T* B, std::size_t ldb,
                        std::size_t inner, std::size_t row_count, std::size_t column_count) {
        std::size_t first = 0;
        const auto panels = [&]<std::size_t Vectors>(std::integral_constant<std::size_t, Vectors>) {
            for (; first + Vectors * lanes <= column_count; first += Vectors * lanes)
                for (std::size_t r = 0; r < row_count; r += rows)
                    product<Vectors>(C + r * ldc + first, ldc, A + r * lda, lda, B + first, ldb, inner);
        };
        if constexpr (vectors == 4) {
            panels(std::integral_constant<std::size_t, 4>{});
            panels(std::integral_constant<std::size_t, 3>{});
        }
        panels(std::integral_constant<std::size_t, 2>{});
        panels(std::integral_constant<std::size_t, 1>{});
    }
};

}  // namespace psae::detail
