#pragma once
// Products of whole numbers of 16 bits, whose sums of 32 bits are exact. One instruction multiplies two numbers for
// each lane and adds them up, and one adds that to the sum (or the same one, where there is VNNI): beside two
// multiplications of floats this is 0.6 of the work on Zen 3, half of it with VNNI.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <psae/cpu/gemm.hpp>

namespace psae {

// Whether these products are well faster than oneDNN's of float on this machine, as compiled: where there is VNNI,
// which does twice float's work in an instruction, and on Zen 3, where it was measured. Decided by the kind of machine
// and not by a measurement, so that a run gives the same bits each time.
inline bool multiplies_int16_faster() {
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
    return true;
#elif defined(__AVX2__) && defined(__x86_64__)
    static const bool yes = [] {
        const auto isa = static_cast<unsigned>(dnnl_get_effective_cpu_isa()),
                   wide = static_cast<unsigned>(dnnl_cpu_isa_avx512_core);
        if ((isa & wide) == wide) return false;  // then oneDNN uses it for float
#if defined(__AVXVNNI__)
        return true;
#else
        return __builtin_cpu_is("znver3") != 0;
#endif
    }();
    return yes;
#else
    return false;
#endif
}

namespace detail {

// A tile of a product, in registers while it is summed up: A's rows of pairs times a panel of B, [pairs, columns]
// pairs.
struct int16_tile {
#if defined(__AVX512BW__)
    static constexpr std::size_t bytes = 64, rows = 6, vectors = 4;
#elif defined(__AVX2__)
    static constexpr std::size_t bytes = 32, rows = 4, vectors = 2;
#else
    static constexpr std::size_t bytes = 16, rows = 4, vectors = 2;
#endif
    typedef std::int32_t vector __attribute__((vector_size(bytes), may_alias));  // sums, or pairs of numbers
    typedef float floats __attribute__((vector_size(bytes), may_alias, aligned(alignof(float))));
    static constexpr std::size_t lanes = bytes / sizeof(std::int32_t), columns = vectors * lanes;

    PSAE_HOST_FN static vector add_products(vector sum, vector a, vector b) {
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
        return (vector)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
#elif defined(__AVX512BW__)
        return sum + (vector)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__) && defined(__AVXVNNI__)
        return (vector)_mm256_dpwssd_avx_epi32((__m256i)sum, (__m256i)a, (__m256i)b);
#elif defined(__AVX2__)
        return sum + (vector)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__x86_64__)
        return sum + (vector)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
        const auto low = [](vector pair) { return (pair << 16) >> 16; };
        const auto high = [](vector pair) { return pair >> 16; };
        return sum + low(a) * low(b) + high(a) * high(b);
#endif
    }

    // v itself. A compiler left to itself takes several additions to a sum apart, for which there are too few
    // registers, and loads what stands in memory again for each row.
    PSAE_HOST_FN static vector in_register(vector v) {
#if defined(__AVX512F__)
        asm("" : "+v"(v));
#elif defined(__x86_64__)
        asm("" : "+x"(v));
#endif
        return v;
    }
    // sum += the pairs of each row of A, which are `stride` numbers apart, by a row of the panel. Written out, for the
    // compiler to keep the sums in registers.
    template <std::size_t... Row, std::size_t... Vector>
    PSAE_HOST_FN static void add_outer_product(vector (&sum)[rows][vectors], const std::int16_t* A, std::size_t stride,
                                               const std::int16_t* panel_row, std::index_sequence<Row...>,
                                               std::index_sequence<Vector...>) {
        const vector b[] = {in_register(reinterpret_cast<const vector*>(panel_row)[Vector])...};
        const auto add = [&](vector(&of_row)[vectors], const std::int16_t* pair) {
            std::int32_t both;
            std::memcpy(&both, pair, sizeof both);
            const vector a = both - vector{};
            ((of_row[Vector] = in_register(add_products(of_row[Vector], a, b[Vector]))), ...);
        };
        (add(sum[Row], A + Row * stride), ...);
    }
    // C [rows, columns] = the sums, times the scale of their row and of their column. A: rows of `pairs` pairs; the
    // panel is aligned.
    static void product(float* C, std::size_t ldc, const std::int16_t* A, const float* row_scale,
                        const std::int16_t* panel, const float* column_scale, std::size_t pairs) {
        vector sum[rows][vectors] = {};
        const auto step = [&](std::size_t p) {
            add_outer_product(sum, A + p * 2, pairs * 2, panel + p * columns * 2, std::make_index_sequence<rows>(),
                              std::make_index_sequence<vectors>());
        };
        std::size_t p = 0;
        for (; p + 4 <= pairs; p += 4)  // a third faster than one at a time
            step(p), step(p + 1), step(p + 2), step(p + 3);
        for (; p < pairs; ++p) step(p);
        for (std::size_t r = 0; r < rows; ++r)
            for (std::size_t v = 0; v < vectors; ++v) {
                const floats scale = *reinterpret_cast<const floats*>(column_scale + v * lanes);
                *reinterpret_cast<floats*>(C + r * ldc + v * lanes) =
                    __builtin_convertvector(sum[r][v], floats) * row_scale[r] * scale;
            }
    }
    // n rounded up to whole tiles of so many rows or columns.
    static constexpr std::size_t filled(std::size_t n, std::size_t of) { return (n + of - 1) / of * of; }
    // Puts row j, of `pairs` pairs, into its panel.
    static void pack(std::int16_t* panels, std::size_t j, const std::int16_t* row, std::size_t pairs) {
        std::int16_t* to = panels + (j / columns * columns * pairs + j % columns) * 2;
        for (std::size_t p = 0; p < pairs; ++p) std::memcpy(to + p * columns * 2, row + p * 2, 2 * sizeof *row);
    }
};

}  // namespace detail

// C [M, N] = A B^T, times the scales of A's and of B's rows. Numbers are in pairs along a row: A [M, pairs] pairs, B as
// panels of int16_tile::columns rows. Both have room for whole tiles. No sum of products may leave 32 bits, which none
// does if |a| |b| < 2^31 for the norms of all rows.
inline void int16_product(const cpu& device, float* C, std::size_t M, std::size_t N, std::size_t pairs,
                          const std::int16_t* A, const float* row_scale, const std::int16_t* panels,
                          const float* column_scale) {
    using tile = detail::int16_tile;
    if (M == 0 || N == 0) return;
    constexpr std::size_t block = 96 / tile::rows * tile::rows;  // rows of a task: 150 KB for 768 columns
    constexpr std::size_t tasks_per_thread = 4;
    const std::size_t blocks = (M + block - 1) / block, panels_of_all = (N + tile::columns - 1) / tile::columns,
                      wanted = static_cast<std::size_t>(device.threads) * tasks_per_thread,
                      parts = std::clamp<std::size_t>(wanted / blocks, 1, panels_of_all),
                      part = (panels_of_all + parts - 1) / parts * tile::columns;  // columns of a task
    device.parallel_for(blocks * parts, [=](std::size_t task) {
        const std::size_t first = task / parts * block, first_column = task % parts * part;
        alignas(64) float edge[tile::rows * tile::columns];
        for (std::size_t n = first_column; n < std::min(N, first_column + part); n += tile::columns)
            for (std::size_t m = first; m < std::min(M, first + block); m += tile::rows) {
                const std::size_t rows = std::min(tile::rows, M - m), columns = std::min(tile::columns, N - n);
                const bool is_whole = rows == tile::rows && columns == tile::columns;
                float* to = C + m * N + n;
                tile::product(is_whole ? to : edge, is_whole ? N : tile::columns, A + m * pairs * 2, row_scale + m,
                              panels + n * pairs * 2, column_scale + n, pairs);
                if (!is_whole)
                    for (std::size_t r = 0; r < rows; ++r) std::copy_n(edge + r * tile::columns, columns, to + r * N);
            }
    });
}

}  // namespace psae
