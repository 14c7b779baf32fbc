#pragma once
// What the subcommands share: options that mean the same everywhere, and activations of images.

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <psae/cpu/encode.hpp>
#include <psae/io/dataset.hpp>
#include <psae/io/numpy.hpp>
#include <psae/io/sae_file.hpp>
#include <psae/stage/encode.hpp>
#include <psae/vit/load_clip.hpp>
#include <psae/vit/read_preprocessing.hpp>

namespace patchsae {

struct common_options {
    int threads = 0;
    std::uint64_t seed = 0;
    bool json = false;
    std::string device = "cpu", dtype = "fp32";
    void add_to(CLI::App& app);
};

struct image_options {
    std::string model;
    std::vector<std::string> images;
    std::string split, alpha = "white";
    std::size_t limit = 0;
    bool strict = false;
    long layer = -2;
    void add_to(CLI::App& app, bool model_required = true);
    psae::alpha_mode alpha_mode() const { return alpha == "drop" ? psae::alpha_mode::drop : psae::alpha_mode::white; }
};

// The pictures of --images; a single picture stands for itself.
psae::image_list list_images(const image_options& options);

// Reads a picture, or reports it on stderr and returns nothing (strict: throws).
std::optional<psae::image> try_read(const std::filesystem::path& file, const image_options& options);

// Pictures in order, decoded and preprocessed in batches; unreadable ones are reported, counted and left out.
// f(pixels of `count` pictures [count, 3, S, S], their indices in the list).
std::size_t each_batch(const psae::image_list& list, const image_options& options, const psae::preprocessing& how,
                       const psae::cpu& device, std::size_t batch,
                       const std::function<void(const std::vector<float>&, const std::vector<std::size_t>&)>& f);

// Codes of rows x [n, d_in] under a trained SAE, in memory of the arena.
psae::codes_view<float> encode_rows(const psae::cpu& device, psae::arena<>& scratch, const psae::sae_weights& sae,
                                    const float* x, std::size_t n);

// Refuses an SAE whose d_in is not the model's width.
void require_fit(const psae::sae_weights& sae, const std::string& sae_path, std::size_t width,
                 const std::string& model_path);

// Subcommands: each adds itself to the program.
using runner = std::function<void()>;
void add_info(CLI::App& app);
void add_preprocess(CLI::App& app);
void add_embed(CLI::App& app);
void add_train(CLI::App& app);
void add_encode(CLI::App& app);
void add_latents(CLI::App& app);
void add_mask(CLI::App& app);

}  // namespace patchsae
