// Decoding prefix by prefix beside a decoder for each prefix, whose outputs and gradients all stay in memory.
#include <catch2/catch.hpp>

#include <map>
#include <numeric>
#include <string>
#include <vector>

#include <psae/grad/check.hpp>
#include <psae/sae/parameter_copies.hpp>
#include <psae/sae/parameters.hpp>
#include <psae/stage/decode_prefixes.hpp>

#include "../backend.hpp"
#include "../difference.hpp"
#include "../gradient_on_host.hpp"

using namespace psae;

namespace {

constexpr std::size_t d = 12, latents = 40, tokens = 37;
using ends = std::vector<std::size_t>;
using sae_type = sae_parameters<dyn, dyn, double>;

// The same with a decoder for each prefix.
auto decode_each(const auto& z, const auto& W_dec, const auto& b_dec, const auto& x, const ends& prefixes) {
    auto x_hat = decode(z, W_dec, b_dec, {0, prefixes[0]});
    auto errors = evaluate(sum(square(x_hat - x)));
    for (std::size_t i = 1; i < prefixes.size(); ++i) {
        if (i > 1) errors = evaluate(errors + sum(square(x_hat - x)));
        x_hat = decode(z, W_dec, x_hat, {prefixes[i - 1], prefixes[i]});
    }
    return decoded_prefixes<decltype(x_hat), decltype(errors)>{x_hat, errors};
}

// A loss of everything: errors of prefixes weighted by token, that of all latents, and another use of W_dec.
auto loss_of(const auto& x, const auto& z, const auto& W_dec, const auto& decoded) {
    return mean_over_tokens(decoded.inner_errors * sum(square(x))) + 0.7 * squared_error(decoded.x_hat, x) +
           0.1 * mean(square(decode(strongest(z, 2), W_dec) - x));
}

struct outcome {
    double loss;
    std::vector<double> x_hat;
    std::map<std::string, std::vector<double>> gradients;
    bool taken;  // rows of W_dec's gradient, in the middle of the backward sweep
    std::size_t peak_bytes;
};

// Takes rows of W_dec's gradient as an optimiser does, which then changes the rows of W_dec.
struct collected_rows {
    backend& device;
    device_array<double, backend> rows{shape<dyn>{latents * d}};
    double* W_dec;

    static void take(void* self, const parameter_gradient<double>& of, std::size_t first, std::size_t count,
                     const double* rows) {
        auto& to = *static_cast<collected_rows*>(self);
        REQUIRE(rows == nullptr);
        fill(to.device, to.rows.data() + first * d, count * d, 0.0);
        add_gradient_rows(to.device, of, first, count, d, to.rows.data() + first * d);
        fill(to.device, to.W_dec + first * d, count * d, 1e6);
    }
};

// One forward and backward sweep over the loss that `make(sae, x)` records.
template <class Make>
outcome sweep(bool with_taker, const Make& make) {
    sae_type sae(d, latents);
    random_stream random(5);
    sae.initialise(random);
    for (double& v : sae.b_enc.value) v = 0.3 * random.normal();
    for (double& v : sae.b_dec.value) v = 0.1 * random.normal();
    std::vector<double> x(tokens * d);
    for (double& v : x) v = random.normal();

    backend device;
    arena<backend_memory> scratch;
    arena<> records;
    parameter_copies copies(sae, device);
    const auto standing_in = copies.stand_in();
    tape<backend> t(device, scratch, records, mode::train);
    sae.each_parameter([&](const char*, auto& p) { t.collect(p); });
    collected_rows rows{device, device_array<double, backend>(shape<dyn>{latents * d}), sae.W_dec.data()};
    const row_taker<double> taker{collected_rows::take, &rows};
    if (with_taker) sae.W_dec.gradient->taker = &taker;
    const auto x_there = on_device(device, x);
    const auto loss = make(
        sae, t.input(const_view<double, shape<dyn, dyn>, backend_memory>{x_there.data(), shape<dyn, dyn>{tokens, d}}));
    t.run();
    outcome o{double(read(device, loss.data)),
              on_host(device, static_cast<const double*>(t.reconstruction), tokens * d),
              {},
              false,
              0};
    backward(t, loss);
    o.taken = sae.W_dec.gradient->taken;
    o.peak_bytes = scratch.peak_bytes();
    sae.each_parameter([&](const char* name, auto& p) {
        o.gradients[name] =
            p.gradient->taken ? on_host(device, rows.rows.data(), p.size()) : gradient_on_host(device, p);
        p.gradient = nullptr;
    });
    return o;
}

outcome by_prefixes(bool with_taker, const ends& prefixes) {
    return sweep(with_taker, [&](auto& sae, auto x) {
        auto z = encode(x - sae.b_dec, sae.W_enc, sae.b_enc, top_k{6});
        return evaluate(loss_of(x, z, sae.W_dec, decode_prefixes(z, sae.W_dec, sae.b_dec, x, prefixes)));
    });
}

void check_close(const outcome& a, const outcome& b) {
    CHECK(a.loss == Approx(b.loss).epsilon(1e-13));
    for (const auto& [name, g] : a.gradients) {
        INFO(name);
        CHECK(relative_difference(g, b.gradients.at(name)) < 1e-12);
    }
}

}  // namespace

TEST_CASE("decode_prefixes equals a decoder for each prefix") {
    ends each(latents);  // more than the parts of a gradient that a kernel of the GPU takes
    std::iota(each.begin(), each.end(), 1);
    for (const ends& prefixes : {ends{5, latents}, ends{3, 4, 20, latents}, each}) {
        const auto reference = sweep(false, [&](auto& sae, auto x) {
            auto z = encode(x - sae.b_dec, sae.W_enc, sae.b_enc, top_k{6});
            const auto decoded = decode_each(z, sae.W_dec, sae.b_dec, x, prefixes);
            reconstruction(decoded.x_hat);
            return evaluate(loss_of(x, z, sae.W_dec, decoded));
        });
        const auto kept = by_prefixes(false, prefixes), taken = by_prefixes(true, prefixes);
        CHECK_FALSE(kept.taken);
        CHECK(taken.taken);
        CHECK(kept.x_hat == reference.x_hat);
        check_close(kept, reference);
        CHECK(taken.gradients == kept.gradients);  // the same sums in the same order
    }
}

TEST_CASE("decode_prefixes of all latents alone is decode") {
    const auto reference = sweep(false, [&](auto& sae, auto x) {
        auto z = encode(x - sae.b_dec, sae.W_enc, sae.b_enc, top_k{6});
        return evaluate(squared_error(decode(z, sae.W_dec, sae.b_dec), x));
    });
    for (const bool with_errors : {false, true}) {
        const auto alone = sweep(false, [&](auto& sae, auto x) {
            auto z = encode(x - sae.b_dec, sae.W_enc, sae.b_enc, top_k{6});
            const auto decoded = decode_prefixes(z, sae.W_dec, sae.b_dec, x, {latents});
            const double weight = with_errors ? 1 : 0;
            return evaluate(squared_error(decoded.x_hat, x) + weight * mean_over_tokens(decoded.inner_errors));
        });
        check_close(alone, reference);
    }
}

TEST_CASE("decode_prefixes takes the memory of one prefix, whatever their number") {
    const ends two{20, latents}, many{1, 2, 3, 5, 8, 13, 21, latents};
    const std::size_t taken = by_prefixes(true, many).peak_bytes;
    CHECK(taken == by_prefixes(true, two).peak_bytes);
    CHECK(by_prefixes(false, many).peak_bytes > taken);  // a gradient of each, where the rows cannot be taken
}

TEST_CASE("rows of W_dec's gradient are not taken before they are complete") {
    const ends prefixes{3, 20, latents};
    const auto check_kept = [](const auto& make) {
        const auto asked = sweep(true, make);
        CHECK_FALSE(asked.taken);
        CHECK(asked.gradients == sweep(false, make).gradients);
    };
    SECTION("W_dec has a use before the encoder") {
        const auto make = [&](auto& sae, auto x) {
            auto decay = mean(square(on_tape_of(x, sae.W_dec)));
            auto z = encode(x - sae.b_dec, sae.W_enc, sae.b_enc, top_k{6});
            return evaluate(decay + loss_of(x, z, sae.W_dec, decode_prefixes(z, sae.W_dec, sae.b_dec, x, prefixes)));
        };
        check_kept(make);
    }
    SECTION("or between the encoder and the decoder") {
        const auto make = [&](auto& sae, auto x) {
            auto z = encode(x - sae.b_dec, sae.W_enc, sae.b_enc, top_k{6});
            auto decay = mean(square(on_tape_of(x, sae.W_dec)));
            return evaluate(decay + loss_of(x, z, sae.W_dec, decode_prefixes(z, sae.W_dec, sae.b_dec, x, prefixes)));
        };
        check_kept(make);
    }
    SECTION("it is the encoder's, too") {
        const auto make = [&](auto& sae, auto x) {
            auto z = encode(x - sae.b_dec, sae.W_dec, sae.b_enc, top_k{6});
            return evaluate(loss_of(x, z, sae.W_dec, decode_prefixes(z, sae.W_dec, sae.b_dec, x, prefixes)));
        };
        check_kept(make);
    }
}

TEST_CASE("decode_prefixes refuses prefixes that do not grow to all latents") {
    const auto record = [](const ends& prefixes) {
        return sweep(false, [&](auto& sae, auto x) {
            auto z = encode(x - sae.b_dec, sae.W_enc, sae.b_enc, top_k{6});
            return evaluate(squared_error(decode_prefixes(z, sae.W_dec, sae.b_dec, x, prefixes).x_hat, x));
        });
    };
    for (const ends& prefixes :
         {ends{}, ends{5}, ends{5, 5, latents}, ends{9, 4, latents}, ends{0, latents}, ends{5, latents, latents + 1}})
        CHECK_THROWS_WITH(record(prefixes), Catch::Contains("decode_prefixes"));
}
