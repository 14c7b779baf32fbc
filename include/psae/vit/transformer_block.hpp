#pragma once
// One block of a vision transformer, normalised before each part: attention, then a perceptron of two layers, each with
// a residual connection. Its weights are frozen and packed; gradients flow to its input.

#include <psae/cpu/attention.hpp>
#include <psae/cpu/layer_norm.hpp>
#include <psae/cpu/matmul.hpp>
#include <psae/stage/attention.hpp>
#include <psae/stage/layer_norm.hpp>
#include <psae/stage/matmul.hpp>

namespace psae {

template <class T, std::size_t Width, std::size_t Mlp, std::size_t Heads, class Activation>
struct transformer_block {
    static_assert(Width % Heads == 0, "psae: a transformer's width is a whole number of heads");

    tensor<T, shape<Width>> gain_1, shift_1, gain_2, shift_2;  // of the two layer norms
    packed_matrix<T, shape<3 * Width, Width>> W_qkv;           // queries, keys, values, heads within each
    tensor<T, shape<3 * Width>> b_qkv;
    packed_matrix<T, shape<Width, Width>> W_out;
    tensor<T, shape<Width>> b_out;
    packed_matrix<T, shape<Mlp, Width>> W_1;
    tensor<T, shape<Mlp>> b_1;
    packed_matrix<T, shape<Width, Mlp>> W_2;
    tensor<T, shape<Width>> b_2;
    double eps = 1e-5;

    // The next hidden state, [n, Width]. x: [n, Width], rows in sequences of `tokens`.
    template <operand X>
    auto operator()(const X& x, std::size_t tokens) const {
        const auto qkv = matmul(layer_norm(x, gain_1, shift_1, eps), W_qkv, bias(b_qkv));
        const auto y = matmul(attention(qkv, tokens, Heads), W_out, bias(b_out) >> add(x));
        const auto h = matmul(layer_norm(y, gain_2, shift_2, eps), W_1, bias(b_1) >> Activation{});
        return matmul(h, W_2, bias(b_2) >> add(y));
    }
};

}  // namespace psae
