// A table of SAEs: reconstruction by kind of token, zero-shot accuracy with the reconstruction in place, label purity.

#include <limits>
#include <numeric>
#include <optional>

#include <psae/io/sae_evaluation.hpp>

#include "activations.hpp"
#include "zero_shot.hpp"

namespace patchsae {

namespace {

constexpr double nan = std::numeric_limits<double>::quiet_NaN();

struct state {
    common_options common;
    image_options images;
    zero_shot_options zero_shot;
    std::vector<std::string> saes;
    std::string activations, out;
    std::size_t top = 10;
};

struct evaluated_sae {
    std::string path;
    psae::sae_weights sae;
    std::optional<long> layer;         // nobody knows it of activations in a file
    std::optional<long> target_layer;  // of a transcoder
    psae::sae_evaluation result;
};

struct evaluation {
    std::vector<evaluated_sae> saes;
    std::size_t pictures = 0, skipped = 0, labelled = 0, classes = 0, templates = 0;
    psae::accuracy_counts plain;
};

void evaluate_on_activations(const state& s, evaluation& e) {
    const psae::cpu device(s.common.threads);
    psae::arena<> scratch;
    std::vector<psae::sae_view> saes;
    std::vector<psae::reconstruction_sums> sums;
    for (const auto& sae : e.saes) {
        saes.push_back(on_chosen_device(sae.sae));
        sums.emplace_back(sae.sae.d_in, sae.sae.d_sae);
    }
    const auto add = [&](const std::vector<float>& x, std::size_t d, std::size_t tokens_per_image) {
        for (std::size_t i = 0; i < saes.size(); ++i) {
            stop_if_interrupted();
            psae::evaluate_rows(device, scratch, saes[i], x.data(), x.size() / d, sums[i], tokens_per_image);
        }
    };
    if (!is_store(s.activations)) {
        std::size_t d = 0;
        const auto x = read_activations(s.activations, d);
        for (const auto& sae : e.saes) require_fit(sae.sae, sae.path, d, s.activations);
        add(x, d, 0);
    } else {
        const psae::activation_store store(s.activations);
        for (auto& sae : e.saes) {
            require_fit(sae.sae, sae.path, store.columns(), s.activations);
            sae.layer = store.layout().layer;
        }
        e.pictures = store.pictures();
        progress bar("pictures", store.pictures());
        for (std::size_t b = 0; b < store.blocks(); ++b) {
            const auto [first, last] = store.pictures_of(b);
            std::vector<std::size_t> block(last - first);
            std::iota(block.begin(), block.end(), first);
            add(store.read_pictures(block, psae::token_kind::all), store.columns(),
                store.layout().class_token ? store.layout().tokens : 0);
            bar.show(last);
        }
    }
    for (std::size_t i = 0; i < e.saes.size(); ++i) e.saes[i].result.quality = sums[i].result();
}

// Nothing where accuracy cannot be measured; stderr says why. What the user asked for by name must be there, though.
std::optional<zero_shot_task> try_zero_shot_task(const state& s, const psae::image_list& list,
                                                 const psae::cpu& device) {
    try {
        return make_zero_shot_task(s.zero_shot, s.images, list, device);
    } catch (const psae::error& e) {
        if (!s.zero_shot.classes.empty() || !s.zero_shot.templates.empty()) throw;
        report_line(std::string("patchsae: no zero-shot accuracy: ") + e.what());
        return std::nullopt;
    }
}

void evaluate_on_pictures(state& s, evaluation& e) {
    const psae::cpu device(s.common.threads);
    const auto list = list_images(s.images);
    const auto tower = load_model(s.images.model, s.images.adapter);
    std::vector<psae::layer_sae> saes;
    for (auto& sae : e.saes) {
        require_fit(sae.sae, sae.path, tower->width(), s.images.model);
        image_options its_own = s.images;
        its_own.take_layer(sae.sae.origin);
        sae.layer = long(tower->hidden_index(its_own.layer));
        if (sae.sae.origin.target_layer) sae.target_layer = long(tower->hidden_index(*sae.sae.origin.target_layer));
        saes.push_back(
            {on_chosen_device(sae.sae), std::size_t(*sae.layer), std::size_t(sae.target_layer.value_or(*sae.layer))});
    }
    std::optional<zero_shot_task> task;
    if (list.class_names.empty())
        report_line("patchsae: no zero-shot accuracy and no label purity: the pictures have no labels");
    else task = try_zero_shot_task(s, list, device);

    auto pictures = read_pictures(list, s.images, psae::read_preprocessing(s.images.model, tower->image_size()));
    progress bar("pictures", list.files.size());
    psae::evaluation_options options;
    options.top_images = list.class_names.empty() ? 0 : s.top;
    options.progress = [&](std::size_t done) {
        stop_if_interrupted();
        bar.show(done);
    };
    if (task) {
        options.classifier = &task->classifier;
        options.class_of_label = task->classes.of_label;
        e.classes = task->classes.names.size();
        e.templates = task->templates;
    }
    const auto result = psae::evaluate_saes(device, *tower, pictures, saes, options);
    if (result.pictures == 0)
        throw psae::error("no picture could be read", s.images.images.front(),
                          std::to_string(list.files.size()) + " were tried");
    e.pictures = result.pictures;
    e.skipped = pictures.unreadable();
    e.labelled = result.labelled;
    e.plain = result.plain;
    for (std::size_t i = 0; i < saes.size(); ++i) e.saes[i].result = result.saes[i];
}

double accuracy(const psae::accuracy_counts& counts) { return counts.pictures > 0 ? counts.top_1() : nan; }

// The numbers of an SAE by the names they have in the files.
std::vector<std::pair<const char*, double>> numbers_of(const evaluation& e, const evaluated_sae& sae) {
    const auto& q = sae.result.quality;
    return {{"l0", q.l0},
            {"dead_fraction", q.dead_fraction},
            {"explained_variance", q.explained_variance},
            {"mse", q.all.mse},
            {"mse_cls", q.cls.mse},
            {"mse_patches", q.patches.mse},
            {"nmse", q.all.nmse},
            {"nmse_cls", q.cls.nmse},
            {"nmse_patches", q.patches.nmse},
            {"cosine_similarity", q.cosine_similarity},
            {"l2_ratio", q.l2_ratio},
            {"accuracy", accuracy(e.plain)},
            {"accuracy_with_sae", accuracy(sae.result.accuracy)},
            {"label_purity", sae.result.purity.purity},
            {"chance_purity", sae.result.purity.chance}};
}

std::string csv_of(const evaluation& e) {
    std::string csv = "sae,architecture,d_sae,layer,target_layer,tokens";
    for (const auto& [name, value] : numbers_of(e, e.saes.front())) csv += std::string(",") + name;
    csv += '\n';
    for (const auto& sae : e.saes) {
        csv += fmt::format("{},{},{},{},{},{}", psae::detail::quoted_field(sae.path), sae.sae.architecture,
                           sae.sae.d_sae, sae.layer ? std::to_string(*sae.layer) : "",
                           sae.target_layer ? std::to_string(*sae.target_layer) : "", sae.result.quality.all.tokens);
        for (const auto& [name, value] : numbers_of(e, sae))
            csv += std::isfinite(value) ? fmt::format(",{}", value) : std::string(",");
        csv += '\n';
    }
    return csv;
}

json_object json_of(const evaluation& e, const std::string& out) {
    json_object json;
    if (e.pictures > 0) json.add("images", e.pictures).add("skipped", e.skipped).add("labelled", e.labelled);
    if (e.classes > 0) json.add("classes", e.classes).add("templates", e.templates);
    std::vector<json_object> saes;
    for (const auto& sae : e.saes) {
        json_object object;
        object.add("sae", sae.path).add("architecture", sae.sae.architecture).add("d_sae", sae.sae.d_sae);
        if (sae.layer) object.add("layer", *sae.layer);
        if (sae.target_layer) object.add("target_layer", *sae.target_layer);
        object.add("tokens", sae.result.quality.all.tokens);
        for (const auto& [name, value] : numbers_of(e, sae)) object.add(name, value);
        saes.push_back(std::move(object));
    }
    json.add("saes", saes);
    if (!out.empty()) json.add("out", out);
    return json;
}

std::string layer_text(const evaluated_sae& sae) {
    if (sae.target_layer) return fmt::format("{} to {}", *sae.layer, *sae.target_layer);
    return sae.layer ? std::to_string(*sae.layer) : "-";
}

// For people: percentages, and only columns that hold something.
void print_evaluation(const evaluation& e) {
    const auto percent = [](double v) { return std::isfinite(v) ? fmt::format("{:.1f}%", 100 * v) : std::string("-"); };
    std::vector<std::vector<std::string>> columns{{"SAE"},    {"layer"},     {"d_sae"},        {"L0"},
                                                  {"dead"},   {"explained"}, {"nMSE CLS"},     {"nMSE patches"},
                                                  {"cosine"}, {"accuracy"},  {"label purity"}, {"by chance"}};
    for (const auto& sae : e.saes) {
        const auto& q = sae.result.quality;
        const std::vector<std::string> row{sae.path,
                                           layer_text(sae),
                                           std::to_string(sae.sae.d_sae),
                                           text_of(q.l0, 4),
                                           percent(q.dead_fraction),
                                           fmt::format("{:.4f}", q.explained_variance),
                                           text_of(q.cls.nmse, 4),
                                           text_of(q.patches.nmse, 4),
                                           text_of(q.cosine_similarity, 4),
                                           percent(accuracy(sae.result.accuracy)),
                                           text_of(sae.result.purity.purity, 3),
                                           text_of(sae.result.purity.chance, 3)};
        for (std::size_t c = 0; c < row.size(); ++c) columns[c].push_back(row[c]);
    }
    std::vector<std::vector<std::string>> table(e.saes.size() + 1);
    for (const auto& column : columns)
        if (std::any_of(column.begin() + 1, column.end(), [](const auto& field) { return field != "-"; }))
            for (std::size_t r = 0; r < table.size(); ++r) table[r].push_back(column[r]);
    print_table(table);
    std::string line = fmt::format("{} tokens", e.saes.front().result.quality.all.tokens);
    if (e.pictures > 0) line += fmt::format(" of {} pictures ({} skipped)", e.pictures, e.skipped);
    if (e.plain.pictures > 0)
        line += fmt::format("; zero-shot accuracy of the plain model {} ({} pictures, {} classes)",
                            percent(e.plain.top_1()), e.plain.pictures, e.classes);
    fmt::print("{}\n", line);
}

// Where a transcoder goes from and to must be known: no layer is its own by default.
void require_layers(const state& s, const CLI::App& sub, const psae::sae_origin& origin, const std::string& path) {
    if (!s.activations.empty())
        throw psae::error("a transcoder needs the tokens of two layers", path, "found --activations of one",
                          "give --model and --images");
    const auto expected = [](const std::string& key, const std::string& hook) {
        return "expected " + key + " of a hidden state, found " + (hook.empty() ? "none" : hook);
    };
    if (!origin.target_layer)
        throw psae::error("nobody knows the transcoder's target layer", path,
                          expected("hook_name_out", origin.target_hook));
    if (!origin.layer && sub.count("--layer") == 0)
        throw psae::error("nobody knows the transcoder's layer", path, expected("hook_name", origin.hook),
                          "give --layer");
}

void run(state& s, const CLI::App& sub) {
    evaluation e;
    for (const std::string& path : s.saes) {
        e.saes.push_back({path, load_sae(path), {}, {}, {}});
        if (e.saes.back().sae.is_transcoder()) require_layers(s, sub, e.saes.back().sae.origin, path);
    }
    const std::filesystem::path out(s.out);
    if (!s.out.empty()) std::filesystem::create_directories(out);  // one that cannot be made is known before the work
    if (s.activations.empty()) evaluate_on_pictures(s, e);
    else evaluate_on_activations(s, e);
    const json_object json = json_of(e, s.out);
    if (!s.out.empty()) {
        psae::write_text(out / "evaluation.csv", csv_of(e));
        psae::write_text(out / "evaluation.json", json.text() + "\n");
        save_configuration(sub, s.out);
    }
    if (s.common.json) json.print();
    else print_evaluation(e);
}

}  // namespace

void add_evaluate(CLI::App& app) {
    auto* sub =
        add_command(app, "evaluate", "how well SAEs do, a row for each: errors, sparsity, accuracy, label purity",
                    "--sae run --sae other_run --model data/tiny-clip --images photos --out evaluation");
    auto s = std::make_shared<state>();
    s->common.add_to(*sub);
    s->images.add_to(*sub, false);
    sub->add_option("--sae", s->saes, "SAE of any format (see convert); repeatable")->required();
    sub->add_option(
        "--activations", s->activations,
        "a store (see cache), an .npy [N,d] or an .npz with tokens, in place of pictures: no accuracy and no "
        "label purity");
    s->zero_shot.add_to(*sub);
    sub->add_option("--top", s->top, "top pictures of each latent, whose labels are compared")
        ->check(CLI::Range(1, 100));
    sub->add_option("--out", s->out, "directory to write evaluation.csv and evaluation.json to");
    sub->callback([s, sub] {
        if (s->activations.empty() == s->images.images.empty())
            throw CLI::ValidationError("evaluate", "expected --activations, or --model and --images");
        if (!s->images.images.empty() && s->images.model.empty()) throw CLI::RequiredError("--model");
        if (!s->activations.empty() && (!s->zero_shot.classes.empty() || !s->zero_shot.templates.empty()))
            throw CLI::ValidationError("evaluate", "--classes and --templates go with --images");
        run(*s, *sub);
    });
}

}  // namespace patchsae
