#pragma once
// A training run in a directory, with its metrics and checkpoints:
//   sae_weights.safetensors, cfg.json   the SAE, written when the run ends or is stopped
//   metrics.jsonl                       a line per step; tokens_per_s, its last number, is what the clock said, all else is
//                                       the same in two runs with one seed
//   checkpoint/state.safetensors        what a resumed run starts from

#include <charconv>
#include <chrono>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <psae/io/checkpoint.hpp>
#include <psae/io/sae_file.hpp>
#include <psae/sae/activation_stream.hpp>
#include <psae/sae/geometric_median.hpp>
#include <psae/sae/resample.hpp>

namespace psae {

enum class decoder_bias_start { geometric_median, mean, zero };

struct training_run_options {
    std::filesystem::path directory;
    std::size_t steps = 0, batch_tokens = 4096;
    bool shuffled = true;  // rows of a block are mixed; otherwise they come as the source gives them
    std::uint64_t seed = 0;
    std::size_t checkpoint_every = 0, eval_every = 0;  // steps; 0: only at the end, never
    std::size_t resample_every = 0;                    // steps after which dead latents start anew; 0: never
    run_identity identity;
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

template <class Variant>
class training_run {
public:
    // What is known after a step.
    struct progress {
        const step_metrics& metrics;
        std::size_t steps_done, steps;
        double tokens_per_s;  // over the last steps
    };

    // The SAE gets its start values by initialise, resume, or from outside. `held_out` [n, d_in]: rows on which it is
    // evaluated every eval_every steps.
    training_run(Variant& sae, const training_options& training, training_run_options options, cpu& device,
                 std::vector<float> held_out = {})
        : sae_(sae),
          options_(std::move(options)),
          device_(device),
          held_out_(std::move(held_out)),
          dead_after_(training.dead_after),
          trainer_(sae, training, device) {}

    const psae::trainer<Variant>& trainer() const { return trainer_; }
    std::filesystem::path checkpoint_path() const { return options_.directory / "checkpoint" / "state.safetensors"; }

    // Start values of the SAE: weights by the seed, b_dec by up to `sample` tokens of the source.
    template <class Source>
    void initialise(Source& source, decoder_bias_start how, std::size_t sample = 4096) {
        random_stream random(options_.seed);
        sae_.initialise(random);
        if (how == decoder_bias_start::zero) return;
        const auto rows = source.sample(sample);
        const std::size_t d = sae_.inputs(), n = rows.size() / d;
        const auto b =
            how == decoder_bias_start::mean ? row_mean(rows.data(), n, d) : geometric_median(rows.data(), n, d);
        std::copy(b.begin(), b.end(), sae_.b_dec.data());
    }
    // Goes on from the checkpoint of the directory; errors as of read_checkpoint.
    void resume() { read_checkpoint(checkpoint_path(), sae_, trainer_, options_.identity); }

    // Trains until all steps are done or stop() says so after a step; then writes a checkpoint and the SAE. A source is
    // as activation_stream wants it. Returns the metrics of the last step (none where all were done before). psae::error if the loss is no longer finite,
    // or what the source throws; the last checkpoint then stands.
    template <class Source>
    std::optional<step_metrics> run(Source& source, const std::string& model, long layer,
                                    const std::function<bool()>& stop,
                                    const std::function<void(const progress&)>& after_step) {
        std::filesystem::create_directories(checkpoint_path().parent_path());
        if (trainer_.steps_done() == 0)  // what a run left that was here before
            for (const char* name : {"checkpoint/state.safetensors", "sae_weights.safetensors", "cfg.json", "loss.png",
                                     "l0.png", "explained_variance.png", "dead.png"})
                std::filesystem::remove(options_.directory / name);
        detail::step_log metrics_log(options_.directory / "metrics.jsonl", trainer_.steps_done());
        std::optional<step_metrics> last;
        {
            activation_stream<Source> stream(source, options_.batch_tokens, options_.shuffled ? 4 : 1,
                                             options_.shuffled, options_.seed, trainer_.steps_done(), options_.steps);
            auto before = std::chrono::steady_clock::now();
            double rate = 0;
            while (trainer_.steps_done() < options_.steps && !stop()) {
                const auto x = stream.next();
                const step_metrics& m = trainer_.step(x);
                last = m;
                auto fields = fields_of(m);
                if (options_.resample_every > 0 && trainer_.steps_done() % options_.resample_every == 0)
                    fields.emplace_back("resampled", double(resample_dead(x)));
                const auto now = std::chrono::steady_clock::now();
                const double seconds = std::chrono::duration<double>(now - std::exchange(before, now)).count();
                const double tokens_per_s = double(options_.batch_tokens) / seconds;
                rate = rate == 0 ? tokens_per_s : 0.9 * rate + 0.1 * tokens_per_s;
                fields.emplace_back("tokens_per_s", tokens_per_s);
                metrics_log.add(trainer_.steps_done(), fields);
                after_step({m, trainer_.steps_done(), options_.steps, rate});
                if (options_.checkpoint_every > 0 && trainer_.steps_done() % options_.checkpoint_every == 0)
                    write_checkpoint(checkpoint_path(), sae_, trainer_, options_.identity);
            }
            if (options_.checkpoint_every == 0 || trainer_.steps_done() % options_.checkpoint_every != 0)
                write_checkpoint(checkpoint_path(), sae_, trainer_, options_.identity);
        }
        write_sae(options_.directory, sae_view(sae_), model, layer);
        return last;
    }

private:
    std::vector<std::pair<std::string, double>> fields_of(const step_metrics& m) {
        std::vector<std::pair<std::string, double>> fields{{"loss", m.loss}};
        fields.insert(fields.end(), m.terms.begin(), m.terms.end());
        fields.insert(fields.end(), {{"l0", m.l0},
                                     {"explained_variance", m.explained_variance},
                                     {"dead_fraction", m.dead_fraction},
                                     {"lr", m.lr}});
        if (options_.eval_every > 0 && !held_out_.empty() && trainer_.steps_done() % options_.eval_every == 0) {
            const auto q =
                evaluate_sae(device_, scratch_, sae_view(sae_), held_out_.data(), held_out_.size() / sae_.inputs());
            fields.insert(fields.end(),
                          {{"eval_mse", q.mse}, {"eval_l0", q.l0}, {"eval_explained_variance", q.explained_variance}});
        }
        return fields;
    }

    // Gives dead latents the directions of the rows of the batch that are explained worst (as far as there are enough
    // of them). Returns how many.
    std::size_t resample_dead(view<const float, shape<dyn, dyn>> x) {
        std::vector<std::uint32_t> dead;
        for (std::size_t f = 0; f < sae_.latents(); ++f)
            if (trainer_.since_fired()[f] > dead_after_) dead.push_back(static_cast<std::uint32_t>(f));
        const std::size_t n = x.rows(), d = x.cols();
        scratch_.reset();
        const auto z = encode_rows(device_, scratch_, sae_view(sae_), x.data, n);
        float* x_hat = scratch_.allocate<float>(n * d);
        decode_rows(device_, sae_view(sae_), z, x.data, x_hat);
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
        const auto rows = draw_rows(resampling::anthropic, errors, dead.size(), random);
        resample(sae_, trainer_, dead, x, rows, resampling::anthropic);
        trainer_.revive(dead);
        return dead.size();
    }

    Variant& sae_;
    training_run_options options_;
    cpu& device_;
    std::vector<float> held_out_;
    std::size_t dead_after_;
    psae::trainer<Variant> trainer_;
    arena<> scratch_;  // of evaluation and resampling
};

}  // namespace psae
