#pragma once
// What large products are computed in. Weights, moments and everything else are float.

namespace psae {

// fp32: floats, as IEEE rounds them. tf32: operands cut to 10 bits of fraction by a GPU's tensor cores, sums in float; a
// CPU has no such products and takes it for fp32. bf16: operands rounded to bf16, sums in float, several times faster
// where there are instructions for it.
enum class precision { fp32, tf32, bf16 };

}  // namespace psae
