// Gradients of encode and decode, of every activation, and of expressions over codes against central differences in
// double.
#include "../header_structs.hpp"
#include "model.hpp"

using namespace psae;

namespace {

constexpr double weights[latents] = {0.5, 2, 1, 3, 0.7, 1.5, 1, 0.2, 2.5};
constexpr double bounds[latents] = {0.1, -0.2, 0.3, 0, -0.1, 0.2, 0.5, -0.4, 0.15};
constexpr std::uint32_t some[4] = {1, 3, 4, 8};
constexpr std::size_t four = 4;

}  // namespace

TEST_CASE("every activation of the encoder, on all latents and on some") {
    std::set<std::string> checked;
    const auto check = [&](const char* name, auto activation) {
        INFO(name);
        checked.insert(name);
        const auto loss = [=](auto& m, auto x, latent_set among) {
            auto z = encode(x - m.b_dec, m.W_enc, m.b_enc, activation, among);
            return mean(square(decode(z, m.W_dec, m.b_dec) - x)) + 0.1 * mean_over_tokens(sum(square(z)));
        };
        check_loss([=](auto& m, auto x) { return loss(m, x, {}); });
        check_loss([=](auto& m, auto x) { return loss(m, x, {some, &four}); });
    };
    check("relu", relu{});
    check("exponential_activation", exponential_activation{});
    check("top_k", top_k{3});
    check("weighted_top_k", weighted_top_k<double>{{3}, weights, true});
    check("weighted_top_k", weighted_top_k<double>{{3}, weights, false});
    check("batch_top_k", batch_top_k{2.5});
    check("weighted_batch_top_k", weighted_batch_top_k<double>{{2.5}, weights});
    check("above", above<double>{bounds});
    check("below", below<double>{bounds});
    CHECK(checked ==
          structs_with_member("stage/activation.hpp", "active"));  // a new activation is checked above, or this fails
}

TEST_CASE("weighted top-k keeps what ranks highest, and its plain value") {
    model m;
    cpu device;
    arena<> scratch;
    for (const bool rectified : {true, false}) {
        tape<cpu> t(device, scratch, mode::infer);
        const auto z = encode(t.input(std::as_const(m.x).view()), m.W_enc, m.b_enc,
                              weighted_top_k<double>{{4}, weights, rectified});
        for (std::size_t token = 0; token < n; ++token) {
            std::vector<std::pair<double, std::uint32_t>> ranks;
            std::vector<double> h(latents);
            for (std::uint32_t f = 0; f < latents; ++f) {
                h[f] = m.b_enc.value[f];
                for (std::size_t c = 0; c < d; ++c) h[f] += m.x(token, c) * m.W_enc.value(f, c);
                if (!rectified || h[f] > 0) ranks.emplace_back(weights[f] * h[f], f);
            }
            std::sort(ranks.rbegin(), ranks.rend());
            ranks.resize(std::min<std::size_t>(ranks.size(), 4));
            std::set<std::uint32_t> wanted, found;
            for (const auto& r : ranks) wanted.insert(r.second);
            for (std::size_t i = z.codes->entries.offsets[token]; i < z.codes->entries.offsets[token + 1]; ++i) {
                found.insert(z.codes->entries.latent[i]);
                CHECK(z.codes->entries.value[i] == Approx(h[z.codes->entries.latent[i]]));
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
    model m;
    cpu device;
    arena<> scratch;
    tape<cpu> t(device, scratch, mode::train);
    m.each_parameter([&](const char*, auto& p) { t.collect(p); });
    const auto x = t.input(std::as_const(m.x).view());
    const auto z = encode(x, m.W_enc, m.b_enc, relu{}), other = encode(x, m.second_W_enc, m.b_enc, relu{});
    CHECK_THROWS_AS(sum(z * other), error);
}

namespace {

// A square whose derivative is no number at one place.
struct broken_square {
    double place;
    template <class T>
    PSAE_FN T value(T a) const {
        return a * a;
    }
    template <class T>
    PSAE_FN partials<T, 1> derivative(T a) const {
        return {{a == T(place) ? std::numeric_limits<T>::quiet_NaN() : 2 * a}};
    }
};

}  // namespace

TEST_CASE("the checker does not lose a NaN") {
    for (const std::size_t place : {std::size_t{0}, std::size_t{1}, d - 1}) {
        model m;
        const broken_square f{m.row.data()[place]};
        const auto worst = check_gradients(
            m, [&](auto x) { return mean(x * map(f, m.row)); }, std::as_const(m.x).view());
        CHECK(worst.error == std::numeric_limits<double>::infinity());
        CHECK(worst.where == "row[" + std::to_string(place) + "]");
    }
}
