#pragma once
// In the place of the header of this name: the products of a warp, by lanes that look at each other's registers.

#include <cuda_runtime.h>

#include <psae/core/element.hpp>

namespace psae::detail {

inline double half_of_register(std::uint32_t pair, unsigned which) {
    return double{widen(bf16{static_cast<std::uint16_t>(pair >> (16 * which))})};
}

inline void multiply_add(float (&sums)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
    using namespace cuda_emulation;
    struct registers {
        const std::uint32_t *a, *b;
    };
    const registers own{a, b};
    const registers* all[lanes];
    for (unsigned lane = 0; lane < lanes; ++lane) all[lane] = __shfl_sync(0xffffffffu, &own, static_cast<int>(lane));
    const unsigned row = threadIdx.x % lanes / 4, pair = threadIdx.x % 4 * 2;
    for (unsigned i = 0; i < 4; ++i) {
        double sum = double{sums[i]};
        for (unsigned k = 0; k < 16; ++k) {
            const registers &of_row = *all[row * 4 + k % 8 / 2], &of_column = *all[(pair + i % 2) * 4 + k % 8 / 2];
            sum += half_of_register(of_row.a[i / 2 + k / 8 * 2], k % 2) * half_of_register(of_column.b[k / 8], k % 2);
        }
        sums[i] = static_cast<float>(sum);
    }
    __syncwarp();  // nobody's registers change before all have looked
}

template <bool transposed>
void load_matrices(std::uint32_t (&of)[4], const void* row) {
    using namespace cuda_emulation;
    if (reinterpret_cast<std::uintptr_t>(row) % 16 != 0) fail("a row of a matrix is not at a multiple of 16 bytes");
    const bf16* rows[lanes];
    for (unsigned lane = 0; lane < lanes; ++lane)
        rows[lane] = static_cast<const bf16*>(__shfl_sync(0xffffffffu, row, static_cast<int>(lane)));
    const unsigned r = threadIdx.x % lanes / 4, c = threadIdx.x % 4 * 2;
    for (unsigned i = 0; i < 4; ++i) {
        const bf16 *const *matrix = rows + 8 * i, *first = matrix[transposed ? c : r] + (transposed ? r : c),
                          *second = transposed ? matrix[c + 1] + r : first + 1;
        of[i] = first->bits | std::uint32_t{second->bits} << 16;
    }
    __syncwarp();  // nobody writes there before all have read
}

inline std::uint32_t rounded_pair(float first, float second) {
    return to_bf16(first).bits | std::uint32_t{to_bf16(second).bits} << 16;
}

}  // namespace psae::detail
