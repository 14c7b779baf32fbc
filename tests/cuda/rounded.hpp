#pragma once
// Numbers in bf16, and back as floats.

#include <vector>

#include <psae/core/element.hpp>

template <class Numbers>
std::vector<psae::bf16> rounded(const Numbers& x) {
    std::vector<psae::bf16> copy;
    for (const float v : x) copy.push_back(psae::to_bf16(v));
    return copy;
}
inline std::vector<float> widened(const std::vector<psae::bf16>& x) {
    std::vector<float> copy;
    for (const psae::bf16 v : x) copy.push_back(psae::widen(v));
    return copy;
}
