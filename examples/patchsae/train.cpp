#include <cstdio>

#include <unistd.h>
#include <zlib.h>

#include <psae/io/training_curves.hpp>
#include <psae/io/training_run.hpp>
#include <psae/sae/geometric_median.hpp>
#include <psae/sae/patchsae.hpp>
#include <psae/sae/topk.hpp>

#include "activations.hpp"

namespace patchsae {

namespace {

constexpr std::size_t most_held_out_tokens = 16384, b_dec_sample = 4096;

struct state {
    common_options common;
    image_options images;
    std::string activations, variant = "relu", loss, dead_latents, b_dec_init = "geometric_median", init,
                             order = "shuffled", out, schedule = "constant";
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

std::string crc_text(unsigned long crc) { return fmt::format("crc32 {:08x}", crc); }

// What decides the numbers of a run, apart from the number of threads.
psae::run_identity identity_of(const state& s, std::size_t d_sae, const std::string& fingerprint) {
    psae::run_identity identity{{"variant", s.variant},
                                {"loss", s.loss},
                                {"d-sae", std::to_string(d_sae)},
                                {"dead-latents", s.dead_latents},
                                {"dead-after", std::to_string(s.dead_after)},
                                {"lr", fmt::format("{}", s.lr)},
                                {"warmup-steps", std::to_string(s.warmup_steps)},
                                {"schedule", s.schedule},
                                {"batch-tokens", std::to_string(s.batch_tokens)},
                                {"clip-grad-norm", fmt::format("{}", s.clip_grad_norm)},
                                {"normalise-decoder", s.normalise_decoder ? "true" : "false"},
                                {"order", s.order},
                                {"seed", std::to_string(s.common.seed)},
                                {"data", fingerprint}};
    if (s.variant == "topk") identity["k"] = std::to_string(s.k);
    if (s.variant == "relu") identity["l1"] = fmt::format("{}", s.l1);
    if (s.schedule != "constant") identity["steps"] = std::to_string(s.steps);
    return identity;
}

void start_from(const std::string& init, psae::sae_parameters<>& sae) {
    const auto from = psae::read_sae(init);
    if (from.d_in != sae.inputs() || from.d_sae != sae.latents())
        throw psae::error("initial SAE has another size", init,
                          fmt::format("expected d_in {} and d_sae {}, found {} and {}", sae.inputs(), sae.latents(),
                                      from.d_in, from.d_sae));
    if (!from.centred_input || from.scaling != psae::input_scaling::none)
        throw psae::error("initial SAE treats its input otherwise than training does", init,
                          "expected apply_b_dec_to_input true and normalize_activations none");
    std::copy(from.W_enc.begin(), from.W_enc.end(), sae.W_enc.data());
    std::copy(from.b_enc.begin(), from.b_enc.end(), sae.b_enc.data());
    std::copy(from.W_dec.begin(), from.W_dec.end(), sae.W_dec.data());
    std::copy(from.b_dec.begin(), from.b_dec.end(), sae.b_dec.data());
}

template <class Source>
void start_anew(const state& s, Source& source, psae::sae_parameters<>& sae) {
    psae::random_stream random(s.common.seed);
    sae.initialise(random);
    if (s.b_dec_init == "zero") return;
    const auto rows = source.sample(b_dec_sample);
    const std::size_t d = sae.inputs(), n = rows.size() / d;
    const auto b =
        s.b_dec_init == "mean" ? psae::row_mean(rows.data(), n, d) : psae::geometric_median(rows.data(), n, d);
    std::copy(b.begin(), b.end(), sae.b_dec.data());
}

template <class Variant, class Source>
void train(const state& s, const CLI::App& sub, Variant& sae, data<Source>& rows,
           const psae::training_options& training) {
    psae::cpu device(s.common.threads);
    psae::training_run<Variant> run(sae, training,
                                    {.directory = s.out,
                                     .steps = training.steps,
                                     .batch_tokens = s.batch_tokens,
                                     .shuffled = s.order != "sequential",
                                     .seed = s.common.seed,
                                     .checkpoint_every = s.checkpoint_every,
                                     .eval_every = s.eval_every,
                                     .identity = identity_of(s, sae.latents(), rows.fingerprint)},
                                    device, std::move(rows.held_out));
    if (s.resume) run.resume();
    else if (!s.init.empty()) start_from(s.init, sae);
    else start_anew(s, rows.source, sae);
    std::filesystem::create_directories(s.out);
    save_configuration(sub, s.out);

    psae::step_metrics m;
    {
        progress bar("steps", training.steps);
        m = run.run(rows.source, s.images.model, s.images.layer, interrupted, [&](const auto& now) {
            bar.show(now.steps_done,
                     fmt::format("  {:.4g} tokens/s  loss {:.4g}  L0 {:.1f}  explained {:.3f}  dead {:.1f}%",
                                 now.tokens_per_s, now.metrics.loss, now.metrics.l0, now.metrics.explained_variance,
                                 100 * now.metrics.dead_fraction),
                     now.tokens_per_s / double(s.batch_tokens));
        });
    }
    psae::write_training_curves(s.out);
    const std::size_t steps = run.trainer().steps_done();
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
    else
        fmt::print("{} steps: loss {:.5g}, L0 {:.2f}, explained variance {:.4f}, dead {:.2f}%: {}\n", steps, m.loss,
                   m.l0, m.explained_variance, 100 * m.dead_fraction, s.out);
    stop_if_interrupted();
}

template <class Source>
void with_variant(state& s, const CLI::App& sub, data<Source> rows) {
    const std::size_t d = rows.source.columns();
    const std::size_t latents = s.d_sae > 0       ? s.d_sae
                                : !s.init.empty() ? psae::read_sae(s.init).d_sae
                                                  : s.expansion * d;
    // Parameters and two moments, all in fp32: asked for here, before the system would have to find it.
    const double needed = 2.0 * 3 * sizeof(float) * double(latents) * double(d),
                 there = double(sysconf(_SC_PHYS_PAGES)) * double(sysconf(_SC_PAGESIZE));
    if (needed > there)
        throw psae::error(
            "the SAE does not fit into memory", fmt::format("d_in {}, d_sae {}", d, latents),
            fmt::format("training takes {:.1f} GiB, the machine has {:.1f}", needed / (1 << 30), there / (1 << 30)),
            "lower --expansion or --d-sae");
    if (s.steps == 0) s.steps = (s.tokens > 0 ? s.tokens : rows.source.rows()) / s.batch_tokens;
    if (s.steps == 0)
        throw psae::error(
            "there are fewer tokens than a batch takes", "train",
            fmt::format("expected at least {}, found {}", s.batch_tokens, s.tokens > 0 ? s.tokens : rows.source.rows()),
            "lower --batch-tokens or give --steps");
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
    if (s.variant == "topk") {
        if (s.k > latents)
            throw psae::error("k is larger than the number of latents", "--k",
                              fmt::format("expected at most {}, found {}", latents, s.k));
        psae::topk<> sae(d, latents);
        sae.k = s.k;
        if (s.dead_latents == "none") sae.aux_weight = 0;
        train(s, sub, sae, rows, training);
    } else {
        psae::patchsae<> sae(d, latents);
        sae.lambda = static_cast<float>(s.l1);
        sae.ghost_gradients = s.dead_latents == "ghost";
        sae.error_over_norm = s.loss == "patchsae";
        train(s, sub, sae, rows, training);
    }
}

void train_on_file(state& s, const CLI::App& sub) {
    std::size_t d = 0;
    auto x = read_activations(s.activations, d);
    const auto fingerprint =
        fmt::format("{} x {}, {}", x.size() / d, d,
                    crc_text(crc32_z(0, reinterpret_cast<const Bytef*>(x.data()), x.size() * sizeof(float))));
    std::vector<float> held_out;
    if (s.eval_every > 0) {
        const auto split = psae::split_held_out(x.size() / d, most_held_out_tokens, s.common.seed);
        for (const std::size_t r : split.held_out)
            held_out.insert(held_out.end(), x.data() + r * d, x.data() + (r + 1) * d);
        for (std::size_t i = 0; i < split.kept.size(); ++i)
            std::copy_n(x.data() + split.kept[i] * d, d, x.data() + i * d);
        x.resize(split.kept.size() * d);
    }
    psae::stored_activations source(std::move(x), d, s.order == "sequential", s.common.seed);
    with_variant(s, sub, data<psae::stored_activations>{source, std::move(held_out), fingerprint});
}

void train_on_pictures(state& s, const CLI::App& sub) {
    const psae::cpu device(s.common.threads);
    const auto tower = psae::load_clip_vision(s.images.model);
    const auto how = psae::read_preprocessing(s.images.model, tower->image_size());
    const std::size_t layer = tower->hidden_index(s.images.layer), T = tower->tokens();
    auto list = list_images(s.images);
    unsigned long crc = 0;
    for (const auto& file : list.files) {
        const std::string name = file.filename().string();
        crc = crc32_z(crc, reinterpret_cast<const Bytef*>(name.c_str()), name.size() + 1);
    }
    const auto fingerprint =
        fmt::format("{} pictures, {}, {} layer {}", list.files.size(), crc_text(crc), tower->name(), layer);
    std::vector<float> held_out;
    if (s.eval_every > 0) {
        const auto split = psae::split_held_out(list.files.size(), most_held_out_tokens / T, s.common.seed);
        const auto take = [&](const std::vector<std::size_t>& which) {
            psae::image_list part{{}, {}, list.class_names};
            for (const std::size_t i : which) {
                part.files.push_back(list.files[i]);
                part.labels.push_back(list.labels[i]);
            }
            return part;
        };
        each_batch(take(split.held_out), s.images, how, device, 8, [&](const auto& pixels, const auto& which) {
            psae::arena<> scratch;
            std::vector<float> x(which.size() * T * tower->width());
            tower->embed(device, scratch, pixels.data(), which.size(), x.data());
            tower->run(device, scratch, x.data(), which.size(), 0, layer);
            held_out.insert(held_out.end(), x.begin(), x.end());
        });
        list = take(split.kept);
    }
    auto pictures = read_pictures(std::move(list), s.images, how);
    psae::image_activations source(*tower, pictures, layer, device, s.common.seed);
    with_variant(s, sub, data<psae::image_activations>{source, std::move(held_out), fingerprint});
    if (pictures.unreadable() > 0)
        fmt::print(stderr, "patchsae: {} pictures could not be read\n", pictures.unreadable());
}

// Choices that depend on one another, and those that are known but not there yet.
void check(state& s) {
    if (s.activations.empty() == s.images.images.empty())
        throw CLI::ValidationError("train", "expected --activations, or --model and --images");
    if (!s.images.images.empty() && s.images.model.empty()) throw CLI::RequiredError("--model");
    if (s.order == "sequential" && s.activations.empty())
        throw CLI::ValidationError("--order", "sequential goes with --activations");
    if (s.variant != "relu" && s.variant != "topk")
        throw psae::error("this variant is not there yet", "--variant " + s.variant, "expected relu or topk");
    if (s.dead_latents == "resample")
        throw psae::error("resampling of dead latents is not there yet", "--dead-latents resample",
                          "expected none, ghost (relu) or aux_k (topk)");
    const bool relu = s.variant == "relu";
    if (s.dead_latents.empty()) s.dead_latents = relu ? "ghost" : "aux_k";
    if (s.dead_latents == (relu ? "aux_k" : "ghost"))
        throw CLI::ValidationError("--dead-latents", "ghost goes with relu, aux_k with topk");
    if (s.loss.empty()) s.loss = relu ? "patchsae" : "mse";
    if (!relu && s.loss == "patchsae") throw CLI::ValidationError("--loss", "patchsae goes with relu");
}

}  // namespace

void add_train(CLI::App& app) {
    auto* sub = add_command(app, "train", "trains an SAE on the tokens of pictures or on stored activations",
                            "--model data/tiny-clip --images photos --expansion 16 --steps 500 --out run");
    auto s = std::make_shared<state>();
    s->common.add_to(*sub);
    s->images.add_to(*sub, false);
    sub->add_option("--activations", s->activations, ".npy [N,d] in place of pictures");
    sub->add_option("--variant", s->variant, "relu (PatchSAE) or topk")
        ->check(CLI::IsMember({"relu", "topk", "batch_topk", "jump_relu", "gated", "matryoshka"}));
    sub->add_option("--expansion", s->expansion, "latents per input dimension")->check(positive());
    sub->add_option("--d-sae", s->d_sae, "number of latents, in place of --expansion");
    sub->add_option("--k", s->k, "active latents per token (topk)")->check(positive());
    sub->add_option("--l1", s->l1, "weight of the L1 term (relu)")->check(not_negative());
    sub->add_option("--loss", s->loss,
                    "patchsae (squared error over the token's norm; relu's default) or mse (plain; topk's)")
        ->check(CLI::IsMember({"patchsae", "mse"}));
    sub->add_option("--lr", s->lr, "learning rate")->check(positive());
    sub->add_option("--warmup-steps", s->warmup_steps, "steps of linear warm-up");
    sub->add_option("--schedule", s->schedule, "after the warm-up")
        ->check(CLI::IsMember({"constant", "linear", "cosine"}));
    sub->add_option("--batch-tokens", s->batch_tokens, "tokens per step")->check(positive());
    sub->add_option("--steps", s->steps, "number of steps (0: as --tokens says)");
    sub->add_option("--tokens", s->tokens, "number of tokens (0: every one once)");
    sub->add_option("--dead-after", s->dead_after, "steps without firing after which a latent is dead");
    sub->add_option("--dead-latents", s->dead_latents, "none, ghost (relu's default), aux_k (topk's) or resample")
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
        check(*s);
        if (s->activations.empty()) train_on_pictures(*s, *sub);
        else train_on_file(*s, *sub);
    });
}

}  // namespace patchsae
