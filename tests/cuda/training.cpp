// Rows of gradients and their update, and counters of latents: as on the CPU.
#include "device.hpp"

#include <deque>

#include <psae/cpu/training.hpp>
#include <psae/cuda/training.hpp>

using namespace psae;

namespace {

template <class T>
constexpr double tolerance = sizeof(T) == 4 ? 1e-5 : 1e-12;

// An array on both sides.
template <class T>
struct twin {
    tensor<T, row> here;
    tensor<T, row, space::device> there;

    template <class F>
    twin(const psae::cuda& device, std::size_t count, const F& value) : here(row{count}), there(row{count}) {
        for (std::size_t i = 0; i < count; ++i) here[i] = value(i);
        upload(device, there.data(), here.data(), count);
    }
    const T* on(space s) const { return s == space::host ? here.data() : there.data(); }
    T* on(space s) { return s == space::host ? here.data() : there.data(); }
    // The largest difference of the two sides over the largest element.
    double difference(const psae::cuda& device) const { return relative_difference(on_host(device, there), here); }
};

// Codes seen from the latents: one fires for every token, some for none. All that they have in common is taken from
// `random`, so the two sides are equal.
struct twin_codes {
    std::size_t tokens, latents;
    twin<std::size_t> latent_offsets;
    twin<std::uint32_t> token_by_latent, entry_by_latent;

    twin_codes(const psae::cuda& device, std::size_t tokens, std::size_t latents, random_stream& random)
        : twin_codes(device, tokens, latents, make(tokens, latents, random)) {}

    template <class T>
    codes_view<T> on(space s) const {
        codes_view<T> z{tokens, latents};
        z.latent_offsets = latent_offsets.on(s);
        z.token_by_latent = token_by_latent.on(s);
        z.entry_by_latent = entry_by_latent.on(s);
        return z;
    }
    std::size_t entries() const { return token_by_latent.here.size(); }

private:
    struct lists {
        std::vector<std::size_t> offsets{0};
        std::vector<std::uint32_t> token, entry;
    };
    twin_codes(const psae::cuda& device, std::size_t tokens, std::size_t latents, const lists& l)
        : tokens(tokens),
          latents(latents),
          latent_offsets(device, l.offsets.size(), [&](std::size_t i) { return l.offsets[i]; }),
          token_by_latent(device, l.token.size(), [&](std::size_t i) { return l.token[i]; }),
          entry_by_latent(device, l.entry.size(), [&](std::size_t i) { return l.entry[i]; }) {}
    static lists make(std::size_t tokens, std::size_t latents, random_stream& random) {
        lists l;
        for (std::size_t f = 0; f < latents; ++f) {
            const double density = f == 1 ? 1 : f % 4 == 3 ? 0 : 0.2;
            for (std::size_t t = 0; t < tokens; ++t)
                if (random.uniform() < density) l.token.push_back(static_cast<std::uint32_t>(t));
            l.offsets.push_back(l.token.size());
        }
        for (std::size_t j = 0; j < l.token.size(); ++j) l.entry.push_back(static_cast<std::uint32_t>(j));
        for (std::size_t j = l.entry.size(); j > 1; --j)
            std::swap(l.entry[j - 1], l.entry[static_cast<std::size_t>(random.uniform() * static_cast<double>(j))]);
        return l;
    }
};

// A gradient of all kinds of parts; and, as prefixes of latents have, a product for each of as many `bands` of rows.
template <class T>
struct twin_gradient {
    twin_codes codes;
    std::deque<twin<T>> arrays;
    parameter_gradient<T> gradients[2];
    codes_view<T> views[2];
    gradient<T> slopes[2][3];
    std::deque<outer_product<T>> products;
    std::deque<row_multiples<T>> multiples;

    twin_gradient(const psae::cuda& device, std::size_t rows, std::size_t cols, bool dense, random_stream& random,
                  std::size_t bands = 0)
        : codes(device, 50, rows, random) {
        const auto array = [&](std::size_t count, auto value) -> twin<T>& {
            return arrays.emplace_back(device, count, [&](std::size_t i) { return static_cast<T>(value(i)); });
        };
        const auto normal = [&](std::size_t) { return random.normal(); };
        twin<T>& data = array(rows * cols, normal);
        struct share {
            twin<T>* weights;
            twin<T>* rows;
            latent_range range;
        };
        std::vector<share> shares;
        std::vector<latent_range> ranges{{}, {2, rows / 2}, {1}};
        for (std::size_t b = 0; b < bands; ++b) ranges.push_back({rows * b / bands, rows * (b + 1) / bands});
        for (const latent_range range : ranges) {
            twin<T>& weights = array(codes.entries(), [&](std::size_t i) { return i % 5 == 2 ? 0 : random.normal(); });
            const bool bias = cols == 1 && range.first == 1;
            shares.push_back({&weights, bias ? nullptr : &array(codes.tokens * cols, normal), range});
        }
        twin<T>& parameter = array(rows * cols, normal);
        twin<T>& divisor = array(rows, [&](std::size_t i) { return i % 3 == 1 ? 0 : 1 + random.uniform(); });
        twin<T>* slope[3] = {&array(rows, normal), &array(rows, normal), &array(rows, normal)};
        for (const space s : {space::host, space::device}) {
            const int side = s == space::host ? 0 : 1;
            parameter_gradient<T>& g = gradients[side];
            if (dense) {
                g.data = data.on(s);
                g.written = true;
            }
            views[side] = codes.on<T>(s);
            outer_product<T>** next = &g.products;
            for (const share& p : shares) {
                const T* of_tokens = p.rows == nullptr ? nullptr : p.rows->on(s);
                products.push_back({&views[side], p.weights->on(s), of_tokens, cols, p.range, nullptr});
                *next = &products.back();
                next = &products.back().next;
            }
            row_multiples<T>** next_multiple = &g.multiples;
            for (int i = 0; i < 3; ++i) {
                slopes[side][i].data = slope[i]->on(s);
                slopes[side][i].written = i != 1;
                multiples.push_back({&slopes[side][i], divisor.on(s), parameter.on(s), nullptr});
                *next_multiple = &multiples.back();
                next_multiple = &multiples.back().next;
            }
        }
    }
    const parameter_gradient<T>& on(space s) const { return gradients[s == space::host ? 0 : 1]; }
};

// A parameter with its moments. Rows have unit length.
template <class T>
struct twin_parameter {
    std::size_t rows, cols;
    twin<T> w, m, v;
    twin<adam_update<T>> step;

    twin_parameter(const psae::cuda& device, std::size_t rows, std::size_t cols, random_stream& random)
        : rows(rows),
          cols(cols),
          w(device, rows * cols, [&](std::size_t) { return static_cast<T>(random.normal()); }),
          m(device, rows * cols, [&](std::size_t) { return static_cast<T>(random.normal()); }),
          v(device, rows * cols, [&](std::size_t) { return static_cast<T>(1 + random.uniform()); }),
          step(device, 1, [](std::size_t) { return adam_update<T>(adam{}.at(0.1, 3)); }) {
        cpu host(1);
        normalise_rows(host, w.here.data(), rows, cols);
        upload(device, w.there.data(), w.here.data(), w.here.size());
    }
    row_update<T> update(space s, bool projected) {
        return {w.on(s), m.on(s), v.on(s), rows, cols, projected, step.on(s), nullptr, 0, nullptr};
    }
    double difference(const psae::cuda& device) const {
        return std::max({w.difference(device), m.difference(device), v.difference(device)});
    }
};

}  // namespace

TEMPLATE_TEST_CASE("update_rows and add_gradient_squares on the GPU", "", float, double) {
    using T = TestType;
    cpu host(1);
    psae::cuda device;
    arena<> scratch;
    spoilt_arena scratch_there(device);
    struct sizes {
        std::size_t rows, cols, bands = 0;
    };
    for (const auto& [rows, cols, bands] :
         {sizes{37, 1}, {37, 5}, {21, 64}, {9, 384}, {5, 1283}, {5, 2560}, {6, 1}, {90, 1, 40}, {90, 12, 40}})
        for (const bool dense : {false, true})
            for (const bool projected : {false, true}) {
                INFO(rows << " rows of " << cols << ", " << bands << " bands" << (dense ? ", dense part" : "")
                          << (projected ? ", projected" : ""));
                random_stream random(rows * cols);
                const twin_gradient<T> g(device, rows, cols, dense, random, bands);
                twin<double> squares(device, 1, [](std::size_t) { return 3.5; });
                for (const double clip : {0.0, 1e-3, 1e6}) {
                    twin_parameter<T> p(device, rows, cols, random);
                    auto here = p.update(space::host, projected), there = p.update(space::device, projected);
                    if (clip > 0) {
                        add_gradient_squares(host, scratch, g.on(space::host), here, squares.on(space::host));
                        add_gradient_squares(device, scratch_there, g.on(space::device), there,
                                             squares.on(space::device));
                        CHECK(squares.difference(device) < tolerance<T>);
                        here.squares = squares.on(space::host);
                        there.squares = squares.on(space::device);
                        here.clip = there.clip = clip;
                    }
                    update_rows(host, scratch, g.on(space::host), here);
                    update_rows(device, scratch_there, g.on(space::device), there);
                    CHECK(p.difference(device) < tolerance<T>);
                }
            }
}

TEMPLATE_TEST_CASE("update_rows on the GPU of a dense gradient alone", "", float, double) {
    using T = TestType;
    cpu host(1);
    psae::cuda device;
    arena<> scratch;
    spoilt_arena scratch_there(device);
    for (const std::size_t cols : {1, 768, 4100, 70001}) {
        INFO(cols);
        random_stream random(cols);
        twin<T> data(device, cols, [&](std::size_t) { return static_cast<T>(random.normal()); });
        twin_parameter<T> p(device, 1, cols, random);
        parameter_gradient<T> here, there;
        here.written = there.written = true;
        here.data = data.on(space::host);
        there.data = data.on(space::device);
        update_rows(host, scratch, here, p.update(space::host, false));
        update_rows(device, scratch_there, there, p.update(space::device, false));
        CHECK(p.difference(device) < tolerance<T>);
        twin<double> squares(device, 1, [](std::size_t) { return 0.0; });
        add_gradient_squares(host, scratch, here, p.update(space::host, false), squares.on(space::host));
        add_gradient_squares(device, scratch_there, there, p.update(space::device, false), squares.on(space::device));
        CHECK(squares.difference(device) < tolerance<T>);
    }
}

TEMPLATE_TEST_CASE("update_rows on the GPU of some rows, in memory in part or not", "", float, double) {
    using T = TestType;
    cpu host(1);
    psae::cuda device;
    arena<> scratch;
    spoilt_arena scratch_there(device);
    const std::size_t rows = 40, first = 7, count = 18;
    for (const std::size_t cols : {1, 6, 96})
        for (const bool projected : {false, true})
            for (const bool in_memory : {false, true}) {
                INFO(cols << (projected ? ", projected" : "") << (in_memory ? ", in memory" : ""));
                random_stream random(cols);
                const twin_gradient<T> g(device, rows, cols, true, random);
                const twin<T> given(device, count * cols, [&](std::size_t) { return static_cast<T>(random.normal()); });
                twin_parameter<T> p(device, rows, cols, random);
                const auto rows_on = [&](space s) { return in_memory ? given.on(s) : static_cast<const T*>(nullptr); };
                update_rows(host, scratch, rows_on(space::host), first, count, g.on(space::host),
                            p.update(space::host, projected));
                update_rows(device, scratch_there, rows_on(space::device), first, count, g.on(space::device),
                            p.update(space::device, projected));
                CHECK(p.difference(device) < tolerance<T>);
            }
}

TEST_CASE("update_rows on the GPU changes nothing where it is not to go") {
    psae::cuda device;
    arena<space::device> scratch;
    for (const std::size_t cols : {1, 8})
        for (const std::uint32_t go : {0, 1}) {
            random_stream random(1);
            const twin_gradient<float> g(device, 10, cols, true, random);
            twin_parameter<float> p(device, 10, cols, random);
            twin<std::uint32_t> flag(device, 1, [&](std::size_t) { return go; });
            auto u = p.update(space::device, false);
            u.go = flag.on(space::device);
            update_rows(device, scratch, g.on(space::device), u);
            CHECK((p.difference(device) == 0) == (go == 0));

            cpu host(1);
            arena<> scratch_here;
            const auto before = p.w.here.clone();
            auto here = p.update(space::host, false);
            here.go = flag.on(space::host);
            update_rows(host, scratch_here, g.on(space::host), here);
            CHECK((largest_difference(p.w.here, before) == 0) == (go == 0));
        }
}

TEST_CASE("a row of a gradient on the GPU has a bounded number of parts") {
    codes_view<float> z;
    constexpr std::size_t most = detail::gradient_parts<float>::most_products, rows = 10;
    std::vector<outer_product<float>> products(most + 1, outer_product<float>{&z, nullptr, nullptr, 1, {}, nullptr});
    for (std::size_t i = 0; i + 1 < products.size(); ++i) products[i].next = &products[i + 1];
    parameter_gradient<float> g;
    const auto count_parts = [&] {
        std::vector<std::size_t> counts;
        detail::each_piece(g, 0, rows, [&](std::size_t first, std::size_t end, const auto& parts) {
            counts.insert(counts.end(), end - first, parts.product_count);
        });
        return counts;
    };
    g.products = &products[1];
    CHECK(count_parts() == std::vector<std::size_t>(rows, most));
    g.products = &products[0];
    CHECK_THROWS_AS(count_parts(), error);
    products[0].range = {4};  // two pieces, of which the second has too many
    CHECK_THROWS_AS(count_parts(), error);
    products[1].range = {0, 4};
    CHECK(count_parts() == std::vector<std::size_t>(rows, most));
    gradient<float> slope;
    slope.written = true;
    std::vector<row_multiples<float>> multiples(5, row_multiples<float>{&slope, nullptr, nullptr, nullptr});
    for (std::size_t i = 0; i + 1 < multiples.size(); ++i) multiples[i].next = &multiples[i + 1];
    g.products = nullptr;
    g.multiples = &multiples[1];
    CHECK(detail::flatten(g, 0, rows).multiple_count == 4);
    g.multiples = &multiples[0];
    CHECK_THROWS_AS(detail::flatten(g, 0, rows), error);
}

TEMPLATE_TEST_CASE("normalise_rows on the GPU", "", float, double) {
    using T = TestType;
    cpu host(1);
    psae::cuda device;
    for (const std::size_t d : {1, 7, 64, 768, 1283, 4096}) {
        INFO(d);
        random_stream random(d);
        twin<T> w(device, 11 * d, [&](std::size_t i) {
            return static_cast<T>(i / d == 4 ? 0 : (1 + static_cast<double>(i / d)) * random.normal());
        });
        normalise_rows(host, w.on(space::host), 11, d);
        normalise_rows(device, w.on(space::device), 11, d);
        CHECK(w.difference(device) < tolerance<T>);
    }
}

TEST_CASE("find_dead on the GPU") {
    cpu host(1);
    psae::cuda device;
    arena<> scratch;
    arena<space::device> scratch_there;
    for (const std::size_t latents : {1, 31, 32, 1000, 5003})
        for (const double share : {0.0, 0.3, 1.0}) {
            INFO(latents << " latents, a share of " << share);
            random_stream random(latents);
            const twin<std::uint32_t> since(device, latents,
                                            [&](std::size_t) { return random.uniform() < share ? 9 : 8; });
            tensor<std::uint32_t, row> index(row{latents});
            std::size_t count;
            find_dead(host, scratch, index.data(), &count, since.on(space::host), latents, 8);
            auto index_there = spoilt_tensor<std::uint32_t>(device, row{latents});
            auto count_there = spoilt_tensor<std::size_t>(device, row{1});
            find_dead(device, scratch_there, index_there.data(), count_there.data(), since.on(space::device), latents,
                      8);
            REQUIRE(on_host(device, count_there)[0] == count);
            CHECK(on_host(device, index_there.data(), count) ==
                  std::vector<std::uint32_t>(index.data(), index.data() + count));
        }
}

TEST_CASE("count_activity on the GPU") {
    cpu host(1);
    psae::cuda device;
    const std::size_t latents = 700;
    for (const std::uint32_t go : {0, 1, 2}) {
        INFO(go);
        const twin<std::uint32_t> fired(device, latents, [](std::size_t f) { return f % 3 * 1000; });
        twin<std::uint32_t> since(device, latents, [](std::size_t f) { return f; });
        twin<std::uint64_t> count(device, latents, [](std::size_t f) { return f << 33; });
        const twin<std::uint32_t> flag(device, 1, [&](std::size_t) { return go; });
        const auto flag_on = [&](space s) { return go == 2 ? nullptr : flag.on(s); };
        count_activity(host, since.on(space::host), count.on(space::host), fired.on(space::host), latents,
                       flag_on(space::host));
        count_activity(device, since.on(space::device), count.on(space::device), fired.on(space::device), latents,
                       flag_on(space::device));
        CHECK(since.here[3] == (go == 0 ? 3 : 4));
        CHECK(count.here[2] == (go == 0 ? 0 : 2000) + (std::uint64_t{2} << 33));
        CHECK(on_host(device, since.there) == std::vector<std::uint32_t>(since.here.begin(), since.here.end()));
        CHECK(on_host(device, count.there) == std::vector<std::uint64_t>(count.here.begin(), count.here.end()));
    }
}
