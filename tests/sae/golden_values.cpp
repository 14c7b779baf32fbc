// PatchSAE and TopK against the values of the reference implementations.
#include <catch2/catch.hpp>

#include <psae/psae.hpp>

#include "golden.hpp"

using namespace psae;

namespace {

struct run_result {
    double loss;
    std::map<std::string, double> terms;
    std::map<std::string, std::vector<float>> gradients;
    std::vector<float> z, x_hat;  // dense
};

// Loss, terms, gradients, codes and reconstruction of a variant on tokens [n, d].
template <class Variant>
run_result evaluate_variant(Variant& sae, const std::vector<float>& x, const std::vector<std::uint32_t>& dead,
                            const float* weights) {
    cpu device;
    arena<> scratch;
    tape<cpu> t(device, scratch, mode::train);
    t.form = codes_form::entries;
    sae.each_parameter([&](const char*, auto& p) { t.collect(p); });
    const std::size_t d = sae.inputs(), n = x.size() / d, dead_count = dead.size();
    const view<const float, shape<dyn, dyn>> tokens{x.data(), shape<dyn, dyn>{n, d}};
    const auto loss = sae.loss(t.input(tokens), training_state{{dead.data(), &dead_count}, dead_count > 0, weights});
    t.run();
    backward(t, loss);
    run_result r{double(loss.load(position{})), {}, {}, std::vector<float>(n * sae.latents()), {}};
    t.each_term([&](const char* name, double value) { r.terms[name] = value; });
    sae.each_parameter([&](const char* name, auto& p) {
        r.gradients[name].resize(p.size());
        read_gradient(p, r.gradients[name].data());
    });
    const auto& z = static_cast<const codes_record<float>*>(t.main_codes)->entries;
    for (std::size_t token = 0; token < n; ++token)
        for (std::size_t i = z.offsets[token]; i < z.offsets[token + 1]; ++i)
            r.z[token * z.latents + z.latent[i]] = z.value[i];
    const float* x_hat = static_cast<const float*>(t.reconstruction);
    r.x_hat.assign(x_hat, x_hat + n * d);
    return r;
}

std::vector<std::uint32_t> indices(const std::vector<float>& mask) {
    std::vector<std::uint32_t> out;
    for (std::size_t i = 0; i < mask.size(); ++i)
        if (mask[i] != 0) out.push_back(static_cast<std::uint32_t>(i));
    return out;
}

void check_gradients_against(const run_result& r, const golden::arrays& want, std::size_t d, std::size_t latents,
                             double tolerance) {
    CHECK(golden::difference(r.gradients.at("W_enc"),
                             golden::transposed(golden::floats(want, "grad_W_enc_f64"), d, latents)) < tolerance);
    CHECK(golden::difference(r.gradients.at("b_enc"), golden::floats(want, "grad_b_enc_f64")) < tolerance);
    CHECK(golden::difference(r.gradients.at("W_dec"), golden::floats(want, "grad_W_dec_f64")) < tolerance);
    CHECK(golden::difference(r.gradients.at("b_dec"), golden::floats(want, "grad_b_dec_f64")) < tolerance);
}

}  // namespace

TEST_CASE("PatchSAE: forward and gradients equal the reference's") {
    const auto inputs = golden::load("sae_patchsae/inputs.npz");
    const auto x = golden::floats(inputs, "x");
    const auto dead = indices(golden::floats(inputs, "dead_mask"));
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
        sae.ghost_gradients = c.ghost;
        std::vector<float> weights(40, 1.0f);  // 5 images of 8 tokens, CLS first
        for (std::size_t i = 0; i < 40; i += 8) weights[i] = c.cls;
        const auto r = evaluate_variant(sae, x, c.dead ? dead : std::vector<std::uint32_t>{},
                                        c.cls == 1 ? nullptr : weights.data());
        const double tolerance = c.dead ? 2.9e-4 : 2.0e-6;
        CHECK(golden::difference(r.z, golden::floats(want, "z_f64")) < 2.0e-6);
        CHECK(golden::difference(r.x_hat, golden::floats(want, "x_hat_f64")) < 2.0e-6);
        CHECK(r.terms.at("mse") == Approx(golden::scalar(want, "mse_f64")).epsilon(2e-6));
        CHECK(r.terms.at("l1") == Approx(golden::scalar(want, "l1_f64")).epsilon(2e-6));
        CHECK(r.terms.at("ghost") == Approx(golden::scalar(want, "ghost_f64")).epsilon(tolerance).margin(1e-12));
        CHECK(r.loss == Approx(golden::scalar(want, "loss_f64")).epsilon(tolerance));
        check_gradients_against(r, want, 16, 64, tolerance);
    }
}

TEST_CASE("PatchSAE: training trajectories equal the reference's") {
    const auto inputs = golden::load("sae_patchsae/inputs.npz");
    const auto batches = golden::floats(inputs, "batches");
    for (const bool ghost : {false, true}) {
        const auto want = golden::load(ghost ? "sae_patchsae/train_ghost.npz" : "sae_patchsae/train_plain.npz");
        patchsae<> sae(16, 64);
        golden::set_parameters(sae, inputs, "W_dec_raw");
        sae.ghost_gradients = ghost;
        cpu device;
        trainer<patchsae<>> run(sae, {.lr = 4e-4, .warmup_steps = 5, .dead_after = 3, .frequency_window = 8}, device);
        for (std::size_t step = 0; step < 20; ++step) {
            INFO("ghost " << ghost << ", step " << step);
            const view<const float, shape<dyn, dyn>> x{batches.data() + step * 640, shape<dyn, dyn>{40, 16}};
            const auto m = run.step(x);
            CHECK(m.lr == Approx(golden::floats(want, "lr")[step]).epsilon(1e-6));
            CHECK(m.loss == Approx(golden::floats(want, "loss")[step]).epsilon(1e-5));
            CHECK(std::lround(m.dead_fraction * 64) == std::lround(golden::floats(want, "dead")[step]));
            const auto since = golden::floats(want, "since_fired");
            const auto frequency = golden::floats(want, "act_freq");
            for (std::size_t f = 0; f < 64; ++f) {
                CHECK(float(run.since_fired()[f]) == since[step * 64 + f]);
                CHECK(float(run.activation_count()[f]) == frequency[step * 64 + f]);
            }
            const std::string prefix = "step" + std::to_string(step + 1) + "_";
            if (!want.contains(prefix + "W_enc")) continue;
            const auto near = [](const float* got, const std::vector<float>& expected) {
                double worst = 0;
                for (std::size_t i = 0; i < expected.size(); ++i)
                    worst = std::max(worst, double(std::abs(got[i] - expected[i])));
                return worst;
            };
            CHECK(near(sae.W_enc.data(), golden::transposed(golden::floats(want, prefix + "W_enc_f64"), 16, 64)) <
                  2e-5);
            CHECK(near(sae.b_enc.data(), golden::floats(want, prefix + "b_enc_f64")) < 2e-5);
            CHECK(near(sae.W_dec.data(), golden::floats(want, prefix + "W_dec_f64")) < 2e-5);
            CHECK(near(sae.b_dec.data(), golden::floats(want, prefix + "b_dec_f64")) < 2e-5);
        }
    }
}

namespace {

// aux_k and aux_weight 0: the form's own.
template <topk_form form>
void check_topk(const std::string& name, std::size_t aux_k, float aux_weight) {
    INFO(name);
    const auto want = golden::load("sae_variants/" + name + ".npz");
    topk<dyn, dyn, float, form> sae(12, 48);
    golden::set_parameters(sae, want);
    sae.k = 6;
    sae.aux_k = aux_k;
    if (aux_weight > 0) sae.aux_weight = aux_weight;
    auto r = evaluate_variant(sae, golden::floats(want, "x"), indices(golden::floats(want, "in_dead")), nullptr);
    if (form == topk_form::saelens)  // its codes are multiplied by the norms of the decoder rows; ours are not
        for (std::size_t f = 0; f < 48; ++f) {
            double squares = 0;
            for (std::size_t c = 0; c < 12; ++c) squares += std::pow(double(sae.W_dec.value(f, c)), 2);
            for (std::size_t t = 0; t < 32; ++t) r.z[t * 48 + f] *= float(std::sqrt(squares));
        }
    CHECK(golden::difference(r.z, golden::floats(want, "z_f64")) < 2e-6);
    CHECK(golden::difference(r.x_hat, golden::floats(want, "x_hat_f64")) < 2e-6);
    CHECK(r.terms.at("mse") == Approx(golden::scalar(want, "mse_f64")).epsilon(2e-6));
    const double weight = form == topk_form::saelens ? 1 : 1.0 / 32;  // the other forms' golden term is unweighted
    CHECK(r.terms.at("aux") == Approx(weight * golden::scalar(want, "aux_f64")).epsilon(2e-6));
    CHECK(r.loss == Approx(golden::scalar(want, "loss_f64")).epsilon(2e-6));
    check_gradients_against(r, want, 12, 48, 2e-6);
}

}  // namespace

TEST_CASE("TopK: forward and gradients equal dictionary_learning's, SAELens' and OpenAI's") {
    check_topk<topk_form::dictionary_learning>("topk_dictionary_learning", 0, 0);
    check_topk<topk_form::saelens>("topk_saelens", 0, 0.7f);
    check_topk<topk_form::saelens>("topk_saelens_few_dead", 0, 0.7f);
    check_topk<topk_form::openai>("topk_openai", 6, 0);
}

TEST_CASE("the decoder bias starts at the geometric median") {
    const auto want = golden::load("sae_patchsae/b_dec_init.npz");
    const auto x = golden::floats(want, "activations");
    CHECK(golden::difference(geometric_median(x.data(), 40, 16), golden::floats(want, "b_dec_per_token_f64")) < 2e-5);
    CHECK(golden::difference(row_mean(x.data(), 40, 16), golden::floats(want, "b_dec_mean")) < 2e-6);
    const auto images = geometric_median(x.data(), 5, 128);
    CHECK(golden::difference(images, golden::floats(want, "median_image_space_f64")) < 2e-5);
    CHECK(golden::difference(row_mean(images.data(), 8, 16), golden::floats(want, "b_dec_reference_f64")) < 2e-5);
}
