#pragma once
// Times on a GPU and the table that they make: medians of CUDA events, beside floors that the same run has measured.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include <psae/cuda.hpp>

namespace psae_bench {

using namespace psae;

template <class T>
using device_numbers = tensor<T, shape<dyn>, space::device>;

inline const char* name_of(precision p) {
    return p == precision::fp32 ? "fp32" : p == precision::tf32 ? "TF32" : "bf16";
}

// Normal numbers that repeat: making more takes longer than all that is measured. The period has no factor in common with
// the length of a row, so rows do not repeat.
inline std::vector<float> some_normal_numbers(std::uint64_t seed) {
    std::vector<float> some(1000003);
    random_stream random(seed);
    for (float& v : some) v = random.normal();
    return some;
}
inline device_numbers<float> random_numbers(const psae::cuda& device, std::size_t count, std::uint64_t seed) {
    const auto some = some_normal_numbers(seed);
    device_numbers<float> there(shape<dyn>{count});
    for (std::size_t i = 0; i < count; i += some.size())
        upload(device, there.data() + i, some.data(), std::min(some.size(), count - i));
    return there;
}

class measurement {
public:
    // repeats: timed calls of each median. The shape of the SAEs: d, latents.
    measurement(int repeats, std::size_t d, std::size_t latents) : d(d), latents(latents), repeats_(repeats) {
        detail::check(cudaEventCreate(&start_), "event");
        detail::check(cudaEventCreate(&end_), "event");
        const std::size_t count = d * latents;
        const auto from = random_numbers(device, count, 2);
        device_numbers<float> to(shape<dyn>{count});
        const double ms = median([&] {
            detail::check(cudaMemcpyAsync(to.data(), from.data(), count * sizeof(float), cudaMemcpyDeviceToDevice,
                                          device.stream()),
                          "copy");
        });
        copy_bytes_per_ms_ = 2.0 * double(count) * sizeof(float) / ms;
    }
    measurement(const measurement&) = delete;
    measurement& operator=(const measurement&) = delete;
    ~measurement() {
        cudaEventDestroy(start_);
        cudaEventDestroy(end_);
    }

    // The median time of f() in milliseconds, after three calls that are not counted.
    template <class F>
    double median(const F& f) {
        std::vector<float> times;
        for (int i = -3; i < repeats_; ++i) {
            detail::check(cudaEventRecord(start_, device.stream()), "event");
            f();
            detail::check(cudaEventRecord(end_, device.stream()), "event");
            detail::check(cudaEventSynchronize(end_), "event");
            float ms = 0;
            detail::check(cudaEventElapsedTime(&ms, start_, end_), "event");
            if (i >= 0) times.push_back(ms);
        }
        std::nth_element(times.begin(), times.begin() + std::ptrdiff_t(times.size() / 2), times.end());
        return double(times[times.size() / 2]);
    }

    // The bare product op(A) op(B) of [M, K] and [K, N] in the precision of the device, its operands rounded before.
    double product_ms(bool transpose_a, bool transpose_b, std::size_t M, std::size_t N, std::size_t K) {
        const std::size_t lda = transpose_a ? M : K, ldb = transpose_b ? K : N;
        const auto a = random_numbers(device, M * K, 3), b = random_numbers(device, K * N, 4);
        device_numbers<float> c(shape<dyn>{M * N});
        const auto time = [&](const auto* A, const auto* B) {
            return median(
                [&] { gemm(device, transpose_a, transpose_b, M, N, K, 1.0f, A, lda, B, ldb, 0.0f, c.data(), N); });
        };
        if (device.products != precision::bf16) return time(a.data(), b.data());
        device_numbers<bf16> rounded_a(shape<dyn>{M * K}), rounded_b(shape<dyn>{K * N});
        round_to_bf16(device, rounded_a.data(), a.data(), M * K);
        round_to_bf16(device, rounded_b.data(), b.data(), K * N);
        return time(std::as_const(rounded_a).data(), std::as_const(rounded_b).data());
    }
    // What it takes to read and write so many bytes at the speed of a copy.
    double traffic_ms(double bytes) const { return bytes / copy_bytes_per_ms_; }
    double copy_gigabytes_per_s() const { return copy_bytes_per_ms_ / 1e6; }

    void head() const {
        std::printf(
            "| work | precision | ms | floor, ms | ratio | goal | the floor |\n|---|---|---|---|---|---|---|\n");
    }
    // floor: what floor_ms is the time of; goal: the largest ratio that is good enough, 0 for none.
    void row(const std::string& work, double ms, double floor_ms, const char* floor, double goal) const {
        std::printf("| %s | %s | %.3f | %.3f | %.2f | %s | %s |\n", work.c_str(), name_of(device.products), ms,
                    floor_ms, ms / floor_ms, goal > 0 ? ("at most " + std::to_string(goal).substr(0, 4)).c_str() : "",
                    floor);
        std::fflush(stdout);
    }

    psae::cuda device;
    const std::size_t d, latents;

private:
    int repeats_;
    double copy_bytes_per_ms_ = 1;
    cudaEvent_t start_ = nullptr, end_ = nullptr;
};

}  // namespace psae_bench
