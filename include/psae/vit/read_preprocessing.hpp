#pragma once
// preprocessor_config.json of a Hugging Face directory.

#include <psae/io/json.hpp>
#include <psae/vit/preprocess.hpp>

namespace psae {

// CLIP's values for `side` pixels where the file or a field is missing.
inline preprocessing read_preprocessing(const std::filesystem::path& directory, std::size_t side) {
    preprocessing p;
    p.shortest_edge = p.crop = side;
    const auto path = directory / "preprocessor_config.json";
    if (!std::filesystem::exists(path)) return p;
    const auto json = read_json(path);
    const std::string where = path.string();
    const auto extent = [&](const char* key, const char* inner, std::size_t otherwise) {
        const auto* v = find_member(json, key);
        if (v == nullptr) return otherwise;
        const double n = v->IsObject() ? json_number(*v, inner, double(otherwise), where)
                                       : json_number(json, key, double(otherwise), where);
        if (!(n >= 1 && n <= 16384))
            throw error("configuration field is out of range", where + ", key " + key, "1 to 16384");
        return static_cast<std::size_t>(n);
    };
    p.shortest_edge = extent("size", "shortest_edge", side);
    p.crop = extent("crop_size", "height", side);
    const auto numbers = [&](const char* key, float* out) {
        const auto* v = find_member(json, key);
        if (v == nullptr) return;
        if (!v->IsArray() || v->Size() != 3 || !(*v)[0].IsNumber() || !(*v)[1].IsNumber() || !(*v)[2].IsNumber())
            throw error("configuration field is not three numbers", where + ", key " + key);
        for (rapidjson::SizeType c = 0; c < 3; ++c) out[c] = static_cast<float>((*v)[c].GetDouble());
    };
    numbers("image_mean", p.mean);
    numbers("image_std", p.std);
    if (p.crop != side)
        throw error("preprocessing and model disagree", where + ", key crop_size",
                    "the model takes " + std::to_string(side) + " pixels, found " + std::to_string(p.crop));
    return p;
}

}  // namespace psae
