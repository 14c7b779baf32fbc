#pragma once
// The Euclidean norm of a row.

#include <cmath>
#include <cstddef>

namespace psae {

template <class T>
T euclidean_norm(const T* row, std::size_t d) {
    T squares = 0;
#pragma omp simd reduction(+ : squares)
    for (std::size_t c = 0; c < d; ++c) squares += row[c] * row[c];
    return std::sqrt(squares);
}

// Scales a row to unit norm; one of zeros stays.
template <class T>
void normalise(T* row, std::size_t d) {
    const T norm = euclidean_norm(row, d);
    if (norm == 0) return;
#pragma omp simd
    for (std::size_t c = 0; c < d; ++c) row[c] /= norm;
}

}  // namespace psae
