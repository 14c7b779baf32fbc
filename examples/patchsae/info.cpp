#include "program.hpp"

namespace patchsae {

void add_info(CLI::App& app) {
    auto* sub = app.add_subcommand(
        "info", "what a model, SAE or result file is; checks it whole\n  patchsae info data/tiny-clip");
    auto path = std::make_shared<std::string>();
    auto common = std::make_shared<common_options>();
    sub->add_option("path", *path, "directory or file")->required();
    common->add_to(*sub);
    sub->callback([path, common] {
        const std::filesystem::path p(*path);
        if (!std::filesystem::exists(p)) throw psae::error("no such file or directory", *path);
        const auto directory = std::filesystem::is_directory(p) ? p : p.parent_path();
        if (p.extension() == ".npz") {
            const auto arrays = psae::read_npz(p);
            for (const auto& [name, a] : arrays) fmt::print("{} {}\n", name, psae::shape_text(a.shape));
        } else if (p.extension() == ".npy") {
            fmt::print("array {}\n", psae::shape_text(psae::read_npy(p).shape));
        } else if (std::filesystem::exists(directory / "cfg.json")) {
            const auto s = psae::read_sae(p);
            if (common->json)
                fmt::print("{{\"kind\": \"sae\", \"architecture\": \"{}\", \"d_in\": {}, \"d_sae\": {}, \"k\": {}}}\n",
                           s.architecture, s.d_in, s.d_sae, s.k);
            else
                fmt::print("SAE: {}, d_in {}, d_sae {}{}\n", s.architecture, s.d_in, s.d_sae,
                           s.k > 0 ? fmt::format(", k {}", s.k) : "");
        } else if (p.extension() == ".safetensors") {
            const psae::safetensors_file file(p);
            for (const auto& e : file.entries()) fmt::print("{} {}\n", e.name, psae::shape_text(e.shape));
        } else {
            const auto t = psae::load_clip_vision(p);
            if (common->json)
                fmt::print(
                    "{{\"kind\": \"clip\", \"name\": \"{}\", \"image\": {}, \"tokens\": {}, \"width\": {}, \"layers\": "
                    "{}, \"projection\": {}}}\n",
                    t->name(), t->image_size(), t->tokens(), t->width(), t->layers(), t->projection());
            else
                fmt::print("CLIP vision tower {}: {} pixels, {} tokens of width {}, {} layers, projection {}\n",
                           t->name(), t->image_size(), t->tokens(), t->width(), t->layers(), t->projection());
        }
    });
}

}  // namespace patchsae
