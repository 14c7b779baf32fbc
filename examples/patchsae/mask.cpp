#include <charconv>

#include <psae/attribution/picture.hpp>

#include "activations.hpp"

namespace patchsae {

namespace {

struct state {
    common_options common;
    image_options images;
    std::string sae, image, patch, out, style = "heat";
    std::vector<std::size_t> latents;
    std::size_t top = 10;
};

// "R,C" as the number of a patch of a grid.
std::size_t patch_number(const std::string& text, std::size_t grid) {
    std::size_t row = grid, column = grid;
    const char *begin = text.data(), *end = begin + text.size();
    const auto first = std::from_chars(begin, end, row);
    if (first.ec == std::errc{} && first.ptr != end && *first.ptr == ',') {
        const auto second = std::from_chars(first.ptr + 1, end, column);
        if (second.ec != std::errc{} || second.ptr != end) column = grid;
    }
    if (row >= grid || column >= grid)
        throw psae::error("no such patch", "--patch " + text, fmt::format("R,C with both from 0 to {}", grid - 1));
    return row * grid + column;
}

void run(state& s) {
    const auto weights = load_sae(s.sae);
    const auto sae = on_chosen_device(weights);
    s.images.take_layer(sae.origin);
    for (const std::size_t f : s.latents)
        if (f >= sae.d_sae)
            throw psae::error("no such latent", s.sae, fmt::format("0 to {}, found {}", sae.d_sae - 1, f));
    const psae::cpu device(s.common.threads);
    psae::arena<> scratch;
    s.images.images = {s.image};
    s.images.strict = true;
    each_image_tokens(
        list_images(s.images), s.images, device,
        [&](const psae::vision_tower& tower, std::span<const float> tokens, std::span<const std::size_t>) {
            require_fit(sae, s.sae, tower.width(), s.images.model);
            const std::size_t grid = tower.grid();
            const auto z = encode_rows(device, scratch, sae, tokens.data(), tower.image_tokens());
            std::vector<std::pair<std::size_t, float>> strongest;
            if (!s.patch.empty()) strongest = psae::strongest_latents(z, 1 + patch_number(s.patch, grid), s.top);
            const auto picture = psae::read_image(s.image, s.images.alpha_mode());
            const auto how = psae::read_preprocessing(s.images.model, tower.image_size());
            const auto seen = psae::seen_by_model(picture.width, picture.height, how);
            std::string masks;
            if (!s.latents.empty()) std::filesystem::create_directories(s.out);
            for (const std::size_t f : s.latents) {
                const auto map = psae::patch_map(z, 0, grid, f);
                const auto stem = (std::filesystem::path(s.out) / fmt::format("latent_{}", f)).string();
                psae::npz_writer npz(stem + ".npz");
                npz.add("map", map.data(), {grid, grid});
                npz.close();
                psae::write_png(stem + ".png", s.style == "darken"
                                                   ? psae::darken_silent(picture, map, grid, grid)
                                                   : psae::heat_overlay(picture, map, grid, grid, seen));
                const float largest = *std::max_element(map.begin(), map.end());
                if (s.common.json)
                    masks += fmt::format("{}{{\"latent\": {}, \"max_activation\": {:.9g}}}", masks.empty() ? "" : ", ",
                                         f, largest);
                else fmt::print("latent {}: largest activation {:.5g}: {}.png\n", f, largest, stem);
            }
            std::string listed;
            for (const auto& [f, value] : strongest) {
                if (s.common.json)
                    listed += fmt::format("{}{{\"latent\": {}, \"activation\": {:.9g}}}", listed.empty() ? "" : ", ", f,
                                          value);
                else fmt::print("{} {:.6g}\n", f, value);
            }
            if (s.common.json) fmt::print("{{\"masks\": [{}], \"strongest\": [{}]}}\n", masks, listed);
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
    sub->add_option("--sae", s->sae, "SAE: directory or file of any format (see convert)")->required();
    sub->add_option("--image", s->image, "the picture")->required();
    sub->add_option("--latent", s->latents, "latents to show");
    sub->add_option("--patch", s->patch, "R,C: list the strongest latents of this patch");
    sub->add_option("--top", s->top, "how many latents --patch lists");
    sub->add_option("--style", s->style,
                    "heat: brightness by strength, over the part the model sees; darken: PatchSAE's pictures, silent "
                    "patches dark, over the whole")
        ->check(CLI::IsMember({"heat", "darken"}));
    sub->add_option("--out", s->out, "directory to write; needed by --latent");
    sub->callback([s, sub] {
        if (s->latents.empty() && s->patch.empty()) throw CLI::RequiredError("--latent or --patch");
        if (!s->latents.empty() && s->out.empty()) throw CLI::RequiredError("--out");
        run(*s);
        if (!s->latents.empty()) save_configuration(*sub, s->out);
    });
}

}  // namespace patchsae
