#pragma once
// PatchSAE's pictures of a data set's latents: the scatter plots of all, and for one latent its reference images. And
// which latents of an image speak for and against a class.

#include <cmath>
#include <cstddef>
#include <cstdio>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <psae/attribution/chart.hpp>
#include <psae/attribution/latent_summary.hpp>
#include <psae/attribution/picture.hpp>

namespace psae {

// log10 of the activation frequency (fraction of tokens) against log10 of the mean positive activation, one point a
// latent that fires, coloured by label entropy and by label standard deviation where labels exist: one chart for each.
inline std::vector<named_chart> latent_scatter_plots(const latent_summary& s) {
    series points;
    std::vector<double> entropy, deviation;
    bool labelled = false;
    for (std::size_t f = 0; f < s.latents; ++f) {
        if (!(s.token_frequency[f] > 0)) continue;
        points.x.push_back(std::log10(s.token_frequency[f]));
        points.y.push_back(std::log10(s.mean_activation[f]));
        entropy.push_back(s.label_entropy[f]);
        deviation.push_back(s.label_std[f]);
        labelled = labelled || std::isfinite(s.label_entropy[f]);
    }
    const auto plot = [&](const char* title, const char* value_label, const std::vector<double>& value) {
        chart c = scatter_plot(title, "log10 activation frequency", "log10 mean activation", {points});
        c.data[0].value = value;
        c.value_label = value_label;
        c.width = 440, c.height = 380;
        return c;
    };
    if (!labelled) return {{"scatter", plot("Latents", "", {})}};
    return {{"scatter_label_entropy", plot("Latents by label entropy", "entropy", entropy)},
            {"scatter_label_std", plot("Latents by label standard deviation", "std", deviation)}};
}

// One of the top images of a latent: what the model saw of it, and the latent's map over that (empty: not known).
struct reference_image {
    image picture;
    std::vector<float> map;  // [rows, cols]
    std::size_t rows = 0, cols = 0;
    float score = 0;  // of the whole image, as in the summary
    std::string file, label;
};

// Strength 1 of the maps of one latent's images: the largest value of all of them.
inline float largest_of_maps(std::span<const reference_image> images) {
    float largest = 0;
    for (const reference_image& r : images)
        for (const float v : r.map) largest = std::max(largest, v);
    return largest;
}

// "mean activation 12.3 on 0.4% of tokens, 5.1% of images, entropy 0.21": the mean is over the tokens where it fires,
// the entropy that of the labels of its top images, left out where there are none.
inline std::string describe_latent(const latent_summary& s, std::size_t f) {
    char text[160];
    const int n = std::snprintf(text, sizeof text, "mean activation %.3g on %.3g%% of tokens, %.3g%% of images",
                                s.mean_activation[f], 100 * s.token_frequency[f], 100 * s.image_frequency[f]);
    if (std::isfinite(s.label_entropy[f]))
        std::snprintf(text + n, sizeof text - static_cast<std::size_t>(n), ", entropy %.2f", s.label_entropy[f]);
    return text;
}

// The images in rows of five, each row plain and below it with the maps over it; captions are score and label.
// psae::error without images.
inline image reference_grid(const std::string& title, std::span<const reference_image> images) {
    constexpr std::size_t columns = 5, cell = 176;
    const float largest = largest_of_maps(images);
    std::vector<image> cells;
    std::vector<std::string> captions;
    for (std::size_t first = 0; first < images.size(); first += columns) {
        const auto row = images.subspan(first, std::min(columns, images.size() - first));
        for (const bool overlaid : {false, true}) {
            for (const reference_image& r : row) {
                // Enlarged before the map is laid over it, so that patches have sharp borders.
                image enlarged = fit_into(r.picture, cell, cell);
                char score[32];
                std::snprintf(score, sizeof score, "%.3g ", static_cast<double>(r.score));
                captions.push_back(overlaid ? "" : score + r.label);
                cells.push_back(overlaid && !r.map.empty() ? heat_overlay(enlarged, r.map, r.rows, r.cols, {}, largest)
                                                           : std::move(enlarged));
            }
            while (cells.size() % columns != 0 && images.size() > columns) {
                cells.push_back(blank_image(cell, cell));
                captions.emplace_back();
            }
        }
    }
    return thumbnail_grid(cells, captions, {.columns = std::min(columns, images.size()), .cell = cell, .title = title});
}

// A latent's attributions on the patches of an image.
struct attribution_map {
    std::vector<float> map;  // [rows, cols]
    std::string caption;
};

// What the model saw of an image (square) and the latents that speak for a class in a row beside it; below them the sum
// of all latents and those that speak against it. Orange patches speak for the class, blue ones against it; the latents
// share one scale. At most four of either are shown. psae::error for maps of another size.
inline image attribution_grid(const std::string& title, const image& picture, const attribution_map& sum,
                              std::span<const attribution_map> latents_for,
                              std::span<const attribution_map> latents_against, std::size_t rows, std::size_t cols) {
    constexpr std::size_t most = 4, cell = 240;
    const image enlarged = fit_into(picture, cell, cell);
    float largest = 0;
    for (const auto latents : {latents_for, latents_against})
        for (const attribution_map& l : latents)
            for (const float v : l.map) largest = std::max(largest, std::abs(v));
    std::vector<image> cells;
    std::vector<std::string> captions;
    const auto add = [&](const attribution_map& m, float scale) {
        cells.push_back(signed_overlay(enlarged, m.map, rows, cols, {}, scale));
        captions.push_back(m.caption);
    };
    for (const bool against : {false, true}) {
        if (against) {
            add(sum, 0);
        } else {
            cells.push_back(enlarged);
            captions.emplace_back();
        }
        const auto latents = against ? latents_against : latents_for;
        for (std::size_t i = 0; i < most; ++i) {
            if (i < latents.size()) {
                add(latents[i], largest);
            } else {
                cells.push_back(blank_image(cell, cell));
                captions.emplace_back();
            }
        }
    }
    return thumbnail_grid(cells, captions, {.columns = most + 1, .cell = cell, .title = title});
}

}  // namespace psae
