#pragma once
// Golden arrays in the layouts of the library, and a variant evaluated on them.

#include <cmath>
#include <map>
#include <string>
#include <vector>

#include <catch2/catch.hpp>

#include <psae/io/numpy.hpp>
#include <psae/psae.hpp>

#include "../backend.hpp"
#include "../difference.hpp"
#include "../gradient_on_host.hpp"

namespace golden {

using arrays = std::map<std::string, psae::array>;

inline arrays load(const std::string& name) { return psae::read_npz(std::string(PSAE_GOLDEN_DIR) + "/" + name); }
inline std::vector<float> floats(const arrays& a, const std::string& name) { return psae::to_floats(a.at(name)); }
inline double scalar(const arrays& a, const std::string& name) { return double(floats(a, name).at(0)); }

// [rows, cols] to [cols, rows].
inline std::vector<float> transposed(const std::vector<float>& x, std::size_t rows, std::size_t cols) {
    std::vector<float> y(x.size());
    for (std::size_t r = 0; r < rows; ++r)
        for (std::size_t c = 0; c < cols; ++c) y[c * rows + r] = x[r * cols + c];
    return y;
}

// Fills the parameters of a variant from the arrays of their names: W_enc [d, F], `decoder` [F, d], ...
template <class Variant>
void set_parameters(Variant& sae, const arrays& a, const std::string& decoder = "W_dec",
                    const std::string& prefix = "") {
    sae.each_parameter([&](const std::string& name, auto& p) {
        auto from = floats(a, prefix + (name == "W_dec" ? decoder : name));
        if (name == "W_enc") from = transposed(from, sae.inputs(), sae.latents());
        REQUIRE(from.size() == p.size());
        std::copy(from.begin(), from.end(), p.data());
    });
}

inline std::vector<std::uint32_t> indices(const std::vector<float>& mask) {
    std::vector<std::uint32_t> out;
    for (std::size_t i = 0; i < mask.size(); ++i)
        if (mask[i] != 0) out.push_back(static_cast<std::uint32_t>(i));
    return out;
}

struct evaluation {
    double loss;
    std::map<std::string, double> terms;
    std::map<std::string, std::vector<float>> gradients;
    std::vector<float> z, x_hat;  // dense
};

// Loss, terms, gradients, codes and reconstruction of a variant on tokens [n, d_in] (with targets [n, d_out]).
template <class Variant>
evaluation evaluate(Variant& sae, const std::vector<float>& x, const std::vector<std::uint32_t>& dead,
                    const float* weights = nullptr, const std::vector<float>& y = {}) {
    using namespace psae;
    backend device;
    arena<backend_memory> scratch;
    arena<> records;
    parameter_copies copies(sae, device);
    const auto standing_in = copies.stand_in();
    tape<backend> t(device, scratch, records, mode::train);
    t.form = codes_form::entries;
    sae.each_parameter([&](const char*, auto& p) { t.collect(p); });
    const std::size_t n = x.size() / sae.inputs();
    const auto x_there = on_device(device, x), y_there = on_device(device, y);
    const auto dead_there = on_device(device, dead);
    const auto dead_count = on_device(device, std::vector<std::size_t>{dead.size()});
    const auto weights_there =
        on_device(device, weights == nullptr ? std::vector<float>{} : std::vector<float>(weights, weights + n));
    const const_view<float, shape<dyn, dyn>, backend_memory> tokens{x_there.data(), shape<dyn, dyn>{n, sae.inputs()}},
        targets{y_there.data(), shape<dyn, dyn>{n, y.size() / n}};
    const training_state now{{dead_there.data(), dead_count.data(), dead.size()},
                             !dead.empty(),
                             weights == nullptr ? nullptr : weights_there.data(),
                             0,
                             0,
                             random_stream(0)};
    const auto loss = psae::evaluate([&] {
        if constexpr (requires { sae.loss(t.input(tokens), t.input(targets), now); })
            return sae.loss(t.input(tokens), t.input(targets), now);
        else return sae.loss(t.input(tokens), now);
    }());
    t.run();
    backward(t, loss);
    evaluation r{double(read(device, loss.data)), {}, {}, std::vector<float>(n * sae.latents()), {}};
    t.each_term<float>([&](const char* name, const float* value) { r.terms[name] = double(read(device, value)); });
    sae.each_parameter([&](const char* name, auto& p) {
        r.gradients[name] = gradient_on_host(device, p);
        p.gradient = nullptr;
    });
    const auto& codes = *static_cast<const codes_record<float>*>(t.main_codes);
    const auto& z = codes.entries;
    const auto offsets = on_host(device, z.offsets, n + 1);
    const auto latent = on_host(device, z.latent, offsets[n]);
    const auto value = on_host(device, z.value, offsets[n]);
    for (std::size_t token = 0; token < n; ++token)
        for (std::size_t i = offsets[token]; i < offsets[token + 1]; ++i) r.z[token * z.latents + latent[i]] = value[i];
    r.x_hat = on_host(device, static_cast<const float*>(t.reconstruction), n * sae.outputs());
    if constexpr (requires(const step_codes& of_step) { sae.after_step(of_step); })
        sae.after_step({n, latent.size(), double(read(device, codes.least_rank))});
    return r;
}

template <class Variant>
void check_gradients(Variant& sae, const evaluation& r, const arrays& want, double tolerance) {
    sae.each_parameter([&](const std::string& name, auto&) {
        INFO(name);
        auto wanted = floats(want, "grad_" + name + "_f64");
        if (name == "W_enc") wanted = transposed(wanted, sae.inputs(), sae.latents());
        CHECK(relative_difference(r.gradients.at(name), wanted) < tolerance);
    });
}

}  // namespace golden
