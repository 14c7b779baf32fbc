#pragma once
// Where the decoder bias starts: the geometric median or the mean of activations.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

namespace psae {

// The mean of rows x [n, d].
template <class T>
std::vector<T> row_mean(const T* x, std::size_t n, std::size_t d) {
    std::vector<double> sum(d, 0.0);
    for (std::size_t r = 0; r < n; ++r)
        for (std::size_t c = 0; c < d; ++c) sum[c] += static_cast<double>(x[r * d + c]);
    std::vector<T> mean(d);
    for (std::size_t c = 0; c < d; ++c) mean[c] = static_cast<T>(sum[c] / static_cast<double>(n));
    return mean;
}

// The point with the least sum of Euclidean distances to the rows x [n, d], by Weiszfeld's iteration from the mean with
// weights 1 / max(distance, 1e-6); at most `iterations`, until the objective no longer falls. Computed in double.
// (PatchSAE's own start takes the median over whole images in T * d space and then the mean over tokens; give it the
// images as rows and average the result over tokens to reproduce that.)
template <class T>
std::vector<T> geometric_median(const T* x, std::size_t n, std::size_t d, int iterations = 100) {
    const std::vector<T> start = row_mean(x, n, d);
    std::vector<double> median(start.begin(), start.end()), next(d);
    double objective = 0;
    for (int i = 0; i < iterations; ++i) {
        std::fill(next.begin(), next.end(), 0.0);
        double sum_of_weights = 0, sum_of_distances = 0;
        for (std::size_t r = 0; r < n; ++r) {
            double squares = 0;
            for (std::size_t c = 0; c < d; ++c) {
                const double difference = static_cast<double>(x[r * d + c]) - median[c];
                squares += difference * difference;
            }
            const double distance = std::sqrt(squares), weight = 1 / std::max(distance, 1e-6);
            sum_of_distances += distance;
            sum_of_weights += weight;
            for (std::size_t c = 0; c < d; ++c) next[c] += weight * static_cast<double>(x[r * d + c]);
        }
        if (i > 0 && objective - sum_of_distances <= 1e-20 * objective) break;
        objective = sum_of_distances;
        for (std::size_t c = 0; c < d; ++c) median[c] = next[c] / sum_of_weights;
    }
    return {median.begin(), median.end()};
}

}  // namespace psae
