#pragma once
// Counting a class's latents on pictures, for the subcommands that need them.

#include <psae/io/class_latents_file.hpp>

#include "program.hpp"

namespace patchsae {

struct class_latent_options {
    double tau = 0.2;
    std::string count{psae::class_count_names[0]};
    void add_to(CLI::App& app);
    psae::class_count what() const;
    // Takes what counts of a file were counted by, where nothing else was asked for on the command line (or, in
    // `count`, by --as-reference); otherwise psae::error, which names the file.
    void take(const psae::class_latent_counts& counts, CLI::App& command, bool as_reference, const std::string& file);
};

// The given numbers of latents, ascending and below d_sae, or the paper's as far as there are so many. psae::error, which
// names the SAE, for a larger one.
std::vector<std::size_t> numbers_of_latents(std::vector<std::size_t> ks, std::size_t d_sae, const std::string& sae);

// Reports pictures that are classified and chose the latents too.
void report_shared_pictures(const psae::image_list& classified, const psae::image_list& chosen_on);

// The counts on those pictures of the list that have a class. psae::error if there are none.
psae::class_latent_counts count_class_latents(const class_latent_options& options, const image_options& images,
                                              const psae::image_list& list,
                                              std::span<const std::int32_t> class_of_label, std::size_t classes,
                                              const psae::vision_tower& tower, const psae::sae_view& sae,
                                              const psae::cpu& device, std::size_t& skipped);

}  // namespace patchsae
