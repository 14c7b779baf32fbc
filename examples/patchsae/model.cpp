#include <optional>

#include <psae/vit/load_clip.hpp>

#include "gpu.hpp"
#include "program.hpp"

namespace patchsae {

namespace {

std::optional<psae::maple_adapter> read_adapter(const std::filesystem::path& path) {
    if (path.empty()) return std::nullopt;
    return std::optional<psae::maple_adapter>(std::in_place, path);
}

}  // namespace

std::unique_ptr<psae::vision_tower> load_model(const std::filesystem::path& directory,
                                               const std::filesystem::path& adapter) {
    const auto adapted = read_adapter(adapter);
#ifdef PATCHSAE_CUDA
    if (chosen_gpu() >= 0)
        return load_gpu_model(directory, adapted ? &*adapted : nullptr, chosen_gpu(), chosen_precision());
#endif
    return psae::load_clip_vision(directory, {}, adapted ? &*adapted : nullptr);
}
psae::clip_text_model load_text_model(const std::filesystem::path& directory, const std::filesystem::path& adapter) {
    const auto adapted = read_adapter(adapter);
    return psae::load_clip_text(directory, {}, adapted ? &*adapted : nullptr);
}

psae::sae_weights load_sae(const std::filesystem::path& path) { return psae::read_sae(path); }

psae::sae_view on_chosen_device(const psae::sae_weights& sae) {
    psae::sae_view view(sae);
#ifdef PATCHSAE_CUDA
    if (chosen_gpu() >= 0) view.remote = load_gpu_sae(sae, chosen_gpu());
#endif
    return view;
}

}  // namespace patchsae

PATCHSAE_ENCODER(psae::relu);
PATCHSAE_ENCODER(psae::top_k);
PATCHSAE_ENCODER(psae::weighted_top_k<float>);
PATCHSAE_ENCODER(psae::above<float>);
PATCHSAE_ENCODER(psae::detail::gate);
