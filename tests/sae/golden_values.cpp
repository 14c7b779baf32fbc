// PatchSAE against the values of the reference implementation.
#include "golden.hpp"

using namespace psae;

TEST_CASE("PatchSAE: forward and gradients equal the reference's") {
    const auto inputs = golden::load("sae_patchsae/inputs.npz");
    const auto x = golden::floats(inputs, "x");
    const auto dead = golden::indices(golden::floats(inputs, "dead_mask"));
    struct {
        const char* name;
        bool ghost, dead;
        float cls;
    } cases[] = {{"plain", false, false, 1},         {"ghost_none_dead", true, false, 1},
                 {"ghost", true, true, 1},           {"ghost_cls_weight", true, true, 2.5f},
                 {"cls_weight", false, false, 2.5f}, {"ghost_flat", true, true, 1}};
    for (const auto& c : cases) {
        INFO(c.name);
        const auto want = golden::load(std::string("sae_patchsae/forward_") + c.name + ".npz");
        patchsae<> sae(16, 64);
        golden::set_parameters(sae, inputs);
        sae.dead_latents.enabled = c.ghost;
        std::vector<float> weights(40, 1.0f);  // 5 images of 8 tokens, CLS first
        for (std::size_t i = 0; i < 40; i += 8) weights[i] = c.cls;
        const auto r = golden::evaluate(sae, x, c.dead ? dead : std::vector<std::uint32_t>{},
                                        c.cls == 1 ? nullptr : weights.data());
        const double tolerance = c.dead ? 2.9e-4 : 2.0e-6;
        CHECK(relative_difference(r.z, golden::floats(want, "z_f64")) < 2.0e-6);
        CHECK(relative_difference(r.x_hat, golden::floats(want, "x_hat_f64")) < 2.0e-6);
        CHECK(r.terms.at("mse") == Approx(golden::scalar(want, "mse_f64")).epsilon(2e-6));
        CHECK(r.terms.at("l1") == Approx(golden::scalar(want, "l1_f64")).epsilon(2e-6));
        CHECK(r.terms.at("ghost") == Approx(golden::scalar(want, "ghost_f64")).epsilon(tolerance).margin(1e-12));
        CHECK(r.loss == Approx(golden::scalar(want, "loss_f64")).epsilon(tolerance));
        golden::check_gradients(sae, r, want, tolerance);
    }
}

TEST_CASE("PatchSAE: training trajectories equal the reference's") {
    const auto inputs = golden::load("sae_patchsae/inputs.npz");
    const auto batches = golden::floats(inputs, "batches");
    for (const bool ghost : {false, true}) {
        const auto want = golden::load(ghost ? "sae_patchsae/train_ghost.npz" : "sae_patchsae/train_plain.npz");
        patchsae<> sae(16, 64);
        golden::set_parameters(sae, inputs, "W_dec_raw");
        sae.dead_latents.enabled = ghost;
        backend device;
        trainer<patchsae<>, backend> run(sae, {.lr = 4e-4, .warmup_steps = 5, .dead_after = 3, .frequency_window = 8},
                                         device);
        for (std::size_t step = 0; step < 20; ++step) {
            INFO("ghost " << ghost << ", step " << step);
            const auto batch = on_device(device, std::vector<float>(batches.begin() + std::ptrdiff_t(step) * 640,
                                                                    batches.begin() + std::ptrdiff_t(step + 1) * 640));
            const auto m =
                run.step(const_view<float, shape<dyn, dyn>, backend_memory>{batch.data(), shape<dyn, dyn>{40, 16}});
            run.read_parameters();
            const auto since_fired = run.since_fired();
            const auto activation_count = run.activation_count();
            CHECK(m.lr == Approx(golden::floats(want, "lr")[step]).epsilon(1e-6));
            CHECK(m.loss == Approx(golden::floats(want, "loss")[step]).epsilon(1e-5));
            CHECK(std::lround(m.dead_fraction * 64) == std::lround(golden::floats(want, "dead")[step]));
            const auto since = golden::floats(want, "since_fired");
            const auto frequency = golden::floats(want, "act_freq");
            for (std::size_t f = 0; f < 64; ++f) {
                CHECK(float(since_fired[f]) == since[step * 64 + f]);
                CHECK(float(activation_count[f]) == frequency[step * 64 + f]);
            }
            const std::string prefix = "step" + std::to_string(step + 1) + "_";
            if (!want.contains(prefix + "W_enc")) continue;
            const auto near = [](const auto& got, const std::vector<float>& expected) {
                return largest_difference(got.value, expected);
            };
            CHECK(near(sae.W_enc, golden::transposed(golden::floats(want, prefix + "W_enc_f64"), 16, 64)) < 2e-5);
            CHECK(near(sae.b_enc, golden::floats(want, prefix + "b_enc_f64")) < 2e-5);
            CHECK(near(sae.W_dec, golden::floats(want, prefix + "W_dec_f64")) < 2e-5);
            CHECK(near(sae.b_dec, golden::floats(want, prefix + "b_dec_f64")) < 2e-5);
        }
    }
}

TEST_CASE("the decoder bias starts at the geometric median") {
    const auto want = golden::load("sae_patchsae/b_dec_init.npz");
    const auto x = golden::floats(want, "activations");
    CHECK(relative_difference(geometric_median(x.data(), 40, 16), golden::floats(want, "b_dec_per_token_f64")) < 2e-5);
    CHECK(relative_difference(row_mean(x.data(), 40, 16), golden::floats(want, "b_dec_mean")) < 2e-6);
    const auto images = geometric_median(x.data(), 5, 128);
    CHECK(relative_difference(images, golden::floats(want, "median_image_space_f64")) < 2e-5);
    CHECK(relative_difference(row_mean(images.data(), 8, 16), golden::floats(want, "b_dec_reference_f64")) < 2e-5);
}
