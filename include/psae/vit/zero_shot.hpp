#pragma once
// Zero-shot classification with CLIP (Radford et al., Learning transferable visual models from natural language
// supervision, 2021): the classes are texts, and a picture belongs to the one whose embedding is nearest to its own.
//
//   const auto text = load_clip_text(directory);
//   const auto classifier = make_zero_shot_classifier(device, text, {"cat", "dog"}, {"a photo of a {}."});
//   const auto logits = classifier.logits(image_embeds, images);    // [images, 2]

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include <psae/io/file_bytes.hpp>
#include <psae/vit/load_clip.hpp>

namespace psae {

struct zero_shot_classifier {
    std::vector<std::string> classes;
    std::vector<float> embeddings;  // [classes, projection], of unit length unless made otherwise
    float scale = 1;                // of cosines to logits
    std::vector<float> bias{};      // [classes], added to the logits; empty: none

    // [images, classes]: scale times the cosines, and the bias. image_embeds: [images, projection], of unit length.
    std::vector<float> logits(const std::vector<float>& image_embeds, std::size_t images) const {
        const std::size_t C = classes.size(), p = embeddings.size() / C;
        if (image_embeds.size() != images * p)
            throw error("embeddings do not fit", "zero-shot classification",
                        "expected " + std::to_string(images) + " images of " + std::to_string(p) + " numbers, found " +
                            std::to_string(image_embeds.size()));
        std::vector<float> out(images * C);
        for (std::size_t i = 0; i < images; ++i)
            for (std::size_t c = 0; c < C; ++c) {
                double sum = 0;
                for (std::size_t k = 0; k < p; ++k)
                    sum += double(image_embeds[i * p + k]) * double(embeddings[c * p + k]);
                out[i * C + c] = static_cast<float>(double(scale) * sum + (bias.empty() ? 0 : double(bias[c])));
            }
        return out;
    }
    // [projection], of which <unit image embedding, direction> is the logit of class `of` without its bias, less the mean logit of the
    // classes `against` if there are any. psae::error for a class that does not exist.
    std::vector<float> direction(std::size_t of, std::span<const std::size_t> against = {}) const {
        std::vector<double> sum(embeddings.size() / classes.size());
        const auto add = [&](std::size_t c, double weight) {
            if (c >= classes.size())
                throw error("no such class", "class " + std::to_string(c),
                            "0 to " + std::to_string(classes.size() - 1));
            for (std::size_t k = 0; k < sum.size(); ++k) sum[k] += weight * double(embeddings[c * sum.size() + k]);
        };
        add(of, double(scale));
        for (const std::size_t c : against) add(c, -double(scale) / double(against.size()));
        return {sum.begin(), sum.end()};
    }
};

// A template with the class name in place of each {}. psae::error if it has none.
inline std::string fill_template(std::string_view pattern, std::string_view name) {
    std::string text;
    std::size_t at = 0, next = pattern.find("{}");
    if (next == pattern.npos)
        throw error("template has no place for the class name", std::string(pattern), "expected {} in it");
    for (; next != pattern.npos; at = next + 2, next = pattern.find("{}", at)) {
        text += pattern.substr(at, next - at);
        text += name;
    }
    return text += pattern.substr(at);
}

// The embedding of a class is the mean over all templates of their embeddings of unit length, scaled to unit length
// unless `unit_mean` is false (as PatchSAE leaves it). progress(classes done) is called now and then; what it throws ends
// the work.
inline zero_shot_classifier make_zero_shot_classifier(
    const cpu& device, const clip_text_model& model, const std::vector<std::string>& classes,
    const std::vector<std::string>& templates, const std::function<void(std::size_t)>& progress = [](std::size_t) {},
    bool unit_mean = true) {
    if (classes.empty() || templates.empty())
        throw error("zero-shot classification has no texts", "", "expected at least one class and one template");
    const std::size_t p = model.tower->projection(), P = templates.size(), at_once = std::max<std::size_t>(1, 512 / P);
    zero_shot_classifier out{classes, std::vector<float>(classes.size() * p), model.scale, {}};
    for (std::size_t first = 0; first < classes.size(); first += at_once) {
        progress(first);
        const std::size_t count = std::min(at_once, classes.size() - first);
        std::vector<std::string> texts;
        for (std::size_t c = first; c < first + count; ++c)
            for (const std::string& pattern : templates) texts.push_back(fill_template(pattern, classes[c]));
        const auto embeds = embed_texts(device, *model.tower, model.tokenize(texts));
        for (std::size_t c = 0; c < count; ++c) {
            std::vector<double> mean(p);
            for (std::size_t t = 0; t < P; ++t)
                for (std::size_t k = 0; k < p; ++k) mean[k] += double(embeds[(c * P + t) * p + k]);
            double squares = 0;
            for (const double v : mean) squares += v * v;
            if (!(squares > 0))
                throw error("class has no direction", "class " + classes[first + c],
                            "its templates' embeddings cancel out");
            const double length = unit_mean ? std::sqrt(squares) : double(P);
            for (std::size_t k = 0; k < p; ++k)
                out.embeddings[(first + c) * p + k] = static_cast<float>(mean[k] / length);
        }
    }
    progress(classes.size());
    return out;
}

// The lines of a text file without white space around them; empty ones are left out.
inline std::vector<std::string> read_lines(const std::filesystem::path& path) {
    const file_bytes bytes(path);
    std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    if (text.starts_with("\xef\xbb\xbf")) text.remove_prefix(3);  // byte order mark
    std::vector<std::string> lines;
    for (std::size_t at = 0; at < text.size();) {
        const std::size_t end = std::min(text.find('\n', at), text.size());
        const std::string_view line = text.substr(at, end - at);
        at = end + 1;
        const auto first = line.find_first_not_of(" \t\r");
        if (first == line.npos) continue;
        lines.emplace_back(line.substr(first, line.find_last_not_of(" \t\r") + 1 - first));
    }
    return lines;
}

// "golden_retriever" as a text: "golden retriever".
inline std::string class_name_of_folder(std::string folder) {
    std::replace(folder.begin(), folder.end(), '_', ' ');
    return folder;
}

// Names of classes, and which of them labels of pictures (folders' names) mean.
struct named_classes {
    std::vector<std::string> names;
    std::vector<std::int32_t> of_label;  // a class, or -1, for each of the labels that name_classes was given
    std::map<std::string, std::int32_t, std::less<>> of_key;
    bool by_name = true;  // the keys are names as `key_of_name` makes them; otherwise labels

    // Case does not count, and underscores are blanks.
    static std::string key_of_name(std::string_view name) {
        std::string key = class_name_of_folder(std::string(name));
        for (char& c : key)
            if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
        return key;
    }
    // The classes, or -1, of other labels.
    std::vector<std::int32_t> classes_of(const std::vector<std::string>& labels) const {
        std::vector<std::int32_t> classes;
        for (const std::string& label : labels) {
            const auto found = of_key.find(by_name ? key_of_name(label) : label);
            classes.push_back(found == of_key.end() ? -1 : found->second);
        }
        return classes;
    }
};

// The lines of a file of classes, and the labels that tell what a line is:
//   LABEL <tab> NAME   in all lines or none
//   LABEL NAME         if the first words of the lines are all different, one of the labels is among them and none is a
//                      whole line; such as the synsets of ImageNet
//   NAME               otherwise: a label means the name that it equals, case aside and with blanks for underscores
// psae::error for no lines, a name or label named twice, a line without a tab where others have one; `where` names the
// file.
inline named_classes name_classes(const std::vector<std::string>& lines, const std::vector<std::string>& labels,
                                  const std::string& where) {
    if (lines.empty()) throw error("file names no class", where, "expected a line for each class");
    named_classes out;
    const auto read = [&](char separator) {
        for (std::size_t i = 0; i < lines.size(); ++i) {
            const std::string line = where + ", line " + std::to_string(i + 1);
            const auto cut = separator == '\0' ? std::string::npos : lines[i].find(separator);
            if (separator != '\0' && cut == std::string::npos)
                throw error("line has no label", line, "expected LABEL <tab> NAME as in other lines");
            const std::string name = lines[i].substr(cut == std::string::npos ? 0 : cut + 1);
            out.names.push_back(name.substr(std::min(name.find_first_not_of(" \t"), name.size())));
            const std::string key =
                cut == std::string::npos ? named_classes::key_of_name(name) : lines[i].substr(0, cut);
            if (!out.of_key.emplace(key, static_cast<std::int32_t>(i)).second)
                throw error("class is named twice", line, key);
        }
    };
    const auto has = [&](char c) { return [c](const std::string& line) { return line.find(c) != std::string::npos; }; };
    const auto first_words_are_labels = [&] {
        std::unordered_set<std::string> words, whole;
        for (const std::string& line : lines) {
            if (!words.insert(line.substr(0, line.find(' '))).second) return false;
            whole.insert(named_classes::key_of_name(line));
        }
        return std::all_of(lines.begin(), lines.end(), has(' ')) &&
               std::any_of(labels.begin(), labels.end(), [&](const auto& l) { return words.contains(l); }) &&
               std::none_of(labels.begin(), labels.end(),
                            [&](const auto& l) { return whole.contains(named_classes::key_of_name(l)); });
    };
    const bool tabs = std::any_of(lines.begin(), lines.end(), has('\t')), words = !tabs && first_words_are_labels();
    out.by_name = !tabs && !words;
    read(tabs ? '\t' : words ? ' ' : '\0');
    out.of_label = out.classes_of(labels);
    return out;
}

}  // namespace psae
