#pragma once
// Reading golden arrays into the layouts of the library, and comparing with a tolerance relative to the largest value.

#include <cmath>
#include <map>
#include <string>
#include <vector>

#include <psae/io/numpy.hpp>

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

// Largest |a - b| over the largest |b|.
template <class A, class B>
double difference(const A& a, const B& b) {
    double largest = 0, worst = 0;
    for (std::size_t i = 0; i < b.size(); ++i) {
        largest = std::max(largest, std::abs(double(b[i])));
        const double d = std::abs(double(a[i]) - double(b[i]));
        worst = d <= worst ? worst : d;  // a NaN difference is kept
    }
    return largest == 0 ? worst : worst / largest;
}

// Fills the parameters of a variant from arrays W_enc [d, F], b_enc, `decoder` [F, d], b_dec.
template <class Variant>
void set_parameters(Variant& sae, const arrays& a, const std::string& decoder = "W_dec",
                    const std::string& prefix = "") {
    const std::size_t d = sae.inputs(), latents = sae.latents();
    const auto copy = [](auto& p, const std::vector<float>& from) { std::copy(from.begin(), from.end(), p.data()); };
    copy(sae.W_enc, transposed(floats(a, prefix + "W_enc"), d, latents));
    copy(sae.b_enc, floats(a, prefix + "b_enc"));
    copy(sae.W_dec, floats(a, prefix + decoder));
    copy(sae.b_dec, floats(a, prefix + "b_dec"));
}

}  // namespace golden
