#pragma once
// Classes and templates for the subcommands that classify pictures.

#include "program.hpp"

namespace patchsae {

struct zero_shot_options {
    std::string classes, templates;
    void add_to(CLI::App& app);
};

struct zero_shot_task {
    psae::named_classes classes;
    std::size_t templates = 0;  // their number
    psae::zero_shot_classifier classifier;
};

// The classes of --classes, or the labels of the list.
psae::named_classes name_classes(const zero_shot_options& options, const image_options& images,
                                 const psae::image_list& list);

// Reads the classes of --classes, or takes the labels of the pictures, and embeds them. Labels that mean no class are
// reported on stderr. unit_mean: as of psae::make_zero_shot_classifier.
zero_shot_task make_zero_shot_task(const zero_shot_options& options, const image_options& images,
                                   const psae::image_list& list, const psae::cpu& device, bool unit_mean = true);

}  // namespace patchsae
