// Attribution to the output: which latents speak for and against a picture's class, where, and what happens without them.

#include <psae/attribution/latent_pictures.hpp>
#include <psae/io/logit_attributions.hpp>

#include "zero_shot.hpp"

namespace patchsae {

namespace {

using choice = psae::attribution_options::choice;

struct state {
    common_options common;
    image_options images;
    zero_shot_options zero_shot;
    std::string sae, out, class_name, contrast = "none", by = "prediction", method = "gradient", error_term = "with";
    std::vector<std::string> image;
    static constexpr std::size_t usual_steps = 16;
    std::size_t steps = usual_steps, top = 10, overlays = 24;
};

// The class that a name or a label means.
std::size_t find_class(const std::string& name, const char* option, const psae::named_classes& classes) {
    const auto& names = classes.names;
    if (const auto found = std::find(names.begin(), names.end(), name); found != names.end())
        return std::size_t(found - names.begin());
    if (const auto c = classes.classes_of({name})[0]; c >= 0) return std::size_t(c);
    std::string some;
    for (std::size_t c = 0; c < std::min<std::size_t>(names.size(), 8); ++c) some += (c > 0 ? ", " : "") + names[c];
    if (names.size() > 8) some += ", ..";
    throw psae::error("no such class", fmt::format("{} {}", option, name), some);
}

// "0012_cat.png": what is drawn for picture 12 of the list.
std::string overlay_name(std::size_t index, const std::string& stem) {
    return fmt::format("{:04}_{}.png", index, stem);
}

// Overlays of an earlier run, whose pictures may have been others.
void remove_overlays(const std::filesystem::path& folder) {
    if (!std::filesystem::is_directory(folder)) return;
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
        const std::string name = entry.path().filename().string();
        const std::size_t digits = std::min(name.find_first_not_of("0123456789"), name.size());
        if (digits >= 4 && name.substr(digits).starts_with('_') && name.ends_with(".png"))
            std::filesystem::remove(entry.path());
    }
}

// What is written of all pictures, with room for `top` latents for a class and as many against it; unused places have
// latent -1.
struct written {
    std::size_t top, grid;
    std::vector<std::string> files;
    std::vector<std::int64_t> labels;
    std::vector<std::int32_t> of, latents;
    std::vector<double> value, baseline, total;
    std::vector<float> attribution, class_token, activation, effect, maps, sum_map, sum_class_token;
    std::string csv =
        "file,class,latent,attribution,class_token,strongest_patch,row,column,activation,effect_of_removal\n";

    void add(const psae::attributed_picture& p, const std::string& file, const std::string& name) {
        files.push_back(file);
        labels.push_back(p.label);
        of.push_back(std::int32_t(p.of));
        value.push_back(p.attribution.value);
        baseline.push_back(p.attribution.baseline);
        total.push_back(p.attribution.total);
        const auto sums = psae::attribution_of_tokens(p.z, p.attribution);
        sum_class_token.push_back(sums[0]);
        sum_map.insert(sum_map.end(), sums.begin() + 1, sums.begin() + 1 + std::ptrdiff_t(grid * grid));
        const std::size_t first = latents.size(), patches = grid * grid;
        latents.resize(first + 2 * top, -1);
        for (auto* numbers : {&attribution, &class_token, &activation, &effect}) numbers->resize(first + 2 * top);
        maps.resize(latents.size() * patches);
        for (std::size_t i = 0; i < p.strongest.size(); ++i) {
            const psae::attributed_latent& l = p.strongest[i];
            const std::size_t place = first + (i < p.against ? i : top + i - p.against);
            latents[place] = std::int32_t(l.latent);
            attribution[place] = float(l.attribution);
            class_token[place] = float(l.class_token);
            activation[place] = float(l.activation);
            effect[place] = float(p.effects[i]);
            const auto map = map_of(p, i);
            std::copy(map.begin(), map.end(), maps.begin() + std::ptrdiff_t(place * patches));
            const auto strongest =
                std::max_element(map.begin(), map.end(), [](float a, float b) { return std::abs(a) < std::abs(b); });
            const auto patch = std::size_t(strongest - map.begin());
            csv += fmt::format("{},{},{},{:.6g},{:.6g},{:.6g},{},{},{:.6g},{:.6g}\n", psae::detail::quoted_field(file),
                               psae::detail::quoted_field(name), l.latent, l.attribution, l.class_token, *strongest,
                               patch / grid, patch % grid, l.activation, p.effects[i]);
        }
    }
    std::vector<float> map_of(const psae::attributed_picture& p, std::size_t i) const {
        return psae::patch_map(p.attribution.codes(p.z), 0, grid, p.strongest[i].latent);
    }
    void write(const std::filesystem::path& path, const std::vector<std::string>& classes) const {
        const std::size_t n = files.size();
        psae::npz_writer npz(path);
        npz.add("files", files);
        npz.add("classes", classes);
        npz.add("labels", labels);
        npz.add("explained_class", of);
        npz.add("value", value);
        npz.add("baseline", baseline);
        npz.add("total", total);
        npz.add("latents", std::span(latents), {n, 2 * top});
        npz.add("attribution", std::span(attribution), {n, 2 * top});
        npz.add("class_token", std::span(class_token), {n, 2 * top});
        npz.add("activation", std::span(activation), {n, 2 * top});
        npz.add("effect_of_removal", std::span(effect), {n, 2 * top});
        npz.add("maps", std::span(maps), {n, 2 * top, grid, grid});
        npz.add("sum_map", std::span(sum_map), {n, grid, grid});
        npz.add("sum_class_token", sum_class_token);
        npz.close();
    }
};

psae::image overlay_of(const psae::attributed_picture& p, const written& all, const psae::image& seen,
                       const std::vector<std::string>& names, const std::string& explained) {
    double sum = 0;
    for (const float logit : p.logits) sum += std::exp(double(logit) - double(p.logits[p.of]));
    std::string title = fmt::format("{}: {:.3g}%", names[p.of], 100 / sum);
    if (p.label >= 0) title += " (label: " + names[std::size_t(p.label)] + ")";
    title +=
        fmt::format("\nwith all latents {} is {:.3g}, without {:.3g}\nattribution, in brackets the class token's share",
                    explained, p.attribution.value, p.attribution.baseline);
    const auto tokens = psae::attribution_of_tokens(p.z, p.attribution);
    const auto caption = [](const std::string& name, double attribution, double class_token) {
        return fmt::format("{} {:+.2f} ({:+.2f})", name, attribution, class_token);
    };
    const psae::attribution_map whole{{tokens.begin() + 1, tokens.begin() + 1 + std::ptrdiff_t(all.grid * all.grid)},
                                      caption("all", p.attribution.total, double(tokens[0]))};
    std::vector<psae::attribution_map> maps;
    for (std::size_t i = 0; i < p.strongest.size(); ++i) {
        const psae::attributed_latent& l = p.strongest[i];
        maps.push_back({all.map_of(p, i), caption(std::to_string(l.latent), l.attribution, l.class_token)});
    }
    const std::span<const psae::attribution_map> latents(maps);
    return psae::attribution_grid(title, seen, whole, latents.first(p.against), latents.subspan(p.against), all.grid,
                                  all.grid);
}

// "12 +3.1, 40 +2.2": the first latents with their attributions.
std::string listed(std::span<const psae::attributed_latent> latents) {
    std::string text;
    for (const auto& l : latents.first(std::min<std::size_t>(latents.size(), 3)))
        text += fmt::format("{}{} {:+.3g}", text.empty() ? "" : ", ", l.latent, l.attribution);
    return text.empty() ? "-" : text;
}

void run(state& s, const CLI::App& sub) {
    const auto weights = load_sae(s.sae);
    const auto sae = on_chosen_device(weights);
    psae::require_reconstruction(sae, s.sae);
    s.images.take_layer(sae.origin);
    image_options images = s.images;
    images.images.insert(images.images.end(), s.image.begin(), s.image.end());
    const auto given = list_images(images);
    const std::filesystem::path out(s.out);
    std::filesystem::create_directories(out);  // now: one that cannot be made is known before the work
    const auto tower = load_model(images.model, images.adapter);
    require_fit(sae, s.sae, tower->width(), images.model);
    const psae::cpu device(s.common.threads);
    const auto task = make_zero_shot_task(s.zero_shot, images, given, device);
    const auto& names = task.classes.names;
    const auto list = s.by == "label" ? psae::with_class(given, task.classes.of_label) : given;
    if (list.files.empty())
        throw psae::error("no picture has a class", images.images.front(), "",
                          "classes are the sub-folders, or the column label of a table");

    psae::attribution_options options{.steps = s.method == "integrated" ? s.steps : 0,
                                      .error_term = s.error_term == "with",
                                      .top = std::min(s.top, sae.d_sae)};
    options.by = s.by == "label" ? choice::label : choice::prediction;
    if (!s.class_name.empty()) {
        options.by = choice::given;
        options.given = find_class(s.class_name, "--class", task.classes);
    }
    if (s.contrast == "others") options.against = {psae::attribution_options::all_others};
    else if (s.contrast != "none") options.against = {find_class(s.contrast, "--contrast", task.classes)};

    const std::string explained = s.contrast == "none"     ? "its logit"
                                  : s.contrast == "others" ? "its lead over the mean of the others"
                                                           : "its lead over " + names[options.against[0]];
    const auto how = psae::read_preprocessing(images.model, tower->image_size());
    auto pictures = read_pictures(list, images, how);
    written all{options.top, tower->grid(), {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}};
    std::vector<std::vector<std::string>> table{{"picture", "class", "for it", "against it"}};
    psae::attribution_agreement agreement;
    remove_overlays(out / "overlays");
    {
        progress bar("pictures", list.files.size());
        agreement = psae::attribute_pictures(
            device, *tower, task.classifier, pictures, task.classes.of_label, tower->hidden_index(images.layer), sae,
            options, [&](const psae::attributed_picture& p) {
                stop_if_interrupted();
                const auto& file = list.files[p.index];
                if (all.files.size() < s.overlays) {
                    const auto picture = psae::read_image(file, images.alpha_mode());
                    const auto seen = psae::cut_out(picture, psae::seen_by_model(picture.width, picture.height, how));
                    std::filesystem::create_directories(out / "overlays");
                    psae::write_png(out / "overlays" / overlay_name(p.index, file.stem().string()),
                                    overlay_of(p, all, seen, names, explained));
                }
                all.add(p, file.string(), names[p.of]);
                if (table.size() <= 12)
                    table.push_back({file.filename().string(), names[p.of], listed(p.strongest.first(p.against)),
                                     listed(p.strongest.subspan(p.against))});
                bar.show(p.index + 1);
            });
    }
    if (agreement.pictures == 0)
        throw psae::error("no picture could be read", list.files.front().string(),
                          std::to_string(list.files.size()) + " were tried");
    all.write(out / "attributions.npz", names);
    psae::write_text(out / "attributions.csv", all.csv);
    save_configuration(sub, s.out);
    if (s.common.json) {
        json_object{}
            .add("images", agreement.pictures)
            .add("skipped", pictures.unreadable())
            .add("classes", names.size())
            .add("templates", task.templates)
            .add("layer", tower->hidden_index(images.layer))
            .add("latents", agreement.effect.size())
            .add("correlation", agreement.correlation())
            .add("same_sign", agreement.same_sign())
            .add("completeness_error", agreement.completeness_error())
            .add("out", s.out)
            .print();
        return;
    }
    print_table(table);
    if (agreement.pictures + 1 > table.size()) fmt::print("..\n");
    fmt::print("{} latents of {} pictures: attribution and effect of removal correlate by {}, {}% have the same sign\n",
               agreement.effect.size(), agreement.pictures, text_of(agreement.correlation(), 3),
               text_of(100 * agreement.same_sign(), 3));
    fmt::print("{}% of what all latents do is not accounted for: {}\n",
               text_of(100 * agreement.completeness_error(), 3), s.out);
}

}  // namespace

void add_attribute(CLI::App& app) {
    auto* sub = add_command(app, "attribute", "which latents speak for and against a picture's class, and where",
                            "--model data/tiny-clip --sae run --images photos --method integrated --out why");
    auto s = std::make_shared<state>();
    s->common.add_to(*sub);
    s->images.add_to(*sub);
    sub->add_option("--image", s->image, "a picture, besides or in place of --images; repeatable")->default_str("");
    sub->add_option("--sae", s->sae, "SAE: directory or file of any format (see convert)")->required();
    s->zero_shot.add_to(*sub);
    sub->add_option("--by", s->by, "the class explained: what the plain model predicts, or the picture's label")
        ->check(CLI::IsMember({"prediction", "label"}));
    sub->add_option("--class", s->class_name, "explain this class on all pictures");
    sub->add_option(
        "--contrast", s->contrast,
        "explain its logit less that of this class, or less the mean of all others: none, others or a name");
    sub->add_option(
           "--method", s->method,
           "gradient: at the picture's tokens; integrated: the mean over the way from no latents to all of them")
        ->check(CLI::IsMember({"gradient", "integrated"}));
    sub->add_option("--steps-of-integration", s->steps, "points on that way")->check(CLI::Range(1, 10000));
    sub->add_option("--error-term", s->error_term,
                    "add what the SAE leaves unexplained to the tokens: with it, all latents give the plain model")
        ->check(CLI::IsMember({"with", "without"}));
    sub->add_option("--top", s->top, "latents for the class, and as many against it")->check(CLI::Range(1, 1000));
    sub->add_option("--overlays", s->overlays, "pictures to draw, the first ones")->check(CLI::Range(0, 100000));
    sub->add_option("--out", s->out, "directory to write")->required();
    sub->callback([s, sub] {
        if (s->images.images.empty() && s->image.empty()) throw CLI::RequiredError("--images or --image");
        if (!s->class_name.empty() && s->by == "label")
            throw CLI::ValidationError("attribute", "expected --class or --by label, not both");
        if (!s->class_name.empty() && s->class_name == s->contrast)
            throw CLI::ValidationError("--contrast", "expected another class than --class");
        // A configuration of an earlier run holds the number whether it was used or not.
        if (s->method == "gradient" && s->steps != state::usual_steps)
            throw CLI::ValidationError("--steps-of-integration", "goes with --method integrated");
        run(*s, *sub);
    });
}

}  // namespace patchsae
