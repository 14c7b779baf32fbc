#pragma once

#include <cstddef>
#include <vector>

namespace psae {

// x [rows, cols] as [cols, rows].
template <class T>
std::vector<T> transpose(const T* x, std::size_t rows, std::size_t cols) {
    std::vector<T> y(rows * cols);
    constexpr std::size_t tile = 32;
    const auto end = [](std::size_t first, std::size_t count) { return count - first > tile ? first + tile : count; };
    for (std::size_t r0 = 0; r0 < rows; r0 += tile)
        for (std::size_t c0 = 0; c0 < cols; c0 += tile)
            for (std::size_t r = r0; r < end(r0, rows); ++r)
                for (std::size_t c = c0; c < end(c0, cols); ++c) y[c * rows + r] = x[r * cols + c];
    return y;
}

}  // namespace psae
