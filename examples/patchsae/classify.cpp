// Zero-shot classification, plain and with an SAE's reconstruction in place.

#include "zero_shot.hpp"

namespace patchsae {

namespace {

struct state {
    common_options common;
    image_options images;
    zero_shot_options zero_shot;
    std::string sae, out;
    std::size_t top = 5;
};

// The best classes with their probabilities, as fields of a .csv: softmax over all classes.
std::string best_fields(std::span<const float> logits, std::size_t count, const std::vector<std::string>& names) {
    const auto best = psae::best_classes(logits, count);
    double sum = 0;
    for (const float v : logits) sum += std::exp(double(v) - double(logits[best[0]]));
    std::string text;
    for (const std::size_t c : best)
        text += fmt::format(",{},{:.6g}", psae::detail::quoted_field(names[c]),
                            std::exp(double(logits[c]) - double(logits[best[0]])) / sum);
    return text;
}

void run(state& s, const CLI::App& sub) {
    prepare_folder_of(s.out);
    const auto list = list_images(s.images);
    std::optional<psae::sae_weights> sae;
    if (!s.sae.empty()) {
        sae = load_sae(s.sae);
        psae::require_reconstruction(*sae, s.sae);
        s.images.take_layer(sae->origin);
    }
    const auto tower = load_model(s.images.model, s.images.adapter);
    if (sae) require_fit(*sae, s.sae, tower->width(), s.images.model);
    const std::size_t layer = tower->hidden_index(s.images.layer);
    const psae::cpu device(s.common.threads);
    const auto task = make_zero_shot_task(s.zero_shot, s.images, list, device);
    const auto& names = task.classes.names;

    auto pictures = read_pictures(list, s.images, psae::read_preprocessing(s.images.model, tower->image_size()));
    const std::size_t top = std::min(s.top, names.size());
    std::string csv = "file,label";
    const auto add_heads = [&](const std::string& behind) {
        for (std::size_t i = 1; i <= top; ++i) {
            const std::string rank = i == 1 ? "" : fmt::format("_{}", i);
            csv += fmt::format(",predicted{0}{1},score{0}{1}", rank, behind);
        }
    };
    add_heads("");
    if (sae) add_heads("_with_sae");
    csv += '\n';
    psae::zero_shot_result result;
    {
        progress bar("pictures", list.files.size());
        std::optional<psae::sae_view> in_place;
        if (sae) in_place = on_chosen_device(*sae);
        result = psae::zero_shot_accuracy(device, *tower, task.classifier, pictures, task.classes.of_label, layer,
                                          in_place, [&](const psae::zero_shot_picture& p) {
                                              stop_if_interrupted();
                                              csv += psae::detail::quoted_field(list.files[p.index].string()) + ',';
                                              if (p.label >= 0)
                                                  csv += psae::detail::quoted_field(names[std::size_t(p.label)]);
                                              csv += best_fields(p.logits, top, names);
                                              if (sae) csv += best_fields(p.logits_with_sae, top, names);
                                              csv += '\n';
                                              bar.show(p.index + 1);
                                          });
    }
    if (result.pictures == 0)
        throw psae::error("no picture could be read", s.images.images.front(),
                          std::to_string(list.files.size()) + " were tried");
    psae::write_text(s.out, csv);
    save_configuration(sub, s.out);
    json_object summary;
    summary.add("images", result.pictures)
        .add("skipped", pictures.unreadable())
        .add("classes", names.size())
        .add("templates", task.templates)
        .add("labelled", result.plain.pictures);
    if (result.plain.pictures > 0) {
        summary.add("accuracy", result.plain.top_1()).add("top_5_accuracy", result.plain.top_5());
        if (sae)
            summary.add("layer", layer)
                .add("accuracy_with_sae", result.with_sae.top_1())
                .add("top_5_accuracy_with_sae", result.with_sae.top_5());
    }
    summary.add("out", s.out);
    if (s.common.json) summary.print();
    else summary.print_lines();
}

}  // namespace

void add_classify(CLI::App& app) {
    auto* sub = add_command(app, "classify", "zero-shot classification of pictures, accuracy where labels are known",
                            "--model data/tiny-clip --images photos --classes classes.txt --sae run --out classes.csv");
    auto s = std::make_shared<state>();
    s->common.add_to(*sub);
    s->images.add_to(*sub);
    sub->get_option("--images")->required();
    s->zero_shot.add_to(*sub);
    sub->add_option("--sae", s->sae, "SAE (see convert): classifies with its reconstruction in place, too");
    sub->add_option("--top", s->top, "best classes of each picture to write")->check(CLI::Range(1, 1000));
    sub->add_option("--out", s->out, "the .csv to write")->required();
    sub->callback([s, sub] { run(*s, *sub); });
}

}  // namespace patchsae
