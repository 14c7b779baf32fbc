#pragma once
// The summary of a data set's latents on disk: latents.npz, which is read again, and latents.csv, for people.

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include <psae/attribution/latent_summary.hpp>
#include <psae/io/dataset.hpp>
#include <psae/io/numpy.hpp>

namespace psae {

struct labelled_summary {
    latent_summary summary;
    std::vector<std::string> files;        // one per image
    std::vector<std::int64_t> labels;      // one per image, -1 for none
    std::vector<std::string> class_names;  // of the labels; empty without labels
};

namespace detail {

// f(name, column) for what the file holds of each latent in float and the summary in double.
template <class Summary, class F>
void each_number_per_latent(Summary& s, const F& f) {
    f("token_frequency", s.token_frequency);
    f("mean_activation", s.mean_activation);
    f("image_frequency", s.image_frequency);
    f("mean_image_score", s.mean_image_score);
    f("label_entropy", s.label_entropy);
    f("label_std", s.label_std);
}

}  // namespace detail

// latents.npz: token_frequency, mean_activation, max_activation, image_frequency, mean_image_score, label_entropy and
// label_std f32 [d_sae]; top_images i32 and top_values f32 [d_sae, top]; files and class_names unicode, labels i64.
inline void write_latents_npz(const std::filesystem::path& path, const labelled_summary& l) {
    const latent_summary& s = l.summary;
    npz_writer npz(path);
    detail::each_number_per_latent(s, [&](const char* name, const std::vector<double>& column) {
        npz.add(name, std::vector<float>(column.begin(), column.end()));
    });
    npz.add("max_activation", s.max_activation);
    npz.add("top_images", s.top_images.data(), {s.latents, s.top});
    npz.add("top_values", s.top_values.data(), {s.latents, s.top});
    npz.add("files", l.files);
    npz.add("labels", l.labels);
    npz.add("class_names", l.class_names);
    npz.close();
}

// Reads latents.npz. Throws psae::error if an array is missing, has another shape than the others ask for, or names
// images or classes that do not exist.
inline labelled_summary read_latents_npz(const std::filesystem::path& path) {
    const auto arrays = read_npz(path);
    const auto get = [&](const char* name) -> const array& {
        const auto found = arrays.find(name);
        if (found == arrays.end())
            throw error("summary of latents lacks an array", path.string() + ", array " + name, "",
                        "the command latents writes it");
        return found->second;
    };
    labelled_summary l;
    latent_summary& s = l.summary;
    const auto& top = get("top_images");
    if (top.shape.size() != 2)
        throw error("array has another shape", path.string() + ", array top_images",
                    "expected [d_sae, top], found " + shape_text(top.shape));
    s.latents = top.shape[0];
    s.top = top.shape[1];
    const auto expect = [&](const char* name, const std::vector<std::size_t>& shape) -> const array& {
        const auto& a = get(name);
        if (a.shape != shape)
            throw error("array has another shape", path.string() + ", array " + name,
                        "expected " + shape_text(shape) + ", found " + shape_text(a.shape));
        return a;
    };
    detail::each_number_per_latent(
        s, [&](const char* name, std::vector<double>& column) { column = values<double>(expect(name, {s.latents})); });
    s.max_activation = to_floats(expect("max_activation", {s.latents}));
    s.top_images = values<std::int32_t>(top);
    s.top_values = to_floats(expect("top_values", {s.latents, s.top}));
    l.files = get("files").strings;
    s.images = l.files.size();
    l.labels = values<std::int64_t>(expect("labels", {s.images}));
    l.class_names = get("class_names").strings;
    for (const std::int32_t image : s.top_images)
        if (image < -1 || image >= static_cast<std::int64_t>(s.images))
            throw error("summary of latents names an image that does not exist", path.string() + ", array top_images",
                        "-1 to " + std::to_string(s.images) + " - 1, found " + std::to_string(image));
    for (const std::int64_t label : l.labels)
        if (label < -1 || label >= static_cast<std::int64_t>(l.class_names.size()))
            throw error("summary of latents names a class that does not exist", path.string() + ", array labels",
                        "-1 to " + std::to_string(l.class_names.size()) + " - 1, found " + std::to_string(label));
    return l;
}

// One row a latent, with its best image.
inline void write_latents_csv(const std::filesystem::path& path, const labelled_summary& l) {
    const latent_summary& s = l.summary;
    const auto number = [](double v) {
        char text[32];
        std::snprintf(text, sizeof text, "%.6g", v);
        return std::string(text);
    };
    std::string csv =
        "latent,token_frequency,mean_activation,max_activation,image_frequency,mean_image_score,label_entropy,"
        "label_std,top_image,top_value,top_label\n";
    for (std::size_t f = 0; f < s.latents; ++f) {
        csv += std::to_string(f);
        for (const double v : {s.token_frequency[f], s.mean_activation[f], double(s.max_activation[f]),
                               s.image_frequency[f], s.mean_image_score[f], s.label_entropy[f], s.label_std[f]})
            csv += "," + number(v);
        const std::int32_t best = s.top == 0 ? -1 : s.top_images[f * s.top];
        if (best < 0) {
            csv += ",,,\n";
            continue;
        }
        const auto image = static_cast<std::size_t>(best);
        csv += "," + detail::quoted_field(l.files[image]) + "," + number(double(s.top_values[f * s.top])) + "," +
               (l.labels[image] < 0 ? ""
                                    : detail::quoted_field(l.class_names[static_cast<std::size_t>(l.labels[image])])) +
               "\n";
    }
    write_text(path, csv);
}

}  // namespace psae
