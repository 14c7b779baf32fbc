#include <limits>

#include <psae/attribution/latent_summary.hpp>

#include "activations.hpp"

namespace patchsae {

namespace {

struct state {
    common_options common;
    image_options images;
    std::string sae, out;
    std::size_t top = 10;
};

void run(const state& s) {
    const auto sae = psae::read_sae(s.sae);
    const psae::cpu device(s.common.threads);
    psae::latent_summary_builder builder(sae.d_sae, s.top);
    psae::arena<> scratch;
    std::vector<std::string> files;
    std::vector<std::int64_t> labels;
    const std::size_t skipped = each_image_tokens(
        s.images, device,
        [&](const psae::vision_tower& tower, const psae::image_list& list, const std::vector<float>& tokens,
            const std::vector<std::size_t>& which) {
            require_fit(sae, s.sae, tower.width(), s.images.model);
            scratch.reset();
            builder.add(encode_rows(device, scratch, sae, tokens.data(), which.size() * tower.tokens()),
                        tower.tokens());
            for (const std::size_t i : which) {
                files.push_back(list.files[i].string());
                labels.push_back(list.labels[i]);
            }
        });
    const auto summary = builder.finish(labels);
    const std::filesystem::path out(s.out);
    std::filesystem::create_directories(out);
    psae::npz_writer npz(out / "latents.npz");
    const auto floats = [](const std::vector<double>& x) { return std::vector<float>(x.begin(), x.end()); };
    npz.add("token_frequency", floats(summary.token_frequency));
    npz.add("mean_activation", floats(summary.mean_activation));
    npz.add("max_activation", summary.max_activation);
    npz.add("image_frequency", floats(summary.image_frequency));
    npz.add("mean_image_score", floats(summary.mean_image_score));
    npz.add("top_images", summary.top_images.data(), {summary.latents, summary.top});
    npz.add("top_values", summary.top_values.data(), {summary.latents, summary.top});
    npz.add("label_entropy", floats(summary.label_entropy));
    npz.add("label_std", floats(summary.label_std));
    npz.add("files", files);
    npz.add("labels", labels);
    npz.close();
    std::string csv =
        "latent,token_frequency,mean_activation,max_activation,image_frequency,label_entropy,label_std,top_image,top_"
        "value\n";
    std::size_t alive = 0;
    for (std::size_t f = 0; f < summary.latents; ++f) {
        alive += summary.token_frequency[f] > 0;
        const std::int32_t best = s.top == 0 ? -1 : summary.top_images[f * s.top];
        csv += fmt::format("{},{:.6g},{:.6g},{:.6g},{:.6g},{:.6g},{:.6g},{},{:.6g}\n", f, summary.token_frequency[f],
                           summary.mean_activation[f], summary.max_activation[f], summary.image_frequency[f],
                           summary.label_entropy[f], summary.label_std[f],
                           best < 0 ? "" : "\"" + files[std::size_t(best)] + "\"",
                           best < 0 ? 0.0f : summary.top_values[f * s.top]);
    }
    psae::write_text(out / "latents.csv", csv);
    if (s.common.json)
        fmt::print("{{\"images\": {}, \"skipped\": {}, \"latents\": {}, \"alive\": {}}}\n", summary.images, skipped,
                   summary.latents, alive);
    else
        fmt::print("{} of {} latents fire on {} pictures ({} skipped): {}\n", alive, summary.latents, summary.images,
                   skipped, s.out);
}

}  // namespace

void add_latents(CLI::App& app) {
    auto* sub = add_command(app, "latents", "per-latent summary of a data set",
                            "--model data/tiny-clip --sae run --images photos --out summary");
    auto s = std::make_shared<state>();
    s->common.add_to(*sub);
    s->images.add_to(*sub);
    sub->get_option("--images")->required();
    sub->add_option("--sae", s->sae, "SAE directory")->required();
    sub->add_option("--top", s->top, "top pictures per latent")->check(CLI::Range(0, 1000));
    sub->add_option("--out", s->out, "directory to write")->required();
    sub->callback([s, sub] {
        run(*s);
        save_configuration(*sub, s->out);
    });
}

}  // namespace patchsae
