#pragma once
// The result files of the reference implementation of PatchSAE, as its scripts leave them in a directory.
//
//   const reference_results results = read_reference_results("out/imagenet");
//   const std::int32_t best = results.summary.top_images[latent * results.summary.top];

#include <array>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include <psae/attribution/latent_summary.hpp>
#include <psae/io/numpy.hpp>
#include <psae/io/torch_file.hpp>

namespace psae {

struct reference_results {
    // Only image_frequency (sae_sparsity.pt), mean_image_score (sae_mean_acts.pt; NaN for dead latents), top_images and
    // top_values (max_activating_image_indices.pt and _values.pt; an index whose value is 0 means nothing and becomes
    // -1) and label_entropy (top_entropy.pt; NaN for dead latents). The number of images is not recorded.
    latent_summary summary;
    // Labels of the top images, [latents, top]; -1 for none (max_activating_image_label_indices.pt).
    std::vector<std::int64_t> top_labels;
    // Tokens of each class that fire a latent, [classes, latents] (cls_sae_cnt.npy); no classes without that file.
    std::size_t classes = 0;
    std::vector<double> class_counts;
};

inline bool is_reference_results(const std::filesystem::path& directory) {
    std::error_code ignored;
    return std::filesystem::exists(directory / "max_activating_image_values.pt", ignored);
}

// Throws psae::error if a file is missing, or holds another shape than the others or a number that cannot be there.
inline reference_results read_reference_results(const std::filesystem::path& directory) {
    reference_results r;
    latent_summary& s = r.summary;
    // A tensor of its own; the shape is taken from the first and expected of the others.
    const auto read = [&]<class T>(const char* name, std::size_t rank, std::vector<T>& values) {
        const torch_file file(directory / name);
        const torch_tensor& t = file.at("");
        if (s.latents == 0 && t.shape.size() == 2) {
            s.latents = t.shape[0];
            s.top = t.shape[1];
        }
        const std::array<std::size_t, 2> extents{s.latents, s.top};
        const std::vector<std::size_t> expected(extents.begin(), extents.begin() + static_cast<std::ptrdiff_t>(rank));
        if (t.shape != expected)
            throw error("tensor has another shape", file.path(),
                        "expected " + shape_text(expected) + ", found " + shape_text(t.shape));
        std::vector<std::byte> gathered;
        values = convert_elements<T>(t.type, file.bytes(t, gathered).data(), *checked_product(t.shape), file.path());
    };
    const auto require = [&](const char* name, const auto& values, const char* expected, const auto& holds) {
        for (std::size_t i = 0; i < values.size(); ++i)
            if (!holds(values[i]))
                throw error("value is out of range", (directory / name).string() + ", element " + std::to_string(i),
                            expected + std::string(", found ") + std::to_string(values[i]));
    };
    const auto at_least_0 = [](auto x) { return x >= 0 && std::isfinite(static_cast<double>(x)); };
    const auto at_least_0_or_nan = [&](double x) { return at_least_0(x) || std::isnan(x); };
    read("max_activating_image_values.pt", 2, s.top_values);
    require("max_activating_image_values.pt", s.top_values, "expected a number of at least 0", at_least_0);
    read("max_activating_image_indices.pt", 2, s.top_images);  // floats that must be whole
    require("max_activating_image_indices.pt", s.top_images, "expected an index", at_least_0);
    read("max_activating_image_label_indices.pt", 2, r.top_labels);
    require("max_activating_image_label_indices.pt", r.top_labels, "expected a label", at_least_0);
    for (std::size_t i = 0; i < s.top_values.size(); ++i)
        if (s.top_values[i] == 0) {
            s.top_images[i] = -1;
            r.top_labels[i] = -1;
        }
    read("sae_sparsity.pt", 1, s.image_frequency);
    require("sae_sparsity.pt", s.image_frequency, "expected a fraction", [](double x) { return x >= 0 && x <= 1; });
    read("sae_mean_acts.pt", 1, s.mean_image_score);
    require("sae_mean_acts.pt", s.mean_image_score, "expected a number of at least 0 or NaN", at_least_0_or_nan);
    read("top_entropy.pt", 1, s.label_entropy);
    // -p ln(p + 1e-9) falls below 0 by so much where p is 1.
    require("top_entropy.pt", s.label_entropy, "expected a number of at least 0 or NaN",
            [&](double x) { return at_least_0_or_nan(x + 1e-6); });
    if (const auto path = directory / "cls_sae_cnt.npy"; std::filesystem::exists(path)) {
        const array counts = read_npy(path);
        if (counts.shape.size() != 2 || counts.shape[1] != s.latents)
            throw error("array has another shape", path.string(),
                        "expected [classes, " + std::to_string(s.latents) + "], found " + shape_text(counts.shape));
        r.classes = counts.shape[0];
        r.class_counts = values<double>(counts);
        require("cls_sae_cnt.npy", r.class_counts, "expected a count", at_least_0);
    }
    return r;
}

}  // namespace psae
