// Gradients of encode and decode, of every activation, and of expressions over codes against central differences in
// double, on both backends.
#include "../header_structs.hpp"
#include "model.hpp"

using namespace psae;

namespace {

const std::vector<double> weights{0.5, 2, 1, 3, 0.7, 1.5, 1, 0.2, 2.5},
    bounds{0.1, -0.2, 0.3, 0, -0.1, 0.2, 0.5, -0.4, 0.15};

}  // namespace

TEST_CASE("every activation of the encoder, on all latents and on some") {
    const backend device;
    const auto by_weight = constants<double, real>(device, weights), bound = constants<double, real>(device, bounds);
    const auto some = constants<std::uint32_t>(device, {1, 3, 4, 8});
    const auto four = constants<std::size_t>(device, {4});
    std::set<std::string> checked;
    // activation(x): for the tape of x.
    const auto check = [&](const char* name, const auto& activation) {
        INFO(name);
        checked.insert(name);
        for (const bool among_some : {false, true})
            check_loss([&](auto& m, auto x) {
                const latent_set among =
                    among_some ? latent_set{some.of(x).data(), four.of(x).data(), 4} : latent_set{};
                auto z = encode(x - m.b_dec, m.W_enc, m.b_enc, activation(x), among);
                return mean(square(decode(z, m.W_dec, m.b_dec) - x)) + 0.1 * mean_over_tokens(sum(square(z)));
            });
    };
    check("relu", [](auto) { return relu{}; });
    check("exponential_activation", [](auto) { return exponential_activation{}; });
    check("top_k", [](auto) { return top_k{3}; });
    for (const bool rectified : {true, false})
        check("weighted_top_k", [&]<class X>(const X& x) {
            return weighted_top_k<typename X::value_type>{{3}, by_weight.of(x).data(), rectified};
        });
    check("batch_top_k", [](auto) { return batch_top_k{2.5}; });
    check("weighted_batch_top_k", [&]<class X>(const X& x) {
        return weighted_batch_top_k<typename X::value_type>{{2.5}, by_weight.of(x).data()};
    });
    check("above", [&]<class X>(const X& x) { return above<typename X::value_type>{bound.of(x).data()}; });
    check("below", [&]<class X>(const X& x) { return below<typename X::value_type>{bound.of(x).data()}; });
    if (backend_memory == space::host)  // a new activation is checked above, or this fails
        CHECK(checked == structs_with_member("stage/activation.hpp", "active"));
}

TEST_CASE("weighted top-k keeps what ranks highest, and its plain value") {
    model<real> m;
    backend device;
    arena<backend_memory> scratch;
    arena<> records;
    parameter_copies copies(m, device);
    const auto standing_in = copies.stand_in();
    const auto by_weight = constants<double, real>(device, weights);
    const auto x = on_device(device, std::vector<real>(m.x.begin(), m.x.end()));
    for (const bool rectified : {true, false}) {
        tape<backend> t(device, scratch, records, mode::infer);
        const auto z = encode(t.input(const_view<real, shape<n, d>, backend_memory>{x.data(), {}}), m.W_enc, m.b_enc,
                              weighted_top_k<real>{{4}, by_weight.there.data(), rectified});
        const auto offsets = on_host(device, z.codes->entries.offsets, n + 1);
        const auto latent = on_host(device, z.codes->entries.latent, offsets[n]);
        const auto value = on_host(device, z.codes->entries.value, offsets[n]);
        for (std::size_t token = 0; token < n; ++token) {
            std::vector<std::pair<double, std::uint32_t>> ranks;
            std::vector<double> h(latents);
            for (std::uint32_t f = 0; f < latents; ++f) {
                h[f] = m.b_enc.value[f];
                for (std::size_t c = 0; c < d; ++c) h[f] += double(m.x(token, c)) * double(m.W_enc.value(f, c));
                if (!rectified || h[f] > 0) ranks.emplace_back(weights[f] * h[f], f);
            }
            std::sort(ranks.rbegin(), ranks.rend());
            ranks.resize(std::min<std::size_t>(ranks.size(), 4));
            std::set<std::uint32_t> wanted, found;
            for (const auto& r : ranks) wanted.insert(r.second);
            for (std::size_t i = offsets[token]; i < offsets[token + 1]; ++i) {
                found.insert(latent[i]);
                CHECK(value[i] == Approx(h[latent[i]]));
            }
            CHECK(found == wanted);
        }
    }
}

TEST_CASE("the encoder's input may be any expression") {
    const auto loss = [](auto& m, auto input) {
        auto z = encode(input, m.W_enc, m.b_enc, relu{});
        return mean(square(decode(z, m.W_dec)));
    };
    check_loss([&](auto& m, auto x) { return loss(m, x * m.row - m.b_dec); });
    check_loss([&](auto& m, auto x) { return loss(m, square(m.matrix) * x + m.column / m.scalar); });
    check_loss([&](auto& m, auto x) { return loss(m, -(m.row - x) + (m.b_dec - 2 * m.row)); });
    check_loss([&](auto& m, auto x) { return loss(m, evaluate(x * m.matrix)); });
    check_loss([&](auto& m, auto x) { return loss(m, (x - column_means(x * m.row)) / norm(x + m.b_dec)); });
}

TEST_CASE("leaves of every shape in expressions over codes") {
    const auto loss = [](auto& m, auto x, auto of_codes) {
        auto z = encode(x - m.b_dec, m.W_enc, m.b_enc, relu{});
        return mean_over_tokens(sum(of_codes(m, z)) * m.column) + mean(square(decode(z, m.W_dec) - x));
    };
    check_loss([&](auto& m, auto x) { return loss(m, x, [](auto& m, auto z) { return z * m.scalar; }); });
    check_loss([&](auto& m, auto x) { return loss(m, x, [](auto& m, auto z) { return z * m.one; }); });
    check_loss([&](auto& m, auto x) { return loss(m, x, [](auto& m, auto z) { return z * m.per_latent; }); });
    check_loss([&](auto& m, auto x) { return loss(m, x, [](auto& m, auto z) { return square(z / m.column); }); });
    check_loss([&](auto& m, auto x) { return loss(m, x, [](auto& m, auto z) { return z * z * m.per_entry; }); });
    check_loss([&](auto& m, auto x) {
        return loss(m, x, [](auto& m, auto z) {
            return log(1 + square(z * m.per_latent)) * m.scalar - map(minimum{}, z, m.per_entry) / m.per_latent;
        });
    });
}

TEST_CASE("codes and reconstructions used several times") {
    check_loss([](auto& m, auto x) {
        auto z = encode(x - m.b_dec, m.W_enc, m.b_enc, top_k{4});
        auto x_hat = decode(z, m.W_dec, m.b_dec);
        auto other = decode(z, m.second_W_dec);
        return mean(square(x_hat - x)) + mean(x_hat * other * m.row) + mean_over_tokens(sum(z) * sum(square(z))) +
               mean(norm(other));
    });
}

TEST_CASE("an autoencoder of a reconstruction") {
    check_loss([](auto& m, auto x) {
        auto z = encode(x - m.b_dec, m.W_enc, m.b_enc, relu{});
        auto first = decode(z, m.W_dec, m.b_dec);
        auto z_2 = encode(first * m.row + m.b_dec, m.second_W_enc, m.per_latent, top_k{5});
        auto second = decode(z_2, m.second_W_dec, m.b_dec);
        return mean(square(second - x)) + mean(square(first - second)) + 0.1 * mean_over_tokens(sum(z) + sum(z_2));
    });
}

TEST_CASE("codes of two encoders do not mix in one expression") {
    model<real> m;
    backend device;
    const auto mixed = [&](auto x) {
        const auto z = encode(x, m.W_enc, m.b_enc, relu{}), other = encode(x, m.second_W_enc, m.b_enc, relu{});
        return mean_over_tokens(sum(z * other));
    };
    CHECK_THROWS_AS(differentiate(device, m, mixed, std::as_const(m.x).view()), error);
}
