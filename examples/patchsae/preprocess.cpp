#include <psae/vit/load_clip.hpp>

#include "program.hpp"

namespace patchsae {

void add_preprocess(CLI::App& app) {
    auto* sub = add_command(app, "preprocess", "CLIP's preprocessing of pictures: pixels [N,3,S,S] and files",
                            "--model data/tiny-clip --images photos --out pixels.npz");
    struct state {
        common_options common;
        image_options images;
        std::string out;
    };
    auto s = std::make_shared<state>();
    s->common.add_to(*sub);
    s->images.add_to(*sub);
    for (const char* of_towers : {"--adapter", "--preprocess-on"}) sub->remove_option(sub->get_option(of_towers));
    sub->get_option("--images")->required();
    sub->add_option("--out", s->out, "the .npz to write")->required();
    sub->callback([s, sub] {
        prepare_folder_of(s->out);
        const auto list = list_images(s->images);
        const auto numbers = psae::read_clip_numbers(std::filesystem::path(s->images.model) / "config.json");
        const auto how = psae::read_preprocessing(s->images.model, numbers.image);
        const psae::cpu device(s->common.threads);
        std::vector<float> all;
        std::vector<std::string> files;
        const std::size_t skipped =
            each_batch(list, s->images, how, device, 64, [&](const psae::picture_batch& pictures) {
                all.insert(all.end(), pictures.pixels.begin(), pictures.pixels.end());
                for (const std::size_t i : pictures.indices) files.push_back(list.files[i].string());
            });
        psae::npz_writer out(s->out);
        out.add("pixels", all.data(), {files.size(), 3, how.crop, how.crop});
        out.add("files", files);
        out.close();
        save_configuration(*sub, s->out);
        if (s->common.json)
            json_object{}
                .add("images", files.size())
                .add("skipped", skipped)
                .add("size", how.crop)
                .add("out", s->out)
                .print();
        else
            fmt::print("{} pictures of {} x {} pixels, {} skipped: {}\n", files.size(), how.crop, how.crop, skipped,
                       s->out);
    });
}

}  // namespace patchsae
