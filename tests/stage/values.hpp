#pragma once
// Random operands, and results of stages on the CPU.
#include <catch2/catch.hpp>

#include <psae/core/random.hpp>
#include <psae/cpu/attention.hpp>
#include <psae/cpu/layer_norm.hpp>
#include <psae/cpu/matmul.hpp>
#include <psae/cpu/patch_embedding.hpp>
#include <psae/grad/check.hpp>
#include <psae/stage/attention.hpp>
#include <psae/stage/layer_norm.hpp>
#include <psae/stage/patch_embedding.hpp>
#include <psae/stage/reduce.hpp>

#include "../difference.hpp"

namespace psae {

template <class T, class Shape>
tensor<T, Shape> normal_tensor(const Shape& extents, std::uint64_t seed, double deviation = 1) {
    tensor<T, Shape> x(extents);
    random_stream random(seed);
    for (T& v : x) v = static_cast<T>(deviation * random.normal());
    return x;
}

using matrix = shape<dyn, dyn>;
using row = shape<dyn>;

// Runs a stage at once and copies its result. `result(zero)` calls it; zero is a scalar that brings the tape along.
template <class T, class Result>
auto run_stage(const Result& result, int threads = 0) {
    cpu device(threads);
    arena<> scratch;
    tape<cpu> t(device, scratch, mode::infer);
    tensor<T, shape<>> zero;
    const auto y = result(t.input(std::as_const(zero).view()));
    std::vector<T> values(y.data, y.data + y.size());
    return values;
}

}  // namespace psae
