#pragma once
// Random weights by name, of the size that keeps activations near 1.

#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include <psae/core/random.hpp>

struct random_weights {
    std::vector<float> read(const std::string& name, const std::vector<std::size_t>& shape) const {
        std::size_t size = 1;
        for (const std::size_t extent : shape) size *= extent;
        psae::random_stream random(std::hash<std::string>{}(name));
        const bool gain = name.find("norm") != std::string::npos && name.find("weight") != std::string::npos;
        const double deviation = shape.size() == 1 ? 0.3 : 1 / std::sqrt(double(size / shape[0]));
        std::vector<float> values(size);
        for (float& v : values) v = float((gain ? 1.0 : 0.0) + deviation * random.normal());
        return values;
    }
};
