#pragma once
// Activations for the subcommands that take them from a file or from pictures.

#include <psae/io/activation_store.hpp>

#include "program.hpp"

namespace patchsae {

// The array `name` of an .npz as floats, its extents after the first as `inner` says; returns the first extent. Throws
// if a value is not finite.
std::size_t read_floats(const std::string& path, const char* name, const std::vector<std::size_t>& inner,
                        std::vector<float>& values);

// Rows [N, d] of an .npy (any leading extents are flattened), or the array tokens of an .npz. Throws if a value is not
// finite.
std::vector<float> read_activations(const std::string& path, std::size_t& d);

// Goes on with a CRC-32.
unsigned long crc_of(unsigned long crc, const void* bytes, std::size_t count);

// What decides the tokens of hidden state `layer` for the pictures of a list: their names (without folders) and sizes in
// order, the model's architecture and vision weights with those of its adapter, the preprocessing; and if it is not the
// CPU that computes, the device and its precision.
psae::run_identity identity_of_tokens(const psae::image_list& list, const psae::vision_tower& tower, std::size_t layer,
                                      const image_options& images, const psae::preprocessing& how);

// True if a path is a store of activations, complete or not, or claims to be one.
bool is_store(const std::filesystem::path& path);

// The option --token-kind.
psae::token_kind token_kind_of(const std::string& name);
void add_token_kind(CLI::App& app, std::string& kind);

// The class tokens and patches of the hooked layer for all pictures of the list, batch by batch: f(tower, tokens
// [count * image_tokens(), d], indices of the pictures). Returns the number of pictures skipped.
std::size_t each_image_tokens(
    const psae::image_list& list, const image_options& options, const psae::cpu& device,
    const std::function<void(const psae::vision_tower&, std::span<const float>, std::span<const std::size_t>)>& f);

}  // namespace patchsae
