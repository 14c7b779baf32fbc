#include <psae/vit/load_clip.hpp>

#include "program.hpp"

namespace patchsae {

std::unique_ptr<psae::vision_tower> load_model(const std::filesystem::path& directory) {
    return psae::load_clip_vision(directory);
}

}  // namespace patchsae
