#include <chrono>
#include <csignal>
#include <cstdio>
#include <fstream>

#include <unistd.h>

#include <psae/sae/activation_stream.hpp>
#include <psae/sae/geometric_median.hpp>
#include <psae/sae/patchsae.hpp>
#include <psae/sae/topk.hpp>
#include <psae/sae/trainer.hpp>

#include "activations.hpp"

namespace patchsae {

namespace {

volatile std::sig_atomic_t interrupted = 0;

struct state {
    common_options common;
    image_options images;
    std::string activations, variant = "relu", dead_latents, b_dec_init = "geometric_median", init, order = "shuffled",
                             out, schedule = "constant";
    std::size_t expansion = 64, d_sae = 0, k = 32, batch_tokens = 4096, steps = 0, tokens = 0, warmup_steps = 500,
                dead_after = 64, checkpoint_every = 1000;
    double l1 = 8e-5, lr = 4e-4, clip_grad_norm = 0;
    bool normalise_decoder = true, resume = false;
};

// Tokens of pictures, in an order that depends on the seed alone; an unreadable picture is replaced by the next
// readable one.
class image_activations {
public:
    image_activations(const image_options& options, int threads, std::uint64_t seed)
        : options_(options),
          device_(threads),
          tower_(psae::load_clip_vision(options.model)),
          how_(psae::read_preprocessing(options.model, tower_->image_size())),
          list_(list_images(options)),
          order_(list_.files.size(), seed),
          layer_(tower_->hidden_index(options.layer)) {}
    std::size_t columns() const { return tower_->width(); }
    std::size_t rows() const { return list_.files.size() * tower_->tokens(); }

    void read(std::uint64_t first, std::size_t count, float* out) {
        const std::size_t T = tower_->tokens(), d = tower_->width(), side = tower_->image_size(), batch = 8;
        std::vector<float> pixels(batch * 3 * side * side), x(batch * T * d);
        for (std::size_t done = 0; done < count;) {
            const std::uint64_t image = (first + done) / T;
            const std::size_t skip = (first + done) % T, wanted = std::min(batch, (count - done + skip + T - 1) / T);
            for (std::size_t i = 0; i < wanted; ++i) decode(image + i, pixels.data() + i * 3 * side * side);
            scratch_.reset();
            tower_->embed(device_, scratch_, pixels.data(), wanted, x.data());
            tower_->run(device_, scratch_, x.data(), wanted, 0, layer_);
            const std::size_t rows = std::min(wanted * T - skip, count - done);
            std::copy_n(x.data() + skip * d, rows * d, out + done * d);
            done += rows;
        }
    }

private:
    void decode(std::uint64_t position, float* pixels) {
        const std::size_t start = order_.at(position);
        for (std::size_t tried = 0; tried < list_.files.size(); ++tried)
            if (const auto picture = try_read(list_.files[(start + tried) % list_.files.size()], options_)) {
                psae::preprocess(*picture, how_, pixels);
                return;
            }
        throw psae::error("no picture could be read", options_.images.front());
    }

    const image_options& options_;
    psae::cpu device_;
    std::unique_ptr<psae::vision_tower> tower_;
    psae::preprocessing how_;
    psae::image_list list_;
    psae::epoch_order order_;
    std::size_t layer_;
    psae::arena<> scratch_;
};

template <class Variant>
void save_checkpoint(const std::filesystem::path& directory, Variant& sae, psae::trainer<Variant>& run) {
    std::filesystem::create_directories(directory);
    std::vector<psae::tensor_to_write> tensors;
    sae.each_parameter(
        [&](const char* name, auto& p) { tensors.push_back(psae::to_write(name, {p.size()}, p.data())); });
    run.each_state([&](const std::string& name, auto* data, std::size_t count) {
        tensors.push_back(psae::to_write(name, {count}, data));
    });
    psae::write_safetensors(directory / "state.safetensors", tensors);
}

template <class Variant>
void load_checkpoint(const std::filesystem::path& directory, Variant& sae, psae::trainer<Variant>& run) {
    const psae::safetensors_file file(directory / "state.safetensors");
    const auto copy = [&]<class U>(const std::string& name, U* data, std::size_t count) {
        const auto values = file.read<U>(name, {count});
        std::copy(values.begin(), values.end(), data);
    };
    sae.each_parameter([&](const char* name, auto& p) { copy(name, p.data(), p.size()); });
    run.each_state([&](const std::string& name, auto* data, std::size_t count) { copy(name, data, count); });
}

// Keeps the metrics of the first `steps` steps, for a run that goes on from there.
void truncate_metrics(const std::filesystem::path& path, std::size_t steps) {
    std::ifstream in(path);
    std::string text, line;
    for (std::size_t i = 0; i < steps && std::getline(in, line); ++i) text += line + "\n";
    psae::write_text(path, text);
}

template <class Variant, class Source>
void train(const state& s, Variant& sae, Source& source, const psae::training_options& options) {
    psae::cpu device(s.common.threads);
    const std::filesystem::path out(s.out), checkpoint = out / "checkpoint";
    const std::size_t d = source.columns();
    psae::random_stream random(s.common.seed);
    if (!s.init.empty()) {
        const auto from = psae::read_sae(s.init);
        if (from.d_in != d || from.d_sae != sae.latents())
            throw psae::error("initial SAE has another size", s.init,
                              fmt::format("expected {} x {}, found {} x {}", d, sae.latents(), from.d_in, from.d_sae));
        std::copy(from.W_enc.begin(), from.W_enc.end(), sae.W_enc.data());
        std::copy(from.b_enc.begin(), from.b_enc.end(), sae.b_enc.data());
        std::copy(from.W_dec.begin(), from.W_dec.end(), sae.W_dec.data());
        std::copy(from.b_dec.begin(), from.b_dec.end(), sae.b_dec.data());
    } else if (!s.resume) {
        sae.initialise(random);
        if (s.b_dec_init != "zero") {
            const std::size_t n = std::min<std::size_t>(source.rows(), s.batch_tokens);
            std::vector<float> sample(n * d);
            source.read(0, n, sample.data());
            const auto start = s.b_dec_init == "mean" ? psae::row_mean(sample.data(), n, d)
                                                      : psae::geometric_median(sample.data(), n, d);
            std::copy(start.begin(), start.end(), sae.b_dec.data());
        }
    }
    psae::trainer<Variant> run(sae, options, device);
    std::filesystem::create_directories(out);
    if (s.resume) load_checkpoint(checkpoint, sae, run);
    truncate_metrics(out / "metrics.jsonl", run.steps_done());
    std::ofstream metrics(out / "metrics.jsonl", std::ios::app);
    psae::activation_stream<Source> stream(source, s.batch_tokens, s.order == "sequential" ? 1 : 4,
                                           s.order != "sequential", s.common.seed, run.steps_done());

    using clock = std::chrono::steady_clock;
    const auto begin = clock::now();
    auto shown = begin - std::chrono::hours(1);
    const bool terminal = isatty(2);
    const std::size_t first_step = run.steps_done();
    interrupted = 0;
    std::signal(SIGINT, [](int) { interrupted = 1; });
    psae::step_metrics m;
    while (run.steps_done() < options.steps && !interrupted) {
        m = run.step(stream.next());
        const double elapsed = std::chrono::duration<double>(clock::now() - begin).count();
        const double rate = double((run.steps_done() - first_step) * s.batch_tokens) / elapsed;
        std::string line = fmt::format("{{\"step\": {}, \"loss\": {:.9g}", m.step + 1, m.loss);
        for (const auto& [name, value] : m.terms) line += fmt::format(", \"{}\": {:.9g}", name, value);
        line += fmt::format(
            ", \"l0\": {:.9g}, \"explained_variance\": {:.9g}, \"dead_fraction\": {:.9g}, \"lr\": {:.9g}, "
            "\"tokens_per_s\": {:.6g}}}\n",
            m.l0, m.explained_variance, m.dead_fraction, m.lr, rate);
        metrics << line << std::flush;
        if (clock::now() - shown > std::chrono::milliseconds(terminal ? 200 : 10000)) {
            shown = clock::now();
            fmt::print(stderr,
                       "{}step {}/{}  loss {:.4g}  L0 {:.1f}  explained {:.3f}  dead {:.1f}%  {:.0f} tokens/s  {:.0f} "
                       "s left{}",
                       terminal ? "\r" : "", m.step + 1, options.steps, m.loss, m.l0, m.explained_variance,
                       100 * m.dead_fraction, rate, double((options.steps - run.steps_done()) * s.batch_tokens) / rate,
                       terminal ? "\033[K" : "\n");
        }
        if (s.checkpoint_every > 0 && run.steps_done() % s.checkpoint_every == 0) save_checkpoint(checkpoint, sae, run);
    }
    if (terminal) fmt::print(stderr, "\n");
    save_checkpoint(checkpoint, sae, run);
    psae::sae_weights weights{
        std::is_same_v<Variant, psae::topk<>> ? "topk" : "standard", d, sae.latents(), 0, {}, {}, {}, {}};
    if constexpr (requires { sae.k; }) weights.k = sae.k;
    weights.W_enc.assign(sae.W_enc.data(), sae.W_enc.data() + sae.W_enc.size());
    weights.b_enc.assign(sae.b_enc.data(), sae.b_enc.data() + sae.b_enc.size());
    weights.W_dec.assign(sae.W_dec.data(), sae.W_dec.data() + sae.W_dec.size());
    weights.b_dec.assign(sae.b_dec.data(), sae.b_dec.data() + sae.b_dec.size());
    psae::write_sae(out, weights, s.images.model, s.images.layer);
    if (s.common.json)
        fmt::print(
            "{{\"steps\": {}, \"loss\": {:.9g}, \"l0\": {:.9g}, \"explained_variance\": {:.9g}, \"dead_fraction\": "
            "{:.9g}}}\n",
            run.steps_done(), m.loss, m.l0, m.explained_variance, m.dead_fraction);
    else
        fmt::print("{} steps: loss {:.5g}, L0 {:.2f}, explained variance {:.4f}, dead {:.2f}%: {}\n", run.steps_done(),
                   m.loss, m.l0, m.explained_variance, 100 * m.dead_fraction, s.out);
    if (interrupted) std::exit(130);
}

template <class Source>
void with_variant(const state& s, Source& source) {
    const std::size_t d = source.columns();
    std::size_t latents = s.d_sae > 0 ? s.d_sae : s.expansion * d;
    if (!s.init.empty() && s.d_sae == 0) latents = psae::read_sae(s.init).d_sae;
    psae::training_options options;
    options.lr = s.lr;
    options.warmup_steps = s.warmup_steps;
    options.schedule = s.schedule == "linear"   ? psae::schedule::linear
                       : s.schedule == "cosine" ? psae::schedule::cosine
                                                : psae::schedule::constant;
    options.steps = s.steps > 0 ? s.steps : (s.tokens > 0 ? s.tokens : source.rows()) / s.batch_tokens;
    options.clip_grad_norm = s.clip_grad_norm;
    options.unit_norm_decoder = s.normalise_decoder;
    options.dead_after = s.dead_after;
    if (options.steps == 0)
        throw psae::error("there are fewer tokens than a batch takes", "train",
                          fmt::format("at least {}", s.batch_tokens), "lower --batch-tokens or give --steps");
    if (s.variant == "topk") {
        psae::topk<> sae(d, latents);
        sae.k = s.k;
        if (s.k > latents)
            throw psae::error("k is larger than the number of latents", "train",
                              fmt::format("at most {}, found {}", latents, s.k));
        if (s.dead_latents == "none") sae.aux_weight = 0;
        train(s, sae, source, options);
    } else {
        psae::patchsae<> sae(d, latents);
        sae.lambda = static_cast<float>(s.l1);
        sae.ghost_gradients = s.dead_latents != "none";
        train(s, sae, source, options);
    }
}

void run(const state& s) {
    if (!s.activations.empty()) {
        std::size_t d = 0;
        auto rows = read_activations(s.activations, d);
        psae::stored_activations source(std::move(rows), d, s.order == "sequential", s.common.seed);
        with_variant(s, source);
    } else {
        image_activations source(s.images, s.common.threads, s.common.seed);
        with_variant(s, source);
    }
}

}  // namespace

void add_train(CLI::App& app) {
    auto* sub = app.add_subcommand(
        "train",
        "trains an SAE\n  patchsae train --model data/tiny-clip --images photos --expansion 16 --steps 500 --out run");
    auto s = std::make_shared<state>();
    s->common.add_to(*sub);
    s->images.add_to(*sub, false);
    sub->add_option("--activations", s->activations, ".npy [N,d] in place of pictures");
    sub->add_option("--variant", s->variant, "relu (PatchSAE) or topk")->check(CLI::IsMember({"relu", "topk"}));
    sub->add_option("--expansion", s->expansion, "latents per input dimension");
    sub->add_option("--d-sae", s->d_sae, "number of latents, in place of --expansion");
    sub->add_option("--k", s->k, "active latents per token (topk)")->check(CLI::PositiveNumber);
    sub->add_option("--l1", s->l1, "weight of the L1 term (relu)");
    sub->add_option("--lr", s->lr, "learning rate");
    sub->add_option("--warmup-steps", s->warmup_steps, "steps of linear warm-up");
    sub->add_option("--schedule", s->schedule, "after the warm-up")
        ->check(CLI::IsMember({"constant", "linear", "cosine"}));
    sub->add_option("--batch-tokens", s->batch_tokens, "tokens per step")->check(CLI::PositiveNumber);
    sub->add_option("--steps", s->steps, "number of steps");
    sub->add_option("--tokens", s->tokens, "number of tokens, in place of --steps");
    sub->add_option("--dead-after", s->dead_after, "steps without firing after which a latent is dead");
    sub->add_option("--dead-latents", s->dead_latents, "none, or the variant's own: ghost (relu), aux_k (topk)")
        ->check(CLI::IsMember({"none", "ghost", "aux_k"}));
    sub->add_option("--b-dec-init", s->b_dec_init, "start of the decoder bias")
        ->check(CLI::IsMember({"geometric_median", "mean", "zero"}));
    sub->add_flag("--normalise-decoder,!--no-normalise-decoder", s->normalise_decoder, "unit-norm decoder rows");
    sub->add_option("--clip-grad-norm", s->clip_grad_norm, "largest norm of the whole gradient (0: any)");
    sub->add_option("--checkpoint-every", s->checkpoint_every, "steps between checkpoints (0: only at the end)");
    sub->add_option("--init", s->init, "SAE to start from");
    sub->add_option("--order", s->order, "order of stored activations")
        ->check(CLI::IsMember({"shuffled", "sequential"}));
    sub->add_flag("--resume", s->resume, "go on from the checkpoint of --out");
    sub->add_option("--out", s->out, "run directory")->required();
    sub->callback([s] {
        if (s->activations.empty() && (s->images.images.empty() || s->images.model.empty()))
            throw CLI::RequiredError("--activations, or --model and --images");
        if ((s->dead_latents == "ghost" && s->variant != "relu") ||
            (s->dead_latents == "aux_k" && s->variant != "topk"))
            throw CLI::ValidationError("--dead-latents", "ghost goes with relu, aux_k with topk");
        run(*s);
    });
}

}  // namespace patchsae
