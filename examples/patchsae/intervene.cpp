// Interventions: accuracy when only a class's first latents are kept, when they are removed, when latents are set.

#include <charconv>
#include <set>

#include <psae/attribution/chart.hpp>
#include <psae/io/interventions.hpp>

#include "class_latents.hpp"
#include "zero_shot.hpp"

namespace patchsae {

namespace {

using action = psae::intervention::action;

struct state {
    common_options common;
    image_options images;
    zero_shot_options zero_shot;
    class_latent_options counting;
    std::string sae, out, class_latents, train_split, by = "prediction", error_term = "both";
    std::vector<std::string> train_images, set;
    std::vector<std::size_t> ks;
    std::size_t random = 3;
    bool as_reference = false;

    bool counts_pictures() const { return !train_images.empty() || !train_split.empty(); }
    bool has_class_latents() const { return counts_pictures() || !class_latents.empty(); }
};

// An intervention and what the files say of it.
struct condition {
    psae::intervention what;
    const char* latents;  // class, random, all or set
    std::size_t k;
    std::size_t repeat = 0;  // of random ones, from 1

    const char* action_name() const {
        return what.what == action::keep ? "keep" : what.what == action::remove ? "remove" : "set";
    }
};

std::vector<psae::latent_value> parse_values(const std::vector<std::string>& texts) {
    std::vector<psae::latent_value> values;
    for (const std::string& text : texts) {
        psae::latent_value v{};
        const char* end = text.data() + text.size();
        const auto latent = std::from_chars(text.data(), end, v.latent);
        if (latent.ec != std::errc{} || latent.ptr == end || *latent.ptr != '=')
            throw CLI::ValidationError("--set", "expected LATENT=VALUE, found " + text);
        const auto value = std::from_chars(latent.ptr + 1, end, v.value);
        if (value.ec != std::errc{} || value.ptr != end || !std::isfinite(v.value))
            throw CLI::ValidationError("--set", "expected LATENT=VALUE with a finite number, found " + text);
        values.push_back(v);
    }
    std::sort(values.begin(), values.end(), [](const auto& a, const auto& b) { return a.latent < b.latent; });
    return values;
}

// The rows of a file of class-level latents in the order of the classes. What they were counted by is that file's: what
// was asked for otherwise is refused, and what was not becomes so.
psae::class_latent_counts read_counts(state& s, CLI::App& sub, const psae::named_classes& named,
                                      const psae::sae_description& sae) {
    auto file = psae::read_class_latents_npz(s.class_latents);
    if (file.counts.latents != sae.d_sae)
        throw psae::error("class-level latents and SAE do not fit", s.class_latents + " and " + s.sae,
                          fmt::format("expected d_sae {}, found {}", sae.d_sae, file.counts.latents));
    s.counting.take(file.counts, sub, s.as_reference, s.class_latents);
    const auto class_of_row = named.classes_of(file.classes);
    const std::size_t classes = named.names.size();
    psae::class_latent_counts counts = file.counts;
    counts.classes = classes;
    counts.images.assign(classes, 0);
    counts.count.assign(classes * counts.latents, 0);
    for (std::size_t row = 0; row < class_of_row.size(); ++row) {
        if (class_of_row[row] < 0) continue;
        const auto c = static_cast<std::size_t>(class_of_row[row]);
        const auto from = file.counts.of_class(row);
        counts.images[c] += file.counts.images[row];  // labels may mean the same class
        for (std::size_t f = 0; f < from.size(); ++f) counts.count[c * counts.latents + f] += from[f];
    }
    return counts;
}

// Refuses classes that a picture may be of but whose latents are not known.
void require_latents(const state& s, const psae::class_latent_counts& counts, const zero_shot_task& task,
                     const psae::image_list& labelled) {
    std::set<std::int32_t> asked;
    for (std::size_t i = 0; i < labelled.files.size(); ++i)
        asked.insert(psae::class_of(labelled, i, task.classes.of_label));
    if (s.by == "prediction")
        for (std::size_t c = 0; c < counts.classes; ++c) asked.insert(std::int32_t(c));
    const std::string where = s.counts_pictures() ? "training pictures" : s.class_latents;
    std::size_t silent = 0;
    for (const std::int32_t asked_class : asked) {
        const auto c = static_cast<std::size_t>(asked_class);
        const std::string name = "class " + task.classes.names[c];
        if (counts.images[c] == 0)
            throw psae::error("no picture tells a class's latents", where, name,
                              "give pictures of it, or leave it out of --classes");
        const auto own = counts.of_class(c);
        silent += std::all_of(own.begin(), own.end(), [](std::uint32_t n) { return n == 0; });
    }
    if (silent > 0)
        report_line(
            fmt::format("patchsae: no latent fires above tau {} on {} of {} classes ({}): their order means nothing",
                        counts.tau, silent, asked.size(), where));
}

std::vector<condition> make_conditions(const state& s, const std::vector<std::size_t>& ks, std::size_t d_sae,
                                       const std::vector<psae::latent_value>& values) {
    std::vector<condition> list;
    for (const bool error_term : {false, true}) {
        if (s.error_term == (error_term ? "without" : "with")) continue;
        for (const action what : {action::keep, action::remove}) {
            if (s.has_class_latents())
                for (std::size_t r = 0; r <= s.random; ++r)
                    for (const std::size_t k : ks)
                        list.push_back({{.what = what, .k = k, .ranking = r, .error_term = error_term},
                                        r == 0 ? "class" : "random",
                                        k,
                                        r});
            list.push_back({{.what = what, .error_term = error_term}, "all", d_sae});
        }
        if (!values.empty())
            list.push_back({{.what = action::set, .values = values, .error_term = error_term}, "set", values.size()});
    }
    return list;
}

// Results ------------------------------------------------------------------------------------------------------------

struct experiment {
    std::vector<condition> conditions;
    psae::intervention_results results;
    std::vector<std::string> classes;

    const psae::accuracy_counts& plain() const { return results.plain; }
    const psae::intervention_result& of(const condition& c) const {
        return results.interventions[std::size_t(&c - conditions.data())];
    }
    // The mean accuracy of the conditions of one kind and k: of several only where latents are random.
    double mean(bool error_term, action what, const std::string& latents, std::size_t k) const {
        double sum = 0, count = 0;
        for (const condition& c : conditions)
            if (c.what.error_term == error_term && c.what.what == what && c.latents == latents && c.k == k)
                sum += of(c).accuracy.top_1(), ++count;
        return sum / count;
    }
    std::vector<bool> error_terms() const {
        std::vector<bool> found;
        for (const condition& c : conditions)
            if (found.empty() || found.back() != c.what.error_term) found.push_back(c.what.error_term);
        return found;
    }
};

struct measured {
    double accuracy, accuracy_low, accuracy_high, top_5, difference, difference_low, difference_high;
    std::size_t gained, lost;
};
measured measure(const psae::accuracy_counts& counts, std::size_t gained, std::size_t lost) {
    const auto own = psae::wilson_interval(counts.best, counts.pictures),
               paired = psae::paired_interval(gained, lost, counts.pictures);
    return {counts.top_1(),
            own.low,
            own.high,
            counts.top_5(),
            (double(gained) - double(lost)) / double(counts.pictures),
            paired.low,
            paired.high,
            gained,
            lost};
}

std::string csv_of(const experiment& e) {
    std::string csv =
        "latents,repeat,action,k,error_term,pictures,accuracy,accuracy_low,accuracy_high,top_5_accuracy,difference,"
        "difference_low,difference_high,gained,lost\n";
    const auto add = [&](const std::string& head, const psae::accuracy_counts& counts, std::size_t gained,
                         std::size_t lost) {
        const auto m = measure(counts, gained, lost);
        csv += fmt::format("{},{},{:.6g},{:.6g},{:.6g},{:.6g}", head, counts.pictures, m.accuracy, m.accuracy_low,
                           m.accuracy_high, m.top_5);
        csv += head.starts_with("none") ? ",,,,,\n"
                                        : fmt::format(",{:.6g},{:.6g},{:.6g},{},{}\n", m.difference, m.difference_low,
                                                      m.difference_high, m.gained, m.lost);
    };
    add("none,,,,", e.plain(), 0, 0);
    for (const condition& c : e.conditions)
        add(fmt::format("{},{},{},{},{}", c.latents, c.repeat == 0 ? "" : std::to_string(c.repeat), c.action_name(),
                        c.k, c.what.error_term),
            e.of(c).accuracy, e.of(c).gained, e.of(c).lost);
    return csv;
}

// A row for each class and condition; random ones are left out.
std::string class_csv_of(const experiment& e) {
    std::string csv = "class,latents,action,k,error_term,pictures,accuracy\n";
    for (std::size_t k = 0; k < e.classes.size(); ++k) {
        if (e.results.plain_by_class[k].pictures == 0) continue;
        const auto add = [&](const std::string& head, const psae::accuracy_counts& counts) {
            csv += fmt::format("{},{},{},{:.6g}\n", psae::detail::quoted_field(e.classes[k]), head, counts.pictures,
                               counts.top_1());
        };
        add("none,,,", e.results.plain_by_class[k]);
        for (const condition& c : e.conditions)
            if (c.repeat == 0)
                add(fmt::format("{},{},{},{}", c.latents, c.action_name(), c.k, c.what.error_term),
                    e.of(c).by_class[k]);
    }
    return csv;
}

std::vector<json_object> json_of(const experiment& e) {
    std::vector<json_object> rows;
    for (const condition& c : e.conditions) {
        const auto m = measure(e.of(c).accuracy, e.of(c).gained, e.of(c).lost);
        json_object row;
        row.add("latents", c.latents);
        if (c.repeat > 0) row.add("repeat", c.repeat);
        row.add("action", c.action_name())
            .add("k", c.k)
            .add("error_term", c.what.error_term)
            .add("accuracy", m.accuracy)
            .add("accuracy_low", m.accuracy_low)
            .add("accuracy_high", m.accuracy_high)
            .add("difference", m.difference)
            .add("difference_low", m.difference_low)
            .add("difference_high", m.difference_high)
            .add("gained", m.gained)
            .add("lost", m.lost);
        rows.push_back(std::move(row));
    }
    return rows;
}

// Accuracy by k, the last point with all latents.
psae::chart curve_of(const experiment& e, const std::vector<std::size_t>& ks, std::size_t d_sae, bool error_term,
                     bool random) {
    std::vector<psae::series> data;
    for (const action what : {action::keep, action::remove})
        for (const char* latents : {"class", "random"}) {
            if (!random && latents == std::string("random")) continue;
            psae::series line{fmt::format("{} {}", what == action::keep ? "keep" : "remove",
                                          latents == std::string("class") ? "class latents" : "random latents"),
                              {},
                              {}};
            for (const std::size_t k : ks) {
                line.x.push_back(double(k));
                line.y.push_back(e.mean(error_term, what, latents, k));
            }
            line.x.push_back(double(d_sae));
            line.y.push_back(e.mean(error_term, what, "all", d_sae));
            data.push_back(std::move(line));
        }
    const double first = ks.empty() ? 1 : double(ks.front());
    data.push_back({"no intervention", {first, double(d_sae)}, {e.plain().top_1(), e.plain().top_1()}});
    return psae::line_plot(fmt::format("Zero-shot accuracy, {} the error term", error_term ? "with" : "without"),
                           "latents kept or removed", "accuracy", std::move(data), {.log_x = true});
}

std::string percent(double v) { return fmt::format("{:.1f}%", 100 * v); }

void print_experiment(const experiment& e, const state& s, const std::vector<std::size_t>& ks, std::size_t d_sae) {
    const auto with_interval = [](const psae::accuracy_counts& counts) {
        const auto i = psae::wilson_interval(counts.best, counts.pictures);
        return fmt::format("{} ({:.1f} to {:.1f})", percent(counts.top_1()), 100 * i.low, 100 * i.high);
    };
    for (const bool error_term : e.error_terms()) {
        fmt::print("{} the SAE's error term:\n", error_term ? "with" : "without");
        std::vector<std::vector<std::string>> table{{"k"}};
        for (const std::size_t k : ks) table.push_back({std::to_string(k)});
        if (!s.has_class_latents()) table.resize(1);
        table.push_back({"all"});
        for (const action what : {action::keep, action::remove}) {
            const std::string name = what == action::keep ? "keep" : "remove";
            const bool random = s.has_class_latents() && s.random > 0;
            table[0].push_back(name);
            if (random) table[0].push_back(name + " random");
            for (const condition& c : e.conditions) {
                if (c.what.error_term != error_term || c.what.what != what || c.repeat > 0) continue;
                const bool all = c.k == d_sae;
                auto& row =
                    all ? table.back() : table[1 + std::size_t(std::find(ks.begin(), ks.end(), c.k) - ks.begin())];
                row.push_back(with_interval(e.of(c).accuracy));
                if (random) row.push_back(all ? "" : percent(e.mean(error_term, what, "random", c.k)));
            }
        }
        print_table(table);
        for (const condition& c : e.conditions)
            if (c.what.what == action::set && c.what.error_term == error_term) {
                std::string values;
                for (const auto& v : c.what.values) values += fmt::format(" {}={}", v.latent, v.value);
                fmt::print("set{}: {}, {} gained, {} lost\n", values, with_interval(e.of(c).accuracy), e.of(c).gained,
                           e.of(c).lost);
            }
    }
    fmt::print("{} pictures, {} classes: {} without intervention (95% intervals): {}\n", e.plain().pictures,
               e.classes.size(), with_interval(e.plain()), s.out);
}

void run(state& s, CLI::App& sub) {
    const auto values = parse_values(s.set);
    if (s.as_reference) {
        s.by = "label";
        s.error_term = "without";
        s.random = 0;
        s.counting.count = "tokens";
    }
    const auto weights = load_sae(s.sae);
    const auto sae = on_chosen_device(weights);
    psae::require_reconstruction(sae, s.sae);
    psae::require_settable(values, sae.d_sae);
    const auto ks = numbers_of_latents(s.ks, sae.d_sae, s.sae);
    s.images.take_layer(sae.origin);
    const auto list = list_images(s.images);
    const std::filesystem::path out(s.out);
    std::filesystem::create_directories(out);  // now: one that cannot be made is known before the work
    const auto tower = load_model(s.images.model, s.images.adapter);
    require_fit(sae, s.sae, tower->width(), s.images.model);
    const psae::cpu device(s.common.threads);
    const auto task = make_zero_shot_task(s.zero_shot, s.images, list, device, !s.as_reference);
    const auto labelled = psae::with_class(list, task.classes.of_label);
    if (labelled.files.empty())
        throw psae::error("no picture has a class", s.images.images.front(), "",
                          "classes are the sub-folders, or the column label of a table");

    experiment e;
    e.classes = task.classes.names;
    std::vector<psae::latent_ranking> rankings;
    if (s.has_class_latents()) {
        psae::class_latent_counts counts;
        if (s.counts_pictures()) {
            image_options training = s.images;
            if (!s.train_images.empty()) training.images = s.train_images;
            training.split = s.train_split;
            training.limit = 0;
            const auto train_list = list_images(training);
            const auto of_label = task.classes.classes_of(train_list.class_names);
            std::size_t skipped = 0;
            counts = count_class_latents(s.counting, training, train_list, of_label, e.classes.size(), *tower, sae,
                                         device, skipped);
            report_shared_pictures(labelled, train_list);
        } else {
            counts = read_counts(s, sub, task.classes, sae);
        }
        require_latents(s, counts, task, labelled);
        const std::size_t top = ks.empty() ? 0 : ks.back();
        rankings.push_back(psae::rank_latents(counts, top));
        psae::random_stream random(s.common.seed);
        for (std::size_t r = 0; r < s.random; ++r)
            rankings.push_back(psae::random_ranking(counts, top, random.below(~std::uint64_t{0})));
    }
    e.conditions = make_conditions(s, ks, sae.d_sae, values);
    std::vector<psae::intervention> interventions;
    for (const condition& c : e.conditions) interventions.push_back(c.what);

    auto pictures = read_pictures(labelled, s.images, psae::read_preprocessing(s.images.model, tower->image_size()));
    {
        progress bar("pictures", labelled.files.size());
        psae::intervention_options options{.rankings = rankings, .by_label = s.by == "label"};
        options.progress = [&](std::size_t done) {
            stop_if_interrupted();
            bar.show(done);
        };
        e.results = psae::run_interventions(device, *tower, task.classifier, pictures, task.classes.of_label,
                                            tower->hidden_index(s.images.layer), sae, interventions, options);
    }
    if (e.plain().pictures == 0)
        throw psae::error("no picture could be read", s.images.images.front(),
                          std::to_string(labelled.files.size()) + " were tried");

    psae::write_text(out / "metrics.csv", csv_of(e));
    psae::write_text(out / "class_metrics.csv", class_csv_of(e));
    if (s.has_class_latents())
        for (const bool error_term : e.error_terms()) {
            const auto curve = curve_of(e, ks, sae.d_sae, error_term, s.random > 0);
            const std::string name = error_term ? "accuracy_with_error_term" : "accuracy";
            psae::write_text(out / (name + ".svg"), psae::to_svg(curve));
            psae::write_png(out / (name + ".png"), psae::to_image(curve));
        }
    save_configuration(sub, s.out);
    if (!s.common.json) {
        print_experiment(e, s, ks, sae.d_sae);
        return;
    }
    const auto plain = psae::wilson_interval(e.plain().best, e.plain().pictures);
    json_object{}
        .add("images", e.plain().pictures)
        .add("skipped", pictures.unreadable())
        .add("without_class", list.files.size() - labelled.files.size())
        .add("classes", e.classes.size())
        .add("templates", task.templates)
        .add("layer", tower->hidden_index(s.images.layer))
        .add("accuracy", e.plain().top_1())
        .add("accuracy_low", plain.low)
        .add("accuracy_high", plain.high)
        .add("interventions", json_of(e))
        .add("out", s.out)
        .print();
}

}  // namespace

void add_intervene(CLI::App& app) {
    auto* sub =
        add_command(app, "intervene", "zero-shot accuracy with only a class's first latents kept, or with them removed",
                    "--model data/tiny-clip --sae run --images photos/test --train-images photos/train --out effect");
    auto s = std::make_shared<state>();
    s->common.add_to(*sub);
    s->images.add_to(*sub);
    sub->get_option("--images")->required();
    sub->add_option("--sae", s->sae, "SAE directory")->required();
    s->zero_shot.add_to(*sub);
    sub->add_option("--train-images", s->train_images,
                    "pictures whose counts choose each class's latents; repeatable, as --images")
        ->default_str("");
    sub->add_option("--train-split", s->train_split,
                    "use only this split of the training pictures (of --images, if "
                    "there are no --train-images)");
    sub->add_option("--class-latents", s->class_latents, "class_latents.npz of the command classes, in their place");
    s->counting.add_to(*sub);
    sub->add_option("--k", s->ks, "numbers of latents, besides all; without it 1 2 5 10 50 100 500 1000 2000")
        ->check(positive())
        ->default_str("");
    sub->add_option("--by", s->by,
                    "a picture's class, of which the latents are: what the plain model predicts, or its "
                    "label")
        ->check(CLI::IsMember({"prediction", "label"}));
    sub->add_option("--error-term", s->error_term,
                    "add what the SAE leaves unexplained to the tokens: with, without, or both")
        ->check(CLI::IsMember({"both", "with", "without"}));
    sub->add_option("--random", s->random, "controls with as many latents drawn at random (see --seed)")
        ->check(CLI::Range(0, 1000));
    sub->add_option("--set", s->set, "LATENT=VALUE: an intervention that sets latents on every token; repeatable")
        ->default_str("");
    sub->add_flag("--as-reference", s->as_reference,
                  "as PatchSAE's code does it: class embeddings not scaled to unit length, --by label, --count tokens, "
                  "--error-term without, --random 0, whatever else is given");
    sub->add_option("--out", s->out, "directory to write")->required();
    sub->callback([s, sub] {
        if (s->counts_pictures() && !s->class_latents.empty())
            throw CLI::ValidationError("intervene", "expected training pictures or --class-latents, not both");
        if (!s->has_class_latents() && s->set.empty())
            throw CLI::ValidationError("intervene", "expected --train-images, --train-split, --class-latents or --set");
        run(*s, *sub);
    });
}

}  // namespace patchsae
