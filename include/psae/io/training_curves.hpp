#pragma once
// The curves of a training run, from its metrics.jsonl: one JSON object a step, whose numbers are `step`, `loss` and its
// terms, `l0`, `explained_variance`, `dead_fraction`, `lr`, perhaps `resampled`, and eval_NAME for values of NAME on
// held-out tokens.

#include <cmath>
#include <cstddef>
#include <filesystem>
#include <limits>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <psae/attribution/chart.hpp>
#include <psae/io/json.hpp>

namespace psae {

// Columns of equal length; NaN where a step has no such number.
using training_curves = std::map<std::string, std::vector<double>>;

// Throws psae::error for a line that is no JSON object with a number `step`; a last line without an end is what a
// killed run leaves, and is passed over.
inline training_curves read_training_curves(const std::filesystem::path& path) {
    constexpr double nan = std::numeric_limits<double>::quiet_NaN();
    const file_bytes bytes(path);
    std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    training_curves curves{{"step", {}}};
    for (std::size_t row = 0; !text.empty(); ++row) {
        const auto end = text.find('\n');
        if (end == std::string_view::npos) break;
        const std::string where = path.string() + ", line " + std::to_string(row + 1);
        const auto json = parse_json(text.substr(0, end), where);
        text.remove_prefix(end + 1);
        const auto* step = find_member(json, "step");
        if (step == nullptr || !step->IsNumber())
            throw error("line of metrics has no step", where, "expected an object with a number step");
        for (const auto& m : json.GetObject())
            if (m.value.IsNumber()) {
                auto& column = curves[m.name.GetString()];
                column.resize(row, nan);
                column.push_back(m.value.GetDouble());
            }
        for (auto& [name, column] : curves) column.resize(row + 1, nan);
    }
    return curves;
}

// Loss and terms, L0, explained variance, dead fraction, as far as they are there.
inline std::vector<named_chart> charts_of(const training_curves& curves) {
    const auto line = [&](const std::string& key, std::string name) {
        series s{std::move(name), {}, {}};
        const auto found = curves.find(key);
        if (found == curves.end()) return s;
        const auto& step = curves.at("step");
        for (std::size_t i = 0; i < step.size(); ++i)
            if (std::isfinite(found->second[i])) s.x.push_back(step[i]), s.y.push_back(found->second[i]);
        return s;
    };
    std::vector<named_chart> charts;
    const auto add = [&](const char* file, const char* title, std::vector<series> data) {
        std::erase_if(data, [](const series& s) { return s.x.empty(); });
        if (data.empty()) return;
        if (data.size() == 1) data[0].name.clear();
        chart c = line_plot(title, "step", "", std::move(data));
        c.width = 440, c.height = 290;
        charts.push_back({file, std::move(c)});
    };
    std::vector<series> losses{line("loss", "loss")};
    for (const auto& [key, column] : curves) {
        const bool named = key == "step" || key == "loss" || key == "l0" || key == "explained_variance" ||
                           key == "dead_fraction" || key == "lr" || key == "tokens_per_s" || key == "resampled";
        if (!named && !key.starts_with("eval_")) losses.push_back(line(key, key));
    }
    if (losses.size() == 2) losses.pop_back();  // a single term is the loss itself
    // A loss falls by orders of magnitude; terms of zero leave gaps on the logarithmic axis.
    add("loss", "Loss", std::move(losses));
    if (!charts.empty()) charts.back().drawing.log_y = true;
    add("l0", "L0: latents active per token", {line("l0", "training"), line("eval_l0", "held out")});
    add("explained_variance", "Explained variance",
        {line("explained_variance", "training"), line("eval_explained_variance", "held out")});
    add("dead", "Dead latents, fraction", {line("dead_fraction", "training")});
    return charts;
}

// Draws them as loss.png, l0.png, explained_variance.png and dead.png into the directory of a run, from its
// metrics.jsonl. Throws as read_training_curves.
inline void write_training_curves(const std::filesystem::path& directory) {
    for (const auto& [file, drawing] : charts_of(read_training_curves(directory / "metrics.jsonl")))
        write_png(directory / (file + ".png"), to_image(drawing));
}

}  // namespace psae
