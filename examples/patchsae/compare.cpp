// A model against an adapted form of it: the latents of each class in both, how they move, how much of the gain in
// accuracy is left with latents that were there before.

#include <psae/attribution/chart.hpp>
#include <psae/io/linear_probe.hpp>
#include <psae/io/model_comparison.hpp>

#include "class_latents.hpp"
#include "zero_shot.hpp"

namespace patchsae {

namespace {

struct state {
    common_options common;
    image_options images;
    zero_shot_options zero_shot;
    class_latent_options counting;
    std::string adapted_model, probe, sae, out, train_split, order = "count";
    std::vector<std::string> train_images;
    std::vector<std::size_t> ks;
    std::size_t top = 10;

    bool has_training_pictures() const { return !train_images.empty() || !train_split.empty(); }
};

// One of the two models.
struct side {
    std::string name;
    image_options images;  // with its --model and --adapter
    std::unique_ptr<psae::vision_tower> tower;
    zero_shot_task task;
    psae::class_latent_counts counts;  // that choose the latents
    psae::fired_on_pictures fired;     // on the pictures that are classified
    psae::intervention_results results;
    std::vector<std::int32_t> predicted;  // by picture; -1: not read

    double accuracy() const { return results.plain.top_1(); }
};

struct comparison {
    psae::image_list pictures;  // that have a class
    std::vector<std::int32_t> of_label;
    std::vector<std::string> classes;
    side base, adapted;
    psae::compared_sets sets;
    psae::latent_comparison latents;
    std::size_t gained = 0, lost = 0;  // pictures that only the adapted model has right; only the base model
    std::vector<double> picture_jaccard;

    std::int32_t label(std::size_t i) const { return psae::class_of(pictures, i, of_label); }
    // Results by the order of compared_sets::interventions.
    static const psae::intervention_result& all_kept(const side& s, bool error_term) {
        return s.results.interventions[error_term];
    }
    const psae::intervention_result& of(const side& s, std::size_t set, bool error_term) const {
        return s.results.interventions[2 + 2 * set + error_term];
    }
    std::size_t set(const std::string& name, std::size_t k = 0) const {
        const auto found =
            std::find_if(sets.sets.begin(), sets.sets.end(), [&](const auto& s) { return s.name == name && s.k == k; });
        return std::size_t(found - sets.sets.begin());
    }
    // Of the gain, with an accuracy of the adapted model. Without the error term the models are those whose tokens are
    // replaced by reconstructions.
    double explained(double accuracy, bool error_term) const {
        if (error_term) return psae::explained_share(base.accuracy(), adapted.accuracy(), accuracy);
        return psae::explained_share(all_kept(base, false).accuracy.top_1(), all_kept(adapted, false).accuracy.top_1(),
                                     accuracy);
    }
    double explained(bool error_term) const {
        return explained(of(adapted, set("base_fired"), error_term).accuracy.top_1(), error_term);
    }
    psae::interval gain_interval() const { return psae::paired_interval(gained, lost, pictures_of_both()); }
    std::size_t pictures_of_both() const {
        std::size_t n = 0;
        for (std::size_t i = 0; i < pictures.files.size(); ++i)
            n += base.predicted[i] >= 0 && adapted.predicted[i] >= 0;
        return n;
    }
};

constexpr double nan = std::numeric_limits<double>::quiet_NaN();

double mean_of(const std::vector<double>& values) {
    psae::detail::defined_mean mean;
    for (const double v : values) mean.add(v);
    return mean.value();
}

// Files -----------------------------------------------------------------------------------------------------------------

// A number of a .csv; empty if there is none.
std::string field(double v) { return std::isfinite(v) ? fmt::format("{:.6g}", v) : ""; }
std::string field(const std::vector<std::uint32_t>& latents) { return fmt::format("{}", fmt::join(latents, " ")); }

using measures = std::vector<std::pair<const char*, double>>;

measures totals_of(const comparison& c, std::size_t top) {
    measures m;
    for (const side* s : {&c.base, &c.adapted}) {
        const auto own = psae::wilson_interval(s->results.plain.best, s->results.plain.pictures);
        const bool first = s == &c.base;
        m.emplace_back(first ? "base_accuracy" : "adapted_accuracy", s->accuracy());
        m.emplace_back(first ? "base_accuracy_low" : "adapted_accuracy_low", own.low);
        m.emplace_back(first ? "base_accuracy_high" : "adapted_accuracy_high", own.high);
    }
    const auto gain = c.gain_interval();
    const auto& l = c.latents;
    double shared = 0;
    for (const auto& k : l.classes) shared += double(k.shared.size());
    const auto share = [](std::size_t part, std::size_t of) { return of == 0 ? nan : double(part) / double(of); };
    const auto kept = [&](bool error_term) {
        return c.of(c.adapted, c.set("base_fired"), error_term).accuracy.top_1();
    };
    const measures more{{"gain", c.adapted.accuracy() - c.base.accuracy()},
                        {"gain_low", gain.low},
                        {"gain_high", gain.high},
                        {"gained", double(c.gained)},
                        {"lost", double(c.lost)},
                        {"base_latents", double(l.base_latents)},
                        {"adapted_latents", double(l.adapted_latents)},
                        {"present_latents", double(l.present)},
                        {"present_share", share(l.present, l.adapted_latents)},
                        {"present_mass", l.present_mass},
                        {"class_present_mass", l.class_present_mass},
                        {"top", double(top)},
                        {"shared", shared / double(l.classes.size())},
                        {"jaccard", l.jaccard},
                        {"picture_jaccard", mean_of(c.picture_jaccard)},
                        {"association_correlation", l.association_correlation},
                        {"accuracy_with_present", kept(true)},
                        {"explained_share", c.explained(true)},
                        {"accuracy_with_present_without_error_term", kept(false)},
                        {"explained_share_without_error_term", c.explained(false)}};
    m.insert(m.end(), more.begin(), more.end());
    return m;
}

std::string csv_of(const measures& totals) {
    std::string csv = "measure,value\n";
    for (const auto& [name, value] : totals) csv += fmt::format("{},{}\n", name, field(value));
    return csv;
}

std::string metrics_csv(const comparison& c) {
    std::string csv =
        "model,latents,action,k,error_term,pictures,accuracy,accuracy_low,accuracy_high,top_5_accuracy,difference,"
        "difference_low,difference_high,gained,lost,explained\n";
    const auto accuracy = [](const psae::accuracy_counts& n) {
        const auto i = psae::wilson_interval(n.best, n.pictures);
        return fmt::format("{},{:.6g},{:.6g},{:.6g},{:.6g}", n.pictures, n.top_1(), i.low, i.high, n.top_5());
    };
    for (const side* s : {&c.base, &c.adapted}) {
        csv += fmt::format("{},none,,,,{},,,,,,\n", s->name, accuracy(s->results.plain));
        const auto add = [&](const std::string& head, const psae::intervention_result& r, bool error_term) {
            const auto paired = psae::paired_interval(r.gained, r.lost, r.accuracy.pictures);
            csv +=
                fmt::format("{},{},{},{},{:.6g},{:.6g},{:.6g},{},{},{}\n", s->name, head, error_term,
                            accuracy(r.accuracy), r.accuracy.top_1() - s->accuracy(), paired.low, paired.high, r.gained,
                            r.lost, s == &c.adapted ? field(c.explained(r.accuracy.top_1(), error_term)) : "");
        };
        for (const bool error_term : {false, true}) {
            add("all,keep,", comparison::all_kept(*s, error_term), error_term);
            for (std::size_t i = 0; i < c.sets.sets.size(); ++i) {
                const auto& set = c.sets.sets[i];
                add(fmt::format("{},{},{}", set.name, set.what == psae::intervention::action::keep ? "keep" : "remove",
                                set.k == 0 ? "" : std::to_string(set.k)),
                    c.of(*s, i, error_term), error_term);
            }
        }
    }
    return csv;
}

std::string classes_csv(const comparison& c) {
    std::string csv =
        "class,images,base_latents,adapted_latents,present,present_mass,shared,base_only,adapted_only,jaccard,"
        "count_correlation,picture_jaccard,pictures,base_accuracy,adapted_accuracy,adapted_accuracy_with_present,"
        "shared_latents,base_only_latents,adapted_only_latents\n";
    std::vector<std::vector<double>> jaccards(c.classes.size());
    for (std::size_t i = 0; i < c.picture_jaccard.size(); ++i)
        jaccards[std::size_t(c.label(i))].push_back(c.picture_jaccard[i]);
    const auto& present = c.of(c.adapted, c.set("base_fired"), true);
    for (std::size_t k = 0; k < c.classes.size(); ++k) {
        const auto& l = c.latents.classes[k];
        const auto accuracy = [](const psae::accuracy_counts& n) { return n.pictures == 0 ? nan : n.top_1(); };
        csv += fmt::format(
            "{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{}\n", psae::detail::quoted_field(c.classes[k]),
            c.base.counts.images[k], l.base_latents, l.adapted_latents, l.present, field(l.present_mass),
            l.shared.size(), l.base_only.size(), l.adapted_only.size(), field(l.jaccard), field(l.count_correlation),
            field(mean_of(jaccards[k])), c.base.results.plain_by_class[k].pictures,
            field(accuracy(c.base.results.plain_by_class[k])), field(accuracy(c.adapted.results.plain_by_class[k])),
            field(accuracy(present.by_class[k])), field(l.shared), field(l.base_only), field(l.adapted_only));
    }
    return csv;
}

std::string images_csv(const comparison& c) {
    std::string csv = "file,label,base_predicted,adapted_predicted,base_latents,adapted_latents,jaccard\n";
    for (std::size_t i = 0; i < c.pictures.files.size(); ++i) {
        if (c.base.predicted[i] < 0 || c.adapted.predicted[i] < 0) continue;
        const auto name = [&](std::int32_t k) { return psae::detail::quoted_field(c.classes[std::size_t(k)]); };
        csv +=
            fmt::format("{},{},{},{},{},{},{}\n", psae::detail::quoted_field(c.pictures.files[i].string()),
                        name(c.label(i)), name(c.base.predicted[i]), name(c.adapted.predicted[i]),
                        c.base.fired.latents[i].size(), c.adapted.fired.latents[i].size(), field(c.picture_jaccard[i]));
    }
    return csv;
}

// The pairs of class and latent whose association moves most.
std::string associations_csv(const comparison& c) {
    constexpr std::size_t most = 1000;
    std::string csv = "class,latent,base_count,adapted_count,base_phi,adapted_phi,change\n";
    for (const auto& a : psae::association_changes(c.base.counts, c.adapted.counts, most))
        csv += fmt::format("{},{},{},{},{:.6g},{:.6g},{:.6g}\n", psae::detail::quoted_field(c.classes[a.of_class]),
                           a.latent, c.base.counts.of_class(a.of_class)[a.latent],
                           c.adapted.counts.of_class(a.of_class)[a.latent], a.base, a.adapted, a.adapted - a.base);
    return csv;
}

// Of the first latents of classes in either model.
psae::chart association_plot(const comparison& c) {
    const auto before = c.base.counts.of_all(), now = c.adapted.counts.of_all();
    const std::uint64_t possible = c.base.counts.possible_of_all();
    std::vector<psae::series> data{{"in both", {}, {}}, {"base model only", {}, {}}, {"adapted model only", {}, {}}};
    for (std::size_t k = 0; k < c.classes.size(); ++k) {
        const auto& l = c.latents.classes[k];
        for (std::size_t part = 0; const auto* list : {&l.shared, &l.base_only, &l.adapted_only}) {
            for (const std::uint32_t f : *list) {
                data[part].x.push_back(psae::association_of(c.base.counts, k, f, before[f], possible).phi);
                data[part].y.push_back(psae::association_of(c.adapted.counts, k, f, now[f], possible).phi);
            }
            ++part;
        }
    }
    return psae::scatter_plot("Association of classes with their first latents", "phi in the base model",
                              "phi in the adapted model", std::move(data));
}

// Jaccard of the first latents, classes from the most to the least similar.
psae::chart overlap_plot(const comparison& c) {
    std::vector<double> values;
    for (const auto& k : c.latents.classes)
        if (!std::isnan(k.jaccard)) values.push_back(k.jaccard);
    std::sort(values.rbegin(), values.rend());
    psae::series line{"", {}, values};
    for (std::size_t i = 0; i < values.size(); ++i) line.x.push_back(double(i + 1));
    return psae::line_plot("First latents of a class that both models share", "classes, the most similar first",
                           "shared over all (Jaccard)", {std::move(line)});
}

psae::chart accuracy_plot(const comparison& c, bool error_term) {
    std::vector<std::size_t> ks;
    for (const auto& s : c.sets.sets)
        if (s.name == std::string("base")) ks.push_back(s.k);
    std::vector<psae::series> data;
    const auto add = [&](const char* title, const side& s, const char* latents) {
        psae::series line{title, {}, {}};
        for (const std::size_t k : ks) {
            line.x.push_back(double(k));
            line.y.push_back(c.of(s, c.set(latents, k), error_term).accuracy.top_1());
        }
        line.x.push_back(double(c.base.counts.latents));
        line.y.push_back(comparison::all_kept(s, error_term).accuracy.top_1());
        data.push_back(std::move(line));
    };
    add("adapted, its own", c.adapted, "adapted");
    add("adapted, the base model's", c.adapted, "base");
    add("base, its own", c.base, "base");
    const double first = ks.empty() ? 1 : double(ks.front()), last = double(c.base.counts.latents);
    for (const side* s : {&c.adapted, &c.base})
        data.push_back({s->name + ", as it is", {first, last}, {s->accuracy(), s->accuracy()}});
    return psae::line_plot(
        fmt::format("Accuracy with a class's first latents kept, {} the error term", error_term ? "with" : "without"),
        "latents kept", "accuracy", std::move(data), {.log_x = true});
}

void write_results(const comparison& c, const measures& totals, const std::filesystem::path& out) {
    psae::write_text(out / "comparison.csv", csv_of(totals));
    psae::write_text(out / "metrics.csv", metrics_csv(c));
    psae::write_text(out / "classes.csv", classes_csv(c));
    psae::write_text(out / "images.csv", images_csv(c));
    psae::write_text(out / "associations.csv", associations_csv(c));
    // Under a label of each class, by which `intervene` finds it again.
    std::vector<std::string> labels = c.classes;
    for (std::size_t l = c.of_label.size(); l-- > 0;)
        if (c.of_label[l] >= 0) labels[std::size_t(c.of_label[l])] = c.pictures.class_names[l];
    for (const side* s : {&c.base, &c.adapted})
        psae::write_class_latents_npz(out / (s->name + "_class_latents.npz"), {s->counts, labels});
    const psae::named_chart charts[] = {{"association", association_plot(c)},
                                        {"overlap", overlap_plot(c)},
                                        {"accuracy", accuracy_plot(c, false)},
                                        {"accuracy_with_error_term", accuracy_plot(c, true)}};
    for (const auto& [name, drawing] : charts) {
        psae::write_text(out / (name + ".svg"), psae::to_svg(drawing));
        psae::write_png(out / (name + ".png"), psae::to_image(drawing));
    }
}

// For people.
void print_comparison(const comparison& c, const state& s) {
    constexpr std::size_t most_classes = 20;
    const auto percent = [](double v) { return std::isfinite(v) ? fmt::format("{:.1f}%", 100 * v) : "-"; };
    std::vector<std::vector<std::string>> table{
        {"class", "shared", "base only", "adapted only", "Jaccard", "accuracy: base", "adapted"}};
    for (std::size_t k = 0; k < std::min(most_classes, c.classes.size()); ++k) {
        const auto& l = c.latents.classes[k];
        table.push_back({c.classes[k], std::to_string(l.shared.size()), std::to_string(l.base_only.size()),
                         std::to_string(l.adapted_only.size()), text_of(l.jaccard, 2),
                         percent(c.base.results.plain_by_class[k].top_1()),
                         percent(c.adapted.results.plain_by_class[k].top_1())});
    }
    print_table(table);
    if (c.classes.size() > most_classes) fmt::print("and {} more classes\n", c.classes.size() - most_classes);
    const auto& l = c.latents;
    fmt::print(
        "latents that fire: {} in the base model, {} in the adapted one, of which {} ({} of what fires) in both\n",
        l.base_latents, l.adapted_latents, l.present, percent(l.present_mass));
    fmt::print("mean overlap (Jaccard): {} of the first {} of a class, {} of a picture's\n", text_of(l.jaccard, 3),
               s.top, text_of(mean_of(c.picture_jaccard), 3));
    const auto gain = c.gain_interval();
    fmt::print("accuracy on {} pictures: {} base, {} adapted: {:+.1f} points ({:+.1f} to {:+.1f})\n",
               c.pictures_of_both(), percent(c.base.accuracy()), percent(c.adapted.accuracy()),
               100 * (c.adapted.accuracy() - c.base.accuracy()), 100 * gain.low, 100 * gain.high);
    const double explained = c.explained(true);
    fmt::print("adapted, with only the latents of a class that fire in the base model: {}; {}\n",
               percent(c.of(c.adapted, c.set("base_fired"), true).accuracy.top_1()),
               std::isnan(explained)
                   ? std::string("there is no gain to explain")
                   : fmt::format("{} of the gain ({} without the error term){}", percent(explained),
                                 percent(c.explained(false)), gain.low <= 0 ? ", which may be chance" : ""));
    fmt::print("{}\n", s.out);
}

// The work --------------------------------------------------------------------------------------------------------------

void load(side& s, const state& options, const psae::image_list& list, const psae::sae_description& sae,
          const psae::cpu& device) {
    s.tower = load_model(s.images.model, s.images.adapter);
    require_fit(sae, options.sae, s.tower->width(), s.images.model);
    s.task = make_zero_shot_task(options.zero_shot, s.images, list, device);
}

psae::picture_reader pictures_of(const side& s, const psae::image_list& list) {
    return read_pictures(list, s.images, psae::read_preprocessing(s.images.model, s.tower->image_size()));
}

void find_fired(side& s, const comparison& c, const state& options, const psae::sae_view& sae,
                const psae::cpu& device) {
    auto pictures = pictures_of(s, c.pictures);
    progress bar(s.name + " model, pictures", c.pictures.files.size());
    s.fired =
        psae::fired_latents(device, *s.tower, pictures, c.of_label, sae, s.tower->hidden_index(s.images.layer),
                            c.classes.size(), options.counting.what(), options.counting.tau, [&](std::size_t done) {
                                stop_if_interrupted();
                                bar.show(done);
                            });
    if (pictures.unreadable() == c.pictures.files.size())
        throw psae::error("no picture could be read", s.images.images.front(),
                          std::to_string(c.pictures.files.size()) + " were tried");
}

// The counts that choose the latents: of training pictures, or of the same ones.
void count(comparison& c, const state& s, const psae::sae_view& sae, const psae::cpu& device) {
    if (!s.has_training_pictures()) {
        c.base.counts = c.base.fired.counts;
        c.adapted.counts = c.adapted.fired.counts;
        report_line(
            "patchsae: the latents are chosen on the pictures that are classified; --train-images or --train-split "
            "gives others");
        return;
    }
    for (side* each : {&c.base, &c.adapted}) {
        image_options training = each->images;
        if (!s.train_images.empty()) training.images = s.train_images;
        training.split = s.train_split;
        training.limit = 0;
        const auto train_list = list_images(training);
        const auto of_label = each->task.classes.classes_of(train_list.class_names);
        std::size_t skipped = 0;
        each->counts = count_class_latents(s.counting, training, train_list, of_label, c.classes.size(), *each->tower,
                                           sae, device, skipped);
        if (each == &c.base) report_shared_pictures(c.pictures, train_list);
    }
}

void classify(side& s, const comparison& c, const psae::sae_view& sae, const psae::cpu& device) {
    auto pictures = pictures_of(s, c.pictures);
    progress bar(s.name + " model, classified", c.pictures.files.size());
    psae::intervention_options options{.rankings = c.sets.rankings};
    options.progress = [&](std::size_t done) {
        stop_if_interrupted();
        bar.show(done);
    };
    s.predicted.assign(c.pictures.files.size(), -1);
    options.each = [&](const psae::intervened_picture& p) {
        s.predicted[p.index] = std::int32_t(psae::best_classes(p.plain, 1)[0]);
    };
    s.results = psae::run_interventions(device, *s.tower, s.task.classifier, pictures, c.of_label,
                                        s.tower->hidden_index(s.images.layer), sae, c.sets.interventions(), options);
}

void run(state& s, const CLI::App& sub) {
    const auto weights = load_sae(s.sae);
    const auto sae = on_chosen_device(weights);
    psae::require_reconstruction(sae, s.sae);
    const auto ks = numbers_of_latents(s.ks, sae.d_sae, s.sae);
    s.images.take_layer(sae.origin);
    const auto list = list_images(s.images);
    const std::filesystem::path out(s.out);
    std::filesystem::create_directories(out);  // now: one that cannot be made is known before the work
    const psae::cpu device(s.common.threads);
    comparison c;
    c.base.name = "base", c.adapted.name = "adapted";
    c.base.images = c.adapted.images = s.images;
    c.base.images.adapter.clear();
    if (!s.adapted_model.empty()) c.adapted.images.model = s.adapted_model;
    for (side* each : {&c.base, &c.adapted}) load(*each, s, list, sae, device);
    if (!s.probe.empty())
        c.adapted.task.classifier =
            psae::read_linear_probe(s.probe, c.base.task.classes.names, c.adapted.tower->projection());
    c.of_label = c.base.task.classes.of_label;
    c.classes = c.base.task.classes.names;
    c.pictures = psae::with_class(list, c.of_label);
    if (c.pictures.files.empty())
        throw psae::error("no picture has a class", s.images.images.front(), "",
                          "classes are the sub-folders, or the column label of a table");

    for (side* each : {&c.base, &c.adapted}) find_fired(*each, c, s, sae, device);
    count(c, s, sae, device);
    const auto order = s.order == "phi" ? psae::latent_order::phi : psae::latent_order::count;
    c.latents = psae::compare_latents(c.base.counts, c.adapted.counts, s.top, order);
    c.sets = psae::choose_sets(c.base.counts, c.adapted.counts, ks, order, s.common.seed);
    for (side* each : {&c.base, &c.adapted}) classify(*each, c, sae, device);
    for (std::size_t i = 0; i < c.pictures.files.size(); ++i) {
        const bool before = c.base.predicted[i] == c.label(i), now = c.adapted.predicted[i] == c.label(i);
        c.gained += now && !before;
        c.lost += before && !now;
        c.picture_jaccard.push_back(psae::jaccard_index(c.base.fired.latents[i], c.adapted.fired.latents[i]));
    }

    const auto totals = totals_of(c, s.top);
    write_results(c, totals, out);
    save_configuration(sub, s.out);
    if (!s.common.json) {
        print_comparison(c, s);
        return;
    }
    json_object summary;
    summary.add("images", c.pictures_of_both())
        .add("skipped", c.pictures.files.size() - c.pictures_of_both())
        .add("without_class", list.files.size() - c.pictures.files.size())
        .add("classes", c.classes.size())
        .add("layer", c.base.tower->hidden_index(s.images.layer))
        .add("count", s.counting.count)
        .add("tau", s.counting.tau);
    for (const auto& [name, value] : totals) summary.add(name, value);
    summary.add("out", s.out).print();
}

}  // namespace

void add_compare(CLI::App& app) {
    auto* sub = add_command(
        app, "compare", "the latents of classes in a model and in an adapted form of it, and what the gain rests on",
        "--model data/tiny-clip --adapter model.pth.tar-5 --sae run --images photos/test "
        "--train-images photos/train --out comparison");
    auto s = std::make_shared<state>();
    s->common.add_to(*sub);
    s->images.add_to(*sub);
    sub->get_option("--images")->required();
    sub->add_option("--adapted-model", s->adapted_model,
                    "directory of the adapted model, if its weights are others: fine-tuned, or with LoRA merged in");
    sub->add_option("--probe", s->probe,
                    ".npz of a linear probe on image embeddings of unit length, in place of the adapted model's texts: "
                    "weight [classes, p], and bias, classes");
    sub->add_option("--sae", s->sae, "SAE directory")->required();
    s->zero_shot.add_to(*sub);
    sub->add_option("--train-images", s->train_images,
                    "pictures whose counts choose each class's latents; repeatable, as --images")
        ->default_str("");
    sub->add_option("--train-split", s->train_split,
                    "use only this split of the training pictures (of --images, if there are no --train-images)");
    s->counting.add_to(*sub);
    sub->add_option("--top", s->top, "first latents of each class that are compared")->check(CLI::Range(1, 100000));
    sub->add_option("--order", s->order, "which latents of a class are its first: by count, or by phi, most specific")
        ->check(CLI::IsMember({"count", "phi"}));
    sub->add_option("--k", s->ks, "numbers of latents to keep; without it 1 2 5 10 50 100 500 1000 2000")
        ->check(positive())
        ->default_str("");
    sub->add_option("--out", s->out, "directory to write")->required();
    sub->callback([s, sub] {
        if (s->images.adapter.empty() && s->adapted_model.empty() && s->probe.empty())
            throw CLI::ValidationError("compare", "expected --adapter, --adapted-model or --probe");
        run(*s, *sub);
    });
}

}  // namespace patchsae
