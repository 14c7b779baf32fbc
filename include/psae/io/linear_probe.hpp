#pragma once
// A linear probe: a head of its own on the image embeddings, in place of the embeddings of class names.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <filesystem>
#include <string>
#include <vector>

#include <psae/io/numpy.hpp>
#include <psae/vit/zero_shot.hpp>

namespace psae {

// Reads an .npz: weight [classes, projection], so that logits = weight e + bias for an image embedding e of unit length;
// bias [classes], if there is one; classes, the names of the rows, if they do not come in the order of `classes`.
// psae::error for other shapes, numbers that are not finite, and a class without a row.
inline zero_shot_classifier read_linear_probe(const std::filesystem::path& path,
                                              const std::vector<std::string>& classes, std::size_t projection) {
    const auto arrays = read_npz(path);
    const auto where = [&](const char* name) { return path.string() + ", array " + name; };
    const auto numbers = [&](const char* name, const std::vector<std::size_t>& shape) {
        const array& a = arrays.at(name);
        if (a.shape != shape || !a.strings.empty())
            throw error("array has another shape", where(name),
                        "expected " + shape_text(shape) + ", found " + shape_text(a.shape));
        auto values = to_floats(a);
        if (!std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(v); }))
            throw error("value is not finite", where(name));
        return values;
    };
    if (!arrays.contains("weight")) throw error("linear probe has no weights", where("weight"));
    std::vector<std::string> rows = classes;
    if (const auto named = arrays.find("classes"); named != arrays.end()) {
        rows = named->second.strings;
        if (named->second.shape != std::vector{rows.size()} || rows.empty())
            throw error("array holds no names of classes", where("classes"),
                        "expected strings [classes], found " + shape_text(named->second.shape));
        auto sorted = rows;
        std::sort(sorted.begin(), sorted.end());
        if (const auto twice = std::adjacent_find(sorted.begin(), sorted.end()); twice != sorted.end())
            throw error("linear probe names a class twice", where("classes"), *twice);
    }
    const auto weight = numbers("weight", {rows.size(), projection});
    const auto bias = arrays.contains("bias") ? numbers("bias", {rows.size()}) : std::vector<float>(rows.size(), 0.0f);
    zero_shot_classifier probe{classes, {}, 1, {}};
    for (const std::string& name : classes) {
        const auto row = std::find(rows.begin(), rows.end(), name) - rows.begin();
        if (std::size_t(row) == rows.size())
            throw error("linear probe does not have a class", where("classes"), "expected " + name);
        const auto from = weight.begin() + row * std::ptrdiff_t(projection);
        probe.embeddings.insert(probe.embeddings.end(), from, from + std::ptrdiff_t(projection));
        probe.bias.push_back(bias[std::size_t(row)]);
    }
    return probe;
}

}  // namespace psae
