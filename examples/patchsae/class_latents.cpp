#include "class_latents.hpp"

#include <set>

namespace patchsae {

void class_latent_options::add_to(CLI::App& app) {
    app.add_option("--tau", tau, "activation above which a latent counts")->check(not_negative());
    app.add_option("--count", count,
                   "what is counted: images by their mean activation over all tokens, images by their largest "
                   "(images_max), or tokens, as PatchSAE's code does")
        ->check(
            CLI::IsMember(std::vector<std::string>(psae::class_count_names.begin(), psae::class_count_names.end())));
}

psae::class_count class_latent_options::what() const {
    return static_cast<psae::class_count>(
        std::find(psae::class_count_names.begin(), psae::class_count_names.end(), count) -
        psae::class_count_names.begin());
}

void class_latent_options::take(const psae::class_latent_counts& counts, CLI::App& command, bool as_reference,
                                const std::string& file) {
    const std::string theirs(psae::class_count_names[static_cast<std::size_t>(counts.what)]);
    const auto refuse = [&](const auto& asked, const auto& found, const char* option) {
        throw psae::error("class-level latents were counted by something else", file,
                          fmt::format("expected {} {}, found {}", option, asked, found),
                          "make them again by the command classes");
    };
    if ((as_reference || command.count("--count") > 0) && count != theirs) refuse(count, theirs, "--count");
    if (command.count("--tau") > 0 && tau != counts.tau) refuse(tau, counts.tau, "--tau");
    count = theirs;
    tau = counts.tau;
    command.get_option("--count")->default_str(count);
    command.get_option("--tau")->default_str(fmt::format("{}", tau));
}

std::vector<std::size_t> numbers_of_latents(std::vector<std::size_t> ks, std::size_t d_sae, const std::string& sae) {
    for (const std::size_t k : ks)
        if (k > d_sae)
            throw psae::error("there are not so many latents", sae, fmt::format("--k at most {}, found {}", d_sae, k));
    if (ks.empty()) ks = {1, 2, 5, 10, 50, 100, 500, 1000, 2000};
    std::sort(ks.begin(), ks.end());
    ks.erase(std::unique(ks.begin(), ks.end()), ks.end());
    std::erase_if(ks, [&](std::size_t k) { return k >= d_sae; });  // all latents are a condition in any case
    return ks;
}

void report_shared_pictures(const psae::image_list& classified, const psae::image_list& chosen_on) {
    const auto name = [](const auto& file) { return std::filesystem::weakly_canonical(file); };  // however it was given
    std::set<std::filesystem::path> chosen;
    for (const auto& file : chosen_on.files) chosen.insert(name(file));
    const auto both = std::count_if(classified.files.begin(), classified.files.end(),
                                    [&](const auto& file) { return chosen.contains(name(file)); });
    if (both > 0)
        report_line(
            fmt::format("patchsae: {} of the pictures are among those that chose the latents: accuracies are "
                        "not of unseen pictures",
                        both));
}

psae::class_latent_counts count_class_latents(const class_latent_options& options, const image_options& images,
                                              const psae::image_list& list,
                                              std::span<const std::int32_t> class_of_label, std::size_t classes,
                                              const psae::vision_tower& tower, const psae::sae_view& sae,
                                              const psae::cpu& device, std::size_t& skipped) {
    const auto labelled = psae::with_class(list, class_of_label);
    if (labelled.files.empty())
        throw psae::error("no picture has a class", images.images.front(), "",
                          "classes are the sub-folders, or the column label of a table");
    auto pictures = read_pictures(labelled, images, psae::read_preprocessing(images.model, tower.image_size()));
    psae::class_latent_counter counter(classes, sae.d_sae, options.what(), options.tau);
    progress bar("pictures", labelled.files.size());
    psae::count_class_latents(device, tower, pictures, class_of_label, sae, tower.hidden_index(images.layer), counter,
                              [&](std::size_t done) {
                                  stop_if_interrupted();
                                  bar.show(done);
                              });
    skipped = pictures.unreadable();
    if (skipped == labelled.files.size())
        throw psae::error("no picture could be read", images.images.front(),
                          std::to_string(labelled.files.size()) + " were tried");
    return std::move(counter).counts();
}

}  // namespace patchsae
