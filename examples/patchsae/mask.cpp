#include <psae/attribution/picture.hpp>

#include "activations.hpp"

namespace patchsae {

namespace {

struct state {
    common_options common;
    image_options images;
    std::string sae, image, patch, out;
    std::vector<std::size_t> latents;
    std::size_t top = 10;
};

void run(state& s) {
    const auto sae = psae::read_sae(s.sae);
    const psae::cpu device(s.common.threads);
    psae::arena<> scratch;
    s.images.images = {s.image};
    s.images.strict = true;
    each_image_tokens(
        s.images, device,
        [&](const psae::vision_tower& tower, const psae::image_list&, const std::vector<float>& tokens,
            const std::vector<std::size_t>&) {
            require_fit(sae, s.sae, tower.width(), s.images.model);
            const std::size_t grid = tower.grid();
            const auto z = encode_rows(device, scratch, sae, tokens.data(), tower.tokens());
            const auto picture = psae::read_image(s.image, s.images.alpha_mode());
            std::filesystem::create_directories(s.out);
            for (const std::size_t latent : s.latents) {
                if (latent >= sae.d_sae)
                    throw psae::error("no such latent", s.sae, fmt::format("0 to {}, found {}", sae.d_sae - 1, latent));
                const auto map = psae::patch_map(z, 0, grid, latent);
                const auto stem = (std::filesystem::path(s.out) / fmt::format("latent_{}", latent)).string();
                psae::npz_writer npz(stem + ".npz");
                npz.add("map", map.data(), {grid, grid});
                npz.close();
                psae::write_png(stem + ".png", psae::heat_overlay(picture, map, grid, grid));
                if (!s.common.json)
                    fmt::print("latent {}: largest activation {:.5g}: {}.png\n", latent,
                               *std::max_element(map.begin(), map.end()), stem);
            }
            if (s.patch.empty()) return;
            const auto comma = s.patch.find(',');
            std::size_t row = grid, column = grid;
            try {
                row = std::stoul(s.patch.substr(0, comma));
                column = comma == std::string::npos ? grid : std::stoul(s.patch.substr(comma + 1));
            } catch (const std::exception&) {
            }
            if (row >= grid || column >= grid)
                throw psae::error("no such patch", s.patch, fmt::format("R,C with both from 0 to {}", grid - 1));
            for (const auto& [latent, value] : psae::strongest_latents(z, 1 + row * grid + column, s.top))
                fmt::print("{} {:.6g}\n", latent, value);
        });
}

}  // namespace

void add_mask(CLI::App& app) {
    auto* sub = add_command(app, "mask", "where in a picture latents fire",
                            "--model data/tiny-clip --sae run --image cat.png --latent 12 --out masks");
    auto s = std::make_shared<state>();
    s->common.add_to(*sub);
    s->images.add_to(*sub);
    sub->remove_option(sub->get_option("--images"));
    sub->add_option("--sae", s->sae, "SAE directory")->required();
    sub->add_option("--image", s->image, "the picture")->required();
    sub->add_option("--latent", s->latents, "latents to show");
    sub->add_option("--patch", s->patch, "R,C: list the strongest latents of this patch");
    sub->add_option("--top", s->top, "how many latents --patch lists");
    sub->add_option("--out", s->out, "directory to write")->required();
    sub->callback([s, sub] {
        if (s->latents.empty() && s->patch.empty()) throw CLI::RequiredError("--latent or --patch");
        run(*s);
        save_configuration(*sub, s->out);
    });
}

}  // namespace patchsae
