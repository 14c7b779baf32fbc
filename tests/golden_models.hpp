#pragma once
// The configurations of the golden models alone: all that are known by default take a minute to compile. Loading them is
// compiled once, in golden_models.cpp.

#include <psae/vit/load_clip.hpp>

using golden_vision = psae::config_list<psae::clip_tiny_test>;
using golden_text = psae::config_list<psae::clip_text_tiny_test, psae::clip_text_pipeline_test>;

extern template std::unique_ptr<psae::vision_tower> psae::load_clip_vision<golden_vision, psae::cpu>(
    const std::filesystem::path&, golden_vision, const psae::maple_adapter*, const psae::cpu&);
extern template psae::clip_text_model psae::load_clip_text<golden_text>(const std::filesystem::path&, golden_text,
                                                                        const psae::maple_adapter*);
