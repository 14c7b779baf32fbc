#pragma once
// The encoder: z = activation(x W_enc^T + b_enc), as codes.

#include <utility>

#include <psae/stage/activation.hpp>
#include <psae/stage/reduce.hpp>

namespace psae {

namespace detail {

// Adds a share in outer-product form to the gradient of a parameter.
template <class Tape, class P, class T>
void add_product(Tape& t, const P& p, const codes_view<T>& codes, const T* weights, const T* rows, std::size_t columns,
                 latent_range range = {}) {
    if (p.adjoint == nullptr) return;
    static_assert(
        requires { p.adjoint->products; }, "psae: weights of encode and decode are parameters");
    auto* product = t.make(outer_product<T>{&codes, weights, rows, columns, range, nullptr});
    auto** last = &p.adjoint->products;
    while (*last != nullptr) last = &(*last)->next;
    *last = product;
}

// The rows of a parameter's gradient for the tile at hand, [count, d]; the tile's encoder hands them on once all
// readers have added their share.
template <class Tape, class T>
T* chunk_rows(Tape& t, codes_support<T>& z, parameter_gradient<T>& g, std::size_t columns) {
    if (g.chunk.data == nullptr) {
        g.chunk.data = t.arena().template allocate<T>(z.tile_latents * columns);
        g.chunk_columns = columns;
        g.next_with_chunk = std::exchange(z.with_chunk, &g);
    }
    return g.chunk.data;
}

// Columns of a tile that are latents one after the other.
struct latents_from {
    std::size_t first;
    PSAE_FN std::size_t operator()(std::size_t j) const { return first + j; }
};

template <class Input, class W, class B, class Activation, class Codes>
struct encode_stage {
    using T = typename Codes::value_type;
    using columns_shape = shape<W::shape_type::static_cols>;
    using rows_shape = shape<dyn, W::shape_type::static_cols>;
    Input input;
    W weights;
    B bias;
    Activation activation;
    latent_set among;
    Codes z;
    T* x = nullptr;     // the input as the GEMM reads it, [n, d]
    T* kept = nullptr;  // the first kept_tiles tiles of codes, where there is memory for them
    std::size_t kept_tiles = 0;

    template <class Tape>
    void forward(Tape& t) {
        const std::size_t n = z.tokens, d = weights.cols();
        T* own = t.arena().template allocate<T>(n * d);
        assign(t.device(), matrix<Tape>(own, n, d), input);
        x = own;
        codes_record<T>& codes = *z.codes;
        codes.tokens = n;
        codes.fired = t.arena().template allocate<std::uint32_t>(z.latents);
        if (t.training() && prefers_tiles(t)) {
            codes.support->dense = true;
            forward_in_tiles(t);
            return;
        }
        if constexpr (selects_per_batch<Activation>) codes.least_rank = t.arena().template allocate<T>(1);
        encode(t.device(), t.arena(), codes.entries, static_cast<const T*>(x), n, d, weights.data, bias.data, z.latents,
               activation, among.count == nullptr ? nullptr : &among, codes.least_rank,
               t.plan_of(codes.support->encoder));
        if (t.training()) add_latent_view(t.device(), t.arena(), codes.entries);
        count_active(t.device(), t.arena(), codes.fired, codes.entries);
    }

    template <class Tape>
    void backward(Tape& t) {
        if (z.codes->dense()) {
            backward_in_tiles(t);
            return;
        }
        if (!z.adjoint->written) return;
        const codes_view<T>& codes = z.codes->entries;
        const std::size_t n = codes.tokens, d = weights.cols();
        T* g = z.adjoint->data;  // becomes the gradient of the pre-activations
        multiply_by_derivative(t.device(), g, codes, activation);
        add_product(t, weights, codes, g, static_cast<const T*>(x), d);
        add_product(t, bias, codes, g, static_cast<const T*>(nullptr), 1);
        if constexpr (differentiable<Input>) {
            if constexpr (column_sums_suffice<Input>::value) {
                T* per_latent = t.arena().template allocate<T>(codes.latents);
                T* sums = t.arena().template allocate<T>(d);
                latent_sums(t.device(), per_latent, codes, g);
                weighted_row_sum(t.device(), t.arena(), sums, per_latent, weights.data, codes.latents, d,
                                 write::overwrite);
                accumulate_column_sums(t, input, row<Tape>(sums, d));
            } else {
                T* dx = t.arena().template allocate<T>(n * d);
                sparse_decode(t.device(), dx, codes, static_cast<const T*>(g), weights.data,
                              static_cast<const T*>(nullptr), d);
                accumulate_input_gradient(t, dx);
            }
        }
    }

private:
    // Tiles cost the same whatever the number of active latents, entries cost in proportion to it.
    template <class Tape>
    bool prefers_tiles(Tape& t) const {
        if constexpr (can_be_dense<Activation>()) {
            if (among.count != nullptr || z.codes->support->entries_needed || t.form == codes_form::entries)
                return false;
            if (t.form == codes_form::tiles) return true;
            if (const codes_forecast* known = t.forecast_of(z.codes->support->encoder)) return known->dense;
            return active_share(t.device(), t.arena(), static_cast<const T*>(x), z.tokens, weights.cols(), weights.data,
                                bias.data, z.latents, activation) > dense_from_share(t.device());
        } else {
            return false;
        }
    }

    // f(first latent, count, memory for the tile) for all tiles.
    template <class F>
    void each_tile(T* memory, const F& f) const {
        const std::size_t latents_per_tile = z.codes->support->tile_latents;
        for (std::size_t i = 0; i * latents_per_tile < z.latents; ++i) {
            const std::size_t first = i * latents_per_tile, count = std::min(latents_per_tile, z.latents - first);
            f(first, count, i < kept_tiles ? kept + i * z.tokens * latents_per_tile : memory);
        }
    }

    template <class Tape>
    void forward_in_tiles(Tape& t) {
        codes_record<T>& codes = *z.codes;
        const std::size_t d = weights.cols(), n = z.tokens;
        const std::size_t tile_latents = encode_tile_latents(t.device(), n, z.latents), tile_size = n * tile_latents;
        codes.support->tile_latents = tile_latents;
        kept_tiles = std::min(t.codes_memory / (tile_size * sizeof(T)), (z.latents + tile_latents - 1) / tile_latents);
        kept = t.arena().template allocate<T>(kept_tiles * tile_size);
        const auto all_x = operand_of_products(t.device(), t.arena(), static_cast<const T*>(x), n * d);
        each_tile(t.arena().template allocate<T>(tile_size), [&](std::size_t first, std::size_t count, T* tile) {
            encode_tile(t.device(), t.arena(), tile, codes.fired + first, all_x, n, d, weights.data + first * d,
                        bias.data + first, count, activation, latents_from{first});
            codes.tile = {n, first, count, tile, is_everywhere<Activation>()};
            t.run_readers(*codes.support);
        });
        if (const selection_plan plan = t.plan_of(codes.support->encoder); plan.needed != nullptr)
            count_all_active(t.device(), &plan.needed->entries, static_cast<const std::uint32_t*>(codes.fired),
                             z.latents);
    }

    template <class Tape>
    void backward_in_tiles(Tape& t) {
        codes_record<T>& codes = *z.codes;
        codes_support<T>& support = *codes.support;
        const std::size_t d = weights.cols(), n = z.tokens;
        T* g = t.arena().template allocate<T>(n * support.tile_latents);
        T* bias_gradient = t.arena().template allocate<T>(z.latents);
        T* sums = t.arena().template allocate<T>(d);
        const auto all_x = operand_of_products(t.device(), t.arena(), static_cast<const T*>(x), n * d);
        T* dx = nullptr;
        if constexpr (differentiable<Input>)
            if constexpr (!column_sums_suffice<Input>::value) dx = t.arena().template allocate<T>(n * d);
        each_tile(t.arena().template allocate<T>(n * support.tile_latents), [&](std::size_t first, std::size_t count,
                                                                                T* tile) {
            const T* rows_of_W = weights.data + first * d;
            const write how = first == 0 ? write::overwrite : write::add;
            if (first / support.tile_latents >= kept_tiles)
                encode_tile(t.device(), t.arena(), tile, static_cast<std::uint32_t*>(nullptr), all_x, n, d, rows_of_W,
                            bias.data + first, count, activation, latents_from{first});
            codes.tile = {n, first, count, tile, is_everywhere<Activation>()};
            *z.adjoint = {g, false};
            t.run_reader_adjoints(support);
            if (!z.adjoint->written) fill(t.device(), g, n * count, T(0));
            multiply_by_derivative(t.device(), t.arena(), g, bias_gradient + first, codes.tile, activation);
            if constexpr (differentiable<Input>) {
                if constexpr (column_sums_suffice<Input>::value)
                    weighted_row_sum(t.device(), t.arena(), sums, bias_gradient + first, rows_of_W, count, d, how);
                else
                    product(t.device(), t.arena(), false, false, n, d, count, static_cast<const T*>(g), rows_of_W, how,
                            dx);
            }
            if (weights.adjoint != nullptr) {
                T* rows = chunk_rows(t, support, *weights.adjoint, d);
                product(t.device(), t.arena(), true, false, count, d, n, static_cast<const T*>(g), all_x,
                        weights.adjoint->chunk.written ? write::add : write::overwrite, rows);
                weights.adjoint->chunk.written = true;
            }
            for (auto* p = support.with_chunk; p != nullptr; p = p->next_with_chunk)
                if (std::exchange(p->chunk.written, false)) hand_on(t, *p, first, count);
        });
        for (auto* p = support.with_chunk; p != nullptr; p = p->next_with_chunk) {
            p->chunk.data = nullptr;
            if (completes(*p)) all_rows_taken(*p);
            else p->written = true;
        }
        if (bias.adjoint != nullptr)
            add_to_gradient(t, *bias.adjoint, bias.shape(),
                            const_view<T, typename B::shape_type, Tape::memory>{bias_gradient, bias.shape()});
        if constexpr (differentiable<Input>) {
            if constexpr (column_sums_suffice<Input>::value) accumulate_column_sums(t, input, row<Tape>(sums, d));
            else accumulate_input_gradient(t, dx);
        }
        *z.adjoint = {};
    }

    // Rows are complete when the adjoints of all other stages have run: if this encoder is the first stage of the tape.
    bool completes(const parameter_gradient<T>& p) const { return p.taker != nullptr && z.codes->support->stage == 1; }

    // The rows of the tile at hand go to the gradient's taker, or join its dense part.
    template <class Tape>
    void hand_on(Tape& t, parameter_gradient<T>& p, std::size_t first, std::size_t count) const {
        const std::size_t d = p.chunk_columns;
        if (completes(p)) {
            p.taker->take(p.taker->self, p, first, count, p.chunk.data);
            return;
        }
        T* all = t.dense(p, z.latents * d) + first * d;
        assign(t.device(), matrix<Tape>(all, count, d), matrix<Tape>(static_cast<const T*>(p.chunk.data), count, d),
               p.written ? write::add : write::overwrite);
    }

    template <class Tape, class U>
    static view<U, shape<dyn, dyn>, Tape::memory> matrix(U* data, std::size_t rows, std::size_t cols) {
        return {data, shape<dyn, dyn>{rows, cols}};
    }
    template <class Tape>
    static const_view<T, columns_shape, Tape::memory> row(const T* data, std::size_t cols) {
        return {data, columns_shape::from_extents(&cols)};
    }

    template <class Tape>
    void accumulate_input_gradient(Tape& t, const T* dx) const {
        const std::size_t extents[2] = {z.tokens, weights.cols()};
        accumulate_gradients(t, input, const_view<T, rows_shape, Tape::memory>{dx, rows_shape::from_extents(extents)});
    }
};

}  // namespace detail

// Codes of the tokens x [n, d_in] with W_enc [d_sae, d_in] and b_enc [d_sae]; with `among`, only of those latents.
template <operand X, operand W, operand B, class Activation>
auto encode(const X& x, const W& W_enc, const B& b_enc, const Activation& activation, latent_set among = {}) {
    const auto input = as_node(x);
    const auto weights = as_node(W_enc);
    const auto bias = as_node(b_enc);
    using Input = std::remove_const_t<decltype(input)>;
    using Weights = std::remove_const_t<decltype(weights)>;
    using Bias = std::remove_const_t<decltype(bias)>;
    using T = typename Input::value_type;
    static_assert(detail::merge_extents(Input::shape_type::static_cols, Weights::shape_type::static_cols) != 0,
                  "psae: encode: the tokens and W_enc have different d_in");
    auto& t = detail::require_tape(input);
    using Tape = std::remove_cvref_t<decltype(t)>;
    if (input.shape().cols() != weights.cols() || bias.size() != weights.rows())
        throw error("shapes do not fit", "encode",
                    "x " + to_string(input.shape()) + ", W_enc " + to_string(weights.shape()) + ", b_enc " +
                        to_string(bias.shape()));
    auto* support = t.make(codes_support<T>{});
    support->stage = t.next_stage();
    support->encoder = t.number_encoder();
    support->weights = weights.adjoint;
    auto* codes = t.make(codes_record<T>{});
    codes->support = support;
    const codes_variable<T, Tape> z{&t, codes, t.make(gradient<T>{}), input.shape().rows(), weights.rows()};
    t.record(detail::encode_stage<Input, Weights, Bias, Activation, codes_variable<T, Tape>>{input, weights, bias,
                                                                                             activation, among, z});
    return z;
}

}  // namespace psae
