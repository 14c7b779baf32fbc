#pragma once
// From pictures to tokens, and from tokens to the class token, as stages.

#include <psae/stage/matmul.hpp>

namespace psae {

namespace detail {

template <class X, class Out>
struct patches_stage {
    using T = typename X::value_type;
    X pixels;
    Out out;
    std::size_t patch;

    template <class Tape>
    void forward(Tape& t) {
        const auto s = pixels.shape();
        extract_patches(t.device(), out.storage, dense_values(t, pixels), s.extent(0), s.extent(1), s.extent(2), patch);
    }
    template <class Tape>
    void backward(Tape& t) requires std::is_same_v<typename Out::value_type, T> {
        if (!out.adjoint->written) return;
        const auto s = pixels.shape();
        add_input_gradient(t, pixels, [&](T* dpixels, write how) {
            extract_patches_adjoint(t.device(), dpixels, static_cast<const T*>(out.adjoint->data), s.extent(0),
                                    s.extent(1), s.extent(2), patch, how);
        });
    }
};

template <class X, class Class, class Position, class Out>
struct positions_stage {
    using T = typename Out::value_type;
    X input;
    Class class_embedding;
    Position position;
    Out out;

    template <class Tape>
    void forward(Tape& t) {
        add_positions(t.device(), out.storage, input.data, class_embedding.data, position.data,
                      out.rows() / position.rows(), position.rows(), out.cols());
    }
    template <class Tape>
    void backward(Tape& t) {
        if (!out.adjoint->written) return;
        const T* g = out.adjoint->data;
        accumulate_gradients(t, input, out.cotangent());
        const auto add_sums = [&](const auto& rows, std::size_t count) {
            add_input_gradient(t, rows, [&](T* sums, write how) {
                sum_over_images(t.device(), sums, g, out.rows() / position.rows(), position.rows(), count, out.cols(),
                                how);
            });
        };
        add_sums(position, position.rows());
        add_sums(class_embedding, 1);
    }
};

template <class X, class Out>
struct class_tokens_stage {
    using T = typename Out::value_type;
    X input;
    Out out;
    std::size_t tokens;

    template <class Tape>
    void forward(Tape& t) {
        class_tokens(t.device(), out.storage, dense_values(t, input), out.rows(), tokens, out.cols());
    }
    template <class Tape>
    void backward(Tape& t) {
        if (!out.adjoint->written) return;
        add_input_gradient(t, input, [&](T* dx, write how) {
            class_tokens_adjoint(t.device(), dx, static_cast<const T*>(out.adjoint->data), out.rows(), tokens,
                                 out.cols(), how);
        });
    }
};

}  // namespace detail

// The tokens of pictures: [images * (1 + patches), d], for each image class_embedding + position[0], then for each
// patch in reading order its product with the weights + position[1 + patch] (Dosovitskiy et al., An image is worth
// 16x16 words, 2021). pixels: [images, channels, side, side]; W: [d, channels * patch * patch], a parameter, a view or
// packed; class_embedding: [d]; position: [1 + patches, d]. Patches: bf16 to have the pixels rounded (see
// detail::result_type).
template <class Patches = void, operand X, class W, operand Class, operand Position>
auto patch_embedding(const X& pixels, const W& weights, const Class& class_embedding, const Position& position,
                     std::size_t patch) {
    using Input = node_t<X>;
    static_assert(Input::shape_type::rank == 4, "psae: patch_embedding: pixels are [images, channels, side, side]");
    static_assert(node_t<Position>::shape_type::rank == 2, "psae: patch_embedding: positions are [1 + patches, d]");
    static_assert(node_t<Class>::shape_type::rank == 1, "psae: patch_embedding: the class embedding is a row, [d]");
    const Input input = as_node(pixels);
    const auto s = input.shape();
    const node_t<Class> class_node = as_node(class_embedding);
    const node_t<Position> position_node = as_node(position);
    auto& t = detail::require_tape(input);
    const std::size_t side = s.extent(2), grid = patch == 0 ? 0 : side / patch, d = weights.shape().rows();
    if (grid == 0 || s.extent(3) != side || side % patch != 0 || position_node.rows() != grid * grid + 1 ||
        position_node.cols() != d || class_node.size() != d)
        throw error("shapes do not fit", "patch_embedding",
                    "pixels " + to_string(s) + ", patches of " + std::to_string(patch) + ", W " +
                        to_string(weights.shape()) + ", class_embedding " + to_string(class_node.shape()) +
                        ", position " + to_string(position_node.shape()),
                    "pictures are square, a whole number of patches wide");
    auto patches = t.template result<detail::result_type_t<Patches, X>>(
        shape<dyn, dyn>{s.extent(0) * (grid * grid + 1), s.extent(1) * patch * patch});
    t.record(detail::patches_stage<Input, decltype(patches)>{input, patches, patch});
    const auto products = matmul(patches, weights);
    auto out = t.template result<typename Input::value_type>(products.shape());
    t.record(detail::positions_stage<std::remove_const_t<decltype(products)>, node_t<Class>, node_t<Position>,
                                     decltype(out)>{products, class_node, position_node, out});
    return out;
}

// The first token of each sequence of `tokens` rows: [sequences, d]. x: [sequences * tokens, d].
template <operand X>
auto class_tokens(const X& x, std::size_t tokens) {
    using Input = node_t<X>;
    const Input input = as_node(x);
    auto& t = detail::require_tape(input);
    if (tokens == 0 || input.shape().rows() % tokens != 0)
        throw error("shapes do not fit", "class_tokens",
                    to_string(input.shape()) + " in sequences of " + std::to_string(tokens) + " tokens");
    using out_shape = shape<dyn, Input::shape_type::static_cols>;
    const std::size_t extents[2] = {input.shape().rows() / tokens, input.shape().cols()};
    auto out = t.template result<typename Input::value_type>(out_shape::from_extents(extents));
    t.record(detail::class_tokens_stage<Input, decltype(out)>{input, out, tokens});
    return out;
}

}  // namespace psae
