#include <psae/vit/load_clip.hpp>

#include "program.hpp"

namespace patchsae {

std::unique_ptr<psae::vision_tower> load_model(const std::filesystem::path& directory) {
    return psae::load_clip_vision(directory);
}
psae::clip_text_model load_text_model(const std::filesystem::path& directory) {
    return psae::load_clip_text(directory);
}

}  // namespace patchsae
