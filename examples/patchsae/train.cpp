// The command train: one SAE, or those of a sweep, on the tokens of pictures or on stored activations.

#include <cstdio>
#include <limits>
#include <optional>

#include <unistd.h>

#include <psae/io/training_curves.hpp>

#include "activations.hpp"
#include "sweep.hpp"

namespace patchsae {

namespace {

constexpr std::size_t most_held_out_tokens = 16384;

// Where the rows come from: what the runs are trained on, what is kept from it for evaluation, and what identifies it.
template <class Source>
struct data {
    Source& source;                   // its rows hold a token [d_in] for each of the layers
    std::vector<std::size_t> layers;  // ascending hidden states; one that nobody asks for where rows are from a file
    std::vector<float> held_out;      // rows, as of the source
    std::vector<std::string> fingerprints;  // for each layer
    std::size_t d_in() const { return source.columns() / layers.size(); }
};

void require_memory(const std::vector<planned_run>& planned, std::size_t columns, const run_tokens& tokens) {
    // The blocks of four batches, one read ahead, and what every SAE holds: asked for here, before the system would have
    // to find it.
    const std::size_t batch = planned.front().options->batch_tokens;
    double needed = sizeof(float) * 2.0 * 4 * double(batch) * double(columns);
    for (const planned_run& p : planned) needed += p.options->bytes_of_parameters(tokens);
    const double there = double(sysconf(_SC_PHYS_PAGES)) * double(sysconf(_SC_PAGESIZE));
    if (needed <= there) return;
    throw psae::error(
        planned.size() > 1 ? "the runs do not fit into memory" : "the run does not fit into memory",
        planned.size() > 1
            ? fmt::format("{} SAEs, batches of {}", planned.size(), batch)
            : fmt::format("d_in {}, d_sae {}, batches of {}", tokens.d_in, planned.front().options->d_sae, batch),
        fmt::format("training takes {:.1f} GiB, the machine has {:.1f}", needed / (1 << 30), there / (1 << 30)),
        "lower --expansion, --d-sae or --batch-tokens");
}

void report_one(const train_options& s, const psae::any_training_run& run) {
    const auto& last = run.last_step();
    const std::size_t steps = run.steps_done();
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
}

psae::sae_weights starting_sae(const train_options& s) {
    auto sae = load_sae(s.init);
    if (s.variant == "transcoder" && sae.architecture != "standard")
        throw psae::error("transcoder in training has other activations", s.init,
                          "expected standard, found " + sae.architecture);
    return sae;
}

// `s` and `command` are those that were given; the planned runs have their own.
template <class Source>
void train(const train_options& s, const CLI::App& command, std::vector<planned_run>& planned, data<Source> rows) {
    const std::size_t columns = rows.source.columns(), layers = rows.layers.size(), d = rows.d_in();
    // The part of rows that is of a layer.
    const auto of_layer = [&](const std::vector<float>& all, std::size_t place) {
        return layers == 1 ? all : psae::select_columns(all, columns, place * d, d);
    };
    std::vector<std::vector<float>> held_out, drawn(layers);
    for (std::size_t place = 0; place < layers; ++place) held_out.push_back(of_layer(rows.held_out, place));
    rows.held_out = {};
    const auto place_of = [&](std::size_t layer) {
        return static_cast<std::size_t>(std::find(rows.layers.begin(), rows.layers.end(), layer) - rows.layers.begin());
    };
    // What is of a run, of parts by layer.
    const auto of_run = [&](const planned_run& p, const std::vector<std::vector<float>>& parts) {
        return psae::training_rows(parts[place_of(p.hidden_state)],
                                   parts[place_of(p.target_state.value_or(p.hidden_state))]);
    };
    // Rows drawn at random, as soon as somebody wants some.
    const auto sample = [&](const planned_run& p) {
        if (drawn.front().empty()) {
            const std::vector<float> all = rows.source.sample(4096);
            for (std::size_t place = 0; place < layers; ++place) drawn[place] = of_layer(all, place);
        }
        return of_run(p, drawn);
    };

    std::vector<run_tokens> tokens;
    for (planned_run& p : planned) {
        const std::size_t place = place_of(p.hidden_state);
        std::optional<std::size_t> target_column;
        std::string fingerprint = rows.fingerprints[place];
        if (p.target_state) {
            target_column = place_of(*p.target_state) * d;
            fingerprint += fmt::format(", target layer {}", *p.target_state);
        }
        tokens.push_back(
            {d, rows.source.rows(), place * d, target_column, std::move(fingerprint), of_run(p, held_out)});
        p.options->resolve_sizes(*p.command, tokens.back());
    }
    require_memory(planned, columns, tokens.front());
    std::vector<std::unique_ptr<psae::any_training_run>> owned;
    std::vector<psae::any_training_run*> runs;
    for (std::size_t i = 0; i < planned.size(); ++i) {
        owned.push_back(planned[i].options->make_run(*planned[i].command, tokens[i]));
        runs.push_back(owned.back().get());
    }
    // Of a sweep that was stopped early some may have no checkpoint yet: they start anew.
    const bool none_has_checkpoint =
        std::none_of(runs.begin(), runs.end(), [](const auto* run) { return run->has_checkpoint(); });
    for (std::size_t i = 0; i < runs.size(); ++i) {
        const train_options& own = *planned[i].options;
        const auto its_sample = [&, i] { return sample(planned[i]); };
        if (s.resume && (none_has_checkpoint || runs[i]->has_checkpoint())) runs[i]->resume();
        else if (!own.init.empty()) runs[i]->start_from(starting_sae(own), own.init, its_sample);
        else runs[i]->initialise(its_sample);
    }
    std::filesystem::create_directories(s.out);  // now: one that cannot be made is known before the work
    for (const planned_run& p : planned) std::filesystem::create_directories(p.options->out);
    bool saved = false;  // after a step only: what stops the work before leaves an earlier run as it was
    const auto save_configurations = [&] {
        if (std::exchange(saved, true)) return;
        save_configuration(command, s.out);
        for (const planned_run& p : planned) save_configuration(*p.command, p.options->out);
    };

    const bool sweep = !s.sweep.empty();
    std::vector<std::optional<psae::error>> failures;
    {
        progress bar("steps", planned.front().options->steps);
        failures = psae::train_runs(
            rows.source, runs, planned.front().options->stream(), interrupted, [&](const psae::stream_progress& now) {
                save_configurations();
                const auto& last = runs.front()->last_step();
                std::string more = fmt::format("  {:.4g} tokens/s", now.tokens_per_s);
                if (sweep) more += fmt::format("  {} SAEs", runs.size());
                else if (last)
                    more += fmt::format("  loss {:.4g}  L0 {:.1f}  explained {:.3f}  dead {:.1f}%", last->loss,
                                        last->l0, last->explained_variance, 100 * last->dead_fraction);
                bar.show(now.steps_done, more, now.tokens_per_s / double(s.batch_tokens));
            });
    }
    if (!saved) stop_if_interrupted();
    for (std::size_t i = 0; i < runs.size(); ++i)
        if (!failures[i]) psae::write_training_curves(planned[i].options->out);
    if (!sweep) {
        if (failures.front()) throw *failures.front();
        report_one(*planned.front().options, *runs.front());
        stop_if_interrupted();
        return;
    }
    std::vector<sweep_result> results;
    std::size_t failed = 0;
    for (std::size_t i = 0; i < runs.size(); ++i) {
        sweep_result& r = results.emplace_back(sweep_result{&planned[i], runs[i]->steps_done(), std::nullopt, ""});
        try {
            if (failures[i]) throw *failures[i];
            r.summary = runs[i]->summarise(tokens[i].held_out.tokens.empty() ? sample(planned[i]) : tokens[i].held_out);
        } catch (const psae::error& e) {
            r.failure = e.what();
            ++failed;
        }
    }
    report_sweep(s.out, results, s.common.json);
    stop_if_interrupted();
    if (failed > 0)
        throw psae::error(fmt::format("{} of {} SAEs could not be trained to the end", failed, runs.size()),
                          "--sweep " + s.sweep, "the table says why");
}

void train_on_file(const train_options& s, const CLI::App& command, std::vector<planned_run>& planned) {
    std::size_t d = 0;
    auto x = read_activations(s.activations, d);
    const auto crc = crc_of(0, x.data(), x.size() * sizeof(float));
    const auto fingerprint = fmt::format("{} x {}, crc32 {:08x}", x.size() / d, d, crc);
    std::vector<float> held_out;
    if (s.eval_every > 0) held_out = psae::hold_out_rows(x, d, most_held_out_tokens, s.common.seed);
    psae::stored_activations source(std::move(x), d, s.order == "sequential", s.common.seed);
    train(s, command, planned, data<psae::stored_activations>{source, {0}, std::move(held_out), {fingerprint}});
}

void train_on_store(const train_options& s, const CLI::App& command, std::vector<planned_run>& planned) {
    const psae::activation_store store(s.activations);
    for (planned_run& p : planned) {
        if (p.options->images.model.empty()) p.options->images.model = store.layout().model;
        if (p.command->count("--layer") > 0 && p.options->images.layer != store.layout().layer)
            throw psae::error("store is of another layer", s.activations,
                              fmt::format("expected --layer {}, found hidden state {}", p.options->images.layer,
                                          store.layout().layer),
                              "leave --layer out");
        p.options->images.layer = store.layout().layer;
    }
    psae::store_reading reading{s.common.seed, s.order == "sequential", token_kind_of(s.token_kind)};
    std::vector<float> held_out;
    if (s.eval_every > 0) {
        const auto [first, last] = store.tokens_of(reading.kind);
        reading.held_out =
            psae::split_held_out(store.pictures(), most_held_out_tokens / (last - first), s.common.seed).held_out;
        held_out = store.read_pictures(reading.held_out, reading.kind);
    }
    psae::activation_store_source source(store, std::move(reading));
    train(s, command, planned,
          data<psae::activation_store_source>{source, {0}, std::move(held_out), {store.fingerprint()}});
}

void train_on_pictures(const train_options& s, const CLI::App& command, std::vector<planned_run>& planned) {
    const psae::cpu device(s.common.threads);
    const auto tower = load_model(s.images.model, s.images.adapter);
    const auto how = psae::read_preprocessing(s.images.model, tower->image_size());
    std::vector<std::size_t> layers;
    for (planned_run& p : planned) {
        p.hidden_state = tower->hidden_index(p.options->images.layer);
        p.options->images.layer = long(p.hidden_state);  // what is written counts layers from the start
        layers.push_back(p.hidden_state);
        if (!p.options->target_layer) continue;
        p.target_state = tower->hidden_index(*p.options->target_layer);
        if (*p.target_state <= p.hidden_state)
            throw psae::error(
                "target layer is not behind the layer", p.name.empty() ? "--target-layer" : p.name + ": --target-layer",
                fmt::format("expected hidden state {} or behind it, found {}", p.hidden_state + 1, *p.target_state));
        p.options->target_layer = long(*p.target_state);
        layers.push_back(*p.target_state);
    }
    std::sort(layers.begin(), layers.end());
    layers.erase(std::unique(layers.begin(), layers.end()), layers.end());
    auto list = list_images(s.images);
    auto identity = identity_of_tokens(list, *tower, layers.front(), s.images, how);
    std::vector<std::string> fingerprints;
    for (const std::size_t layer : layers) {
        identity["layer"] = std::to_string(layer);
        fingerprints.push_back(fmt::format("{}, {}, layer {}, preprocessing {}", identity["list"], identity["model"],
                                           identity["layer"], identity["preprocessing"]));
    }
    std::vector<float> held_out;
    if (s.eval_every > 0) {
        const auto split =
            psae::split_held_out(list.files.size(), most_held_out_tokens / tower->image_tokens(), s.common.seed);
        auto pictures = read_pictures(psae::select(list, split.held_out), s.images, how);
        psae::image_activations part(*tower, pictures, layers, device, s.common.seed);
        held_out.resize(part.rows() * part.columns());
        part.read(0, part.rows(), held_out.data());
        list = psae::select(list, split.kept);
    }
    auto pictures = read_pictures(std::move(list), s.images, how);
    psae::image_activations source(*tower, pictures, layers, device, s.common.seed);
    train(s, command, planned,
          data<psae::image_activations>{source, layers, std::move(held_out), std::move(fingerprints)});
    if (pictures.unreadable() > 0)
        fmt::print(stderr, "patchsae: {} pictures could not be read\n", pictures.unreadable());
}

}  // namespace

void add_train(CLI::App& app) {
    auto* sub =
        add_command(app, "train", "trains an SAE or a transcoder on the tokens of pictures or on stored activations",
                    "--model data/tiny-clip --images photos --expansion 16 --steps 500 --out run");
    auto s = std::make_shared<train_options>();
    s->add_to(*sub);
    sub->callback([s, sub] {
        std::vector<planned_run> planned;
        if (s->sweep.empty()) {
            s->complete(*sub);
            planned.emplace_back().command = sub;
            planned.back().options = s;
        } else {
            planned = read_sweep(s->sweep, *sub);
        }
        if (s->activations.empty()) train_on_pictures(*s, *sub, planned);
        else if (is_store(s->activations)) train_on_store(*s, *sub, planned);
        else train_on_file(*s, *sub, planned);
    });
}

}  // namespace patchsae
