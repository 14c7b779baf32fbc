#pragma once
// The curves of a training run, from its metrics.jsonl.

#include <cstddef>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include <psae/attribution/chart.hpp>
#include <psae/io/json.hpp>

namespace psae {

// Every number of metrics.jsonl over the steps, by its name there. psae::error for a file that is missing or whose
// lines are not JSON objects with a step.
inline std::map<std::string, series> read_training_curves(const std::filesystem::path& metrics) {
    std::ifstream in(metrics);
    if (!in) throw error("file cannot be opened", metrics.string(), "expected the metrics of a training run");
    std::map<std::string, series> curves;
    std::size_t number = 0;
    for (std::string line; std::getline(in, line);) {
        const std::string where = metrics.string() + ", line " + std::to_string(++number);
        const auto json = parse_json(line, where);
        const double step = static_cast<double>(json_size(json, "step", where));
        for (const auto& m : json.GetObject()) {
            if (!m.value.IsNumber()) continue;
            series& s = curves[m.name.GetString()];
            s.x.push_back(step);
            s.y.push_back(m.value.GetDouble());
        }
    }
    return curves;
}

// Draws loss, L0, dead latents and explained variance (with those of the held-out part) into the run's directory, as
// loss.png, l0.png, dead.png and explained_variance.png.
inline void write_training_curves(const std::filesystem::path& directory) {
    struct picture {
        const char *file, *title, *key, *held_out;
    };
    auto curves = read_training_curves(directory / "metrics.jsonl");
    for (const auto& [file, title, key, held_out] :
         {picture{"loss.png", "loss", "loss", ""}, picture{"l0.png", "L0", "l0", "eval_l0"},
          picture{"dead.png", "dead latents", "dead_fraction", ""},
          picture{"explained_variance.png", "explained variance", "explained_variance", "eval_explained_variance"}}) {
        std::vector<series> shown{curves[key]};
        shown[0].name = "training";
        if (const auto found = curves.find(held_out); found != curves.end()) {
            shown.push_back(found->second);
            shown[1].name = "held out";
        }
        write_png(directory / file, to_image(line_plot(title, "step", title, std::move(shown))));
    }
}

}  // namespace psae
