#pragma once
// One block of a vision transformer, normalised before each part: attention, then a perceptron of two layers, each with
// a residual connection. Its weights are frozen and packed, in the memory of a backend; gradients flow to its input. And
// what towers of such blocks share: reading weights by name, and inference.

#include <algorithm>
#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include <psae/cpu/attention.hpp>
#include <psae/cpu/layer_norm.hpp>
#include <psae/cpu/matmul.hpp>
#include <psae/stage/attention.hpp>
#include <psae/stage/layer_norm.hpp>
#include <psae/stage/matmul.hpp>

namespace psae {

// Weights by their Hugging Face names, from anything with read(name, shape) that gives a vector of floats, such as
// clip_weights. Its error names the tensor that is missing or misshapen.
template <class Source>
class weight_reader {
public:
    weight_reader(const Source& source, std::string prefix) : source_(source), prefix_(std::move(prefix)) {}

    weight_reader below(const std::string& name) const { return {source_, prefix_ + name}; }
    std::vector<float> values(const std::string& name, const std::vector<std::size_t>& shape) const {
        return source_.read(prefix_ + name, shape);
    }
    template <class T, class Shape, space Space>
    void read(tensor<T, Shape, Space>& to, const std::string& name) const {
        std::vector<std::size_t> extents;
        for (std::size_t axis = 0; axis < Shape::rank; ++axis) extents.push_back(to.shape().extent(axis));
        fill(to, values(name, extents));
    }
    template <packed_weights W>
    void read(W& to, const std::string& name) const {
        pack(to, values(name, {to.rows(), to.cols()}));
    }
    // weight and bias of a linear layer, or gain and shift of a layer norm.
    template <class Weight, class Bias>
    void read(Weight& weight, Bias& bias, const std::string& name) const {
        read(weight, name + ".weight");
        read(bias, name + ".bias");
    }
    template <class T, class Shape, space Space>
    static void fill(tensor<T, Shape, Space>& to, const std::vector<float>& from) {
        const std::vector<T> converted(from.begin(), from.end());
        memory_space<Space>::copy_from_host(to.data(), converted.data(), converted.size() * sizeof(T));
    }
    template <packed_weights W>
    static void pack(W& to, const std::vector<float>& from) {
        tensor<typename W::value_type, typename W::shape_type> plain;
        std::copy(from.begin(), from.end(), plain.begin());
        to = W(std::as_const(plain).view());
    }

private:
    const Source& source_;
    std::string prefix_;
};

template <class T, std::size_t Width, std::size_t Mlp, std::size_t Heads, class Activation, class Backend = cpu>
struct transformer_block {
    static_assert(Width % Heads == 0, "psae: a transformer's width is a whole number of heads");
    template <std::size_t Out, std::size_t In>
    using matrix = typename weights_of<Backend>::template packed<T, shape<Out, In>>;
    template <std::size_t Size>
    using row = tensor<T, shape<Size>, Backend::memory>;

    row<Width> gain_1, shift_1, gain_2, shift_2;  // of the two layer norms
    matrix<3 * Width, Width> W_qkv;               // queries, keys, values, heads within each
    typename weights_of<Backend>::template bias<T, shape<3 * Width>> b_qkv;
    matrix<Width, Width> W_out;
    row<Width> b_out;
    matrix<Mlp, Width> W_1;
    row<Mlp> b_1;
    matrix<Width, Mlp> W_2;
    row<Width> b_2;
    double eps = 1e-5;
    bool causal = false;  // tokens attend to no later ones

    template <class Source>
    void read(const weight_reader<Source>& weights) {
        weights.read(gain_1, shift_1, "layer_norm1");
        weights.read(gain_2, shift_2, "layer_norm2");
        std::vector<float> qkv, qkv_bias;
        for (const std::string part : {"q_proj", "k_proj", "v_proj"}) {
            const auto weight = weights.values("self_attn." + part + ".weight", {Width, Width}),
                       bias = weights.values("self_attn." + part + ".bias", {Width});
            qkv.insert(qkv.end(), weight.begin(), weight.end());
            qkv_bias.insert(qkv_bias.end(), bias.begin(), bias.end());
        }
        weights.pack(W_qkv, qkv);
        weights.fill(b_qkv, qkv_bias);
        weights.read(W_out, b_out, "self_attn.out_proj");
        weights.read(W_1, b_1, "mlp.fc1");
        weights.read(W_2, b_2, "mlp.fc2");
    }

    // The next hidden state, [n, Width], in `place` if that is given: x's own memory may be. x: [n, Width], rows in
    // sequences of `tokens`. What only products read is written as Operand; hidden states are T.
    template <class Operand = T, operand X>
    auto operator()(const X& x, std::size_t tokens, T* place = nullptr) const {
        const auto qkv = matmul<Operand>(layer_norm<Operand>(x, gain_1, shift_1, eps), W_qkv, bias(b_qkv));
        const auto y = matmul(attention(qkv, tokens, Heads, causal), W_out, bias(b_out) >> add(x));
        const auto h = matmul<Operand>(layer_norm<Operand>(y, gain_2, shift_2, eps), W_1, bias(b_1) >> Activation{});
        return matmul(h, W_2, bias(b_2) >> add(y), place);
    }
};

namespace detail {

// Where a tape's records go: with its values where these are the host's.
inline arena<>& arena_of_records(arena<>& scratch, arena<>&) { return scratch; }
template <space Space>
arena<>& arena_of_records(arena<Space>&, arena<>& records) {
    return records;
}

// f(tape) with a tape in infer mode; what it used of the scratch memory is given back.
template <class Backend, class F>
void on_tape(const Backend& device, arena<Backend::memory>& scratch, const F& f) {
    Backend backend = device;
    const auto mark = scratch.position();
    arena<> records_elsewhere;
    tape<Backend> t(backend, scratch, arena_of_records(scratch, records_elsewhere), mode::infer);
    f(t);
    scratch.release_to(mark);
}

// out = stages(x), both in the backend's memory.
template <class Backend, class Shape, class Stages>
void infer(const Backend& device, arena<Backend::memory>& scratch, const float* x, const Shape& extents, float* out,
           const Stages& stages) {
    on_tape(device, scratch, [&](auto& t) {
        const auto result = stages(t.input(const_view<float, Shape, Backend::memory>{x, extents}));
        assign(t.device(), view<float, typename decltype(result)::shape_type, Backend::memory>{out, result.shape()},
               result);
    });
}

// f(std::type_identity<T>) for the type in which a tower's activations that only products read are written on a device.
template <class Backend, class F>
void with_operand_type(const Backend& device, const F& f) {
    if constexpr (Backend::memory == space::device) {
        if (device.products == precision::bf16) return f(std::type_identity<bf16>{});
    }
    f(std::type_identity<float>{});
}

// Hidden state `first` to hidden state `last` of a tower, in place; block(i, x, place) writes hidden state i + 1 where x
// stands. x: [sequences * tokens, Width]. So many sequences at a time that the widest activations, of `widest` bytes for a
// token, stay in the CPU's second-level cache; on other devices as many as fill it.
template <std::size_t Width, class Backend, class Block>
void infer_blocks(const Backend& device, arena<Backend::memory>& scratch, float* x, std::size_t sequences,
                  std::size_t tokens, std::size_t widest, std::size_t first, std::size_t last, const Block& block) {
    constexpr std::size_t most_bytes = Backend::memory == space::host ? 5 << 19 : 1 << 29;
    const std::size_t most = std::max<std::size_t>(1, most_bytes / (widest * tokens)),
                      parts = (sequences + most - 1) / most;
    for (std::size_t i = first; i < last; ++i)
        for (std::size_t part = 0; part < parts; ++part) {
            const std::size_t from = sequences * part / parts, to = sequences * (part + 1) / parts;
            float* state = x + from * tokens * Width;
            on_tape(device, scratch, [&](auto& t) {
                using state_view = const_view<float, shape<dyn, Width>, Backend::memory>;
                block(i, t.input(state_view{state, shape<dyn, Width>{(to - from) * tokens}}), state);
            });
        }
}

}  // namespace detail

}  // namespace psae
