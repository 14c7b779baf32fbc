#include <tuple>

#include <psae/attribution/report.hpp>
#include <psae/io/json.hpp>
#include <psae/io/latents_file.hpp>
#include <psae/io/training_curves.hpp>

#include "reference_images.hpp"

namespace patchsae {

namespace {

struct state {
    common_options common;
    image_options images;
    std::string run, latents, out;
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

void add_latents_of(const state& s, const psae::sae_weights& sae, image_options images, psae::report& page) {
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

    auto chosen = s.chosen;
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
    auto pictures = reference_images(images, device, sae, latents, chosen, s.top, missing);
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
    const auto sae = psae::read_sae(s.run);
    const auto directory = psae::sae_directory(s.run);
    s.run = directory.string();
    if (!s.latents.empty() && !std::filesystem::exists(std::filesystem::path(s.latents) / "latents.npz"))
        throw psae::error("there is no summary of latents", s.latents, "expected a directory with latents.npz",
                          "patchsae latents writes it");
    if (!s.images.model.empty() && !std::filesystem::is_directory(s.images.model))
        throw psae::error("no such directory", s.images.model, "expected a Hugging Face CLIP directory");
    if (s.latents.empty() && std::filesystem::exists(directory / "latents"))
        s.latents = (directory / "latents").string();
    if (s.out.empty()) s.out = (directory / "report.html").string();
    prepare_folder_of(s.out);

    image_options images = s.images;
    if (images.model.empty()) images.model = sae.origin.model;
    images.take_layer(sae.origin);
    psae::report page;
    page.title =
        directory.filename().empty() ? directory.parent_path().filename().string() : directory.filename().string();
    page.subtitle = fmt::format("Sparse autoencoder ({}{}), {} latents of width {}", sae.architecture,
                                sae.k > 0 ? fmt::format(", k {}", sae.k) : "", sae.d_sae, sae.d_in);
    if (!images.model.empty()) page.subtitle += fmt::format(", on hidden state {} of {}", images.layer, images.model);
    add_training(s, page);
    add_latents_of(s, sae, images, page);
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
