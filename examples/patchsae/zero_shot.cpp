#include "zero_shot.hpp"

namespace patchsae {

void zero_shot_options::add_to(CLI::App& app) {
    app.add_option("--classes", classes,
                   "file of classes, a line a name, or label and name; without it the folders' names, with blanks for "
                   "underscores");
    app.add_option(
        "--templates", templates,
        "file of templates, a line each, {} is the class name; without it CLIP's 80 for ImageNet, with an adapter "
        "the one MaPLe learns with, \"a photo of a {}.\"");
}

psae::named_classes name_classes(const zero_shot_options& options, const image_options& images,
                                 const psae::image_list& list) {
    if (!options.classes.empty())
        return psae::name_classes(psae::read_lines(options.classes), list.class_names, options.classes);
    if (list.class_names.empty())
        throw psae::error("there are no classes", images.images.front(),
                          "expected folders with the names of classes, or --classes FILE");
    std::vector<std::string> names;
    for (const std::string& folder : list.class_names) names.push_back(psae::class_name_of_folder(folder));
    return psae::name_classes(names, list.class_names, images.images.front());
}

zero_shot_task make_zero_shot_task(const zero_shot_options& options, const image_options& images,
                                   const psae::image_list& list, const psae::cpu& device, bool unit_mean) {
    zero_shot_task task;
    task.classes = name_classes(options, images, list);
    const auto text = load_text_model(images.model, images.adapter);
    // MaPLe's context is learnt with one template, whose first words it takes the place of.
    const std::vector<std::string> templates = !options.templates.empty() ? psae::read_lines(options.templates)
                                               : !images.adapter.empty()
                                                   ? std::vector<std::string>{"a photo of a {}."}
                                                   : psae::read_lines(find_data_file("imagenet_templates.txt"));
    task.templates = templates.size();
    progress bar("classes", task.classes.names.size());
    const auto show = [&](std::size_t done) {
        stop_if_interrupted();
        bar.show(done);
    };
    task.classifier = psae::make_zero_shot_classifier(device, text, task.classes.names, templates, show, unit_mean);
    for (std::size_t i = 0; i < list.class_names.size(); ++i)
        if (task.classes.of_label[i] < 0)
            report_line("patchsae: no class for the label " + list.class_names[i] +
                        ": its pictures count in no accuracy");
    return task;
}

}  // namespace patchsae
