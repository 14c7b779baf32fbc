#include <psae/attribution/latent_pictures.hpp>
#include <psae/io/latents_file.hpp>

#include "activations.hpp"
#include "reference_images.hpp"

namespace patchsae {

namespace {

struct state {
    common_options common;
    image_options images;
    std::string sae, out;
    std::size_t top = 10, grids = 24;
    std::vector<std::size_t> latents;
};

void write_grids(const state& s, const psae::cpu& device, const psae::sae_view& sae,
                 const psae::labelled_summary& latents, const std::vector<std::size_t>& chosen) {
    if (chosen.empty()) return;
    std::size_t missing = 0;
    const auto images = reference_images(s.images, device, sae, latents, chosen, s.top, missing);
    const auto folder = std::filesystem::path(s.out) / "grids";
    std::filesystem::create_directories(folder);
    for (std::size_t i = 0; i < chosen.size(); ++i) {
        if (images[i].empty()) {
            fmt::print(stderr, "patchsae: latent {} fires on no picture: no grid\n", chosen[i]);
            continue;
        }
        const std::string title =
            fmt::format("latent {}\n{}", chosen[i], psae::describe_latent(latents.summary, chosen[i]));
        psae::write_png(folder / fmt::format("latent_{}.png", chosen[i]), psae::reference_grid(title, images[i]));
    }
}

void run(state& s) {
    const auto weights = load_sae(s.sae);
    const auto sae = on_chosen_device(weights);
    s.images.take_layer(sae.origin);
    for (const std::size_t f : s.latents)
        if (f >= sae.d_sae)
            throw psae::error("no such latent", s.sae, fmt::format("0 to {}, found {}", sae.d_sae - 1, f));
    const psae::cpu device(s.common.threads);
    psae::latent_summary_builder builder(sae.d_sae, s.top);
    psae::arena<> scratch;
    psae::labelled_summary latents;
    const auto list = list_images(s.images);
    latents.class_names = list.class_names;
    const std::filesystem::path out(s.out);
    std::filesystem::create_directories(out);  // now: one that cannot be made is known before the work
    const std::size_t skipped = each_image_tokens(
        list, s.images, device,
        [&](const psae::vision_tower& tower, std::span<const float> tokens, std::span<const std::size_t> which) {
            require_fit(sae, s.sae, tower.width(), s.images.model);
            scratch.reset();
            const std::size_t T = tower.image_tokens();
            encode_in_batches(device, scratch, sae, tokens.data(), which.size() * T, T,
                              [&](std::size_t, const auto& z) { builder.add(z, T); });
            for (const std::size_t i : which) {
                latents.files.push_back(list.files[i].string());
                latents.labels.push_back(list.labels[i]);
            }
        });
    latents.summary = builder.finish(latents.labels);
    const psae::latent_summary& summary = latents.summary;
    psae::write_latents_npz(out / "latents.npz", latents);
    psae::write_latents_csv(out / "latents.csv", latents);
    for (const auto& [name, drawing] : psae::latent_scatter_plots(summary))
        psae::write_png(out / (name + ".png"), psae::to_image(drawing));
    const auto chosen = psae::interesting_latents(summary, latents.labels, s.grids);
    std::vector<std::size_t> drawn = s.latents;
    for (const std::size_t f : chosen)
        if (std::find(drawn.begin(), drawn.end(), f) == drawn.end()) drawn.push_back(f);
    if (s.top > 0) write_grids(s, device, sae, latents, drawn);

    std::size_t alive = 0;
    for (const double frequency : summary.token_frequency) alive += frequency > 0;
    if (s.common.json) {
        json_object{}
            .add("images", summary.images)
            .add("skipped", skipped)
            .add("latents", summary.latents)
            .add("alive", alive)
            .add("interesting", chosen)
            .add("out", s.out)
            .print();
        return;
    }
    fmt::print("{} of {} latents fire on {} pictures ({} skipped): {}\n", alive, summary.latents, summary.images,
               skipped, s.out);
    for (const std::size_t f : std::span(chosen).first(std::min<std::size_t>(5, chosen.size()))) {
        fmt::print("latent {}: {}", f, psae::describe_latent(summary, f));
        const auto shares = psae::label_shares(summary, f, latents.labels);
        if (!shares.empty())
            fmt::print("; top images are {:.0f}% {}", 100 * shares[0].share,
                       latents.class_names[static_cast<std::size_t>(shares[0].label)]);
        fmt::print("\n");
    }
}

}  // namespace

void add_latents(CLI::App& app) {
    auto* sub = add_command(app, "latents", "per-latent summary of a data set",
                            "--model data/tiny-clip --sae run --images photos --out summary");
    auto s = std::make_shared<state>();
    s->common.add_to(*sub);
    s->images.add_to(*sub);
    sub->get_option("--images")->required();
    sub->add_option("--sae", s->sae, "SAE: directory or file of any format (see convert)")->required();
    sub->add_option("--top", s->top, "top pictures per latent")->check(CLI::Range(0, 1000));
    sub->add_option("--grids", s->grids, "reference-image grids to draw, of the most interesting latents")
        ->check(CLI::Range(0, 1000));
    sub->add_option("--latent", s->latents, "latents to draw a grid of in any case");
    sub->add_option("--out", s->out, "directory to write")->required();
    sub->callback([s, sub] {
        run(*s);
        save_configuration(*sub, s->out);
    });
}

}  // namespace patchsae
