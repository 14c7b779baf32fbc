// Class-level latents: how often each latent fires on each class, which are a class's first, how specific they are.

#include <numeric>

#include "class_latents.hpp"

namespace patchsae {

namespace {

struct state {
    common_options common;
    image_options images;
    class_latent_options counting;
    std::string sae, out;
    std::size_t top = 10;
};

// For people: what is most specific to the first classes. (The .csv ranks by count: its first latents fire on everything.)
void print_classes(const psae::named_class_latents& l) {
    constexpr std::size_t most_classes = 20, most_latents = 4;
    const auto fires = l.counts.of_all();
    std::vector<std::vector<std::string>> table{
        {"class", "images", "most specific latents: on how much of the class (phi)"}};
    for (std::size_t c = 0; c < std::min(most_classes, l.classes.size()); ++c) {
        std::string latents;
        for (const auto& [f, a] : psae::specific_latents(l.counts, c, most_latents, fires))
            latents += fmt::format("{}{}: {:.0f}% ({:.2f})", latents.empty() ? "" : "  ", f, 100 * a.frequency, a.phi);
        table.push_back({l.classes[c], std::to_string(l.counts.images[c]), latents.empty() ? "-" : latents});
    }
    print_table(table);
    if (l.classes.size() > most_classes) fmt::print("and {} more classes\n", l.classes.size() - most_classes);
}

void run(state& s, const CLI::App& sub) {
    const auto weights = load_sae(s.sae);
    const auto sae = on_chosen_device(weights);
    s.images.take_layer(sae.origin);
    const auto list = list_images(s.images);
    const std::filesystem::path out(s.out);
    std::filesystem::create_directories(out);  // now: one that cannot be made is known before the work
    const auto tower = load_model(s.images.model, s.images.adapter);
    require_fit(sae, s.sae, tower->width(), s.images.model);
    const psae::cpu device(s.common.threads);
    std::vector<std::int32_t> class_of_label(list.class_names.size());
    std::iota(class_of_label.begin(), class_of_label.end(), 0);
    std::size_t skipped = 0;
    const psae::named_class_latents l{count_class_latents(s.counting, s.images, list, class_of_label,
                                                          class_of_label.size(), *tower, sae, device, skipped),
                                      list.class_names};
    const auto ranking = psae::rank_latents(l.counts, std::min(s.top, sae.d_sae));
    psae::write_class_latents_npz(out / "class_latents.npz", l);
    psae::write_class_latents_csv(out / "class_latents.csv", l, ranking);
    save_configuration(sub, s.out);

    const auto fires = l.counts.of_all();
    const auto images = std::accumulate(l.counts.images.begin(), l.counts.images.end(), std::uint64_t{0});
    const auto firing = fires.size() - std::size_t(std::count(fires.begin(), fires.end(), std::uint64_t{0}));
    if (s.common.json) {
        json_object{}
            .add("images", images)
            .add("skipped", skipped)
            .add("classes", l.classes.size())
            .add("latents", l.counts.latents)
            .add("firing", firing)
            .add("count", s.counting.count)
            .add("tau", s.counting.tau)
            .add("out", s.out)
            .print();
        return;
    }
    print_classes(l);
    fmt::print("{} of {} latents fire on {} pictures of {} classes ({} skipped), counted by {} above {}: {}\n", firing,
               l.counts.latents, images, l.classes.size(), skipped, s.counting.count, s.counting.tau, s.out);
}

}  // namespace

void add_classes(CLI::App& app) {
    auto* sub = add_command(app, "classes", "how often each latent fires on each class of pictures",
                            "--model data/tiny-clip --sae run --images photos --out classes");
    auto s = std::make_shared<state>();
    s->common.add_to(*sub);
    s->images.add_to(*sub);
    sub->get_option("--images")->required();
    sub->add_option("--sae", s->sae, "SAE directory")->required();
    s->counting.add_to(*sub);
    sub->add_option("--top", s->top, "first latents of each class in class_latents.csv")->check(CLI::Range(1, 100000));
    sub->add_option("--out", s->out, "directory to write")->required();
    sub->callback([s, sub] { run(*s, *sub); });
}

}  // namespace patchsae
