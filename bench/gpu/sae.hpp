#pragma once
// The parts of an SAE's step and whole steps. Floors: bare products by cuBLASLt, and bytes at the speed of a copy. Of the
// bytes each array counts once, however often its rows are gathered: the cache may have them the next time.
#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>

#include <psae/sae/patchsae.hpp>
#include <psae/sae/topk.hpp>
#include <psae/sae/trainer.hpp>

#include "measurement.hpp"

namespace psae_bench {

// An SAE whose rows of W_enc and W_dec are the same directions, and of which about l0 latents fire for a token of normal
// numbers (a pre-activation without its bias is such a number too); 0 leaves the bias at 0.
template <class Variant>
Variant random_sae(const measurement& m, double l0) {
    Variant sae(m.d, m.latents);
    const auto some = some_normal_numbers(1);
    float *decoder = sae.W_dec.value.data(), *encoder = sae.W_enc.value.data(), bias = 0;
    for (std::size_t f = 0, next = 0; f < m.latents; ++f, decoder += m.d, encoder += m.d) {
        double squares = 0;
        for (std::size_t c = 0; c < m.d; ++c, next = next + 1 == some.size() ? 0 : next + 1) {
            decoder[c] = some[next];
            squares += double(decoder[c]) * double(decoder[c]);
        }
        for (std::size_t c = 0; c < m.d; ++c) encoder[c] = decoder[c] /= static_cast<float>(std::sqrt(squares));
    }
    if (l0 > 0) {  // P(a normal number > -bias) is the share that fires
        double low = 0, high = 8;
        for (int i = 0; i < 60; ++i) {
            const double t = (low + high) / 2;
            (0.5 * std::erfc(t / std::sqrt(2.0)) > l0 / double(m.latents) ? low : high) = t;
        }
        bias = static_cast<float>(-low);
    }
    std::fill(sae.b_enc.value.begin(), sae.b_enc.value.end(), bias);
    return sae;
}

// Encoding tokens and selecting their codes, beside the product alone. With the bias at 0 half of the latents of a token
// are candidates of a top-k, as at the start of training.
inline void time_encoder(measurement& m, std::size_t tokens, double goal) {
    auto& device = m.device;
    const double gemm_ms = m.product_ms(false, true, tokens, m.latents, m.d);
    const auto x = random_numbers(device, tokens * m.d, 3);
    arena<space::device> scratch;
    const auto rows = [&](double l0, const auto&... selections) {
        auto sae = random_sae<topk<>>(m, l0);
        parameter_copies copies(sae, device);
        const auto standing_in = copies.stand_in();
        const auto row = [&](const std::string& selection, const auto& activation) {
            const double ms = m.median([&] {
                scratch.reset();
                codes_view<float> z;
                encode(device, scratch, z, x.data(), tokens, m.d, std::as_const(sae.W_enc).data(),
                       std::as_const(sae.b_enc).data(), m.latents, activation, nullptr);
            });
            m.row("encode and select, " + selection + ", " + std::to_string(tokens) + " tokens", ms, gemm_ms,
                  "its product", goal);
        };
        (row(selections.first, selections.second), ...);
    };
    using std::pair;
    rows(0, pair("top 32", top_k{32}), pair("top 64", top_k{64}), pair("top 256", top_k{256}),
         pair("top 64 of the batch", batch_top_k{64}));
    rows(64, pair("ReLU at L0 64", relu{}));
}

// The bytes of W_dec's rows that so many entries need, once: no more than one for each, nor than there are.
inline double rows_read(const measurement& m, double entries) {
    return std::min(entries, double(m.latents)) * double(m.d) * sizeof(float);
}

// What a step does with codes of k entries a token.
inline void time_parts(measurement& m, std::size_t tokens, std::size_t k) {
    auto& device = m.device;
    const std::size_t d = m.d, latents = m.latents;
    const auto x = random_numbers(device, tokens * d, 3), G = random_numbers(device, tokens * d, 5);
    auto sae = random_sae<topk<>>(m, 0);
    parameter_copies copies(sae, device);
    const auto standing_in = copies.stand_in();
    arena<space::device> scratch, more;
    codes_view<float> z;
    encode(device, scratch, z, x.data(), tokens, d, std::as_const(sae.W_enc).data(), std::as_const(sae.b_enc).data(),
           latents, top_k{k}, nullptr);
    const double entries = double(tokens * k), of_tokens = double(tokens * d) * sizeof(float),
                 weights = double(latents * d) * sizeof(float), number = sizeof(float), index = sizeof(std::uint32_t),
                 decoding = rows_read(m, entries) + of_tokens + entries * (number + index);
    device_numbers<float> y(shape<dyn>{tokens * d}), slope(shape<dyn>{tokens * k});
    const std::string what = ", K " + std::to_string(k);

    const float *W_dec = std::as_const(sae.W_dec).data(), *no_bias = nullptr;
    m.row("decode" + what, m.median([&] { sparse_decode(device, y.data(), z, z.value, W_dec, no_bias, d); }),
          m.traffic_ms(decoding), "W_dec, tokens and codes once", 1.3);
    m.row("gradient of the codes" + what,
          m.median([&] { sparse_decode_adjoint(device, slope.data(), z, G.data(), W_dec, d, write::overwrite); }),
          m.traffic_ms(decoding), "W_dec, tokens and codes once", 1.3);
    // Latents are read; token and entry of each are written, and where each latent's begin.
    m.row("latent view" + what, m.median([&] {
        more.reset();
        auto with_view = z;
        add_latent_view(device, more, with_view);
    }),
          m.traffic_ms(entries * 3 * index + double(latents) * sizeof(std::size_t)), "codes and view once", 1.3);

    add_latent_view(device, scratch, z);
    const auto moments = [&] {
        return std::pair(device_numbers<float>(shape<dyn>{latents * d}),
                         device_numbers<float>(shape<dyn>{latents * d}));
    };
    auto enc = moments(), dec = moments();
    outer_product<float> product_enc{&z, slope.data(), x.data(), d, {}, nullptr},
        product_dec{&z, z.value, G.data(), d, {}, nullptr};
    parameter_gradient<float> of_enc, of_dec;
    of_enc.products = &product_enc;
    of_dec.products = &product_dec;
    device_numbers<adam_update<float>> factors(shape<dyn>{1});
    fill(device, factors.data(), 1, adam_update<float>(adam{}.at(1e-6, 1)));
    const auto update = [&](auto& p, auto& mv, bool projected) {
        return row_update<float>{p.data(),  mv.first.data(), mv.second.data(), latents, d,
                                 projected, factors.data(),  nullptr,          0,       nullptr};
    };
    // W, m and v of both weights are read and written; tokens, their gradients and the codes with theirs are read.
    m.row("weight gradients, projection, Adam, renormalisation" + what, m.median([&] {
        normalise_rows(device, sae.W_dec.data(), latents, d);
        update_rows(device, more, of_dec, update(sae.W_dec, dec, true));
        update_rows(device, more, of_enc, update(sae.W_enc, enc, false));
    }),
          m.traffic_ms(2 * 6 * weights + 2 * of_tokens + entries * (2 * number + index)),
          "weights and moments there and back, tokens and codes once", 1.3);
}

// The bare products that a step cannot do without.
struct step_products {
    double encode_ms, five_ms;  // the second: of dense codes
};
inline step_products time_products(measurement& m, std::size_t tokens) {
    const double encode = m.product_ms(false, true, tokens, m.latents, m.d),
                 decode = m.product_ms(false, false, tokens, m.d, m.latents),
                 weights = m.product_ms(true, false, m.latents, m.d, tokens);
    return {encode, 2 * encode + decode + 2 * weights};
}

// A whole training step. Its floor is five products where codes are dense; else one, what Adam reads and writes, the rows
// of W_dec, the tokens and the gradient of their reconstruction.
template <class Variant>
void time_step(measurement& m, const std::string& name, Variant sae, codes_form form, double goal,
               const step_products& products, const const_view<float, shape<dyn, dyn>, space::device>& x) {
    trainer<Variant, psae::cuda> run(sae, {.lr = 1e-6, .dead_after = 1000000, .codes = form}, m.device);
    double l0 = 0;
    const double ms = m.median([&] { l0 = run.step(x).l0; }), sweep = 2 * 6 * double(m.latents * m.d) * sizeof(float),
                 rows = rows_read(m, l0 * double(x.rows())) + 2 * double(x.size()) * sizeof(float);
    m.row(name + ", L0 " + std::to_string(std::lround(l0)) + ", " + std::to_string(x.rows()) + " tokens", ms,
          form == codes_form::tiles ? products.five_ms : products.encode_ms + m.traffic_ms(sweep + rows),
          form == codes_form::tiles ? "five products"
                                    : "the encoder's product, weights and moments there and back, W_dec once",
          goal);
}

inline topk<> random_topk(const measurement& m, std::size_t k) {
    auto sae = random_sae<topk<>>(m, 0);
    sae.k = k;
    return sae;
}

inline void time_steps(measurement& m, std::size_t tokens) {
    const auto numbers = random_numbers(m.device, tokens * m.d, 3);
    const const_view<float, shape<dyn, dyn>, space::device> x{numbers.data(), shape<dyn, dyn>{tokens, m.d}};
    const step_products products = time_products(m, tokens);
    for (const std::size_t k : {std::size_t{32}, std::size_t{64}, std::size_t{256}})
        time_step(m, "TopK step", random_topk(m, k), codes_form::entries, 1.4, products, x);
    for (const double l0 : {64.0, 128.0})
        time_step(m, "ReLU + L1 step", random_sae<patchsae<>>(m, l0), codes_form::entries, 0, products, x);
    time_step(m, "ReLU + L1 step, dense", random_sae<patchsae<>>(m, 0), codes_form::tiles, 1.2, products, x);
}

// The most memory of the GPU that steps of PatchSAE hold, beside parameters and moments, which no step can do without.
inline void measure_memory(measurement& m, std::size_t tokens, double l0) {
    memory_space<space::device>::restart_peak();
    const double before = double(memory_space<space::device>::in_use().now);
    const auto numbers = random_numbers(m.device, tokens * m.d, 3);
    auto sae = random_sae<patchsae<>>(m, l0);
    trainer<patchsae<>, psae::cuda> run(sae, {.lr = 1e-6}, m.device);
    for (int i = 0; i < 3; ++i)
        run.step(const_view<float, shape<dyn, dyn>, space::device>{numbers.data(), shape<dyn, dyn>{tokens, m.d}});
    const double mib = 1.0 / (1 << 20), most = double(memory_space<space::device>::in_use().most) - before,
                 least = 3 * 2 * double(m.latents * m.d) * sizeof(float);
    std::printf("| peak memory of the PatchSAE step, %s, MiB | %s | %.0f | %.0f | %.2f | | parameters and moments |\n",
                l0 > 0 ? "L0 64" : "dense", name_of(m.device.products), most * mib, least * mib, most / least);
}

}  // namespace psae_bench
