#pragma once
// A training step's work on rows of parameters and on counters of latents. A row of a gradient is made in registers,
// projected and consumed by Adam there: it never stands in memory.

#include <cmath>
#include <cstddef>
#include <cstdint>

#include <psae/core/arena.hpp>
#include <psae/cuda/gradient_rows.hpp>
#include <psae/optim/row_update.hpp>
#include <psae/optim/step_outcome.hpp>

namespace psae {

namespace detail {

inline constexpr unsigned most_row_threads = 512;  // of kernels whose threads hold a pack of a row each

template <unsigned width, class T>
__global__ void __launch_bounds__(most_row_threads)
    normalise_rows_kernel(T* W, std::size_t rows, std::size_t d, unsigned threads_of_row) {
    const auto [row, thread] = place_in_rows(threads_of_row);
    T* w = W + row * d;
    const std::size_t step = std::size_t{threads_of_row} * width, own_end = row < rows ? d : 0;
    row_pack<T, width> values{};
    T squares = 0;
    for (std::size_t c = thread * width; c < own_end; c += step) {
        values = load_pack<width>(w + c);
        for (const T value : values.of) squares += value * value;
    }
    const T norm = std::sqrt(sum_of_row(squares, threads_of_row));
    if (norm == 0) return;
    for (std::size_t c = thread * width; c < own_end; c += step) {
        if (step < d) values = load_pack<width>(w + c);
        for (T& value : values.of) value /= norm;
        store_pack(w + c, values);
    }
}

// One block. Each warp goes through a share of the latents of its own, first to count, then to write.
template <class Index>
__global__ void find_dead_kernel(Index* index, std::size_t* count, const Index* since_fired, std::size_t latents,
                                 std::size_t dead_after) {
    __shared__ std::size_t dead_of_warp[32];
    const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
    const std::size_t share = (latents + blockDim.x - 1) / blockDim.x * 32, first = warp * share,
                      end = first + share < latents ? first + share : latents;
    // see(f, whether it is dead), the latents of a warp side by side and in order; several loads are under way at once.
    const auto each = [&](const auto& see) {
        constexpr unsigned together = 8;
        for (std::size_t from = first + lane; from < end + lane; from += 32 * together) {
            bool is_dead[together];
            for (unsigned i = 0; i < together; ++i)
                is_dead[i] = from + 32 * i < end && since_fired[from + 32 * i] > dead_after;
            for (unsigned i = 0; i < together; ++i) see(from + 32 * i, is_dead[i]);
        }
    };
    std::size_t dead = 0;
    each([&](std::size_t, bool is_dead) { dead += __popc(__ballot_sync(0xffffffffu, is_dead)); });
    if (lane == 0) dead_of_warp[warp] = dead;
    __syncthreads();
    std::size_t place = 0;
    for (unsigned before = 0; before < warp; ++before) place += dead_of_warp[before];
    each([&](std::size_t f, bool is_dead) {
        const unsigned votes = __ballot_sync(0xffffffffu, is_dead);
        if (is_dead) index[place + __popc(votes & ((1u << lane) - 1))] = static_cast<Index>(f);
        place += __popc(votes);
    });
    if (warp == warps - 1 && lane == 0) *count = place;
}

template <class Count>
__global__ void count_activity_kernel(std::uint32_t* since_fired, Count* activation_count, const std::uint32_t* fired,
                                      std::size_t latents, const std::uint32_t* go) {
    const std::size_t f = std::size_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (f >= latents || (go != nullptr && *go == 0)) return;
    const std::uint32_t tokens = fired[f];
    activation_count[f] += tokens;
    since_fired[f] = tokens > 0 ? 0 : since_fired[f] + 1;
}

template <class T>
__global__ void judge_kernel(step_outcome* outcome, loss_numbers<T> loss) {
    outcome->judge(loss);
}

// What the rows first .. first + count of a gradient are made of: rows in memory, [count, cols], or null, and parts.
template <class T>
struct row_source {
    const T* rows;
    std::size_t first, count;
    gradient_parts<T> parts;

    // Elements c .. c + width of row first + r.
    template <unsigned width>
    __device__ row_pack<T, width> elements(std::size_t r, std::size_t c, std::size_t cols) const {
        row_pack<T, width> values{};
        if (rows != nullptr) values = load_pack<width>(rows + r * cols + c);
        add_gradient_elements(values, parts, first + r, c, cols);
        return values;
    }
    // Row first + r where there is one column; called by a warp.
    __device__ T number(std::size_t r) const {
        return (rows != nullptr ? rows[r] : T(0)) + gradient_number(parts, first + r);
    }
};

// f(row_source) for pieces of the rows first .. first + count, one after the other. rows: [count, cols] or null.
template <class T, class F>
void each_row_source(const parameter_gradient<T>& g, const T* rows, std::size_t first, std::size_t count,
                     std::size_t cols, const F& f) {
    each_piece(g, first, first + count, [&](std::size_t from, std::size_t end, const gradient_parts<T>& parts) {
        f(row_source<T>{rows == nullptr ? nullptr : rows + (from - first) * cols, from, end - from, parts});
    });
}

// The product of a row of w and its gradient, over the threads of the row. `values` become the gradient's elements at
// c, which is where the thread starts: all that it has, unless the row is longer than its threads hold.
template <unsigned width, class T>
__device__ T parallel_component(row_pack<T, width>& values, const row_source<T>& from, const T* w, std::size_t r,
                                std::size_t c, std::size_t cols, std::size_t step, unsigned threads_of_row) {
    T product = 0;
    if (r < from.count) {
        for (std::size_t at = c; at < cols; at += step) {
            const auto along = load_pack<width>(w + (from.first + r) * cols + at);
            const auto now = from.template elements<width>(r, at, cols);
            for (unsigned i = 0; i < width; ++i) product += now.of[i] * along.of[i];
            if (at == c) values = now;
        }
    }
    return sum_of_row(product, threads_of_row);
}

// Calls f(c, elements c .. of the gradient of row r, the place of those in the parameter) for each pack of the thread's.
// Rows that are projected have one block along y; of others, blocks along y share the packs out.
template <unsigned width, class T, class F>
__device__ void each_gradient_pack(const row_source<T>& from, const row_update<T>& u, unsigned threads_of_row,
                                   const F& f) {
    const auto [r, thread] = place_in_rows(threads_of_row);
    const std::size_t step = std::size_t{threads_of_row} * width, cols = u.cols, c = blockIdx.y * step + thread * width;
    row_pack<T, width> values{};
    T parallel = 0;
    if (u.projected) parallel = parallel_component(values, from, u.w, r, c, cols, step, threads_of_row);
    if (r >= from.count) return;
    for (std::size_t at = c; at < cols; at += step * gridDim.y) {
        const std::size_t place = (from.first + r) * cols + at;
        const auto w = load_pack<width>(u.w + place);
        if (!u.projected || at > c) values = from.template elements<width>(r, at, cols);
        if (u.projected)
            for (unsigned i = 0; i < width; ++i) values.of[i] -= parallel * w.of[i];
        f(values, w, place);
    }
}

template <unsigned width, class T>
__global__ void __launch_bounds__(most_row_threads)
    update_rows_kernel(row_source<T> from, row_update<T> u, unsigned threads_of_row) {
    if (!u.goes()) return;
    const adam_update<T> update = *u.update;
    const T clipping = u.clipping();
    const auto [r, thread] = place_in_rows(threads_of_row);
    const std::size_t c = (std::size_t{blockIdx.y} * threads_of_row + thread) * width,
                      first_place = (from.first + r) * u.cols + c;
    row_pack<T, width> m{}, v{};
    if (r < from.count && c < u.cols) {  // under way while the gradient is made
        m = load_pack<width>(u.m + first_place);
        v = load_pack<width>(u.v + first_place);
    }
    each_gradient_pack<width>(
        from, u, threads_of_row, [&](const row_pack<T, width>& g, row_pack<T, width> w, std::size_t place) {
            if (place != first_place) {
                m = load_pack<width>(u.m + place);
                v = load_pack<width>(u.v + place);
            }
            for (unsigned i = 0; i < width; ++i)
                update(w.of[i], m.of[i], v.of[i], clipping != T(1) ? g.of[i] * clipping : g.of[i]);
            store_pack(u.w + place, w);
            store_pack(u.m + place, m);
            store_pack(u.v + place, v);
        });
}
template <unsigned width, class T>
__global__ void __launch_bounds__(most_row_threads)
    row_squares_kernel(double* squares, row_source<T> from, row_update<T> u, unsigned threads_of_row) {
    double sum = 0;
    each_gradient_pack<width>(from, u, threads_of_row,
                              [&](const row_pack<T, width>& g, const row_pack<T, width>&, std::size_t) {
                                  for (const T value : g.of)
                                      sum += static_cast<double>(value) * static_cast<double>(value);
                              });
    sum = sum_of_row(sum, threads_of_row);
    const auto [r, thread] = place_in_rows(threads_of_row);
    if (thread == 0 && r < from.count) squares[r * gridDim.y + blockIdx.y] = sum;
}

// Where there is one column, a warp makes a row.
template <class T>
__global__ void update_numbers_kernel(row_source<T> from, row_update<T> u) {
    const auto [r, lane] = place_in_rows(32);
    if (r >= from.count || !u.goes()) return;
    const T g = from.number(r), clipping = u.clipping();
    const std::size_t place = from.first + r;
    if (lane == 0) (*u.update)(u.w[place], u.m[place], u.v[place], clipping != T(1) ? g * clipping : g);
}
template <class T>
__global__ void number_squares_kernel(double* squares, row_source<T> from) {
    const auto [r, lane] = place_in_rows(32);
    if (r >= from.count) return;
    const double g = static_cast<double>(from.number(r));
    if (lane == 0) squares[r] = g * g;
}

// *sum += the sum of `values`. One block.
template <class T>
__global__ void add_sum_kernel(T* sum, const T* values, std::size_t count) {
    T own = 0;
    for (std::size_t i = threadIdx.x; i < count; i += blockDim.x) own += values[i];
    own = sum_of_row(own, blockDim.x);
    if (threadIdx.x == 0) *sum += own;
}

// How the rows of a source are shared out: threads, and blocks along x and y. Several blocks share a row of which no sum
// is wanted first.
template <class T>
struct row_launch {
    bool numbers, wide;
    row_threads shared;
    dim3 blocks;

    row_launch(const row_source<T>& from, const row_update<T>& u)
        : numbers(u.cols == 1 && !u.projected),
          wide(has_wide_rows(from.parts, u.cols) && has_wide_rows(from.rows, u.cols) && has_wide_rows(u.w, u.cols) &&
               has_wide_rows(u.m, u.cols) && has_wide_rows(u.v, u.cols)),
          shared(numbers ? 1 : packs(u), u.projected ? most_row_threads : 256),
          blocks(blocks_of(from.count, shared.rows), u.projected || numbers ? 1 : blocks_of(packs(u), shared.threads)) {
    }

private:
    std::size_t packs(const row_update<T>& u) const { return wide ? u.cols / wide_pack<T> : u.cols; }
};

template <class T>
void update_made_rows(cuda& device, const row_source<T>& from, const row_update<T>& u) {
    const row_launch<T> rows(from, u);
    const unsigned threads = rows.shared.of_block();
    if (rows.numbers) launch(device, update_numbers_kernel<T>, rows.blocks, threads, 0, from, u);
    else if (rows.wide)
        launch(device, update_rows_kernel<wide_pack<T>, T>, rows.blocks, threads, 0, from, u, rows.shared.threads);
    else launch(device, update_rows_kernel<1, T>, rows.blocks, threads, 0, from, u, rows.shared.threads);
}

}  // namespace detail

// Scales each row of W, [rows, d], to unit Euclidean norm; zero rows stay.
template <class T>
void normalise_rows(cuda& device, T* W, std::size_t rows, std::size_t d) {
    using namespace detail;
    const bool wide = has_wide_rows(W, d);
    const row_threads shared(wide ? d / wide_pack<T> : d, most_row_threads);
    launch(device, wide ? normalise_rows_kernel<wide_pack<T>, T> : normalise_rows_kernel<1, T>,
           blocks_of(rows, shared.rows), shared.of_block(), 0, W, rows, d, shared.threads);
}

// The latents with since_fired > dead_after, ascending, to index, and their number to *count.
inline void find_dead(cuda& device, arena<space::device>&, std::uint32_t* index, std::size_t* count,
                      const std::uint32_t* since_fired, std::size_t latents, std::size_t dead_after) {
    launch(device, detail::find_dead_kernel<std::uint32_t>, 1, 1024, 0, index, count, since_fired, latents, dead_after);
}

// What a step adds to the counters of latents: activation_count[f] += fired[f], and since_fired[f] = 0 or, where fired[f]
// is 0, 1 more. Nothing where go is not null and *go is 0.
template <class Count>
void count_activity(cuda& device, std::uint32_t* since_fired, Count* activation_count, const std::uint32_t* fired,
                    std::size_t latents, const std::uint32_t* go) {
    launch(device, detail::count_activity_kernel<Count>, detail::blocks_of(latents, 256), 256, 0, since_fired,
           activation_count, fired, latents, go);
}

// Judges a loss (step_outcome.hpp).
template <class T>
void judge(cuda& device, step_outcome* outcome, const loss_numbers<T>& loss) {
    launch(device, detail::judge_kernel<T>, 1, 1, 0, outcome, loss);
}

// A step of Adam on the rows first .. first + count of a parameter, whose gradients are what g says of them and, unless
// it is null, `rows`, [count, cols].
template <class T>
void update_rows(cuda& device, arena<space::device>&, const T* rows, std::size_t first, std::size_t count,
                 const parameter_gradient<T>& g, const row_update<T>& u) {
    detail::each_row_source(g, rows, first, count, u.cols,
                            [&](const auto& from) { detail::update_made_rows(device, from, u); });
}

// The same on all rows.
template <class T>
void update_rows(cuda& device, arena<space::device>& scratch, const parameter_gradient<T>& g, const row_update<T>& u) {
    update_rows(device, scratch, static_cast<const T*>(nullptr), 0, u.rows, g, u);
}

// *squares += the squares of a parameter's gradient, projected where its update is.
template <class T>
void add_gradient_squares(cuda& device, arena<space::device>& scratch, const parameter_gradient<T>& g,
                          const row_update<T>& u, double* squares) {
    using namespace detail;
    each_row_source(g, static_cast<const T*>(nullptr), 0, u.rows, u.cols, [&](const row_source<T>& from) {
        const row_launch<T> rows(from, u);
        const auto mark = scratch.position();
        const std::size_t parts = from.count * rows.blocks.y;
        double* of_part = scratch.allocate<double>(parts);
        const unsigned threads = rows.shared.of_block();
        if (rows.numbers) launch(device, number_squares_kernel<T>, rows.blocks, threads, 0, of_part, from);
        else if (rows.wide)
            launch(device, row_squares_kernel<wide_pack<T>, T>, rows.blocks, threads, 0, of_part, from, u,
                   rows.shared.threads);
        else launch(device, row_squares_kernel<1, T>, rows.blocks, threads, 0, of_part, from, u, rows.shared.threads);
        launch(device, add_sum_kernel<double>, 1, 1024, 0, squares, static_cast<const double*>(of_part), parts);
        scratch.release_to(mark);
    });
}

}  // namespace psae
