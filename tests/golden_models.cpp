#include "golden_models.hpp"

template std::unique_ptr<psae::vision_tower> psae::load_clip_vision<golden_vision, psae::cpu>(
    const std::filesystem::path&, golden_vision, const psae::maple_adapter*, const psae::cpu&);
template psae::clip_text_model psae::load_clip_text<golden_text>(const std::filesystem::path&, golden_text,
                                                                 const psae::maple_adapter*);
