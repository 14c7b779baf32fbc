// Kernels on codes on the GPU, against the CPU. Everything is whole numbers, so that sums have to be equal to the bit.
#include <numeric>

#include <psae/cpu/codes.hpp>
#include <psae/cpu/encode.hpp>
#include <psae/cuda/codes.hpp>
#include <psae/cuda/encode.hpp>

#include "device.hpp"

using namespace psae;

namespace {

template <class T>
using array = device_array<T, psae::cuda>;

template <class T>
std::vector<T> whole_numbers(std::size_t count, std::uint64_t seed, std::uint64_t from_0_to = 8) {
    std::vector<T> v(count);
    random_stream random(seed);
    for (T& x : v) x = static_cast<T>(random.below(from_0_to + 1)) - static_cast<T>(from_0_to / 2);
    return v;
}

// Codes here and there, by token and by latent. Some values are 0; some tokens and latents have no entry, others all of
// them. There is more room on the device than there are entries.
template <class T>
struct some_codes {
    psae::cuda device;
    psae::cpu host;
    arena<> host_scratch;
    spoilt_arena scratch{device};
    std::vector<std::size_t> offsets{0};
    std::vector<std::uint32_t> latent;
    std::vector<T> value;
    array<std::size_t> device_offsets;
    array<std::uint32_t> device_latent;
    array<T> device_value;
    codes_view<T> here, there;

    some_codes(std::size_t tokens, std::size_t latents, double share, std::size_t more_room = 37) {
        random_stream random(tokens + latents);
        for (std::size_t t = 0; t < tokens; ++t) {
            for (std::uint32_t f = 0; f < latents; ++f)
                if (t % 7 != 3 && f % 11 != 5 && (t % 7 == 4 || f % 11 == 6 || random.uniform() < share)) {
                    latent.push_back(f);
                    value.push_back(static_cast<T>(random.below(7)) - 3);
                }
            offsets.push_back(latent.size());
        }
        here.tokens = there.tokens = tokens;
        here.latents = there.latents = latents;
        here.offsets = offsets.data();
        here.latent = latent.data();
        here.value = value.data();
        here.room = latent.size();
        there.room = here.room + more_room;
        device_offsets = on_device(device, offsets);
        device_latent = spoilt_tensor<std::uint32_t>(device, row{there.room});
        device_value = spoilt_tensor<T>(device, row{there.room});
        upload(device, device_latent.data(), latent.data(), latent.size());
        upload(device, device_value.data(), value.data(), value.size());
        there.offsets = device_offsets.data();
        there.latent = device_latent.data();
        there.value = device_value.data();
        add_latent_view(host, host_scratch, here);
        add_latent_view(device, scratch, there);
    }
    std::vector<T> entries(const array<T>& a) const { return on_host(device, a.data(), value.size()); }
};

// The same as a tile, latents `first` to `first + count` of them.
template <class T>
struct some_tile {
    std::vector<T> value;
    array<T> device_value;
    codes_tile<T> here, there;

    some_tile(const some_codes<T>& z, std::size_t first, std::size_t count, bool everywhere)
        : value(z.here.tokens * count) {
        for (std::size_t t = 0; t < z.here.tokens; ++t)
            for (std::size_t i = z.offsets[t]; i < z.offsets[t + 1]; ++i)
                if (z.latent[i] >= first && z.latent[i] < first + count)
                    value[t * count + z.latent[i] - first] = z.value[i];
        device_value = on_device(z.device, value);
        here = there = {z.here.tokens, first, count, value.data(), everywhere};
        there.value = device_value.data();
    }
};

// An expression that tells all that an entry's position says.
template <class T>
struct of_position {
    template <class P>
    PSAE_FN T load(P p) const {
        return p.value * static_cast<T>(p.row % 3) + static_cast<T>(p.col % 5) - static_cast<T>(p.entry % 2);
    }
};

template <class T, class F>
void with_codes(const F& f) {
    for (const auto& [tokens, latents, share] : {std::tuple<std::size_t, std::size_t, double>{0, 10, 0},
                                                 {1, 1, 1},
                                                 {1, 300, 0.9},
                                                 {7, 40, 0.1},
                                                 {30, 260, 0.3},
                                                 {197, 70, 0.05},
                                                 {9, 400, 0}}) {
        INFO(tokens << " tokens, " << latents << " latents");
        some_codes<T> z(tokens, latents, share);
        f(z);
    }
}
template <class T, class F>
void with_tiles(const F& f) {
    with_codes<T>([&](some_codes<T>& z) {
        const std::size_t half = z.here.latents / 2;
        for (const bool everywhere : {false, true}) {
            INFO(std::boolalpha << "everywhere " << everywhere);
            f(z, some_tile<T>(z, 0, z.here.latents - half, everywhere),
              some_tile<T>(z, z.here.latents - half, half, everywhere));
        }
    });
}

}  // namespace

TEMPLATE_TEST_CASE("the latent-major view on the GPU", "", float, double) {
    with_codes<TestType>([](auto& z) {
        const std::size_t count = z.latent.size();
        CHECK(on_host(z.device, z.there.latent_offsets, z.there.latents + 1) ==
              std::vector<std::size_t>(z.here.latent_offsets, z.here.latent_offsets + z.here.latents + 1));
        CHECK(on_host(z.device, z.there.token_by_latent, count) ==
              std::vector<std::uint32_t>(z.here.token_by_latent, z.here.token_by_latent + count));
        CHECK(on_host(z.device, z.there.entry_by_latent, count) ==
              std::vector<std::uint32_t>(z.here.entry_by_latent, z.here.entry_by_latent + count));
    });
}

TEMPLATE_TEST_CASE("expressions over entries on the GPU", "", float, double) {
    using T = TestType;
    const of_position<T> e;
    with_codes<T>([&](some_codes<T>& z) {
        const std::size_t tokens = z.here.tokens, latents = z.here.latents, count = z.value.size();
        std::vector<T> sums(tokens), values(count), by_latent = whole_numbers<T>(latents, 1);
        auto device_sums = spoilt_tensor<T>(z.device, row{tokens}),
             device_values = spoilt_tensor<T>(z.device, row{z.there.room});
        auto device_by_latent = on_device(z.device, by_latent);
        codes_sums(z.host, sums.data(), z.here, e);
        codes_sums(z.device, device_sums.data(), z.there, e);
        CHECK(on_host(z.device, device_sums) == sums);
        for (const psae::write mode : {psae::write::overwrite, psae::write::add}) {
            codes_assign(z.host, values.data(), z.here, e, mode);
            codes_assign(z.device, device_values.data(), z.there, e, mode);
            CHECK(z.entries(device_values) == values);
        }
        multiply_by_derivative(z.host, values.data(), z.here, exponential_activation{});
        multiply_by_derivative(z.device, device_values.data(), z.there, exponential_activation{});
        CHECK(z.entries(device_values) == values);
        add_latent_sums(z.host, z.host_scratch, by_latent.data(), z.here, e);
        add_latent_sums(z.device, z.scratch, device_by_latent.data(), z.there, e);
        CHECK(on_host(z.device, device_by_latent) == by_latent);
        latent_sums(z.host, by_latent.data(), z.here, z.here.value);
        latent_sums(z.device, device_by_latent.data(), z.there, z.there.value);
        CHECK(on_host(z.device, device_by_latent) == by_latent);

        std::vector<std::uint32_t> fired(latents);
        auto device_fired = spoilt_tensor<std::uint32_t>(z.device, row{latents});
        count_active(z.host, z.host_scratch, fired.data(), z.here);
        count_active(z.device, z.scratch, device_fired.data(), z.there);
        CHECK(on_host(z.device, device_fired) == fired);
        z.here.latent_offsets = nullptr;
        std::fill(fired.begin(), fired.end(), 1000);
        count_active(z.host, z.host_scratch, fired.data(), z.here);
        CHECK(on_host(z.device, device_fired) == fired);
    });
}

TEMPLATE_TEST_CASE("expressions over tiles on the GPU", "", float, double) {
    using T = TestType;
    const of_position<T> e;
    with_tiles<T>([&](some_codes<T>& z, const some_tile<T>& first, const some_tile<T>& second) {
        const std::size_t tokens = z.here.tokens, latents = z.here.latents;
        std::vector<T> sums(tokens), by_latent = whole_numbers<T>(latents, 1);
        auto device_sums = spoilt_tensor<T>(z.device, row{tokens});
        auto device_by_latent = on_device(z.device, by_latent);
        for (const some_tile<T>* tile : {&first, &second}) {
            codes_sums(z.host, sums.data(), tile->here, e);
            codes_sums(z.device, device_sums.data(), tile->there, e);
            CHECK(on_host(z.device, device_sums) == sums);
            add_latent_sums(z.host, z.host_scratch, by_latent.data(), tile->here, e);
            add_latent_sums(z.device, z.scratch, device_by_latent.data(), tile->there, e);
            CHECK(on_host(z.device, device_by_latent) == by_latent);

            const std::size_t columns = tile->here.count;
            std::vector<T> values(tokens * columns), of_column(columns);
            auto device_values = spoilt_tensor<T>(z.device, row{tokens * columns}),
                 device_of_column = spoilt_tensor<T>(z.device, row{columns});
            for (const psae::write mode : {psae::write::overwrite, psae::write::add}) {
                codes_assign(z.host, values.data(), tile->here, e, mode);
                codes_assign(z.device, device_values.data(), tile->there, e, mode);
                CHECK(on_host(z.device, device_values) == values);
            }
            multiply_by_derivative(z.host, z.host_scratch, values.data(), of_column.data(), tile->here,
                                   exponential_activation{});
            multiply_by_derivative(z.device, z.scratch, device_values.data(), device_of_column.data(), tile->there,
                                   exponential_activation{});
            CHECK(on_host(z.device, device_values) == values);
            CHECK(on_host(z.device, device_of_column) == of_column);

            std::vector<std::uint32_t> fired(columns);
            auto device_fired = spoilt_tensor<std::uint32_t>(z.device, row{columns});
            count_active(z.host, z.host_scratch, fired.data(), tile->here);
            count_active(z.device, z.scratch, device_fired.data(), tile->there);
            CHECK(on_host(z.device, device_fired) == fired);
        }
    });
}

TEMPLATE_TEST_CASE("what an expression over codes adds to leaves of all shapes, on the GPU", "", float, double) {
    using T = TestType;
    const of_position<T> e;
    const auto check = [&](auto extents, some_codes<T>& z, const auto& here, const auto& there) {
        using S = decltype(extents);
        auto leaf = whole_numbers<T>(extents.size(), 2);
        auto device_leaf = on_device(z.device, leaf);
        add_to_leaf<S>(z.host, z.host_scratch, leaf.data(), extents.cols(), here, e);
        add_to_leaf<S>(z.device, z.scratch, device_leaf.data(), extents.cols(), there, e);
        CHECK(on_host(z.device, device_leaf) == leaf);
    };
    const auto check_all = [&](some_codes<T>& z, const auto& here, const auto& there) {
        check(scalar{}, z, here, there);
        check(shape<1>{}, z, here, there);
        check(column{z.here.tokens}, z, here, there);
        check(matrix{z.here.tokens, z.here.latents}, z, here, there);
    };
    with_codes<T>([&](some_codes<T>& z) { check_all(z, z.here, z.there); });
    with_tiles<T>([&](some_codes<T>& z, const some_tile<T>& first, const some_tile<T>& second) {
        check_all(z, first.here, first.there);
        check_all(z, second.here, second.there);
    });
}

TEMPLATE_TEST_CASE("sparse decode and its adjoint on the GPU", "", float, double) {
    using T = TestType;
    with_codes<T>([&](some_codes<T>& z) {
        const std::size_t tokens = z.here.tokens, latents = z.here.latents;
        for (const std::size_t d : {std::size_t{5}, std::size_t{tokens == 7 ? 1100u : 36u}}) {
            INFO("d " << d);
            const auto W = whole_numbers<T>(latents * d, 3), bias = whole_numbers<T>(tokens * d + d, 4),
                       G = whole_numbers<T>(tokens * d, 5);
            const auto device_W = on_device(z.device, W), device_bias = on_device(z.device, bias),
                       device_G = on_device(z.device, G);
            std::vector<T> out(tokens * d), dz(z.value.size());
            auto device_out = spoilt_tensor<T>(z.device, row{tokens * d}),
                 device_dz = spoilt_tensor<T>(z.device, row{z.there.room});
            const T *none = nullptr, *w = device_W.data();
            struct way {
                latent_range range;
                int bias;  // 0: none, 1: one for all tokens, 2: one for each
                psae::write mode;
            };
            for (const auto& [range, kind, mode] :
                 {way{{}, 0, psae::write::overwrite}, way{{}, 1, psae::write::add},
                  way{{0, latents / 3}, 2, psae::write::add},
                  way{{latents / 3, latents - 1}, 0, psae::write::overwrite},
                  way{{latents / 2, latent_range::unbounded}, 1, psae::write::overwrite},
                  way{{3, 3}, 2, psae::write::add}}) {
                const std::size_t stride = kind == 2 ? d : 0;
                sparse_decode(z.host, out.data(), z.here, z.here.value, W.data(), kind == 0 ? none : bias.data(), d,
                              range, stride);
                sparse_decode(z.device, device_out.data(), z.there, z.there.value, w,
                              kind == 0 ? none : device_bias.data(), d, range, stride);
                CHECK(on_host(z.device, device_out) == out);
                sparse_decode_adjoint(z.host, dz.data(), z.here, G.data(), W.data(), d, mode, range);
                sparse_decode_adjoint(z.device, device_dz.data(), z.there, device_G.data(), w, d, mode, range);
                CHECK(z.entries(device_dz) == dz);
                decode_start(z.host, out.data(), tokens, d, kind == 0 ? none : bias.data(), stride);
                decode_start(z.device, device_out.data(), tokens, d, kind == 0 ? none : device_bias.data(), stride);
                CHECK(on_host(z.device, device_out) == out);
            }
        }
    });
}

TEST_CASE("rows that are not aligned for wide loads are decoded on the GPU") {
    some_codes<float> z(7, 40, 0.5);
    const std::size_t d = 8;
    const auto W = whole_numbers<float>(40 * d + 1, 3);
    const auto device_W = on_device(z.device, W);
    std::vector<float> out(7 * d);
    auto device_out = spoilt_tensor<float>(z.device, row{7 * d + 1});
    const float* none = nullptr;
    sparse_decode(z.host, out.data(), z.here, z.here.value, W.data() + 1, none, d);
    sparse_decode(z.device, device_out.data() + 1, z.there, z.there.value, device_W.data() + 1, none, d);
    CHECK(on_host(z.device, device_out.data() + 1, out.size()) == out);
}

TEMPLATE_TEST_CASE("the strongest entries of tokens on the GPU", "", float, double) {
    using T = TestType;
    with_codes<T>([&](some_codes<T>& z) {  // values are few, so that many are equal
        std::vector<T> kept(z.value.size()), weight(z.here.latents);
        for (std::size_t f = 0; f < weight.size(); ++f) weight[f] = static_cast<T>(f % 3);
        const auto device_weight = on_device(z.device, weight);
        auto device_kept = spoilt_tensor<T>(z.device, row{z.there.room});
        const T* none = nullptr;
        for (const std::size_t k : {0, 1, 3, 20, 150, 1000})
            for (const bool weighted : {false, true}) {
                INFO("k " << k);
                keep_strongest(z.host, z.host_scratch, kept.data(), z.here, k, weighted ? weight.data() : none);
                keep_strongest(z.device, z.scratch, device_kept.data(), z.there, k,
                               weighted ? device_weight.data() : none);
                CHECK(z.entries(device_kept) == kept);
            }
    });
}

TEMPLATE_TEST_CASE("norms and weighted sums of rows on the GPU", "", float, double) {
    using T = TestType;
    const psae::cuda device;
    psae::cpu host;
    arena<> host_scratch;
    spoilt_arena scratch(device);
    for (const auto& [rows, d] : {std::pair<std::size_t, std::size_t>{1, 1}, {9, 5}, {700, 12}, {40, 300}, {0, 3}}) {
        INFO(rows << " x " << d);
        const auto W = whole_numbers<T>(rows * d, 6);
        auto weight = whole_numbers<T>(rows, 7, 2);
        const auto device_W = on_device(device, W), device_weight = on_device(device, weight);
        std::vector<T> norms(rows), sum(d);
        auto device_norms = spoilt_tensor<T>(device, row{rows}), device_sum = spoilt_tensor<T>(device, row{d});
        row_norms(host, norms.data(), W.data(), rows, d);
        row_norms(device, device_norms.data(), device_W.data(), rows, d);
        CHECK(on_host(device, device_norms) == norms);
        for (const psae::write mode : {psae::write::overwrite, psae::write::add}) {
            weighted_row_sum(host, host_scratch, sum.data(), weight.data(), W.data(), rows, d, mode);
            weighted_row_sum(device, scratch, device_sum.data(), device_weight.data(), device_W.data(), rows, d, mode);
            CHECK(on_host(device, device_sum) == sum);
        }
    }
}

TEST_CASE("sets of latents on the GPU") {
    const psae::cuda device;
    psae::cpu host;
    for (const std::size_t size : {0, 1, 500, 3000}) {
        std::vector<std::uint32_t> set(size), fired(2 * size), kept(size);
        for (std::uint32_t j = 0; j < size; ++j) set[j] = 2 * j;
        random_stream random(8);
        for (auto& f : fired) f = static_cast<std::uint32_t>(random.below(3));
        const auto device_set = on_device(device, set), device_fired = on_device(device, fired);
        const auto device_size = on_device(device, std::vector<std::size_t>{size});
        auto device_kept = spoilt_tensor<std::uint32_t>(device, row{size});
        auto device_number = spoilt_tensor<std::size_t>(device, row{1});
        auto device_copy = spoilt_tensor<float>(device, row{1});
        std::size_t number = 0;
        keep_silent(host, kept.data(), &number, {set.data(), &size, size}, fired.data());
        keep_silent(device, device_kept.data(), device_number.data(), {device_set.data(), device_size.data(), size},
                    device_fired.data());
        kept.resize(number);
        CHECK(on_host(device, device_number)[0] == number);
        CHECK(on_host(device, device_kept.data(), number) == kept);
        copy_size(device, device_copy.data(), {device_kept.data(), device_number.data(), size});
        CHECK(on_host(device, device_copy)[0] == static_cast<float>(number));
    }
}

TEMPLATE_TEST_CASE("rows of gradients on the GPU", "", float, double) {
    using T = TestType;
    with_codes<T>([&](some_codes<T>& z) {
        const std::size_t latents = z.here.latents, tokens = z.here.tokens;
        for (const std::size_t d : {1, 5, 8}) {
            const auto dense = whole_numbers<T>(latents * d, 9), source = whole_numbers<T>(tokens * d, 10),
                       W = whole_numbers<T>(latents * d, 11), slope = whole_numbers<T>(latents, 12);
            const std::vector<T> divisor(latents, 2);
            const auto device_dense = on_device(z.device, dense), device_source = on_device(z.device, source),
                       device_W = on_device(z.device, W), device_slope = on_device(z.device, slope),
                       device_divisor = on_device(z.device, divisor);
            gradient<T> of_slope{const_cast<T*>(slope.data()), true},
                device_of_slope{const_cast<T*>(device_slope.data()), true};
            const auto rows = [&](const codes_view<T>& codes, const auto& dense_part, const auto& s, const auto& w,
                                  const auto& div, gradient<T>& norm_slope, const auto& add) {
                outer_product<T> second{&codes, codes.value, d == 1 ? nullptr : s.data(), d, {latents / 4, latents / 2},
                                        nullptr},
                    first{&codes, codes.value, s.data(), d, {}, &second};
                row_multiples<T> multiple{&norm_slope, div.data(), w.data(), nullptr};
                parameter_gradient<T> g;
                add(g);
                g.data = const_cast<T*>(dense_part.data());
                g.written = true;
                add(g);
                g.products = &first;
                add(g);
                g.multiples = &multiple;
                add(g);
            };
            const std::size_t begin = latents / 3, count = latents - begin;
            auto sum = whole_numbers<T>(count * d, 13);
            auto device_sum = on_device(z.device, sum);
            rows(z.here, dense, source, W, divisor, of_slope,
                 [&](const auto& g) { add_gradient_rows(z.host, g, begin, count, d, sum.data()); });
            rows(z.there, device_dense, device_source, device_W, device_divisor, device_of_slope,
                 [&](const auto& g) { add_gradient_rows(z.device, g, begin, count, d, device_sum.data()); });
            CHECK(on_host(z.device, device_sum) == sum);
        }
    });
}
