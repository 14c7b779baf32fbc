#pragma once
// A training run in a directory, with its metrics and checkpoints:
//   sae_weights.safetensors, cfg.json   the SAE, written when the run ends or is stopped
//   metrics.jsonl                       a line per step; tokens_per_s, its last number, is what the clock said, all else is
//                                       the same in two runs with one seed
//   checkpoint/state.safetensors        what a resumed run starts from
//
// train_runs drives one run or several on a single stream of activations. A run among others writes the same numbers as
// it would alone.

#include <charconv>
#include <chrono>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <psae/cpu/staging.hpp>
#include <psae/io/checkpoint.hpp>
#include <psae/io/sae_file.hpp>
#include <psae/sae/activation_stream.hpp>
#include <psae/sae/device_sae.hpp>
#include <psae/sae/geometric_median.hpp>
#include <psae/sae/resample.hpp>

namespace psae {

enum class decoder_bias_start { geometric_median, mean, zero };

struct training_run_options {
    std::filesystem::path directory;
    std::size_t first_column = 0;              // of the stream's rows: where the tokens [d_in] of this run begin
    std::optional<std::size_t> target_column;  // of a transcoder: where its targets [d_out] begin
    std::uint64_t seed = 0;
    decoder_bias_start b_dec_start = decoder_bias_start::geometric_median;
    // Tokens are multiplied by sqrt(d_in) / their mean norm, as measured on the sample that the run starts from (SAELens'
    // expected_average_only_in), and the targets of a transcoder likewise by a number of their own. The SAE is written for
    // tokens and targets as they are.
    bool normalise_activations = false;
    std::size_t checkpoint_every = 0, eval_every = 0;  // steps; 0: only at the end, never
    std::size_t resample_every = 0;                    // steps after which dead latents start anew; 0: never
    run_identity identity;
    std::string model;  // for cfg.json: the model and the hidden state the tokens are of
    long layer = -2;
    std::optional<long> target_layer;  // the hidden state the targets are of
};

// Tokens [n, d_in] and what is to be explained by them: targets [n, d_out], which for an SAE are the tokens.
struct training_rows {
    training_rows() = default;
    training_rows(std::span<const float> x) : training_rows(x, x) {}
    training_rows(std::span<const float> x, std::span<const float> y) : tokens(x), targets(y) {}
    std::span<const float> tokens, targets;
};

// Which of n pictures or rows are held out for evaluation: one in twenty, at least one and at most `most`, drawn by
// seed.
struct held_out_split {
    std::vector<std::size_t> kept, held_out;  // ascending
};
inline held_out_split split_held_out(std::size_t n, std::size_t most, std::uint64_t seed) {
    if (n < 2)
        throw error("there is too little to hold a part of it out", "evaluation",
                    "expected at least 2 pictures or rows, found " + std::to_string(n));
    epoch_order order(n, seed ^ 0x6A09E667F3BCC908u);
    held_out_split split;
    for (std::size_t i = 0; i < n; ++i)
        (i < std::clamp<std::size_t>(n / 20, 1, std::max<std::size_t>(most, 1)) ? split.held_out : split.kept)
            .push_back(order.at(i));
    std::sort(split.kept.begin(), split.kept.end());
    std::sort(split.held_out.begin(), split.held_out.end());
    return split;
}

// Takes the held-out rows out of x [n, d] and returns them.
inline std::vector<float> hold_out_rows(std::vector<float>& x, std::size_t d, std::size_t most, std::uint64_t seed) {
    const held_out_split split = split_held_out(x.size() / d, most, seed);
    std::vector<float> held_out;
    for (const std::size_t r : split.held_out)
        held_out.insert(held_out.end(), x.data() + r * d, x.data() + (r + 1) * d);
    for (std::size_t i = 0; i < split.kept.size(); ++i) std::copy_n(x.data() + split.kept[i] * d, d, x.data() + i * d);
    x.resize(split.kept.size() * d);
    return held_out;
}

namespace detail {

// The shortest decimal form that reads back as the same double; null for what JSON has no number for.
inline std::string json_number_text(double v) {
    if (!std::isfinite(v)) return "null";
    char buffer[32];
    return {buffer, std::to_chars(buffer, buffer + sizeof buffer, v).ptr};
}

// A file of one line per step, which a resumed run cuts back to the steps it starts from.
class step_log {
public:
    step_log(std::filesystem::path path, std::size_t steps) : path_(std::move(path)) {
        std::string kept, line;
        {
            std::ifstream in(path_);
            for (std::size_t i = 0; i < steps && std::getline(in, line); ++i) kept += line + "\n";
        }
        write_text(path_, kept);
        out_.open(path_, std::ios::app);
    }
    void add(std::size_t step, const std::vector<std::pair<std::string, double>>& fields) {
        std::string line = "{\"step\": " + std::to_string(step);
        for (const auto& [name, value] : fields) line += ", \"" + name + "\": " + json_number_text(value);
        out_ << line << "}\n" << std::flush;
        if (!out_) throw error("file cannot be written", path_.string());
    }

private:
    std::filesystem::path path_;
    std::ofstream out_;
};

}  // namespace detail

// Columns first .. first + count of rows [n, columns].
inline std::vector<float> select_columns(std::span<const float> rows, std::size_t columns, std::size_t first,
                                         std::size_t count) {
    std::vector<float> selected;
    selected.reserve(rows.size() / columns * count);
    for (std::size_t at = first; at < rows.size(); at += columns)
        selected.insert(selected.end(), rows.begin() + std::ptrdiff_t(at), rows.begin() + std::ptrdiff_t(at + count));
    return selected;
}

// How an SAE does, and what its steps cost.
struct run_summary {
    reconstruction_quality quality;
    double dead_fraction = 0;  // latents that have not fired for dead_after steps
    // Of its own steps in this session; NaN where there were none. On the CPU without waiting for data; the steps of another
    // device last until the next batch is there.
    double tokens_per_s = 0;
};

// A run of any variant.
class any_training_run {
public:
    using rows = view<const float, shape<dyn, dyn>>;

    virtual ~any_training_run() = default;
    virtual std::size_t steps_done() const = 0;
    // Of the last step that is done; none before the first one of this session.
    virtual const std::optional<step_metrics>& last_step() const = 0;
    virtual bool has_checkpoint() const = 0;

    // One of these comes first. `sample` gives rows to start from, and is asked for them only if they are needed.
    virtual void initialise(const std::function<training_rows()>& sample) = 0;
    // From a trained SAE, which `where` names; errors as of set_parameters.
    virtual void start_from(sae_weights from, const std::string& where,
                            const std::function<training_rows()>& sample) = 0;
    // From the checkpoint of the directory; errors as of read_checkpoint.
    virtual void resume() = 0;

    // Before the first step: makes the directory; of a run that starts anew, what an earlier one left in it goes.
    virtual void begin() = 0;
    // A step on rows of the stream, its line of metrics, and a checkpoint where one is due. `waited`: seconds the rows took.
    // psae::error if the loss is no longer finite or a file cannot be written; the last checkpoint then stands. Another
    // device may be at it still on return, and then the next step, wait() or finish() sees to the rest.
    virtual void step(rows of_stream, double waited) = 0;
    virtual void wait() = 0;
    // Writes the checkpoint and the SAE.
    virtual void finish() = 0;

    virtual run_summary summarise(training_rows on) = 0;
};

// Steps run on the device of a backend; start values, evaluation and files are the host's work.
template <class Variant, class Backend = cpu>
class training_run final : public any_training_run {
    static constexpr bool on_host = Backend::memory == space::host;

public:
    // `held_out`, which must outlive the run: rows on which it is evaluated every eval_every steps.
    training_run(Variant sae, const training_options& training, training_run_options options, const cpu& host,
                 const Backend& device, training_rows held_out = {})
        : sae_(std::move(sae)),
          options_(std::move(options)),
          host_(host),
          device_(device),
          held_out_(held_out),
          dead_after_(training.dead_after),
          trainer_(sae_, training, device_),
          batches_(device_),
          target_batches_(device_) {
        const bool targets = options_.target_column.has_value();
        if (sae_view(sae_).is_transcoder() != targets)
            throw error("a transcoder and no other SAE is trained on targets", options_.directory.string(),
                        targets ? "expected no target_column" : "expected a target_column");
        if (targets && options_.resample_every > 0)
            throw error("latents of a transcoder cannot be resampled", options_.directory.string(),
                        "expected resample_every 0, found " + std::to_string(options_.resample_every));
    }
    training_run(Variant sae, const training_options& training, training_run_options options, const cpu& host,
                 training_rows held_out = {}) requires(on_host)
        : training_run(std::move(sae), training, std::move(options), host, host, held_out) {}
    training_run(const training_run&) = delete;
    training_run& operator=(const training_run&) = delete;

    std::size_t steps_done() const override { return trainer_.steps_done() + (at_work_ ? 1 : 0); }
    const std::optional<step_metrics>& last_step() const override { return last_; }
    std::filesystem::path checkpoint_path() const { return options_.directory / "checkpoint" / "state.safetensors"; }
    bool has_checkpoint() const override { return std::filesystem::exists(checkpoint_path()); }

    void initialise(const std::function<training_rows()>& sample) override {
        random_stream random(options_.seed);
        sae_.initialise(random);
        measure_scales(sample);
        if (options_.b_dec_start != decoder_bias_start::zero) {
            const auto y = sample().targets;
            const std::size_t d = sae_.outputs();
            const auto scale = static_cast<float>(output_scale());
            const auto b = options_.b_dec_start == decoder_bias_start::mean
                               ? row_mean(y.data(), y.size() / d, d)
                               : geometric_median(y.data(), y.size() / d, d);
            for (std::size_t c = 0; c < d; ++c) sae_.b_dec.data()[c] = scale * b[c];
        }
        if constexpr (requires(const float* x) { sae_.start_on(host_, scratch_, x, sae_.inputs()); }) {
            const auto x = sample().tokens;
            std::vector<float> scaled(x.begin(), x.end());
            for (float& v : scaled) v *= static_cast<float>(activation_scale_);
            sae_.start_on(host_, scratch_, scaled.data(), scaled.size() / sae_.inputs());
        }
        trainer_.write_parameters();
    }
    void start_from(sae_weights from, const std::string& where, const std::function<training_rows()>& sample) override {
        measure_scales(sample);
        scale_input(from, activation_scale_, target_scale_);
        set_parameters(sae_, from, where);
        trainer_.write_parameters();
    }
    void resume() override {
        read_checkpoint(checkpoint_path(), sae_, *this, options_.identity);
        trainer_.write_parameters();
    }

    // Everything that a checkpoint holds beside the parameters.
    template <class F>
    void each_state(F&& f) {
        trainer_.each_state(f);
        f(std::string("activation_scale"), &activation_scale_, std::size_t{1});
        if (options_.target_column) f(std::string("target_scale"), &target_scale_, std::size_t{1});
    }

    void begin() override {
        std::filesystem::create_directories(checkpoint_path().parent_path());
        if (steps_done() == 0)
            for (const char* name : {"checkpoint/state.safetensors", "sae_weights.safetensors", "cfg.json", "loss.png",
                                     "l0.png", "explained_variance.png", "dead.png"})
                std::filesystem::remove(options_.directory / name);
        metrics_log_.emplace(options_.directory / "metrics.jsonl", steps_done());
    }

    void step(rows of_stream, double waited) override {
        const auto before = clock::now();
        const auto x = part_of(of_stream, options_.first_column, sae_.inputs(), activation_scale_, input_);
        const device_rows tokens{batches_(x.data, x.size()), x.shape()};  // while the step before is computed
        device_rows targets = tokens;
        if (options_.target_column) {
            const auto y = part_of(of_stream, *options_.target_column, sae_.outputs(), target_scale_, targets_);
            targets = device_rows{target_batches_(y.data, y.size()), y.shape()};
        }
        wait();
        const auto start = on_host ? before : clock::now();
        trainer_.start(tokens, targets);
        at_work_ =
            step_at_work{tokens, on_host ? waited : 0, start};  // the next rows are waited for while it is at work
        if (on_host) wait();
    }
    void wait() override {
        if (!at_work_) return;
        const step_at_work step = *std::exchange(at_work_, std::nullopt);
        last_ = trainer_.finish();
        auto fields = fields_of(*last_);
        if (options_.resample_every > 0 && steps_done() % options_.resample_every == 0)
            fields.emplace_back("resampled", double(resample_dead(step.tokens)));
        const double seconds = seconds_since(step.start);
        seconds_ += seconds;
        tokens_ += step.tokens.rows();
        fields.emplace_back("tokens_per_s", double(step.tokens.rows()) / (step.waited + seconds));
        metrics_log_->add(steps_done(), fields);
        if (options_.checkpoint_every > 0 && steps_done() % options_.checkpoint_every == 0) write_checkpoint();
    }

    void finish() override {
        wait();
        trainer_.read_parameters();
        if (options_.checkpoint_every == 0 || steps_done() % options_.checkpoint_every != 0) write_checkpoint();
        write_sae(options_.directory, trained(), options_.model, options_.layer, options_.target_layer);
    }

    run_summary summarise(training_rows on) override {
        wait();
        std::size_t dead = 0;
        for (const std::uint32_t since : trainer_.since_fired()) dead += since > dead_after_;
        return {quality(on), double(dead) / double(sae_.latents()), double(tokens_) / seconds_};
    }

private:
    using clock = std::chrono::steady_clock;
    static double seconds_since(clock::time_point t) { return std::chrono::duration<double>(clock::now() - t).count(); }

    using device_rows = const_view<float, shape<dyn, dyn>, Backend::memory>;
    struct step_at_work {
        device_rows tokens;
        double waited;  // seconds, for the rows
        clock::time_point start;
    };

    // The SAE as it works on tokens of the stream.
    sae_view trained() const {
        sae_view sae(sae_);
        sae.activation_scale = activation_scale_;
        sae.target_scale = target_scale_;
        return sae;
    }
    double output_scale() const { return options_.target_column ? target_scale_ : activation_scale_; }
    reconstruction_quality quality(const training_rows& on) {
        trainer_.read_parameters();
        sae_view sae = trained();
        if constexpr (!on_host) {
            Backend exact = device_;
            exact.products = precision::fp32;  // as trained SAEs are used
            sae.remote = std::make_shared<remote_sae_on<Backend>>(exact, sae);
        }
        return evaluate_sae(host_, scratch_, sae, on.tokens.data(), on.targets.data(),
                            on.tokens.size() / sae_.inputs());
    }
    void write_checkpoint() {
        trainer_.read_parameters();
        psae::write_checkpoint(checkpoint_path(), sae_, *this, options_.identity);
    }

    void measure_scales(const std::function<training_rows()>& sample) {
        if (!options_.normalise_activations) return;
        const training_rows rows = sample();
        activation_scale_ = scale_of(rows.tokens, sae_.inputs());
        if (options_.target_column) target_scale_ = scale_of(rows.targets, sae_.outputs());
    }
    // sqrt(d) over the mean norm of rows [n, d].
    static double scale_of(std::span<const float> rows, std::size_t d) {
        const std::size_t n = rows.size() / d;
        double norms = 0;
        for (std::size_t r = 0; r < n; ++r) {
            double squares = 0;
            for (const float x : rows.subspan(r * d, d)) squares += double(x) * double(x);
            norms += std::sqrt(squares);
        }
        if (!(norms > 0) || !std::isfinite(norms))
            throw error("activations cannot be normalised", "mean norm " + std::to_string(norms / double(n)),
                        "expected a number above 0");
        return std::sqrt(double(d)) * double(n) / norms;
    }

    // Columns first .. first + d of the rows, scaled, in `memory`; the rows themselves where that is the same.
    static rows part_of(rows of_stream, std::size_t first, std::size_t d, double scale, std::vector<float>& memory) {
        const std::size_t n = of_stream.rows();
        if (first == 0 && of_stream.cols() == d && scale == 1) return of_stream;
        if (first + d > of_stream.cols())
            throw error("rows of the stream are too short", to_string(of_stream.shape()),
                        "expected at least " + std::to_string(first + d) + " columns");
        memory.resize(n * d);
        for (std::size_t r = 0; r < n; ++r) {
            const float* from = of_stream.data + r * of_stream.cols() + first;
            for (std::size_t c = 0; c < d; ++c) memory[r * d + c] = static_cast<float>(scale) * from[c];
        }
        return {memory.data(), shape<dyn, dyn>{n, d}};
    }

    std::vector<std::pair<std::string, double>> fields_of(const step_metrics& m) {
        std::vector<std::pair<std::string, double>> fields{{"loss", m.loss}};
        fields.insert(fields.end(), m.terms.begin(), m.terms.end());
        fields.insert(fields.end(), {{"l0", m.l0},
                                     {"explained_variance", m.explained_variance},
                                     {"dead_fraction", m.dead_fraction},
                                     {"lr", m.lr}});
        if (options_.eval_every > 0 && !held_out_.tokens.empty() && trainer_.steps_done() % options_.eval_every == 0) {
            const auto q = quality(held_out_);
            fields.insert(fields.end(),
                          {{"eval_mse", q.mse}, {"eval_l0", q.l0}, {"eval_explained_variance", q.explained_variance}});
        }
        return fields;
    }

    // Gives dead latents the directions of the rows of the batch that are explained worst (as far as there are enough
    // of them). Returns how many.
    std::size_t resample_dead(device_rows tokens) {
        std::vector<float> here(on_host ? 0 : tokens.size());
        if constexpr (!on_host) download(device_, here.data(), tokens.data, here.size());
        const rows x{on_host ? tokens.data : here.data(), tokens.shape()};
        std::vector<std::uint32_t> dead;
        const auto since = trainer_.since_fired();
        for (std::size_t f = 0; f < since.size(); ++f)
            if (since[f] > dead_after_) dead.push_back(static_cast<std::uint32_t>(f));
        const std::size_t n = x.rows(), d = x.cols();
        trainer_.read_parameters();
        scratch_.reset();
        const auto z = encode_rows(host_, scratch_, sae_view(sae_), x.data, n);
        float* x_hat = scratch_.allocate<float>(n * d);
        decode_rows(host_, sae_view(sae_), z, x.data, x_hat);
        std::vector<float> errors(n);
        std::size_t positive = 0;
        for (std::size_t r = 0; r < n; ++r) {
            for (std::size_t c = 0; c < d; ++c)
                errors[r] += (x.data[r * d + c] - x_hat[r * d + c]) * (x.data[r * d + c] - x_hat[r * d + c]);
            positive += errors[r] > 0;
        }
        dead.resize(std::min(dead.size(), positive));
        if (dead.empty()) return 0;
        random_stream random(options_.seed ^ 0xBB67AE8584CAA73Bu, std::uint64_t{trainer_.steps_done()} << 24);
        const auto drawn = draw_rows(resampling::anthropic, errors, dead.size(), random);
        resample(sae_, trainer_, dead, x, drawn, resampling::anthropic, 0.2, host_);
        trainer_.revive(dead);
        return dead.size();
    }

    Variant sae_;
    training_run_options options_;
    cpu host_;
    Backend device_;
    training_rows held_out_;
    std::size_t dead_after_;
    psae::trainer<Variant, Backend> trainer_;
    double activation_scale_ = 1, target_scale_ = 1;
    std::optional<detail::step_log> metrics_log_;
    std::optional<step_metrics> last_;
    std::optional<step_at_work> at_work_;
    std::vector<float> input_, targets_;  // of the batch, scaled
    // On another device copied while the step before is still computed there.
    staged_upload<float, Backend> batches_, target_batches_;
    arena<> scratch_;     // of evaluation and resampling
    double seconds_ = 0;  // of the steps of this session
    std::size_t tokens_ = 0;
};

// The stream that runs are trained on: batches of a source's rows, the same for all of them.
struct stream_options {
    std::size_t steps = 0, batch_tokens = 4096;
    bool shuffled = true;  // rows of a block are mixed; otherwise they come as the source gives them
    std::uint64_t seed = 0;
};

// What is known after a step of all runs.
struct stream_progress {
    std::size_t steps_done, steps;
    double tokens_per_s;  // over the last steps of all runs together
};

// Trains runs, each of them initialised or resumed, until all steps are done or stop() says so between steps, and then
// finishes them. Runs that have done more steps than others wait for those. A run that fails is not finished, and the
// others go on: returned is for each run the error that ended it, if one did. What the source throws ends all of them;
// their last checkpoints then stand. Before the first rows have come nothing is written, so that what ends the work by
// then leaves an earlier run in the same directory as it was. A source is as activation_stream wants it.
template <class Source>
std::vector<std::optional<error>> train_runs(Source& source, std::span<any_training_run* const> runs,
                                             const stream_options& options, const std::function<bool()>& stop,
                                             const std::function<void(const stream_progress&)>& after_step) {
    using clock = std::chrono::steady_clock;
    const auto seconds_since = [](clock::time_point t) {
        return std::chrono::duration<double>(clock::now() - t).count();
    };
    std::vector<std::optional<error>> failures(runs.size());
    const auto attempt = [&](std::size_t i, const auto& what) {
        try {
            if (!failures[i]) what(*runs[i]);
        } catch (const error& e) {
            failures[i] = e;
        }
    };
    std::size_t done = options.steps;
    for (const any_training_run* run : runs) done = std::min(done, run->steps_done());
    if (done < options.steps) {
        activation_stream<Source> stream(source, options.batch_tokens, options.shuffled ? 4 : 1, options.shuffled,
                                         options.seed, done, options.steps);
        double rate = 0;
        const auto all_failed = [&] {
            return std::all_of(failures.begin(), failures.end(), [](const auto& f) { return f.has_value(); });
        };
        bool begun = false;
        while (done < options.steps && !stop() && !all_failed()) {
            const auto before = clock::now();
            const auto rows = stream.next();
            const double waited = seconds_since(before);
            if (!begun && stop()) break;
            if (!begun)
                for (any_training_run* run : runs) run->begin();
            begun = true;
            for (std::size_t i = 0; i < runs.size(); ++i)
                if (runs[i]->steps_done() == done) attempt(i, [&](auto& run) { run.step(rows, waited); });
            ++done;
            const double tokens_per_s = double(options.batch_tokens) / seconds_since(before);
            rate = rate == 0 ? tokens_per_s : 0.9 * rate + 0.1 * tokens_per_s;
            after_step({done, options.steps, rate});
        }
        if (!begun) return failures;
    }
    for (std::size_t i = 0; i < runs.size(); ++i) attempt(i, [](auto& run) { run.finish(); });
    return failures;
}

}  // namespace psae
