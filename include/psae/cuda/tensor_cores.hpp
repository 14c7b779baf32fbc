#pragma once
// What kernels say to the tensor cores, and to the shared memory that feeds them. The emulation has a header in the place
// of this one.

#include <cstdint>

namespace psae::detail {

// sums [16, 8] += a [16, 16] b [16, 8], of bf16 in float, by a whole warp (PTX: mma.m16n8k16). A register of a or b has
// two numbers, the first in its lower half. With r = lane / 4 and c = lane % 4 * 2, a lane holds
//   of a:    (r, c) (r, c+1) | (r+8, c) (r+8, c+1) | (r, c+8) (r, c+9) | (r+8, c+8) (r+8, c+9)
//   of b:    (c, r) (c+1, r) | (c+8, r) (c+9, r)
//   of sums: (r, c) | (r, c+1) | (r+8, c) | (r+8, c+1)
__device__ inline void multiply_add(float (&sums)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four matrices [8, 8] of bf16 from shared memory, by a whole warp (PTX: ldmatrix). `row` is row lane % 8 of matrix lane / 8,
// 16 bytes at a multiple of 16. With r and c as above a lane gets (r, c) (r, c+1) of each; transposed, (c, r) (c+1, r).
template <bool transposed>
__device__ inline void load_matrices(std::uint32_t (&of)[4], const void* row) {
    const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(row));
    if constexpr (transposed)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(of[0]), "=r"(of[1]), "=r"(of[2]), "=r"(of[3])
                     : "r"(address)
                     : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(of[0]), "=r"(of[1]), "=r"(of[2]), "=r"(of[3])
                     : "r"(address)
                     : "memory");
}

// Two floats rounded to bf16, in a register as above.
__device__ inline std::uint32_t rounded_pair(float first, float second) {
    std::uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    return pair;
}

}  // namespace psae::detail
