// Arrays brought to the device and back beside what it computes. Under the emulation a stream does its work as late as it
// may, so these tests fail without any one of the waits.
#include <catch2/catch.hpp>

#include <psae/cuda/pointwise.hpp>
#include <psae/cuda/staging.hpp>
#include <psae/expr/functors.hpp>

#include "device.hpp"

using namespace psae;

namespace {

constexpr std::size_t n = 3000;

std::vector<float> numbers_of(std::size_t step, std::size_t count = n) {
    std::vector<float> x(count);
    for (std::size_t i = 0; i < count; ++i) x[i] = static_cast<float>(step * 1000 + i % 1000);
    return x;
}
const_view<float, row, space::device> as_view(const float* data, std::size_t count) { return {data, row{count}}; }

}  // namespace

TEST_CASE("batches are on the device for what is asked of it next, and stay until it is done") {
    cuda device;
    staged_upload<float, cuda> batches(device);
    const std::size_t steps = 7;
    tensor<float, matrix, space::device> results(matrix{steps, n});
    for (std::size_t step = 0; step < steps; ++step) {
        auto batch = numbers_of(step);
        const float* there = batches(batch.data(), n);
        std::fill(batch.begin(), batch.end(), -1.0f);  // has been copied
        const view<float, row, space::device> result{results.data() + step * n, row{n}};
        assign(device, result, as_view(there, n) * 2.0f);
    }
    const auto found = on_host(device, results);
    for (std::size_t step = 0; step < steps; ++step) {
        INFO("step " << step);
        auto wanted = numbers_of(step);
        for (float& v : wanted) v *= 2;
        CHECK(std::equal(wanted.begin(), wanted.end(), found.begin() + std::ptrdiff_t(step * n)));
    }
}

TEST_CASE("batches may grow and be empty") {
    cuda device;
    staged_upload<float, cuda> batches(device);
    for (const std::size_t count : {std::size_t{5}, std::size_t{0}, n, std::size_t{3}, 2 * n}) {
        const auto batch = numbers_of(count, count);
        CHECK(on_host(device, batches(batch.data(), count), count) == batch);
    }
}

TEST_CASE("results come back while the next ones are computed") {
    cuda device;
    staged_upload<float, cuda> batches(device);
    staged_download<float, cuda> results(device);
    const std::size_t steps = 7;
    std::vector<std::vector<float>> found(steps, std::vector<float>(n));
    for (std::size_t step = 0; step < steps; ++step) {
        const auto batch = numbers_of(step);
        const float* there = batches(batch.data(), n);
        float* result = results.next(n);
        assign(device, view<float, row, space::device>{result, row{n}}, as_view(there, n) + 1.0f);
        results.send(found[step].data(), n);
        if (step > 0) results.finish(found[step - 1].data());
    }
    results.finish(found[steps - 1].data());
    for (std::size_t step = 0; step < steps; ++step) {
        INFO("step " << step);
        auto wanted = numbers_of(step);
        for (float& v : wanted) v += 1;
        CHECK(found[step] == wanted);
    }
}

TEST_CASE("results that nobody takes make room; what is not on its way is an error") {
    cuda device;
    staged_download<float, cuda> results(device);
    std::vector<float> first(8), second(8), third(8);
    for (auto* to : {&first, &second, &third}) {
        fill(device, results.next(8), 8, to == &third ? 3.0f : 1.0f);
        results.send(to->data(), 8);
    }
    CHECK_THROWS_AS(results.finish(first.data()), error);
    results.finish(third.data());
    CHECK(third == std::vector<float>(8, 3.0f));
    results.finish(second.data());
    CHECK(second == std::vector<float>(8, 1.0f));
    CHECK_THROWS_AS(results.finish(second.data()), error);
}
