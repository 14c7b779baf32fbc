// Encoders on the GPU keep what those on the CPU keep. Whole numbers, so that sums have to be equal to the bit.
#include <cmath>
#include <limits>

#include <psae/cpu/encode.hpp>
#include <psae/cuda/encode.hpp>

#include "device.hpp"

using namespace psae;

namespace {

template <class T>
struct problem {
    std::size_t tokens, d, latents;
    std::vector<T> x, W, b;
    std::vector<std::uint32_t> among;  // empty: all
    bool of_none = false;              // of the latents of a set that is empty

    bool of_all() const { return among.empty() && !of_none; }
};

template <class T>
problem<T> whole_numbers(std::size_t tokens, std::size_t d, std::size_t latents, std::uint64_t seed, double bias = 0,
                         std::uint64_t most = 300) {
    problem<T> p{tokens, d, latents, {}, {}, {}, {}};
    random_stream random(seed);
    const auto draw = [&](std::vector<T>& v, std::size_t n) {
        v.resize(n);
        for (T& value : v) value = static_cast<T>(random.below(2 * most + 1)) - static_cast<T>(most);
    };
    draw(p.x, tokens * d);
    draw(p.W, latents * d);
    draw(p.b, latents);
    for (T& value : p.b) value += static_cast<T>(bias);
    return p;
}

template <class T>
struct outcome {
    std::vector<std::size_t> offsets;
    std::vector<std::uint32_t> latent;
    std::vector<T> value;
    T least = -1;
    bool operator==(const outcome&) const = default;
};

template <class T, class Activation>
outcome<T> kept_here(const problem<T>& p, const Activation& activation) {
    psae::cpu device;
    device.screening = screening::never;
    arena<> scratch;
    codes_view<T> z;
    outcome<T> o;
    const std::size_t count = p.among.size();
    const latent_set among{p.among.data(), &count, count};
    encode(device, scratch, z, p.x.data(), p.tokens, p.d, p.W.data(), p.b.data(), p.latents, activation,
           p.of_all() ? nullptr : &among, &o.least);
    o.offsets.assign(z.offsets, z.offsets + p.tokens + 1);
    o.latent.assign(z.latent, z.latent + z.entries());
    o.value.assign(z.value, z.value + z.entries());
    return o;
}

template <class T>
using array = device_array<T, psae::cuda>;

// A problem on the device, whose encoders may be told how to go about it. A set has room for more latents than it has.
template <class T>
struct device_problem {
    const problem<T>& p;
    psae::cuda device;
    array<T> x, W, b, least;
    array<std::uint32_t> index;
    array<std::size_t> count;
    latent_set among;

    explicit device_problem(const problem<T>& of)
        : p(of),
          x(on_device(device, p.x)),
          W(on_device(device, p.W)),
          b(on_device(device, p.b)),
          least(on_device(device, std::vector<T>{-1})),
          index(spoilt_tensor<std::uint32_t>(device, row{p.among.size() + 70})),
          count(on_device(device, std::vector<std::size_t>{p.among.size()})),
          among{index.data(), count.data(), index.size()} {
        upload(device, index.data(), p.among.data(), p.among.size());
    }
    template <class Activation>
    outcome<T> kept(const Activation& activation) {
        spoilt_arena scratch(device);
        codes_view<T> z;
        encode(device, scratch, z, static_cast<const T*>(x.data()), p.tokens, p.d, static_cast<const T*>(W.data()),
               static_cast<const T*>(b.data()), p.latents, activation, p.of_all() ? nullptr : &among, least.data());
        return outcome_of(z, activation);
    }
    // With a plan: the codes, what they needed, and whether the room was too small.
    template <class Activation>
    std::tuple<outcome<T>, selection_room, bool> kept_as_planned(const Activation& activation,
                                                                 const selection_room* expected) {
        spoilt_arena scratch(device);
        auto needed = on_device(device, std::vector<selection_room>(1));
        auto too_small = on_device(device, std::vector<std::uint32_t>{0});
        codes_view<T> z;
        encode(device, scratch, z, static_cast<const T*>(x.data()), p.tokens, p.d, static_cast<const T*>(W.data()),
               static_cast<const T*>(b.data()), p.latents, activation, p.of_all() ? nullptr : &among, least.data(),
               {expected, needed.data(), too_small.data()});
        const bool failed = on_host(device, too_small)[0] != 0;
        if (failed) return {{}, on_host(device, needed)[0], true};
        return {outcome_of(z, activation, expected == nullptr), on_host(device, needed)[0], false};
    }
    // With chunks of so many latents, and little or no room to begin with.
    template <class Activation>
    outcome<T> kept_in_chunks(const Activation& activation, std::size_t chunk) {
        spoilt_arena scratch(device);
        codes_view<T> z;
        z.tokens = p.tokens;
        z.latents = p.latents;
        const detail::encoded_columns columns = p.of_all()
                                                    ? detail::encoded_columns{p.latents}
                                                    : detail::encoded_columns{among.room, among.index, among.count};
        const detail::chunked_products<T> pre{device,   scratch,  x.data(), p.tokens, p.d,
                                              W.data(), b.data(), columns,  chunk};
        if constexpr (detail::selects_per_token<Activation>) detail::select(pre, z, activation);
        else if constexpr (detail::selects_per_batch<Activation>) detail::select(pre, z, activation, least.data(), 0);
        else detail::select(pre, z, activation, 1);
        return outcome_of(z, activation);
    }

private:
    template <class Activation>
    outcome<T> outcome_of(const codes_view<T>& z, const Activation& activation, bool room_is_exact = true) {
        REQUIRE(z.tokens == p.tokens);
        REQUIRE(z.latents == p.latents);
        REQUIRE(z.latent_offsets == nullptr);
        outcome<T> o;
        o.offsets = on_host(device, z.offsets, p.tokens + 1);
        REQUIRE(o.offsets[p.tokens] <= z.room);
        const std::size_t columns = p.of_all() ? p.latents : among.room;
        if constexpr (detail::selects_per_token<Activation>)
            CHECK(z.room == p.tokens * std::min(activation.k, columns));
        else if constexpr (detail::selects_per_batch<Activation>)
            CHECK(z.room == std::min(activation.batch_entries(p.tokens), p.tokens * columns));
        else if (room_is_exact) CHECK(z.room == o.offsets[p.tokens]);
        o.latent = on_host(device, z.latent, o.offsets[p.tokens]);
        o.value = on_host(device, z.value, o.offsets[p.tokens]);
        o.least = on_host(device, least)[0];
        return o;
    }
};

template <class T, class Activation>
void check(const problem<T>& p, const Activation& here, const Activation& there) {
    const outcome<T> expected = kept_here(p, here);
    device_problem<T> on_gpu(p);
    CHECK(on_gpu.kept(there) == expected);
    CHECK(on_gpu.kept_in_chunks(there, 64) == expected);
    CHECK(on_gpu.kept_in_chunks(there, 192) == expected);
    if constexpr (!detail::selects_per_token<Activation>) {
        const auto [measured, needed, failed] = on_gpu.kept_as_planned(there, nullptr);
        CHECK(measured == expected);
        CHECK_FALSE(failed);
        for (const std::size_t more : {0, 1, 90}) {
            INFO(more << " places more than needed");
            const selection_room room{needed.candidates + more, needed.entries + more};
            const auto [planned, needed_again, too_small] = on_gpu.kept_as_planned(there, &room);
            CHECK_FALSE(too_small);
            CHECK(planned == expected);
            CHECK(needed_again.candidates == needed.candidates);
            CHECK(needed_again.entries == needed.entries);
        }
        for (const bool candidates : {false, true}) {
            if (needed.entries == 0) continue;
            const selection_room room{needed.candidates - (candidates ? 1 : 0), needed.entries - (candidates ? 0 : 1)};
            const auto [planned, needed_again, too_small] = on_gpu.kept_as_planned(there, &room);
            CHECK(too_small);
            CHECK(needed_again.candidates == needed.candidates);
            CHECK(needed_again.entries == needed.entries);
        }
    }
}

// Under every kind of activation. The last latents have weights and floors that decide, too.
template <class T>
void check_all(const problem<T>& p, std::size_t k) {
    INFO(p.tokens << " tokens, d " << p.d << ", " << p.latents << " latents, k " << k);
    const psae::cuda device;
    std::vector<T> weight(p.latents), floor(p.latents);
    for (std::size_t i = 0; i < p.latents; ++i)
        weight[i] = static_cast<T>(i % 3), floor[i] = static_cast<T>(i % 7) * 20000;
    const auto device_weight = on_device(device, weight), device_floor = on_device(device, floor);
    const T *w = device_weight.data(), *f = device_floor.data();
    check(p, relu{}, relu{});
    check(p, above<T>{floor.data()}, above<T>{f});
    check(p, below<T>{floor.data()}, below<T>{f});
    check(p, top_k(k), top_k(k));
    check(p, weighted_top_k<T>{top_k(k), weight.data(), true}, weighted_top_k<T>{top_k(k), w, true});
    check(p, weighted_top_k<T>{top_k(k), weight.data(), false}, weighted_top_k<T>{top_k(k), w, false});
    const double some = static_cast<double>(k) * 0.9;
    check(p, batch_top_k(some), batch_top_k(some));
    check(p, weighted_batch_top_k<T>{batch_top_k(some), weight.data()}, weighted_batch_top_k<T>{batch_top_k(some), w});
}

}  // namespace

TEMPLATE_TEST_CASE("encoders on the GPU keep what those on the CPU keep", "", float, double) {
    check_all(whole_numbers<TestType>(1, 8, 10, 1), 3);
    check_all(whole_numbers<TestType>(7, 5, 300, 2), 8);
    check_all(whole_numbers<TestType>(50, 12, 260, 3), 40);
    check_all(whole_numbers<TestType>(30, 16, 500, 4, -300000), 6);  // few are active
}

TEST_CASE("encoders on the GPU with more tokens than a block has threads") {
    check_all(whole_numbers<float>(197, 4, 150, 2), 4);
}

TEMPLATE_TEST_CASE("encoders on the GPU of some latents", "", float, double) {
    auto p = whole_numbers<TestType>(12, 8, 700, 5);
    for (std::uint32_t f = 3; f < p.latents; f += 4) p.among.push_back(f);
    check_all(p, 9);
    p.among.clear();
    p.of_none = true;
    check_all(p, 9);
}

TEST_CASE("encoders on the GPU at the edges: no active latent, only active ones, k too large or 0") {
    check_all(whole_numbers<float>(9, 6, 200, 6, -1e7), 5);
    check_all(whole_numbers<float>(9, 6, 200, 7, 5e6), 5);
    check_all(whole_numbers<float>(9, 6, 200, 8), 200);
    check_all(whole_numbers<float>(9, 6, 200, 9), 1000);
    check_all(whole_numbers<float>(9, 6, 200, 10), 0);
    check_all(whole_numbers<float>(0, 6, 200, 10), 3);
}

TEMPLATE_TEST_CASE("encoders on the GPU break ties by the lower latent", "", float, double) {
    auto equal_latents = whole_numbers<TestType>(9, 4, 300, 11);
    for (std::size_t f = 1; f < 300; ++f) std::copy_n(equal_latents.W.begin(), 4, &equal_latents.W[f * 4]);
    std::fill(equal_latents.b.begin(), equal_latents.b.end(), TestType(7));
    check_all(equal_latents, 12);

    auto equal_tokens = whole_numbers<TestType>(9, 4, 200, 12);
    for (std::size_t t = 1; t < 9; ++t) std::copy_n(equal_tokens.x.begin(), 4, &equal_tokens.x[t * 4]);
    check_all(equal_tokens, 12);

    check_all(whole_numbers<TestType>(20, 4, 300, 13, 0, 1), 12);  // few values

    auto nothing = whole_numbers<TestType>(9, 4, 150, 14);
    for (auto* v : {&nothing.x, &nothing.W, &nothing.b}) std::fill(v->begin(), v->end(), TestType(0));
    check_all(nothing, 12);
    for (TestType& v : nothing.b) v = -TestType(0);
    for (std::size_t f = 0; f < 150; f += 2) nothing.b[f] = 0;
    check_all(nothing, 12);  // both zeros are the same
}

TEST_CASE("encoders on the GPU take tokens that are not finite as those on the CPU do") {
    auto p = whole_numbers<float>(9, 4, 200, 15);
    const float infinity = std::numeric_limits<float>::infinity();
    p.x[2 * 4] = std::numeric_limits<float>::quiet_NaN();
    p.x[4 * 4 + 1] = infinity;
    p.b[70] = infinity;
    p.b[71] = -infinity;
    // (Values that are NaN are nowhere kept, so that codes can be compared.)
    check_all(p, 150);
    check_all(p, 6);
}

TEST_CASE("exponential activations on the GPU") {
    for (const bool of_some : {false, true}) {
        auto p = whole_numbers<float>(20, 6, 300, 16, 0, 1);
        for (std::uint32_t f = 1; of_some && f < p.latents; f += 2) p.among.push_back(f);
        check(p, exponential_activation{}, exponential_activation{});
    }
}

TEMPLATE_TEST_CASE("one token with many active latents among others with few, on the GPU", "", float, double) {
    auto p = whole_numbers<TestType>(40, 8, 500, 17, -300000);
    for (std::size_t f = 0; f < p.latents; ++f) p.W[f * 8] = 2000;
    for (std::size_t t = 0; t < p.tokens; ++t) p.x[t * 8] = t == 23 ? 1000 : 0;
    REQUIRE(kept_here(p, relu{}).offsets[24] == 500);
    check_all(p, 10);
}

TEMPLATE_TEST_CASE("tiles of codes and the share of active latents on the GPU", "", float, double) {
    using T = TestType;
    for (const auto& [tokens, latents] : {std::pair<std::size_t, std::size_t>{1, 1}, {7, 300}, {197, 90}, {70, 1100}}) {
        INFO(tokens << " tokens, " << latents << " latents");
        const auto p = whole_numbers<T>(tokens, 5, latents, 18);
        device_problem<T> there(p);
        spoilt_arena scratch(there.device);
        arena<> host_scratch;
        psae::cpu host;
        std::vector<T> bounds(2 * latents + 3);
        for (std::size_t f = 0; f < bounds.size(); ++f) bounds[f] = static_cast<T>(f % 7) * 20000 - 40000;
        const auto device_bounds = on_device(there.device, bounds);
        const spread_evenly latent_of{2 * latents + 3, latents};
        const auto compare = [&](const auto& activation, const auto& device_activation) {
            std::vector<T> tile(tokens * latents);
            std::vector<std::uint32_t> fired(latents);
            auto device_tile = spoilt_tensor<T>(there.device, row{tokens * latents});
            auto device_fired = spoilt_tensor<std::uint32_t>(there.device, row{latents});
            const T *x = there.x.data(), *W = there.W.data(), *b = there.b.data();
            encode_tile(host, host_scratch, tile.data(), fired.data(), p.x.data(), tokens, p.d, p.W.data(), p.b.data(),
                        latents, activation, latent_of);
            for (std::uint32_t* counts : {device_fired.data(), static_cast<std::uint32_t*>(nullptr)}) {
                encode_tile(there.device, scratch, device_tile.data(), counts, x, tokens, p.d, W, b, latents,
                            device_activation, latent_of);
                CHECK(on_host(there.device, device_tile) == tile);
            }
            CHECK(on_host(there.device, device_fired) == fired);
            CHECK(
                active_share(there.device, scratch, x, tokens, p.d, W, b, latents, device_activation) ==
                active_share(host, host_scratch, p.x.data(), tokens, p.d, p.W.data(), p.b.data(), latents, activation));
        };
        compare(relu{}, relu{});
        compare(above<T>{bounds.data()}, above<T>{device_bounds.data()});
        compare(below<T>{bounds.data()}, below<T>{device_bounds.data()});
    }
}

TEST_CASE("chunks of latents on the GPU") {
    const psae::cuda device;
    for (const std::size_t tokens : {0, 1, 197, 4097, 1000000}) {
        const std::size_t chunk = detail::encode_chunk(device, tokens);
        CHECK(chunk % 64 == 0);
        CHECK((chunk >= 128 && chunk <= 4096));
        CHECK(encode_tile_latents(device, tokens, 100) == 100);
        CHECK(encode_tile_latents(device, tokens, 1000000) == chunk);
    }
}
