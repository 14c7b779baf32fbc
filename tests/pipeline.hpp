#pragma once
// The golden pipeline: its arrays and its SAE.

#include <filesystem>
#include <string>
#include <vector>

#include <psae/io/numpy.hpp>
#include <psae/io/sae_file.hpp>

inline const std::filesystem::path pipeline = std::filesystem::path(PSAE_GOLDEN_DIR) / "pipeline";

inline std::vector<float> pipeline_array(const std::string& file, const std::string& name) {
    return psae::to_floats(psae::read_npz(pipeline / file, name));
}

inline psae::sae_weights pipeline_sae() {
    psae::sae_weights sae;
    sae.d_in = 64;
    sae.d_sae = 96;
    sae.W_enc = psae::transpose(pipeline_array("codes.npz", "W_enc").data(), 64, 96);
    sae.b_enc = pipeline_array("codes.npz", "b_enc");
    sae.W_dec = pipeline_array("codes.npz", "W_dec");
    sae.b_dec = pipeline_array("codes.npz", "b_dec");
    return sae;
}
