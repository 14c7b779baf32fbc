#pragma once
// Class-level latents of pictures, and on disk: class_latents.npz, which is read again, and class_latents.csv, for
// people.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <psae/attribution/class_latents.hpp>
#include <psae/io/image_activations.hpp>
#include <psae/io/numpy.hpp>
#include <psae/sae/sae_in_place.hpp>

namespace psae {

// Adds all pictures that can be read to the counts, by the tokens of hidden state `layer` (without prompts, see
// tokens_of_images). class_of_label: a class, or -1 (its pictures do not count), for each label of the list.
// progress(pictures behind the batch): what it throws ends the work. psae::error as require_fit and encode_rows.
inline void count_class_latents(
    const cpu& device, const vision_tower& tower, picture_reader& pictures,
    std::span<const std::int32_t> class_of_label, const sae_view& sae, std::size_t layer, class_latent_counter& counter,
    const std::function<void(std::size_t)>& progress = [](std::size_t) {}) {
    require_fit(tower, sae);
    require_fit(pictures.list(), class_of_label, counter.counts().classes);
    const auto in_place = put_in_place(device, tower, layer, sae);
    const auto at = [&](arena<>& scratch, const hooked_tokens& h) {
        in_place->take(h.tokens, h.pictures.size(), h.there);
        for (std::size_t i = 0; i < h.pictures.size(); ++i) {
            const auto mark = scratch.position();
            const std::int32_t of = class_of(pictures.list(), h.pictures[i], class_of_label);
            counter.add(in_place->codes(scratch, i), tower.image_tokens(), {&of, 1});
            scratch.release_to(mark);
        }
    };
    each_hooked(device, tower, pictures, std::span(&layer, 1), at, progress);
}

struct named_class_latents {
    class_latent_counts counts;
    std::vector<std::string> classes;  // their names
};

// class_latents.npz: counts u32 [classes, d_sae], classes unicode, images u32 [classes], tau f64, what (a name of
// class_count), tokens_per_image i64. Deflated: most counts are 0.
inline void write_class_latents_npz(const std::filesystem::path& path, const named_class_latents& l) {
    const class_latent_counts& c = l.counts;
    const auto tokens = static_cast<std::int64_t>(c.tokens_per_image);
    npz_writer npz(path, true);
    npz.add("counts", std::span(c.count), {c.classes, c.latents});
    npz.add("classes", l.classes);
    npz.add("images", c.images);
    npz.add("tau", &c.tau, {});
    npz.add_bytes("what", std::string(class_count_names[static_cast<std::size_t>(c.what)]));
    npz.add("tokens_per_image", &tokens, {});
    npz.close();
}

// psae::error if an array is missing or does not fit the others, and for counts that cannot be.
inline named_class_latents read_class_latents_npz(const std::filesystem::path& path) {
    const auto where = [&](const char* name) { return path.string() + ", array " + name; };
    const auto arrays = read_npz(path);
    const auto get = [&](const char* name) -> const array& {
        const auto found = arrays.find(name);
        if (found == arrays.end())
            throw error("class-level latents lack an array", where(name), "", "the command classes writes it");
        return found->second;
    };
    const auto expect = [&](const char* name, const std::vector<std::size_t>& shape) -> const array& {
        const array& a = get(name);
        if (a.shape != shape)
            throw error("array has another shape", where(name),
                        "expected " + shape_text(shape) + ", found " + shape_text(a.shape));
        return a;
    };
    named_class_latents l;
    class_latent_counts& c = l.counts;
    const array& counts = get("counts");
    if (counts.shape.size() != 2 || counts.size() == 0)
        throw error("array has another shape", where("counts"),
                    "expected [classes, d_sae], found " + shape_text(counts.shape));
    c.classes = counts.shape[0];
    c.latents = counts.shape[1];
    c.count = values<std::uint32_t>(counts);
    c.images = values<std::uint32_t>(expect("images", {c.classes}));
    l.classes = expect("classes", {c.classes}).strings;
    if (l.classes.size() != c.classes) throw error("array holds no strings", where("classes"));
    c.tau = values<double>(expect("tau", {}))[0];
    if (!(c.tau >= 0 && std::isfinite(c.tau)))
        throw error("threshold of class-level latents is out of range", where("tau"),
                    "expected a number not below 0, found " + std::to_string(c.tau));
    const auto tokens = values<std::int64_t>(expect("tokens_per_image", {}))[0];
    if (tokens < 1 || tokens > 1'000'000)
        throw error("number of tokens is out of range", where("tokens_per_image"), "found " + std::to_string(tokens));
    c.tokens_per_image = static_cast<std::size_t>(tokens);
    const auto& what = expect("what", {}).strings;
    const auto named = std::find(class_count_names.begin(), class_count_names.end(), what.empty() ? "" : what[0]);
    if (named == class_count_names.end())
        throw error("it is not known what was counted", where("what"), "expected images, images_max or tokens");
    c.what = static_cast<class_count>(named - class_count_names.begin());
    for (std::size_t k = 0; k < c.classes; ++k)
        for (std::size_t f = 0; f < c.latents; ++f)
            if (c.of_class(k)[f] > c.possible(k))
                throw error("a latent fires on more than there is", where("counts"),
                            "at most " + std::to_string(c.possible(k)) + " for class " + std::to_string(k) +
                                ", latent " + std::to_string(f) + "; found " + std::to_string(c.of_class(k)[f]));
    return l;
}

// A row for each latent of the ranking that fires on its class.
inline void write_class_latents_csv(const std::filesystem::path& path, const named_class_latents& l,
                                    const latent_ranking& ranking) {
    const auto fires = l.counts.of_all();
    const std::uint64_t possible = l.counts.possible_of_all();
    std::string csv = "class,rank,latent,count,frequency,share,class_share,npmi,phi\n";
    for (std::size_t c = 0; c < ranking.classes; ++c)
        for (std::size_t i = 0; i < ranking.top; ++i) {
            const std::uint32_t f = ranking.of_class(c)[i],
                                count = f == latent_ranking::none ? 0 : l.counts.of_class(c)[f];
            if (count == 0) break;
            const auto a = association_of(l.counts, c, f, fires[f], possible);
            char numbers[128];
            std::snprintf(numbers, sizeof numbers, ",%.6g,%.6g,%.6g,%.6g,%.6g\n", a.frequency, a.share, a.class_share,
                          a.npmi, a.phi);
            csv += detail::quoted_field(l.classes[c]) + "," + std::to_string(i + 1) + "," + std::to_string(f) + "," +
                   std::to_string(count) + numbers;
        }
    write_text(path, csv);
}

}  // namespace psae
