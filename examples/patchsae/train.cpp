#include <cstdio>
#include <limits>
#include <optional>

#include <unistd.h>

#include <psae/io/training_curves.hpp>
#include <psae/io/training_run.hpp>
#include <psae/sae/matryoshka.hpp>
#include <psae/sae/patchsae.hpp>
#include <psae/sae/topk.hpp>

#include "activations.hpp"

namespace patchsae {

namespace {

constexpr std::size_t most_held_out_tokens = 16384;

struct state {
    common_options common;
    image_options images;
    std::string activations, token_kind = "all", variant = "relu", loss, dead_latents, b_dec_init = "geometric_median",
                             init, order = "shuffled", out, schedule = "constant";
    std::vector<std::size_t> prefixes;
    std::size_t expansion = 64, d_sae = 0, k = 32, batch_tokens = 4096, steps = 0, tokens = 0, warmup_steps = 500,
                dead_after = 64, checkpoint_every = 1000, eval_every = 0;
    double l1 = 8e-5, lr = 4e-4, clip_grad_norm = 0;
    bool normalise_decoder = true, resume = false;
};

// Where the rows come from: what the trainer reads, what is kept from it for evaluation, and what identifies it.
template <class Source>
struct data {
    Source& source;
    std::vector<float> held_out;
    std::string fingerprint;
};

// What decides the numbers of a run, apart from the number of threads.
psae::run_identity identity_of(const state& s, const CLI::App& sub, std::size_t d_sae, const std::string& data) {
    psae::run_identity identity{
        {"data", data}, {"d-sae", std::to_string(d_sae)}, {"held-out", s.eval_every > 0 ? "a twentieth" : "nothing"}};
    for (const char* name :
         {"variant", "k", "prefixes", "l1", "loss", "lr", "warmup-steps", "schedule", "batch-tokens", "dead-after",
          "dead-latents", "normalise-decoder", "clip-grad-norm", "order", "token-kind", "seed"})
        identity[name] = effective_value(sub, name);
    if (s.activations.empty()) identity["alpha"] = s.images.alpha;
    if (s.schedule != "constant") identity["steps"] = std::to_string(s.steps);
    return identity;
}

template <class Variant, class Source>
void train(const state& s, CLI::App& sub, Variant& sae, data<Source>& rows, const psae::training_options& training) {
    psae::cpu device(s.common.threads);
    psae::training_run<Variant> run(sae, training,
                                    {.directory = s.out,
                                     .steps = training.steps,
                                     .batch_tokens = s.batch_tokens,
                                     .shuffled = s.order != "sequential",
                                     .seed = s.common.seed,
                                     .checkpoint_every = s.checkpoint_every,
                                     .eval_every = s.eval_every,
                                     .resample_every = s.dead_latents == "resample" ? s.dead_after + 1 : 0,
                                     .identity = identity_of(s, sub, sae.latents(), rows.fingerprint)},
                                    device, std::move(rows.held_out));
    if (s.resume) run.resume();
    else if (!s.init.empty()) psae::set_parameters(sae, psae::read_sae(s.init), s.init);
    else
        run.initialise(rows.source, s.b_dec_init == "zero"   ? psae::decoder_bias_start::zero
                                    : s.b_dec_init == "mean" ? psae::decoder_bias_start::mean
                                                             : psae::decoder_bias_start::geometric_median);
    std::filesystem::create_directories(s.out);
    save_configuration(sub, s.out);

    std::optional<psae::step_metrics> last;
    {
        progress bar("steps", training.steps);
        last = run.run(rows.source, s.images.model, s.images.layer, interrupted, [&](const auto& now) {
            bar.show(now.steps_done,
                     fmt::format("  {:.4g} tokens/s  loss {:.4g}  L0 {:.1f}  explained {:.3f}  dead {:.1f}%",
                                 now.tokens_per_s, now.metrics.loss, now.metrics.l0, now.metrics.explained_variance,
                                 100 * now.metrics.dead_fraction),
                     now.tokens_per_s / double(s.batch_tokens));
        });
    }
    psae::write_training_curves(s.out);
    const std::size_t steps = run.trainer().steps_done();
    psae::step_metrics m = last.value_or(psae::step_metrics{});
    if (!last) m.loss = m.l0 = m.explained_variance = m.dead_fraction = std::numeric_limits<double>::quiet_NaN();
    if (s.common.json)
        json_object{}
            .add("steps", steps)
            .add("tokens", steps * s.batch_tokens)
            .add("loss", m.loss)
            .add("l0", m.l0)
            .add("explained_variance", m.explained_variance)
            .add("dead_fraction", m.dead_fraction)
            .add("interrupted", interrupted())
            .add("out", s.out)
            .print();
    else if (!last) fmt::print("all {} steps were done before: {}\n", steps, s.out);
    else
        fmt::print("{} steps: loss {:.5g}, L0 {:.2f}, explained variance {:.4f}, dead {:.2f}%: {}\n", steps, m.loss,
                   m.l0, m.explained_variance, 100 * m.dead_fraction, s.out);
    stop_if_interrupted();
}

// As given, ascending and below the number of latents; or a 32nd, 16th, .. half of them.
std::vector<std::size_t> prefixes_of(const state& s, std::size_t latents) {
    std::vector<std::size_t> prefixes = s.prefixes;
    if (prefixes.empty())
        for (std::size_t part = 32; part > 1; part /= 2)
            if (latents % part == 0) prefixes.push_back(latents / part);
    for (std::size_t i = 0; i < prefixes.size(); ++i)
        if (prefixes[i] <= (i == 0 ? 0 : prefixes[i - 1]) || prefixes[i] >= latents)
            throw psae::error(
                "prefixes do not fit", "--prefixes",
                fmt::format("expected ascending numbers from 1 to {}, found {}", latents - 1, prefixes[i]));
    return prefixes;
}

template <class Source>
void with_variant(state& s, CLI::App& sub, data<Source> rows) {
    const std::size_t d = rows.source.columns();
    const std::size_t latents = s.d_sae > 0       ? s.d_sae
                                : !s.init.empty() ? psae::read_sae(s.init).d_sae
                                                  : std::min(s.expansion, std::size_t{1} << 40) * d;
    // Parameters and two moments of both matrices, and two blocks of four batches: asked for here, before the system
    // would have to find it.
    const double needed = sizeof(float) * double(d) * (2.0 * 3 * double(latents) + 2.0 * 4 * double(s.batch_tokens)),
                 there = double(sysconf(_SC_PHYS_PAGES)) * double(sysconf(_SC_PAGESIZE));
    if (needed > there)
        throw psae::error(
            "the run does not fit into memory",
            fmt::format("d_in {}, d_sae {}, batches of {}", d, latents, s.batch_tokens),
            fmt::format("training takes {:.1f} GiB, the machine has {:.1f}", needed / (1 << 30), there / (1 << 30)),
            "lower --expansion, --d-sae or --batch-tokens");
    if (s.steps == 0) s.steps = (s.tokens > 0 ? s.tokens : rows.source.rows()) / s.batch_tokens;
    if (s.steps == 0)
        throw psae::error(
            "there are fewer tokens than a batch takes", "train",
            fmt::format("expected at least {}, found {}", s.batch_tokens, s.tokens > 0 ? s.tokens : rows.source.rows()),
            "lower --batch-tokens or give --steps");
    sub.get_option("--d-sae")->default_str(std::to_string(latents));
    sub.get_option("--steps")->default_str(std::to_string(s.steps));
    psae::training_options training;
    training.lr = s.lr;
    training.warmup_steps = s.warmup_steps;
    training.schedule = s.schedule == "linear"   ? psae::schedule::linear
                        : s.schedule == "cosine" ? psae::schedule::cosine
                                                 : psae::schedule::constant;
    training.steps = s.steps;
    training.clip_grad_norm = s.clip_grad_norm;
    training.unit_norm_decoder = s.normalise_decoder;
    training.dead_after = s.dead_after;
    if (s.variant != "relu" && s.k > latents)
        throw psae::error("k is larger than the number of latents", "--k",
                          fmt::format("expected at most {}, found {}", latents, s.k));
    const auto train_topk = [&](auto&& sae) {
        sae.k = s.k;
        // The threshold for use follows about the last tenth of the run; dictionary_learning's 0.001 is meant for long ones.
        if constexpr (requires { sae.threshold_rate; })
            sae.threshold_rate = std::clamp(10.0 / double(s.steps), 0.001, 0.1);
        if (s.dead_latents != "aux_k") sae.dead_latents.weight = 0;
        train(s, sub, sae, rows, training);
    };
    if (s.variant == "topk") {
        train_topk(psae::topk<>(d, latents));
    } else if (s.variant == "batch_topk") {
        train_topk(psae::batch_topk<>(d, latents));
    } else if (s.variant == "matryoshka") {
        psae::matryoshka<psae::batch_topk<>> sae(d, latents);
        sae.prefixes = prefixes_of(s, latents);
        train_topk(sae);
    } else {
        psae::patchsae<> sae(d, latents);
        sae.lambda = static_cast<float>(s.l1);
        sae.dead_latents.enabled = s.dead_latents == "ghost";
        sae.error_over_norm = s.loss == "patchsae";
        train(s, sub, sae, rows, training);
    }
}

void train_on_file(state& s, CLI::App& sub) {
    std::size_t d = 0;
    auto x = read_activations(s.activations, d);
    const auto crc = crc_of(0, x.data(), x.size() * sizeof(float));
    const auto fingerprint = fmt::format("{} x {}, crc32 {:08x}", x.size() / d, d, crc);
    std::vector<float> held_out;
    if (s.eval_every > 0) held_out = psae::hold_out_rows(x, d, most_held_out_tokens, s.common.seed);
    psae::stored_activations source(std::move(x), d, s.order == "sequential", s.common.seed);
    with_variant(s, sub, data<psae::stored_activations>{source, std::move(held_out), fingerprint});
}

void train_on_store(state& s, CLI::App& sub) {
    const psae::activation_store store(s.activations);
    if (s.images.model.empty()) s.images.model = store.layout().model;
    s.images.layer = store.layout().layer;
    psae::store_reading reading{s.common.seed, s.order == "sequential", token_kind_of(s.token_kind)};
    std::vector<float> held_out;
    if (s.eval_every > 0) {
        const auto [first, last] = store.tokens_of(reading.kind);
        reading.held_out =
            psae::split_held_out(store.pictures(), most_held_out_tokens / (last - first), s.common.seed).held_out;
        held_out = store.read_pictures(reading.held_out, reading.kind);
    }
    psae::activation_store_source source(store, std::move(reading));
    with_variant(s, sub, data<psae::activation_store_source>{source, std::move(held_out), store.fingerprint()});
}

void train_on_pictures(state& s, CLI::App& sub) {
    const psae::cpu device(s.common.threads);
    const auto tower = load_model(s.images.model);
    const auto how = psae::read_preprocessing(s.images.model, tower->image_size());
    const std::size_t layer = tower->hidden_index(s.images.layer);
    auto list = list_images(s.images);
    const auto tokens = identity_of_tokens(list, *tower, layer, s.images.model, how);
    const auto fingerprint = fmt::format("{}, {}, layer {}, preprocessing {}", tokens.at("list"), tokens.at("model"),
                                         tokens.at("layer"), tokens.at("preprocessing"));
    std::vector<float> held_out;
    if (s.eval_every > 0) {
        const auto split =
            psae::split_held_out(list.files.size(), most_held_out_tokens / tower->tokens(), s.common.seed);
        auto pictures = read_pictures(psae::select(list, split.held_out), s.images, how);
        psae::image_activations part(*tower, pictures, layer, device, s.common.seed);
        held_out.resize(part.rows() * part.columns());
        part.read(0, part.rows(), held_out.data());
        list = psae::select(list, split.kept);
    }
    auto pictures = read_pictures(std::move(list), s.images, how);
    psae::image_activations source(*tower, pictures, layer, device, s.common.seed);
    with_variant(s, sub, data<psae::image_activations>{source, std::move(held_out), fingerprint});
    if (pictures.unreadable() > 0)
        fmt::print(stderr, "patchsae: {} pictures could not be read\n", pictures.unreadable());
}

// Choices that depend on one another, and those that are known but not there yet.
void check(state& s, CLI::App& sub) {
    if (s.activations.empty() == s.images.images.empty())
        throw CLI::ValidationError("train", "expected --activations, or --model and --images");
    if (!s.images.images.empty() && s.images.model.empty()) throw CLI::RequiredError("--model");
    if (s.order == "sequential" && s.activations.empty())
        throw CLI::ValidationError("--order", "sequential goes with --activations");
    if (s.token_kind != "all" && !is_store(s.activations))
        throw CLI::ValidationError("--token-kind", "goes with a store as --activations");
    if (s.variant == "jump_relu" || s.variant == "gated")
        throw psae::error("this variant is not there yet", "--variant " + s.variant,
                          "expected relu, topk, batch_topk or matryoshka",
                          "the library has it: sae/" + s.variant + ".hpp");
    if (s.variant != "matryoshka" && !s.prefixes.empty())
        throw CLI::ValidationError("--prefixes", "goes with --variant matryoshka");
    const bool relu = s.variant == "relu";
    if (s.dead_latents.empty()) s.dead_latents = relu ? "ghost" : "aux_k";
    if (s.dead_latents == (relu ? "aux_k" : "ghost"))
        throw CLI::ValidationError("--dead-latents",
                                   "ghost goes with relu, aux_k with topk, batch_topk and matryoshka");
    if (s.loss.empty()) s.loss = relu ? "patchsae" : "mse";
    sub.get_option("--dead-latents")->default_str(s.dead_latents);
    sub.get_option("--loss")->default_str(s.loss);
    if (!relu && s.loss == "patchsae") throw CLI::ValidationError("--loss", "patchsae goes with relu");
}

}  // namespace

void add_train(CLI::App& app) {
    auto* sub = add_command(app, "train", "trains an SAE on the tokens of pictures or on stored activations",
                            "--model data/tiny-clip --images photos --expansion 16 --steps 500 --out run");
    auto s = std::make_shared<state>();
    s->common.add_to(*sub);
    s->images.add_to(*sub, false);
    sub->add_option("--activations", s->activations, "a store (see cache) or an .npy [N,d], in place of pictures");
    add_token_kind(*sub, s->token_kind);
    sub->add_option("--variant", s->variant, "relu (PatchSAE), topk, batch_topk or matryoshka (over batch_topk)")
        ->check(CLI::IsMember({"relu", "topk", "batch_topk", "jump_relu", "gated", "matryoshka"}));
    sub->add_option("--expansion", s->expansion, "latents per input dimension")->check(positive());
    sub->add_option("--d-sae", s->d_sae, "number of latents, in place of --expansion");
    sub->add_option("--k", s->k, "active latents per token (topk), or on average over a batch (batch_topk, matryoshka)")
        ->check(positive());
    sub->add_option("--prefixes", s->prefixes,
                    "numbers of latents that have to reconstruct alone (matryoshka; default: a 32nd, 16th, .. half)");
    sub->add_option("--l1", s->l1, "weight of the L1 term (relu)")->check(not_negative());
    sub->add_option("--loss", s->loss,
                    "patchsae (squared error over the token's norm; relu's default) or mse (plain; of the others)")
        ->check(CLI::IsMember({"patchsae", "mse"}));
    sub->add_option("--lr", s->lr, "learning rate")->check(positive());
    sub->add_option("--warmup-steps", s->warmup_steps, "steps of linear warm-up");
    sub->add_option("--schedule", s->schedule, "after the warm-up")
        ->check(CLI::IsMember({"constant", "linear", "cosine"}));
    sub->add_option("--batch-tokens", s->batch_tokens, "tokens per step")->check(positive());
    sub->add_option("--steps", s->steps, "number of steps (0: as --tokens says)");
    sub->add_option("--tokens", s->tokens, "number of tokens (0: every one once)");
    sub->add_option("--dead-after", s->dead_after, "steps without firing after which a latent is dead");
    sub->add_option(
           "--dead-latents", s->dead_latents,
           "none, ghost (relu's default), aux_k (of the others), or resample: every dead-after + 1 steps they take the "
           "directions of badly explained tokens")
        ->check(CLI::IsMember({"none", "ghost", "aux_k", "resample"}));
    sub->add_option("--b-dec-init", s->b_dec_init, "start of the decoder bias, from tokens of up to 128 pictures")
        ->check(CLI::IsMember({"geometric_median", "mean", "zero"}));
    sub->add_flag("--normalise-decoder,!--no-normalise-decoder", s->normalise_decoder, "unit-norm decoder rows")
        ->default_str("true");
    sub->add_option("--clip-grad-norm", s->clip_grad_norm, "largest norm of the whole gradient (0: any)")
        ->check(not_negative());
    sub->add_option("--checkpoint-every", s->checkpoint_every, "steps between checkpoints (0: only at the end)");
    sub->add_option("--eval-every", s->eval_every,
                    "steps between evaluations on a twentieth of the pictures or rows, held out by seed (0: none)");
    sub->add_option("--init", s->init, "SAE to start from");
    sub->add_option("--order", s->order, "order of stored activations")
        ->check(CLI::IsMember({"shuffled", "sequential"}));
    sub->add_flag("--resume", s->resume, "go on from the checkpoint of --out");
    sub->add_option("--out", s->out, "run directory")->required();
    sub->callback([s, sub] {
        check(*s, *sub);
        if (s->activations.empty()) train_on_pictures(*s, *sub);
        else if (is_store(s->activations)) train_on_store(*s, *sub);
        else train_on_file(*s, *sub);
    });
}

}  // namespace patchsae
