#pragma once
// Random numbers: Philox4x32-10 (Salmon et al., Parallel random numbers: as easy as 1, 2, 3; SC 2011). Counter-based,
// so the state is (seed, position) and the same numbers come out on every machine and with every number of threads.

#include <cmath>
#include <cstddef>
#include <cstdint>

namespace psae {

class random_stream {
public:
    explicit random_stream(std::uint64_t seed, std::uint64_t position = 0) : seed_(seed), position_(position) {}

    // A uniform 32-bit integer.
    std::uint32_t bits() {
        const std::uint64_t i = position_++;
        std::uint32_t block[4];
        philox(i / 4, block);
        return block[i % 4];
    }
    // Uniform in [0, 1), a multiple of 2^-24.
    float uniform() { return static_cast<float>(bits() >> 8) * 0x1p-24f; }
    // Uniform in [0, n), n > 0; by multiplication, bias below n / 2^64.
    std::uint64_t below(std::uint64_t n) {
        const std::uint64_t high = bits();
        const std::uint64_t value = (high << 32) | bits();
        return static_cast<std::uint64_t>((static_cast<unsigned __int128>(value) * n) >> 64);
    }
    // Standard normal, by Box and Muller.
    float normal() {
        const float u = 1.0f - uniform();  // in (0, 1]
        const float angle = 6.28318530717958647692f * uniform();
        return std::sqrt(-2.0f * std::log(u)) * std::cos(angle);
    }

    std::uint64_t seed() const { return seed_; }
    std::uint64_t position() const { return position_; }

private:
    void philox(std::uint64_t counter, std::uint32_t out[4]) const {
        std::uint32_t c[4] = {static_cast<std::uint32_t>(counter), static_cast<std::uint32_t>(counter >> 32), 0, 0};
        auto k0 = static_cast<std::uint32_t>(seed_), k1 = static_cast<std::uint32_t>(seed_ >> 32);
        for (int round = 0; round < 10; ++round) {
            const std::uint64_t a = std::uint64_t{0xD2511F53u} * c[0], b = std::uint64_t{0xCD9E8D57u} * c[2];
            const std::uint32_t next[4] = {
                static_cast<std::uint32_t>(b >> 32) ^ c[1] ^ k0, static_cast<std::uint32_t>(b),
                static_cast<std::uint32_t>(a >> 32) ^ c[3] ^ k1, static_cast<std::uint32_t>(a)};
            for (int j = 0; j < 4; ++j) c[j] = next[j];
            k0 += 0x9E3779B9u;
            k1 += 0xBB67AE85u;
        }
        for (int j = 0; j < 4; ++j) out[j] = c[j];
    }

    std::uint64_t seed_, position_;
};

// A random permutation of 0 .. n-1 (Fisher and Yates).
template <class Container>
void shuffle(Container& items, random_stream& random) {
    for (std::size_t i = items.size(); i > 1; --i) {
        using std::swap;
        swap(items[i - 1], items[random.below(i)]);
    }
}

}  // namespace psae
