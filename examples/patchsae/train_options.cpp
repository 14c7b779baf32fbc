#include "train_options.hpp"

#include <algorithm>
#include <map>

#include "activations.hpp"
#include "gpu_runs.hpp"

namespace patchsae {

namespace {

bool is_topk(const std::string& variant) {
    return variant == "topk" || variant == "batch_topk" || variant == "matryoshka";
}

// What decides the numbers of a run, apart from the number of threads.
psae::run_identity identity_of(const train_options& s, const CLI::App& sub, const std::string& data) {
    psae::run_identity identity{
        {"data", data}, {"d-sae", std::to_string(s.d_sae)}, {"held-out", s.eval_every > 0 ? "a twentieth" : "nothing"}};
    for (const char* name : {"variant",
                             "k",
                             "prefixes",
                             "random-prefixes",
                             "l1",
                             "target-l0",
                             "l0-coefficient",
                             "bandwidth",
                             "threshold-init",
                             "sparsity-warmup-steps",
                             "loss",
                             "lr",
                             "warmup-steps",
                             "schedule",
                             "batch-tokens",
                             "dead-after",
                             "dead-latents",
                             "normalise-activations",
                             "normalise-decoder",
                             "clip-grad-norm",
                             "order",
                             "token-kind",
                             "dtype",
                             "seed"})
        identity[name] = effective_value(sub, name);
    if (s.variant == "transcoder") identity["skip-connection"] = s.skip_connection ? "true" : "false";
    if (s.activations.empty()) identity["alpha"] = s.images.alpha;
    if (chosen_gpu() >= 0) identity["device"] = "cuda";  // its sums have another order
    // BatchTopK's threshold follows the last tenth of the run.
    if (s.schedule != "constant" || s.variant == "batch_topk" || s.variant == "matryoshka")
        identity["steps"] = std::to_string(s.steps);
    return identity;
}

// As given, ascending and below the number of latents; or a 32nd, 16th, .. half of them.
std::vector<std::size_t> prefixes_of(const train_options& s) {
    if (s.random_prefixes > 0) return {};
    std::vector<std::size_t> prefixes = s.prefixes;
    if (prefixes.empty())
        for (std::size_t part = 32; part > 1; part /= 2)
            if (s.d_sae % part == 0) prefixes.push_back(s.d_sae / part);
    for (std::size_t i = 0; i < prefixes.size(); ++i)
        if (prefixes[i] <= (i == 0 ? 0 : prefixes[i - 1]) || prefixes[i] >= s.d_sae)
            throw psae::error(
                "prefixes do not fit", "--prefixes",
                fmt::format("expected ascending numbers from 1 to {}, found {}", s.d_sae - 1, prefixes[i]));
    return prefixes;
}

}  // namespace

bool has_option(const std::string& variant, const std::string& option) {
    static const std::map<std::string, std::vector<std::string>> owners{
        {"k", {"topk", "batch_topk", "matryoshka"}},
        {"prefixes", {"matryoshka"}},
        {"random-prefixes", {"matryoshka"}},
        {"l1", {"relu", "gated", "transcoder"}},
        {"loss", {"relu"}},
        {"target-l0", {"jump_relu"}},
        {"l0-coefficient", {"jump_relu"}},
        {"bandwidth", {"jump_relu"}},
        {"threshold-init", {"jump_relu"}},
        {"target-layer", {"transcoder"}},
        {"skip-connection", {"transcoder"}},
        {"sparsity-warmup-steps", {"relu", "gated", "jump_relu", "transcoder"}}};
    const auto found = owners.find(option);
    return found == owners.end() ||
           std::find(found->second.begin(), found->second.end(), variant) != found->second.end();
}

void train_options::add_to(CLI::App& sub) {
    common.add_to(sub);
    sub.remove_option(sub.get_option("--dtype"));
    add_precision(sub, "--dtype,--precision", common.precision, true,
                  "of products: fp32, tf32 (GPU) or bf16; on the CPU, where some are faster in bf16, of those while "
                  "codes are dense");
    images.add_to(sub, false);
    sub.add_option("--activations", activations, "a store (see cache) or an .npy [N,d], in place of pictures");
    add_token_kind(sub, token_kind);
    sub.add_option(
        "--sweep", sweep,
        "JSON file of several SAEs to train on one stream of activations; options given here are theirs too");
    sub.add_option("--variant", variant,
                   "relu (PatchSAE), topk, batch_topk, matryoshka (over batch_topk), jump_relu, gated or transcoder")
        ->check(CLI::IsMember({"relu", "topk", "batch_topk", "jump_relu", "gated", "matryoshka", "transcoder"}));
    sub.add_option("--target-layer", target_layer,
                   "hidden state, behind that of --layer, whose tokens are explained (transcoder; required)")
        ->default_str("");
    sub.add_flag("--skip-connection", skip_connection, "a linear map of the tokens beside the latents (transcoder)");
    sub.add_option("--expansion", expansion, "latents per input dimension")->check(positive());
    sub.add_option("--d-sae", d_sae, "number of latents, in place of --expansion");
    sub.add_option("--k", k, "active latents per token (topk), or on average over a batch (batch_topk, matryoshka)")
        ->check(positive());
    sub.add_option("--prefixes", prefixes,
                   "numbers of latents that have to reconstruct alone (matryoshka; default: a 32nd, 16th, .. half)");
    sub.add_option("--random-prefixes", random_prefixes,
                   "so many prefixes drawn anew for each step, in place of --prefixes (matryoshka)");
    sub.add_option("--l1", l1, "weight of the L1 term (relu: 8e-5, gated: 3, transcoder: 1)")->check(not_negative());
    sub.add_option("--target-l0", target_l0, "active latents per token that the penalty steers to (jump_relu)")
        ->check(positive());
    sub.add_option("--l0-coefficient", l0_coefficient,
                   "weight of the penalty (L0 / target - 1)^2 (jump_relu; default: d_in, as the error grows with it)")
        ->check(not_negative());
    sub.add_option("--bandwidth", bandwidth, "width of the window around a threshold where it learns (jump_relu)")
        ->check(positive());
    sub.add_option("--threshold-init", threshold_init,
                   "start of the thresholds (jump_relu; 0: such that L0 starts at its target)")
        ->check(not_negative());
    sub.add_option("--sparsity-warmup-steps", sparsity_warmup_steps,
                   "steps over which the sparsity term grows to its weight (relu: 0; jump_relu, gated, transcoder: as "
                   "--warmup-steps)");
    sub.add_option("--loss", loss,
                   "patchsae (squared error over the token's norm; relu's default) or mse (plain; of the others)")
        ->check(CLI::IsMember({"patchsae", "mse"}));
    sub.add_option("--lr", lr, "learning rate")->check(positive());
    sub.add_option("--warmup-steps", warmup_steps, "steps of linear warm-up");
    sub.add_option("--schedule", schedule, "after the warm-up")->check(CLI::IsMember({"constant", "linear", "cosine"}));
    sub.add_option("--batch-tokens", batch_tokens, "tokens per step")->check(positive());
    sub.add_option("--steps", steps, "number of steps (0: as --tokens says)");
    sub.add_option("--tokens", tokens, "number of tokens (0: every one once)");
    sub.add_option("--dead-after", dead_after, "steps without firing after which a latent is dead");
    sub.add_option(
           "--dead-latents", dead_latents,
           "none (default of jump_relu and gated, transcoders have no other), ghost (of relu), aux_k (of topk, "
           "batch_topk and matryoshka), or resample: every dead-after + 1 steps they take the directions of badly "
           "explained tokens")
        ->check(CLI::IsMember({"none", "ghost", "aux_k", "resample"}));
    sub.add_option(
           "--normalise-activations", normalise_activations,
           "none, or expected_average_only_in: tokens are scaled to a mean norm of sqrt(d_in), and the scale is "
           "folded into the SAE that is written (default of jump_relu, gated and transcoder, whose targets have a "
           "scale of their own)")
        ->check(CLI::IsMember({"none", "expected_average_only_in"}));
    sub.add_option("--b-dec-init", b_dec_init,
                   "start of the decoder bias, from tokens of up to 128 pictures; of a transcoder, from its targets")
        ->check(CLI::IsMember({"geometric_median", "mean", "zero"}));
    sub.add_flag("--normalise-decoder,!--no-normalise-decoder", normalise_decoder,
                 "unit-norm decoder rows (default of all but gated and transcoder)")
        ->default_str("true");
    sub.add_option("--clip-grad-norm", clip_grad_norm, "largest norm of the whole gradient (0: any)")
        ->check(not_negative());
    sub.add_option("--checkpoint-every", checkpoint_every, "steps between checkpoints (0: only at the end)");
    sub.add_option("--eval-every", eval_every,
                   "steps between evaluations on a twentieth of the pictures or rows, held out by seed (0: none)");
    sub.add_option("--init", init, "SAE to start from");
    sub.add_option("--order", order, "order of stored activations")->check(CLI::IsMember({"shuffled", "sequential"}));
    sub.add_flag("--resume", resume, "go on from the checkpoint of --out");
    sub.add_option("--out", out, "run directory")->required();
}

void train_options::complete(CLI::App& sub) {
    if (activations.empty() == images.images.empty())
        throw CLI::ValidationError("train", "expected --activations, or --model and --images");
    if (!images.images.empty() && images.model.empty()) throw CLI::RequiredError("--model");
    if (order == "sequential" && activations.empty())
        throw CLI::ValidationError("--order", "sequential goes with --activations");
    if (!activations.empty() && !images.adapter.empty()) throw CLI::ValidationError("--adapter", "goes with pictures");
    if (token_kind != "all" && (activations.empty() || !is_store(activations)))
        throw CLI::ValidationError("--token-kind", "goes with a store as --activations");
    if (variant != "matryoshka" && !prefixes.empty())
        throw CLI::ValidationError("--prefixes", "goes with --variant matryoshka");
    if (variant != "matryoshka" && random_prefixes > 0)
        throw CLI::ValidationError("--random-prefixes", "goes with --variant matryoshka");
    if (random_prefixes > 0 && !prefixes.empty())
        throw CLI::ValidationError("--random-prefixes", "expected either this or --prefixes");
    const bool relu = variant == "relu", transcoder = variant == "transcoder",
               scaled = variant == "jump_relu" || variant == "gated" || transcoder;
    if (transcoder && !activations.empty())
        throw CLI::ValidationError("--variant", "transcoder goes with pictures: stored activations are of one layer");
    if (transcoder && !target_layer) throw CLI::RequiredError("--target-layer");
    if (!transcoder && target_layer) throw CLI::ValidationError("--target-layer", "goes with --variant transcoder");
    if (!transcoder && skip_connection)
        throw CLI::ValidationError("--skip-connection", "goes with --variant transcoder");
    const auto otherwise = [&](const char* name, auto& value, const auto& variants_own, const std::string& text) {
        if (sub.count(name) > 0) return;
        value = variants_own;
        sub.get_option(name)->default_str(text);
    };
    const std::string revival = relu               ? "ghost"
                                : is_topk(variant) ? "aux_k"
                                                   : "none",
                      error = relu ? "patchsae" : "mse", scale = scaled ? "expected_average_only_in" : "none";
    otherwise("--dead-latents", dead_latents, revival, revival);
    otherwise("--loss", loss, error, error);
    otherwise("--normalise-activations", normalise_activations, scale, scale);
    const bool unit_norm = variant != "gated" && !transcoder;
    otherwise("--normalise-decoder", normalise_decoder, unit_norm, unit_norm ? "true" : "false");
    if (scaled) otherwise("--sparsity-warmup-steps", sparsity_warmup_steps, warmup_steps, std::to_string(warmup_steps));
    if (variant == "gated") otherwise("--l1", l1, 3.0, "3");
    if (transcoder) otherwise("--l1", l1, 1.0, "1");
    if (transcoder && dead_latents == "resample")
        throw CLI::ValidationError("--dead-latents", "resample does not go with transcoder");
    if (dead_latents != "none" && dead_latents != "resample" && dead_latents != revival)
        throw CLI::ValidationError("--dead-latents",
                                   "ghost goes with relu, aux_k with topk, batch_topk and matryoshka");
    if (!relu && loss == "patchsae") throw CLI::ValidationError("--loss", "patchsae goes with relu");
    // Of other variants' options a saved configuration has the defaults.
    for (const char* name : {"k", "l1", "target-l0", "bandwidth", "threshold-init"}) {
        const CLI::Option* option = sub.get_option(std::string("--") + name);
        if (option->count() > 0 && option->results().back() != option->get_default_str() && !has_option(variant, name))
            report_line(fmt::format("patchsae: --{} is not an option of {} and does nothing", name, variant));
    }
}

void train_options::resolve_sizes(CLI::App& sub, const run_tokens& tokens) {
    if (d_sae == 0)
        d_sae = init.empty() ? std::min(expansion, std::size_t{1} << 40) * tokens.d_in : load_sae(init).d_sae;
    const std::size_t count = this->tokens > 0 ? this->tokens : tokens.rows;
    if (steps == 0) steps = count / batch_tokens;
    if (steps == 0)
        throw psae::error("there are fewer tokens than a batch takes", "train",
                          fmt::format("expected at least {}, found {}", batch_tokens, count),
                          "lower --batch-tokens or give --steps");
    if (is_topk(variant) && k > d_sae)
        throw psae::error("k is larger than the number of latents", "--k",
                          fmt::format("expected at most {}, found {}", d_sae, k));
    if (sub.count("--l0-coefficient") == 0) {
        l0_coefficient = double(tokens.d_in);
        sub.get_option("--l0-coefficient")->default_str(std::to_string(tokens.d_in));
    }
    sub.get_option("--d-sae")->default_str(std::to_string(d_sae));
    sub.get_option("--steps")->default_str(std::to_string(steps));
}

double train_options::bytes_of_parameters(const run_tokens& tokens) const {
    return sizeof(float) * double(tokens.d_in) * 2.0 * 3 * double(d_sae);
}

psae::stream_options train_options::stream() const {
    return {.steps = steps, .batch_tokens = batch_tokens, .shuffled = order != "sequential", .seed = common.seed};
}

std::unique_ptr<psae::any_training_run> train_options::make_run(const CLI::App& sub, const run_tokens& tokens) const {
    psae::training_options training;
    training.lr = lr;
    training.warmup_steps = warmup_steps;
    training.schedule = schedule == "linear"   ? psae::schedule::linear
                        : schedule == "cosine" ? psae::schedule::cosine
                                               : psae::schedule::constant;
    training.steps = steps;
    training.seed = common.seed;
    training.clip_grad_norm = clip_grad_norm;
    training.unit_norm_decoder = normalise_decoder;
    training.dead_after = dead_after;
    psae::training_run_options run{
        .directory = out,
        .first_column = tokens.first_column,
        .target_column = tokens.target_column,
        .seed = common.seed,
        .b_dec_start = b_dec_init == "zero"   ? psae::decoder_bias_start::zero
                       : b_dec_init == "mean" ? psae::decoder_bias_start::mean
                                              : psae::decoder_bias_start::geometric_median,
        .normalise_activations = normalise_activations != "none",
        .checkpoint_every = checkpoint_every,
        .eval_every = eval_every,
        .resample_every = dead_latents == "resample" ? dead_after + 1 : 0,
        .identity = identity_of(*this, sub, tokens.fingerprint),
        .model = images.model,
        .layer = images.layer,
        .target_layer = target_layer,
    };
    psae::cpu device(common.threads);
    device.products = chosen_precision();
    const auto of = [&]<class Variant>(Variant sae) -> std::unique_ptr<psae::any_training_run> {
        if constexpr (requires { sae.k; }) {
            sae.k = k;
            if (dead_latents != "aux_k") sae.dead_latents.weight = 0;
        }
        // The threshold for use follows about the last tenth of the run; dictionary_learning's 0.001 is meant for long
        // ones.
        if constexpr (requires { sae.threshold_rate; })
            sae.threshold_rate = std::clamp(10.0 / double(steps), 0.001, 0.1);
        if constexpr (requires { sae.lambda_warmup_steps; }) sae.lambda_warmup_steps = sparsity_warmup_steps;
#ifdef PATCHSAE_CUDA
        if (chosen_gpu() >= 0)
            return make_gpu_run(std::move(sae), training, std::move(run), device, chosen_gpu(), device.products,
                                tokens.held_out);
#endif
        return std::make_unique<psae::training_run<Variant>>(std::move(sae), training, std::move(run), device,
                                                             tokens.held_out);
    };
    if (variant == "topk") return of(psae::topk<>(tokens.d_in, d_sae));
    if (variant == "batch_topk") return of(psae::batch_topk<>(tokens.d_in, d_sae));
    if (variant == "matryoshka") {
        psae::matryoshka<psae::batch_topk<>> sae(tokens.d_in, d_sae);
        sae.prefixes = prefixes_of(*this);
        sae.random_prefixes = random_prefixes;
        return of(std::move(sae));
    }
    if (variant == "jump_relu") {
        jump_relu sae(tokens.d_in, d_sae);
        sae.lambda = static_cast<float>(l0_coefficient);
        sae.target_l0 = static_cast<float>(target_l0);
        sae.window = bandwidth;
        if (threshold_init > 0) sae.set_thresholds(static_cast<float>(threshold_init));
        else sae.first_l0 = target_l0;
        return of(std::move(sae));
    }
    if (variant == "gated") {
        psae::gated<> sae(tokens.d_in, d_sae);
        sae.lambda = static_cast<float>(l1);
        return of(std::move(sae));
    }
    const auto transcode = [&](auto sae) {
        sae.lambda = static_cast<float>(l1);
        return of(std::move(sae));
    };
    if (variant == "transcoder" && skip_connection) return transcode(skip_transcoder(tokens.d_in, d_sae, tokens.d_in));
    if (variant == "transcoder") return transcode(psae::transcoder<>(tokens.d_in, d_sae, tokens.d_in));
    psae::patchsae<> sae(tokens.d_in, d_sae);
    sae.lambda = static_cast<float>(l1);
    sae.dead_latents.enabled = dead_latents == "ghost";
    sae.error_over_norm = loss == "patchsae";
    return of(std::move(sae));
}

}  // namespace patchsae
