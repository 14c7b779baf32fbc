#pragma once
// The configurations of the golden models alone: all that are known by default take a minute to compile.

#include <psae/vit/clip_config.hpp>

using golden_vision = psae::config_list<psae::clip_tiny_test>;
using golden_text = psae::config_list<psae::clip_text_tiny_test, psae::clip_text_pipeline_test>;
