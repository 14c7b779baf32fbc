// The variants against the values of the libraries they come from.
#include "golden.hpp"

using namespace psae;

namespace {

constexpr std::size_t d = 12, latents = 48;
constexpr double tolerance = 2e-6;

// Terms of the loss by their golden name, with what the golden term has to be multiplied by.
using terms = std::map<std::string, double>;

// Libraries that multiply the codes by the norms of the decoder rows give them so; ours are without.
template <class Variant>
void multiply_by_norms(const Variant& sae, std::vector<float>& z) {
    for (std::size_t i = 0; i < z.size(); ++i) z[i] *= sae.decoder_norm(i % latents);
}

template <class Variant>
void check(const std::string& name, Variant& sae, const terms& wanted_terms, bool times_norms = false) {
    INFO(name);
    const auto want = golden::load("sae_variants/" + name + ".npz");
    golden::set_parameters(sae, want);
    const auto dead =
        want.contains("in_dead") ? golden::indices(golden::floats(want, "in_dead")) : std::vector<std::uint32_t>{};
    const auto y = want.contains("in_y") ? golden::floats(want, "in_y") : std::vector<float>{};
    auto r = golden::evaluate(sae, golden::floats(want, "x"), dead, nullptr, y);
    if (times_norms) multiply_by_norms(sae, r.z);
    CHECK(relative_difference(r.z, golden::floats(want, "z_f64")) < tolerance);
    CHECK(relative_difference(r.x_hat, golden::floats(want, "x_hat_f64")) < tolerance);
    for (const auto& [term, weight] : wanted_terms) {
        INFO(term);
        double sum = 0;  // of a term for each prefix
        for (const float v : golden::floats(want, term + "_f64")) sum += double(v);
        CHECK(r.terms.at(term) == Approx(weight * sum).epsilon(tolerance));
    }
    CHECK(r.loss == Approx(golden::scalar(want, "loss_f64")).epsilon(tolerance));
    golden::check_gradients(sae, r, want, tolerance);
}

template <class Variant>
std::vector<float> inference_codes(const Variant& sae, const std::vector<float>& x) {
    arena<> scratch;
    const auto z = encode_rows(cpu(), scratch, sae_view(sae), x.data(), x.size() / d);
    std::vector<float> dense(x.size() / d * latents);
    for (std::size_t t = 0; t < z.tokens; ++t)
        for (std::size_t i = z.offsets[t]; i < z.offsets[t + 1]; ++i) dense[t * latents + z.latent[i]] = z.value[i];
    return dense;
}

template <topk_form form>
using topk_of = topk<dyn, dyn, float, form>;
template <topk_form form>
using batch_topk_of = batch_topk<dyn, dyn, float, form>;

}  // namespace

TEST_CASE("standard: L1 times the norms of decoder rows") {
    standard<> sae(d, latents);
    sae.lambda = 0.07f;
    check("standard_norm_l1", sae, {{"mse", 1}, {"l1", 1}});
}

TEST_CASE("TopK: forward and gradients equal dictionary_learning's, SAELens' and OpenAI's") {
    const auto with = [](auto sae, std::size_t aux_k, double aux_weight) {
        sae.k = 6;
        sae.dead_latents.k = aux_k;
        sae.dead_latents.weight = aux_weight;
        return sae;
    };
    auto dictionary_learning = with(topk_of<topk_form::dictionary_learning>(d, latents), 0, 1.0 / 32);
    check("topk_dictionary_learning", dictionary_learning, {{"mse", 1}, {"aux", 1.0 / 32}});
    auto saelens = with(topk_of<topk_form::saelens>(d, latents), 0, 0.7);
    check("topk_saelens", saelens, {{"mse", 1}, {"aux", 1}}, true);
    check("topk_saelens_few_dead", saelens, {{"mse", 1}, {"aux", 1}}, true);
    auto openai = with(topk_of<topk_form::openai>(d, latents), 6, 1.0 / 32);
    check("topk_openai", openai, {{"mse", 1}, {"aux", 1.0 / 32}});
}

TEST_CASE("BatchTopK: forward, gradients, thresholds and inference") {
    const std::string names[2] = {"batchtopk_dictionary_learning", "batchtopk_saelens"};
    const auto thresholds = [](const std::string& name, auto& sae, bool times_norms) {
        const auto want = golden::load("sae_variants/" + name + ".npz");
        CHECK(sae.threshold == Approx(golden::scalar(want, "threshold_after_1")).epsilon(1e-6));
        auto r = golden::evaluate(sae, golden::floats(want, "x_second"), {});
        if (times_norms) multiply_by_norms(sae, r.z);
        CHECK(relative_difference(r.z, golden::floats(want, "z_second")) < tolerance);
        CHECK(sae.threshold == Approx(golden::scalar(want, "threshold_after_2")).epsilon(1e-6));
        if (want.contains("inference_threshold")) sae.threshold = golden::scalar(want, "inference_threshold");
        auto z = inference_codes(sae, golden::floats(want, "x"));
        if (times_norms) multiply_by_norms(sae, z);
        CHECK(relative_difference(z, golden::floats(want, "inference_z")) < tolerance);
    };
    batch_topk_of<topk_form::dictionary_learning> first(d, latents);
    first.k = 6;
    check(names[0], first, {{"mse", 1}, {"aux", 1.0 / 32}});
    thresholds(names[0], first, false);
    batch_topk_of<topk_form::saelens> second(d, latents);
    second.k = 6.4;
    second.dead_latents.weight = 0.7;
    second.threshold_rate = 0.05;
    check(names[1], second, {{"mse", 1}, {"aux", 1}}, true);
    thresholds(names[1], second, true);
}

TEST_CASE("Matryoshka: forward and gradients over BatchTopK") {
    matryoshka<batch_topk_of<topk_form::dictionary_learning>> first(d, latents);
    first.k = 6;
    first.prefixes = {8, 20};
    check("matryoshka_dictionary_learning", first, {{"aux", 1.0 / 32}});
    matryoshka<batch_topk_of<topk_form::saelens>, topk_form::saelens> second(d, latents);
    second.k = 6;
    second.prefixes = {8, 20};
    second.dead_latents.weight = 0.7;
    check("matryoshka_saelens", second, {{"mse", 1}, {"inner", 1}, {"aux", 1}}, true);
}

TEST_CASE("JumpReLU: forward and gradients of three forms") {
    const auto with = [](auto sae, float lambda) {
        sae.lambda = lambda;
        sae.pre_act_weight = 0.013f;
        sae.target_l0 = 4;
        sae.window = 0.2;
        return sae;
    };
    auto step = with(jump_relu<dyn, dyn, float, jump_relu_form::saelens_step>(d, latents), 0.09f);
    check("jumprelu_saelens_step", step, {{"mse", 1}, {"l0", 1}, {"pre_act", 1}});
    auto tanh = with(jump_relu<dyn, dyn, float, jump_relu_form::saelens_tanh>(d, latents), 0.09f);
    check("jumprelu_saelens_tanh", tanh, {{"mse", 1}, {"l0", 1}, {"pre_act", 1}});
    auto target = with(jump_relu<dyn, dyn, float, jump_relu_form::dictionary_learning>(d, latents), 0.8f);
    check("jumprelu_dictionary_learning", target, {{"mse", 1}, {"mean_l0", 1}, {"sparsity", 1}});
}

TEST_CASE("Gated: forward and gradients of two forms") {
    gated<> saelens(d, latents);
    saelens.lambda = 0.06f;
    check("gated_saelens", saelens, {{"mse", 1}, {"l1", 1}, {"aux", 1}});
    gated<dyn, dyn, float, gated_form::paper> paper(d, latents);
    paper.lambda = 0.06f;
    check("gated_paper", paper, {{"mse", 1}, {"l1", 1}, {"aux", 1}});
}

TEST_CASE("transcoder: forward and gradients, with a skip connection and without") {
    transcoder<> plain(d, latents, 10);
    plain.lambda = 0.05f;
    check("transcoder", plain, {{"mse", 1}, {"l1", 1}});
    transcoder<dyn, dyn, float, dyn, true> skipping(d, latents, 10);
    skipping.lambda = 0.05f;
    check("transcoder_skip", skipping, {{"mse", 1}, {"l1", 1}});
}
