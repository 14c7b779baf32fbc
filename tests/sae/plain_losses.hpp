#pragma once
// The losses of the variants in plain double loops over dense matrices: slow and obvious. Each takes the variant twice:
// `live` with the parameters as they stand, and `held` with those at which the gradient is taken. What the loss holds
// constant (stop_gradient) is computed from `held`, so central differences over `live` see it constant too.

#include <algorithm>
#include <cmath>
#include <vector>

#include <psae/sae/patchsae.hpp>
#include <psae/sae/topk.hpp>

namespace plain {

using matrix = std::vector<std::vector<double>>;  // [tokens][columns]

inline double square(double v) { return v * v; }

template <class F>
matrix make(std::size_t rows, std::size_t cols, const F& f) {
    matrix m(rows, std::vector<double>(cols));
    for (std::size_t r = 0; r < rows; ++r)
        for (std::size_t c = 0; c < cols; ++c) m[r][c] = f(r, c);
    return m;
}
inline double mean(const matrix& m) {
    double sum = 0;
    for (const auto& row : m)
        for (double v : row) sum += v;
    return sum / double(m.size() * m[0].size());
}
inline double length(const std::vector<double>& row) {
    double squares = 0;
    for (double v : row) squares += v * v;
    return std::sqrt(squares);
}
// Mean over tokens of the squared distance.
inline double S(const matrix& a, const matrix& b) {
    return double(a[0].size()) *
           mean(make(a.size(), a[0].size(), [&](std::size_t r, std::size_t c) { return square(a[r][c] - b[r][c]); }));
}
// S of the mean row.
inline double V(const matrix& b) {
    return S(make(b.size(), b[0].size(),
                  [&](std::size_t, std::size_t c) {
                      double sum = 0;
                      for (const auto& row : b) sum += row[c];
                      return sum / double(b.size());
                  }),
             b);
}

template <class Sae>
matrix pre_activations(const Sae& sae, const matrix& x) {
    return make(x.size(), sae.latents(), [&](std::size_t t, std::size_t f) {
        double h = sae.b_enc.data()[f];
        for (std::size_t c = 0; c < sae.inputs(); ++c) h += (x[t][c] - sae.b_dec.data()[c]) * sae.W_enc.value(f, c);
        return h;
    });
}
template <class Sae>
matrix decoded(const Sae& sae, const matrix& z, bool bias) {
    return make(z.size(), sae.inputs(), [&](std::size_t t, std::size_t c) {
        double sum = bias ? sae.b_dec.data()[c] : 0;
        for (std::size_t f = 0; f < sae.latents(); ++f) sum += z[t][f] * sae.W_dec.value(f, c);
        return sum;
    });
}
inline matrix relu(const matrix& h) {
    return make(h.size(), h[0].size(), [&](std::size_t t, std::size_t f) { return std::max(0.0, h[t][f]); });
}
inline matrix difference(const matrix& a, const matrix& b) {
    return make(a.size(), a[0].size(), [&](std::size_t r, std::size_t c) { return a[r][c] - b[r][c]; });
}

template <class Sae>
double loss(const Sae& live, const Sae& held, const matrix& x, const std::vector<std::uint32_t>& dead,
            const std::vector<float>& weights) requires requires {
    live.dead_latents.enabled;
}
{
    const std::size_t n = x.size(), d = live.inputs();
    const auto scaled_error = [&](const matrix& x_hat) {
        return make(n, d, [&](std::size_t t, std::size_t c) { return square(x_hat[t][c] - x[t][c]) / length(x[t]); });
    };
    const matrix z = relu(pre_activations(live, x)), M = scaled_error(decoded(live, z, true));
    double l1 = 0;
    for (const auto& row : z)
        for (double v : row) l1 += live.lambda * v / double(n);
    const double mse = mean(make(
        n, d, [&](std::size_t t, std::size_t c) { return M[t][c] * (weights.empty() ? 1.0 : double(weights[t])); }));
    if (!live.dead_latents.enabled || dead.empty()) return mse + l1;

    const matrix held_x_hat = decoded(held, relu(pre_activations(held, x)), true), r = difference(x, held_x_hat),
                 held_M = scaled_error(held_x_hat);
    const auto revived = [&](const Sae& sae) {
        matrix z = pre_activations(sae, x);
        for (auto& row : z)
            for (std::size_t f = 0; f < row.size(); ++f)
                row[f] = std::count(dead.begin(), dead.end(), f) ? std::exp(row[f]) : 0;
        return decoded(sae, z, false);
    };
    const matrix held_g = revived(held);
    const auto ghost_error = [&](const matrix& g) {
        return make(n, d, [&](std::size_t t, std::size_t c) {
            const double scale = length(r[t]) / (1e-6 + 2 * length(held_g[t]));
            return square(g[t][c] * scale - r[t][c]) / length(r[t]);
        });
    };
    const matrix G = ghost_error(revived(live)), held_G = ghost_error(held_g);
    return mse + l1 + mean(make(n, d, [&](std::size_t t, std::size_t c) {
               return held_M[t][c] / (held_G[t][c] + 1e-6) * G[t][c];
           }));
}

// Keeps the k entries of each row that rank highest among the latents allowed; the others become zero.
template <class Rank, class Allowed>
matrix top(const matrix& h, std::size_t k, const Rank& rank, const Allowed& allowed) {
    matrix z(h.size(), std::vector<double>(h[0].size(), 0.0));
    for (std::size_t t = 0; t < h.size(); ++t) {
        std::vector<std::size_t> order;
        for (std::size_t f = 0; f < h[t].size(); ++f)
            if (allowed(f)) order.push_back(f);
        std::stable_sort(order.begin(), order.end(),
                         [&](std::size_t a, std::size_t b) { return rank(a, h[t][a]) > rank(b, h[t][b]); });
        for (std::size_t i = 0; i < std::min(k, order.size()); ++i) z[t][order[i]] = h[t][order[i]];
    }
    return z;
}

template <std::size_t d_in, std::size_t d_sae, psae::topk_form form>
double loss(const psae::topk<d_in, d_sae, double, form>& live, const psae::topk<d_in, d_sae, double, form>& held,
            const matrix& x, const std::vector<std::uint32_t>& dead, const std::vector<float>&) {
    using psae::topk_form;
    constexpr bool saelens = form == topk_form::saelens, openai = form == topk_form::openai;
    const auto rank = [&](std::size_t f, double h) {
        if (!saelens) return h;
        double squares = 0;
        for (std::size_t c = 0; c < d_in; ++c) squares += square(held.W_dec.value(f, c));
        return h * std::sqrt(squares);
    };
    const auto codes = [&](const auto& sae) {
        return relu(top(pre_activations(sae, x), sae.k, rank, [](std::size_t) { return true; }));
    };
    const matrix z = codes(live), x_hat = decoded(live, z, true), r = difference(x, decoded(held, codes(held), true));
    const double mse = S(x_hat, x) / (openai ? V(x) : 1);
    if (dead.empty()) return mse;

    std::vector<std::uint32_t> meant;  // the dead latents that the auxiliary term uses
    for (std::uint32_t f : dead) {
        bool fires = false;
        for (const auto& row : z) fires = fires || row[f] > 0;
        if (form != topk_form::dictionary_learning || !fires) meant.push_back(f);
    }
    const std::size_t aux_k = live.dead_latents.k > 0 ? live.dead_latents.k : d_in / 2;
    matrix a = top(pre_activations(live, x), aux_k, rank,
                   [&](std::size_t f) { return std::count(meant.begin(), meant.end(), f) > 0; });
    if (!saelens) a = relu(a);
    const matrix revived = decoded(live, a, form != topk_form::dictionary_learning);
    if (saelens)
        return mse + live.dead_latents.weight * std::min(1.0, double(meant.size()) / double(aux_k)) * S(revived, r);
    const matrix target = make(
        r.size(), d_in, [&](std::size_t t, std::size_t c) { return r[t][c] + (openai ? held.b_dec.data()[c] : 0); });
    return mse + live.dead_latents.weight * std::min<double>(1, double(meant.size())) * S(revived, target) / V(target);
}

}  // namespace plain
