#include "reference_images.hpp"

#include <map>

#include "activations.hpp"

namespace patchsae {

namespace {

// Where an image is wanted: the place in the result.
struct want {
    std::size_t latent, place;
};

// Large enough for a grid and for screens with two pixels a point, small enough to keep hundreds.
constexpr std::size_t side = 176;

}  // namespace

std::vector<std::vector<psae::reference_image>> reference_images(const image_options& options, const psae::cpu& device,
                                                                 const psae::sae_view& sae,
                                                                 const psae::labelled_summary& latents,
                                                                 const std::vector<std::size_t>& chosen,
                                                                 std::size_t count, std::size_t& missing) {
    const auto& s = latents.summary;
    count = std::min(count, s.top);
    std::vector<std::vector<psae::reference_image>> found(chosen.size());
    std::map<std::string, std::vector<want>> wanted;
    for (std::size_t c = 0; c < chosen.size(); ++c)
        for (std::size_t j = 0; j < count; ++j) {
            const std::int32_t image = s.top_images[chosen[c] * s.top + j];
            if (image < 0) continue;
            psae::reference_image r;
            r.file = latents.files[static_cast<std::size_t>(image)];
            r.score = s.top_values[chosen[c] * s.top + j];
            if (const auto label = latents.labels[static_cast<std::size_t>(image)]; label >= 0)
                r.label = latents.class_names[static_cast<std::size_t>(label)];
            wanted[r.file].push_back({c, found[c].size()});
            found[c].push_back(std::move(r));
        }

    // Not listed anew: a path of a table may have any ending.
    psae::image_list list;
    for (const auto& [file, places] : wanted) {
        std::error_code failure;
        if (std::filesystem::is_regular_file(file, failure)) list.files.push_back(file), list.labels.push_back(-1);
    }
    image_options these = options;
    these.strict = false;
    these.none_allowed = true;
    const auto set_picture = [&](const std::string& file, const psae::image& seen) {
        for (const want& w : wanted.at(file))
            found[w.latent][w.place].picture =
                psae::fit_into(seen, std::min(side, seen.width), std::min(side, seen.height));
    };
    if (options.model.empty()) {
        for (const auto& file : list.files) try {
                set_picture(file.string(), psae::read_image(file, these.alpha_mode()));
            } catch (const psae::error&) {
            }
    } else if (!list.files.empty()) {
        psae::arena<> scratch;
        each_image_tokens(
            list, these, device,
            [&](const psae::vision_tower& tower, std::span<const float> tokens, std::span<const std::size_t> which) {
                require_fit(sae, "the SAE", tower.width(), options.model);
                const auto how = psae::read_preprocessing(options.model, tower.image_size());
                scratch.reset();
                const std::size_t T = tower.image_tokens();
                encode_in_batches(
                    device, scratch, sae, tokens.data(), which.size() * T, T, [&](std::size_t row, const auto& z) {
                        for (std::size_t i = 0; i < z.tokens / T; ++i) {
                            const std::string file = list.files[which[row / T + i]].string();
                            const auto picture = psae::read_image(file, these.alpha_mode());
                            set_picture(
                                file, psae::cut_out(picture, psae::seen_by_model(picture.width, picture.height, how)));
                            for (const want& w : wanted.at(file)) {
                                auto& r = found[w.latent][w.place];
                                r.map = psae::patch_map(z, i * T, tower.grid(), chosen[w.latent]);
                                r.rows = r.cols = tower.grid();
                            }
                        }
                    });
            });
    }
    missing = 0;
    for (auto& images : found)
        missing += std::erase_if(images, [](const psae::reference_image& r) { return r.picture.width == 0; });
    return found;
}

}  // namespace patchsae
