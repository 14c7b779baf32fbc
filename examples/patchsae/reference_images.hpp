#pragma once
// The top images of chosen latents with the latents' maps over them, for grids and the report.

#include <psae/attribution/latent_pictures.hpp>
#include <psae/io/latents_file.hpp>

#include "program.hpp"

namespace patchsae {

// For each of `chosen` its top images, at most `count`: read again (those that cannot be read are left out, and counted
// in `missing`), cut to what the model sees, and run through model and SAE for the maps. With an empty options.model
// there are no maps, and the whole pictures.
std::vector<std::vector<psae::reference_image>> reference_images(const image_options& options, const psae::cpu& device,
                                                                 const psae::sae_view& sae,
                                                                 const psae::labelled_summary& latents,
                                                                 const std::vector<std::size_t>& chosen,
                                                                 std::size_t count, std::size_t& missing);

}  // namespace patchsae
