#include <map>
#include <numeric>
#include <sstream>
#include <tuple>

#include <psae/attribution/report.hpp>
#include <psae/io/class_latents_file.hpp>
#include <psae/io/file_bytes.hpp>
#include <psae/io/json.hpp>
#include <psae/io/latents_file.hpp>
#include <psae/io/training_curves.hpp>

#include "reference_images.hpp"

namespace patchsae {

namespace {

struct state {
    common_options common;
    image_options images;
    std::string run, latents, classes, interventions, attributions, comparison, out;
    std::size_t count = 48, top = 8;
    std::vector<std::size_t> chosen;
};

// The fields of a JSON object as names and values; those of an object in it as outer.inner.
void flatten(const rapidjson::Value& object, const std::string& prefix,
             std::vector<std::pair<std::string, std::string>>& out) {
    for (const auto& m : object.GetObject()) {
        const std::string name = prefix + std::string(m.name.GetString(), m.name.GetStringLength());
        if (m.value.IsObject()) {
            flatten(m.value, name + ".", out);
            continue;
        }
        rapidjson::StringBuffer buffer;
        rapidjson::Writer<rapidjson::StringBuffer> writer(buffer);
        m.value.Accept(writer);
        out.emplace_back(name, m.value.IsString() ? std::string(m.value.GetString(), m.value.GetStringLength())
                                                  : std::string(buffer.GetString(), buffer.GetSize()));
    }
}

// The last finite value of a column, or NaN.
double last(const psae::training_curves& curves, const char* name) {
    const auto found = curves.find(name);
    if (found != curves.end())
        for (auto v = found->second.rbegin(); v != found->second.rend(); ++v)
            if (std::isfinite(*v)) return *v;
    return std::nan("");
}

void add_training(const state& s, psae::report& page) {
    const auto path = std::filesystem::path(s.run) / "metrics.jsonl";
    if (!std::filesystem::exists(path)) {
        page.notes.push_back("No training curves: the run has no metrics.jsonl.");
        return;
    }
    const auto curves = psae::read_training_curves(path);
    for (auto& [file, drawing] : psae::charts_of(curves)) page.curves.push_back(std::move(drawing));
    for (const auto& [name, key, format] : {std::tuple{"Steps", "step", "{:.0f}"},
                                            {"Loss", "loss", "{:.4g}"},
                                            {"Explained variance", "explained_variance", "{:.3f}"},
                                            {"L0", "l0", "{:.1f}"},
                                            {"Dead latents while training", "dead_fraction", "{:.1%}"}})
        if (const double v = last(curves, key); std::isfinite(v))
            page.facts.emplace_back(name, std::string_view(format) == "{:.1%}" ? fmt::format("{:.1f}%", 100 * v)
                                                                               : fmt::format(fmt::runtime(format), v));
}

std::string text_of_file(const std::filesystem::path& path) {
    const psae::file_bytes bytes(path);
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// A table of the latents that are specific to each class; the first of each is to have a card.
void add_classes_of(const state& s, const psae::sae_weights& sae, psae::report& page,
                    std::vector<std::size_t>& chosen) {
    if (s.classes.empty()) return;
    constexpr std::size_t most_classes = 100, top = 4;
    const auto path = std::filesystem::path(s.classes) / "class_latents.npz";
    const auto l = psae::read_class_latents_npz(path);
    if (l.counts.latents != sae.d_sae)
        throw psae::error("class-level latents are of another SAE", path.string(),
                          fmt::format("expected {} latents, found {}", sae.d_sae, l.counts.latents));
    const bool tokens = l.counts.what == psae::class_count::tokens;
    psae::report_section part{
        "Latents of the classes",
        fmt::format(
            "The latents most specific to each class, by the correlation (phi) of firing and belonging to it (1: "
            "on all of the class and on nothing else). In brackets on how many of the class's {} the latent fires.",
            tokens ? "tokens" : "images"),
        {},
        {"class", "images"},
        {}};
    for (std::size_t i = 1; i <= top; ++i) part.header.push_back("latent " + std::to_string(i));
    const auto fires = l.counts.of_all();
    for (std::size_t c = 0; c < std::min(most_classes, l.classes.size()); ++c) {
        std::vector<psae::report_field> row{{l.classes[c]}, {std::to_string(l.counts.images[c])}};
        for (const auto& [f, a] : psae::specific_latents(l.counts, c, top, fires)) {
            row.push_back({fmt::format("{}: {:.2f} ({:.0f}%)", f, a.phi, 100 * a.frequency), f});
            if (row.size() == 3 && std::find(chosen.begin(), chosen.end(), f) == chosen.end()) chosen.push_back(f);
        }
        part.rows.push_back(std::move(row));
    }
    if (l.classes.size() > most_classes)
        page.notes.push_back(
            fmt::format("The table of classes shows the first {} of {}.", most_classes, l.classes.size()));
    page.sections.push_back(std::move(part));
}

// Chosen columns of a table that another command wrote.
class table_columns {
public:
    table_columns(const std::filesystem::path& path, const std::vector<std::string>& names, const std::string& writer)
        : path_(path.string()), names_(names), rows_(psae::detail::parse_table(text_of_file(path), ',', path_)) {
        for (const std::string& name : names) {
            const auto found = rows_.empty() ? std::vector<std::string>{} : rows_[0].second;
            const auto at = std::find(found.begin(), found.end(), name);
            if (at == found.end())
                throw psae::error("table has no column " + name, path_, "expected what " + writer + " writes");
            columns_.push_back(std::size_t(at - found.begin()));
        }
        for (std::size_t r = 1; r < rows_.size(); ++r)
            if (rows_[r].second.size() != rows_[0].second.size())
                throw psae::error("table row has a wrong number of fields", where(r - 1),
                                  fmt::format("expected {}, found {}", rows_[0].second.size(), rows_[r].second.size()));
    }
    std::size_t rows() const { return rows_.empty() ? 0 : rows_.size() - 1; }
    const std::string& text(std::size_t row, std::size_t column) const {
        return rows_[row + 1].second[columns_[column]];
    }
    double number(std::size_t row, std::size_t column) const {
        const std::string& t = text(row, column);
        char* end = nullptr;
        const double v = std::strtod(t.c_str(), &end);
        if (t.empty() || *end != '\0') throw psae::error("not a number", where(row), names_[column] + " " + t);
        return v;
    }
    std::string where(std::size_t row) const { return path_ + ", line " + std::to_string(rows_[row + 1].first); }

private:
    std::string path_;
    std::vector<std::string> names_;
    std::vector<std::pair<std::size_t, std::vector<std::string>>> rows_;
    std::vector<std::size_t> columns_;
};

// What `intervene` wrote: its curves, and accuracy by k.
void add_interventions_of(const state& s, psae::report& page) {
    if (s.interventions.empty()) return;
    const std::filesystem::path directory = s.interventions;
    psae::report_section part{
        "Interventions",
        "Zero-shot accuracy while only the first k latents of a picture's class are kept at the "
        "hooked layer, or while they are removed, with 95% intervals; beside it the mean of as many "
        "random latents.",
        {},
        {"error term", "k", "keep", "keep random", "remove", "remove random"},
        {}};
    for (const char* name : {"accuracy.svg", "accuracy_with_error_term.svg"})
        if (std::filesystem::exists(directory / name)) part.drawings.push_back(text_of_file(directory / name));
    const table_columns table(directory / "metrics.csv",
                              {"latents", "action", "k", "error_term", "accuracy", "accuracy_low", "accuracy_high"},
                              "intervene");
    const auto number = [&](std::size_t row, std::size_t column) { return 100 * table.number(row, column); };
    std::map<std::pair<std::ptrdiff_t, std::size_t>, std::vector<double>> random;  // by row and column of the part
    for (std::size_t r = 0; r < table.rows(); ++r) {
        const std::string &latents = table.text(r, 0), &action = table.text(r, 1), &k = table.text(r, 2),
                          &error_term = table.text(r, 3);
        if (latents == "none") page.facts.emplace_back("Zero-shot accuracy", fmt::format("{:.1f}%", number(r, 4)));
        if (action != "keep" && action != "remove") continue;
        const std::string with = error_term == "true" ? "with" : "without", shown = latents == "all" ? "all" : k;
        auto row = std::find_if(part.rows.begin(), part.rows.end(),
                                [&](const auto& f) { return f[0].text == with && f[1].text == shown; });
        if (row == part.rows.end()) row = part.rows.insert(part.rows.end(), {{with}, {shown}, {}, {}, {}, {}});
        const std::size_t at = action == "keep" ? 2 : 4;
        if (latents == "random") {
            auto& values = random[{row - part.rows.begin(), at}];
            values.push_back(number(r, 4));
            (*row)[at + 1].text =
                fmt::format("{:.1f}%", std::accumulate(values.begin(), values.end(), 0.0) / double(values.size()));
        } else {
            (*row)[at].text = fmt::format("{:.1f}% ({:.1f} to {:.1f})", number(r, 4), number(r, 5), number(r, 6));
        }
    }
    page.sections.push_back(std::move(part));
}

// What `attribute` wrote: its pictures, and the strongest latents of each; the first is to have a card.
void add_attributions_of(const state& s, const psae::sae_weights& sae, psae::report& page,
                         std::vector<std::size_t>& chosen) {
    if (s.attributions.empty()) return;
    constexpr std::size_t most_pictures = 24, most_overlays = 6, top = 3;
    const std::filesystem::path directory = s.attributions;
    const table_columns table(directory / "attributions.csv",
                              {"file", "class", "latent", "attribution", "effect_of_removal"}, "attribute");
    psae::report_section part{
        "What speaks for a class, and what against it",
        "How much each latent adds to the logit of the picture's class, or to its lead over others, on all patches and "
        "the class token. In brackets what removing the latent really takes from it. Orange patches speak for the "
        "class, "
        "blue ones against it.",
        {},
        {"picture", "class"},
        {}};
    for (const char* side : {"for", "against"})
        for (std::size_t i = 1; i <= top; ++i) part.header.push_back(fmt::format("{} {}", side, i));
    std::size_t pictures = 0, used[2] = {};
    for (std::size_t r = 0; r < table.rows(); ++r) {
        if (r == 0 || table.text(r, 0) != table.text(r - 1, 0)) {
            used[0] = used[1] = 0;
            if (++pictures <= most_pictures) {
                part.rows.push_back(
                    {{std::filesystem::path(table.text(r, 0)).filename().string()}, {table.text(r, 1)}});
                part.rows.back().resize(part.header.size());
            }
        }
        const double latent = table.number(r, 2), attribution = table.number(r, 3);
        if (!(latent >= 0 && latent < double(sae.d_sae)))
            throw psae::error("attribution is of another SAE", table.where(r),
                              fmt::format("expected latents below {}, found {}", sae.d_sae, table.text(r, 2)));
        const std::size_t side = attribution > 0 ? 0 : 1, place = used[side]++;
        if (pictures > most_pictures || place >= top) continue;
        const auto f = static_cast<std::size_t>(latent);
        part.rows.back()[2 + side * top + place] = {
            fmt::format("{}: {:+.2f} ({:+.2f})", f, attribution, table.number(r, 4)), f};
        if (side == 0 && place == 0 && std::find(chosen.begin(), chosen.end(), f) == chosen.end()) chosen.push_back(f);
    }
    if (pictures > most_pictures)
        page.notes.push_back(
            fmt::format("The table of attributions shows the first {} of {} pictures.", most_pictures, pictures));
    std::vector<std::filesystem::path> overlays;
    if (std::filesystem::is_directory(directory / "overlays"))
        for (const auto& entry : std::filesystem::directory_iterator(directory / "overlays"))
            if (entry.path().extension() == ".png") overlays.push_back(entry.path());
    std::sort(overlays.begin(), overlays.end());
    overlays.resize(std::min(overlays.size(), most_overlays));
    for (const auto& path : overlays) part.pictures.emplace_back(path.stem().string(), psae::read_image(path));
    page.sections.push_back(std::move(part));
}

// What `compare` wrote: its measures and plots, and for each class the latents that only one of the models has.
void add_comparison_of(const state& s, const psae::sae_weights& sae, psae::report& page) {
    if (s.comparison.empty()) return;
    constexpr std::size_t most_classes = 100, most_latents = 4;
    const std::filesystem::path directory = s.comparison;
    psae::report_section part{
        "The model and its adapted form",
        "Of each class the latents that are among its first ones in one of the models only, and how many both share. "
        "In the plots, association is the correlation (phi) of firing and belonging to the class.",
        {},
        {"class", "accuracy", "adapted", "shared", "in the base model only", "in the adapted model only"},
        {}};
    const table_columns measures(directory / "comparison.csv", {"measure", "value"}, "compare");
    const auto percent = [](const std::string& text) {
        char* end = nullptr;
        const double v = std::strtod(text.c_str(), &end);
        return text.empty() || *end != '\0' ? text : fmt::format("{:.1f}%", 100 * v);
    };
    for (const auto& [measure, title] :
         {std::pair{"base_accuracy", "Accuracy before adaptation"},
          {"adapted_accuracy", "Accuracy of the adapted model"},
          {"present_mass", "Of what fires in the adapted model, by latents that fired before"},
          {"explained_share", "Of the gain in accuracy, left with a class's latents that fired before"}})
        for (std::size_t r = 0; r < measures.rows(); ++r)
            if (measures.text(r, 0) == measure && !measures.text(r, 1).empty())
                page.facts.emplace_back(title, percent(measures.text(r, 1)));
    const table_columns table(
        directory / "classes.csv",
        {"class", "base_accuracy", "adapted_accuracy", "shared", "base_only_latents", "adapted_only_latents"},
        "compare");
    for (std::size_t r = 0; r < std::min(table.rows(), most_classes); ++r) {
        std::vector<psae::report_field> row{
            {table.text(r, 0)}, {percent(table.text(r, 1))}, {percent(table.text(r, 2))}, {table.text(r, 3)}};
        for (const std::size_t column : {4, 5}) {
            std::istringstream words(table.text(r, column));
            std::string latents;
            std::size_t count = 0, latent = 0;
            for (; words >> latent; ++count) {
                if (latent >= sae.d_sae)
                    throw psae::error("comparison is of another SAE", table.where(r),
                                      fmt::format("expected latents below {}, found {}", sae.d_sae, latent));
                if (count < most_latents) latents += fmt::format("{}{}", count > 0 ? ", " : "", latent);
            }
            if (count > most_latents) latents += fmt::format(" and {} more", count - most_latents);
            row.push_back({latents});
        }
        part.rows.push_back(std::move(row));
    }
    if (table.rows() > most_classes)
        page.notes.push_back(
            fmt::format("The table of the comparison shows the first {} of {} classes.", most_classes, table.rows()));
    for (const char* name : {"association.svg", "overlap.svg", "accuracy_with_error_term.svg"})
        if (std::filesystem::exists(directory / name)) part.drawings.push_back(text_of_file(directory / name));
    page.sections.push_back(std::move(part));
}

void add_latents_of(const state& s, const psae::sae_weights& sae, image_options images, std::vector<std::size_t> chosen,
                    psae::report& page) {
    const auto path = std::filesystem::path(s.latents) / "latents.npz";
    if (s.latents.empty() || !std::filesystem::exists(path)) {
        page.notes.push_back(
            s.latents.empty()
                ? "No latents: make a summary with `patchsae latents` and give its directory as --latents."
                : "No latents: there is no " + path.string() + "; `patchsae latents` writes it.");
        return;
    }
    const auto latents = psae::read_latents_npz(path);
    const psae::latent_summary& summary = latents.summary;
    if (summary.latents != sae.d_sae)
        throw psae::error("summary of latents is of another SAE", path.string(),
                          fmt::format("expected {} latents, found {}", sae.d_sae, summary.latents));
    std::size_t alive = 0;
    for (const double f : summary.token_frequency) alive += f > 0;
    page.facts.emplace_back("Latents that fire", fmt::format("{} of {}", alive, summary.latents));
    page.facts.emplace_back("Images", std::to_string(summary.images));
    for (auto& [name, drawing] : psae::latent_scatter_plots(summary)) page.scatter.push_back(std::move(drawing));
    if (latents.class_names.empty())
        page.notes.push_back("The images have no labels, so there is no label entropy and no label distribution.");

    for (const std::size_t f : chosen)
        if (f >= summary.latents)
            throw psae::error("no such latent", s.run, fmt::format("0 to {}, found {}", summary.latents - 1, f));
    for (const std::size_t f : psae::interesting_latents(summary, latents.labels, s.count))
        if (std::find(chosen.begin(), chosen.end(), f) == chosen.end()) chosen.push_back(f);

    std::error_code ignored;
    if (!images.model.empty() && !std::filesystem::is_directory(images.model, ignored)) {
        page.notes.push_back("No masks: there is no model at " + images.model + "; give its directory as --model.");
        images.model.clear();
    } else if (images.model.empty()) {
        page.notes.push_back("No masks: the run does not say which model it is of; give its directory as --model.");
    }
    const psae::cpu device(s.common.threads);
    std::size_t missing = 0;
    auto pictures = reference_images(images, device, on_chosen_device(sae), latents, chosen, s.top, missing);
    if (missing > 0)
        page.notes.push_back(fmt::format(
            "{} top images could not be read and are left out. Their paths are those given to `patchsae latents`; "
            "relative ones are looked for from the current directory.",
            missing));
    for (std::size_t i = 0; i < chosen.size(); ++i) {
        psae::report_latent card{chosen[i], std::move(pictures[i]), {}};
        for (const auto& l : psae::label_shares(summary, chosen[i], latents.labels))
            card.labels.emplace_back(latents.class_names[static_cast<std::size_t>(l.label)], l.share);
        page.latents.push_back(std::move(card));
    }
    page.summary = summary;
}

void run(state& s) {
    const auto sae = load_sae(s.run);
    const auto directory = psae::sae_directory(s.run);
    s.run = directory.string();
    if (!s.latents.empty() && !std::filesystem::exists(std::filesystem::path(s.latents) / "latents.npz"))
        throw psae::error("there is no summary of latents", s.latents, "expected a directory with latents.npz",
                          "patchsae latents writes it");
    if (!s.images.model.empty() && !std::filesystem::is_directory(s.images.model))
        throw psae::error("no such directory", s.images.model, "expected a Hugging Face CLIP directory");
    if (s.latents.empty() && std::filesystem::exists(directory / "latents"))
        s.latents = (directory / "latents").string();
    for (auto [given, name] : {std::pair{&s.classes, "classes"},
                               {&s.interventions, "interventions"},
                               {&s.attributions, "attributions"},
                               {&s.comparison, "comparison"}})
        if (given->empty() && std::filesystem::is_directory(directory / name)) *given = (directory / name).string();
    if (s.out.empty()) s.out = (directory / "report.html").string();
    prepare_folder_of(s.out);

    image_options images = s.images;
    if (images.model.empty()) images.model = sae.origin.model;
    // The maps are of the model that the summary is of.
    if (const auto made = std::filesystem::path(s.latents) / configuration_file;
        images.adapter.empty() && !s.latents.empty() && std::filesystem::exists(made))
        images.adapter = psae::json_string(psae::read_json(made), "adapter", "", made.string());
    images.take_layer(sae.origin);
    psae::report page;
    page.title =
        directory.filename().empty() ? directory.parent_path().filename().string() : directory.filename().string();
    page.subtitle =
        fmt::format("{} ({}{}), {} latents of width {}", sae.is_transcoder() ? "Transcoder" : "Sparse autoencoder",
                    sae.architecture, sae.k > 0 ? fmt::format(", k {}", sae.k) : "", sae.d_sae, sae.d_in);
    if (!images.model.empty()) page.subtitle += fmt::format(", on hidden state {} of {}", images.layer, images.model);
    if (const auto& target = sae.origin.target_layer) page.subtitle += fmt::format(", to hidden state {}", *target);
    add_training(s, page);
    auto chosen = s.chosen;
    add_classes_of(s, sae, page, chosen);
    add_interventions_of(s, page);
    add_attributions_of(s, sae, page, chosen);
    add_comparison_of(s, sae, page);
    add_latents_of(s, sae, images, std::move(chosen), page);
    if (const auto cfg = directory / "cfg.json"; std::filesystem::exists(cfg))
        flatten(psae::read_json(cfg), "", page.configuration);
    if (const auto options = directory / "run_config.json"; std::filesystem::exists(options)) {
        const auto json = psae::read_json(options);
        if (json.IsObject()) flatten(json, "train --", page.configuration);
    }
    const std::string html = psae::to_html(page);
    psae::write_text(s.out, html);
    if (s.common.json)
        json_object{}
            .add("latents", page.latents.size())
            .add("bytes", html.size())
            .add("notes", page.notes.size())
            .add("out", s.out)
            .print();
    else {
        for (const std::string& note : page.notes) fmt::print("note: {}\n", note);
        fmt::print("{} latents, {:.1f} MB: {}\n", page.latents.size(), double(html.size()) / 1e6, s.out);
    }
}

}  // namespace

void add_report(CLI::App& app) {
    auto* sub =
        add_command(app, "report", "one HTML page of a run: curves, scatter plots, latents with images and masks",
                    "--sae run --latents summary --out report.html");
    auto s = std::make_shared<state>();
    s->common.add_to(*sub);
    s->images.add_to(*sub, false);
    for (const char* name : {"--images", "--split", "--limit", "--strict"}) sub->remove_option(sub->get_option(name));
    sub->get_option("--model")->description("model directory, for the masks (default: the one the run names)");
    sub->get_option("--layer")->description("hooked layer (default: the one the run names)");
    sub->add_option("--sae,--run", s->run, "the run, or another SAE")->required();
    sub->add_option("--latents", s->latents,
                    "what the command latents wrote (default: latents in the run's directory)");
    sub->add_option("--classes", s->classes,
                    "what the command classes wrote (default: classes in the run's directory)");
    sub->add_option("--interventions", s->interventions,
                    "what the command intervene wrote (default: interventions in the run's directory)");
    sub->add_option("--attributions", s->attributions,
                    "what the command attribute wrote (default: attributions in the run's directory)");
    sub->add_option("--comparison", s->comparison,
                    "what the command compare wrote (default: comparison in the run's directory)");
    sub->add_option("--count", s->count, "latents to show, the most interesting ones")->check(CLI::Range(0, 1000));
    sub->add_option("--latent", s->chosen, "latents to show in any case");
    sub->add_option("--top", s->top, "images a latent")->check(CLI::Range(0, 100));
    sub->add_option("--out", s->out, "file to write (default: report.html in the run's directory)");
    sub->callback([s, sub] {
        run(*s);
        save_configuration(*sub, s->out);
    });
}

}  // namespace patchsae
