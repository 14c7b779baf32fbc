#pragma once
// preprocessor_config.json of a Hugging Face directory.

#include <cmath>

#include <psae/io/json.hpp>
#include <psae/vit/preprocess.hpp>

namespace psae {

// CLIP's values for `side` pixels where the file or a field is missing. psae::error for a file that asks for another
// preprocessing than preprocess() is: another filter than bicubic, a step left out, a resize that does not keep the
// aspect ratio, a crop that is not what the model takes.
inline preprocessing read_preprocessing(const std::filesystem::path& directory, std::size_t side) {
    preprocessing p;
    p.shortest_edge = p.crop = side;
    const auto path = directory / "preprocessor_config.json";
    if (!std::filesystem::exists(path)) return p;
    const auto json = read_json(path);
    const std::string where = path.string();
    const auto refuse = [&](const std::string& key, const std::string& expected, const rapidjson::Value& value) {
        throw error("this preprocessing is not implemented", where + ", key " + key,
                    "expected " + expected + ", " + detail::found_json(value));
    };
    for (const char* step : {"do_resize", "do_center_crop", "do_rescale", "do_normalize"})
        if (!json_bool(json, step, true, where)) refuse(step, "true", *find_member(json, step));
    if (json_number(json, "resample", 3, where) != 3) refuse("resample", "3 (bicubic)", *find_member(json, "resample"));
    if (std::abs(json_number(json, "rescale_factor", 1.0 / 255, where) * 255 - 1) > 1e-6)
        refuse("rescale_factor", "1/255", *find_member(json, "rescale_factor"));
    // A number, or an object of exactly these keys with one number for all.
    const auto extent = [&](const char* key, const std::string& expected, std::initializer_list<const char*> inner) {
        const auto* v = find_member(json, key);
        if (v == nullptr) return side;
        if (v->IsObject()) {
            const auto* first = find_member(*v, *inner.begin());
            for (const char* name : inner)
                if (v->MemberCount() != inner.size() || find_member(*v, name) == nullptr ||
                    *find_member(*v, name) != *first)
                    refuse(key, expected, *v);
            v = first;
        }
        if (!v->IsNumber()) refuse(key, expected, *v);
        const double n = v->GetDouble();
        if (!(n >= 1 && n <= 16384) || n != std::floor(n))
            throw error("configuration field is out of range", where + ", key " + key,
                        "expected an integer from 1 to 16384, " + detail::found_json(*v));
        return static_cast<std::size_t>(n);
    };
    p.shortest_edge = extent("size", "a number or {\"shortest_edge\": N}", {"shortest_edge"});
    p.crop = extent("crop_size", "a number or {\"height\": N, \"width\": N}", {"height", "width"});
    const auto numbers = [&](const char* key, float* out) {
        const auto* v = find_member(json, key);
        if (v == nullptr) return;
        if (!v->IsArray() || v->Size() != 3 || !(*v)[0].IsNumber() || !(*v)[1].IsNumber() || !(*v)[2].IsNumber())
            throw error("configuration field is not three numbers", where + ", key " + key);
        for (rapidjson::SizeType c = 0; c < 3; ++c) {
            out[c] = static_cast<float>((*v)[c].GetDouble());
            if (!std::isfinite(out[c]) || (out == p.std && !(out[c] > 0)))
                throw error("configuration field is out of range", where + ", key " + key,
                            (out == p.std ? "expected numbers above 0, " : "expected finite numbers, ") +
                                detail::found_json(*v));
        }
    };
    numbers("image_mean", p.mean);
    numbers("image_std", p.std);
    if (p.crop != side)
        throw error("preprocessing and model disagree", where + ", key crop_size",
                    "the model takes " + std::to_string(side) + " pixels, found " + std::to_string(p.crop));
    return p;
}

}  // namespace psae
