// Products of bf16, and a training step whose dense codes go through them.
#include <catch2/catch.hpp>

#include <map>
#include <string>

#include <psae/psae.hpp>

#include "../difference.hpp"

using namespace psae;

TEST_CASE("products of bf16 are those of the rounded operands, transposed or added to") {
    constexpr std::size_t M = 37, N = 50, K = 65;
    random_stream random(3);
    std::vector<float> A(M * K), B(K * N), C(M * N);
    for (auto* v : {&A, &B, &C})
        for (float& x : *v) x = float(random.normal());
    cpu device;
    device.products = precision::bf16;
    arena<> scratch;
    for (const bool transpose_a : {false, true})
        for (const bool transpose_b : {false, true})
            for (const psae::write mode : {psae::write::overwrite, psae::write::add}) {
                std::vector<float> result = C;
                std::vector<double> expected(M * N);
                for (std::size_t m = 0; m < M; ++m)
                    for (std::size_t n = 0; n < N; ++n) {
                        double sum = mode == psae::write::add ? C[m * N + n] : 0;
                        for (std::size_t k = 0; k < K; ++k)
                            sum += double(widen(to_bf16(transpose_a ? A[k * M + m] : A[m * K + k]))) *
                                   double(widen(to_bf16(transpose_b ? B[n * K + k] : B[k * N + n])));
                        expected[m * N + n] = sum;
                    }
                product(device, scratch, transpose_a, transpose_b, M, N, K, A.data(), B.data(), mode, result.data());
                CHECK(relative_difference(result, expected) < 1e-6);
            }
}

TEST_CASE("a step on dense codes in bf16 is the step in float to the precision of bf16") {
    constexpr std::size_t d = 48, latents = 400, tokens = 150;
    tensor<float, shape<dyn, d>> x(shape<dyn, d>{tokens});
    random_stream random(4);
    for (float& v : x) v = float(random.normal());
    std::map<std::string, std::vector<float>> gradients[2];
    double loss[2];
    for (const precision products : {precision::fp32, precision::bf16}) {
        const int i = products == precision::bf16;
        cpu device;
        device.products = products;
        arena<> scratch;
        tape<cpu> t(device, scratch, mode::train);
        t.form = codes_form::tiles;
        patchsae<d, latents> sae;
        const std::uint32_t* dead = nullptr;
        const std::size_t count = 0;
        random_stream start(5);
        sae.initialise(start);
        sae.dead_latents.enabled = false;
        std::fill(sae.b_enc.value.begin(), sae.b_enc.value.end(),
                  6.0f);  // no latent so near 0 that rounding switches it
        sae.each_parameter([&](const char*, auto& p) { t.collect(p); });
        const auto l =
            sae.loss(t.input(x.view()), training_state{{dead, &count}, false, nullptr, 0, 0, random_stream(0)});
        t.run();
        backward(t, l);
        loss[i] = l.load(position{});
        sae.each_parameter([&](const char* name, auto& p) {
            gradients[i][name].resize(p.size());
            read_gradient(p, gradients[i][name].data());
            p.gradient = nullptr;
        });
    }
    CHECK(loss[1] != loss[0]);
    CHECK(loss[1] == Approx(loss[0]).epsilon(1e-2));
    for (const auto& [name, g] : gradients[0]) {
        INFO(name);
        CHECK(relative_difference(gradients[1].at(name), g) < 1e-2);
    }
}
