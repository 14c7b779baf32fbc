#pragma once
// Weights of a tower of which only the work counts.

#include <string>
#include <vector>

#include <psae/core/random.hpp>

// Matrices of small random numbers, gains of norms of one, biases of zero.
struct random_weights {
    std::vector<float> read(const std::string& name, const std::vector<std::size_t>& shape) const {
        std::size_t size = 1;
        for (const std::size_t extent : shape) size *= extent;
        std::vector<float> values(size, name.find("norm") != std::string::npos ? 1.0f : 0.0f);
        psae::random_stream random(7);
        if (shape.size() > 1)
            for (float& v : values) v = 0.03f * (random.uniform() - 0.5f);
        return values;
    }
};
