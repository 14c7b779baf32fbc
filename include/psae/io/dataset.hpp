#pragma once
// Lists of labelled images: from a folder, from a .csv or .tsv, or a single file. The files themselves are not opened.
//
//   psae::image_list list = psae::read_image_list("photos", {.limit = 1000});
//   read_image(list.files[i]);  list.class_names[list.labels[i]]     // label -1: none

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <psae/core/error.hpp>
#include <psae/io/atomic_file.hpp>
#include <psae/io/file_bytes.hpp>

namespace psae {

struct image_list {
    std::vector<std::filesystem::path> files;
    std::vector<std::int32_t> labels;  // one per file, an index of class_names or -1
    std::vector<std::string> class_names;
};

// The images `which` of a list, in that order; class names stay as they are.
inline image_list select(const image_list& list, std::span<const std::size_t> which) {
    image_list part{{}, {}, list.class_names};
    for (const std::size_t i : which) {
        part.files.push_back(list.files[i]);
        part.labels.push_back(list.labels[i]);
    }
    return part;
}

// psae::error if class_of_label is not one of `classes` classes, or -1, for each label of the list.
inline void require_fit(const image_list& list, std::span<const std::int32_t> class_of_label, std::size_t classes) {
    if (class_of_label.size() != list.class_names.size() ||
        std::any_of(class_of_label.begin(), class_of_label.end(), [&](auto c) { return c >= std::int64_t(classes); }))
        throw error("classes and labels do not fit", "pictures",
                    "expected a class below " + std::to_string(classes) + ", or -1, for each of " +
                        std::to_string(list.class_names.size()) + " labels");
}

// The class of picture i of a list, or -1.
inline std::int32_t class_of(const image_list& list, std::size_t i, std::span<const std::int32_t> class_of_label) {
    return list.labels[i] < 0 ? -1 : class_of_label[static_cast<std::size_t>(list.labels[i])];
}

// The pictures of a list that have a class.
inline image_list with_class(const image_list& list, std::span<const std::int32_t> class_of_label) {
    std::vector<std::size_t> which;
    for (std::size_t i = 0; i < list.files.size(); ++i)
        if (class_of(list, i, class_of_label) >= 0) which.push_back(i);
    return select(list, which);
}

struct list_options {
    std::size_t limit = 0;  // at most so many files, the first ones; 0: all
    std::string split{};    // of a table: only rows with this split; of a folder: its sub-folder of this name
};

namespace detail {

inline std::string lower_case(std::string text) {
    for (char& c : text)
        if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
    return text;
}
inline bool has_image_name(const std::filesystem::path& p) {
    const std::string extension = lower_case(p.extension().string());
    return extension == ".png" || extension == ".jpg" || extension == ".jpeg";
}
inline bool is_hidden(const std::filesystem::path& p) { return p.filename().string().starts_with('.'); }

// The images below a folder, sorted. Links to folders are not followed below it: they may form circles.
inline std::vector<std::filesystem::path> images_below(const std::filesystem::path& folder) {
    namespace fs = std::filesystem;
    std::vector<fs::path> found;
    for (auto i = fs::recursive_directory_iterator(folder); i != fs::recursive_directory_iterator(); ++i) {
        std::error_code ignored;
        if (is_hidden(i->path())) {
            if (i->is_directory(ignored)) i.disable_recursion_pending();
        } else if (has_image_name(i->path()) && !i->is_directory(ignored)) found.push_back(i->path());
    }
    std::sort(found.begin(), found.end());
    return found;
}

inline image_list list_folder(std::filesystem::path folder, const list_options& options) {
    namespace fs = std::filesystem;
    if (!options.split.empty()) {
        if (!fs::is_directory(folder / options.split))
            throw error("folder has no such split", folder.string(), "no sub-folder " + options.split,
                        "the split of a folder is its sub-folder of that name");
        folder /= options.split;
    }
    std::vector<fs::path> direct, classes;
    for (const auto& entry : fs::directory_iterator(folder)) {
        std::error_code ignored;
        if (is_hidden(entry.path())) continue;
        if (entry.is_directory(ignored)) classes.push_back(entry.path());
        else if (has_image_name(entry.path())) direct.push_back(entry.path());
    }
    std::sort(direct.begin(), direct.end());
    std::sort(classes.begin(), classes.end());
    image_list list;
    list.files = std::move(direct);
    list.labels.assign(list.files.size(), -1);
    for (const fs::path& c : classes) {
        const auto label = static_cast<std::int32_t>(list.class_names.size());
        list.class_names.push_back(c.filename().string());
        for (fs::path& file : images_below(c)) {
            list.files.push_back(std::move(file));
            list.labels.push_back(label);
        }
    }
    return list;
}

// Rows of a table of text: fields separated by `separator`, quoted as RFC 4180 says. Gives each row its line number.
inline std::vector<std::pair<std::size_t, std::vector<std::string>>> parse_table(std::string_view text, char separator,
                                                                                 const std::string& where) {
    if (text.starts_with("\xef\xbb\xbf")) text.remove_prefix(3);  // byte order mark
    std::vector<std::pair<std::size_t, std::vector<std::string>>> rows;
    std::size_t at = 0, line = 1;
    while (at < text.size()) {
        std::vector<std::string> fields(1);
        const std::size_t first_line = line;
        bool quoted = false;
        for (bool row_over = false; !row_over;) {
            if (at < text.size() && text[at] == '"') {
                quoted = true;
                for (++at;; ++at) {
                    if (at >= text.size())
                        throw error("table has a quote that does not end",
                                    where + ", line " + std::to_string(first_line));
                    if (text[at] == '"' && (at + 1 >= text.size() || text[at + 1] != '"')) break;
                    if (text[at] == '"') ++at;
                    if (text[at] == '\n') ++line;
                    fields.back() += text[at];
                }
                ++at;
            }
            while (at < text.size() && text[at] != separator && text[at] != '\n' && text[at] != '\r')
                fields.back() += text[at++];
            if (at < text.size() && text[at] == separator) {
                fields.emplace_back();
                ++at;
            } else {
                if (at < text.size() && text[at] == '\r') ++at;
                if (at < text.size() && text[at] == '\n') ++at;
                ++line;
                row_over = true;
            }
        }
        if (fields.size() > 1 || quoted || !fields[0].empty()) rows.emplace_back(first_line, std::move(fields));
    }
    return rows;
}

// A field of such a table that may hold anything.
inline std::string quoted_field(const std::string& text) {
    std::string out = "\"";
    for (const char c : text) out += c == '"' ? "\"\"" : std::string(1, c);
    return out + "\"";
}

// Sorted, and by value where all names are whole numbers.
inline std::vector<std::string> sorted_classes(std::vector<std::string> names) {
    std::sort(names.begin(), names.end());
    names.erase(std::unique(names.begin(), names.end()), names.end());
    std::vector<std::pair<std::int64_t, std::string>> numbers;
    for (const std::string& n : names) {
        std::int64_t value = 0;
        const auto [end, failure] = std::from_chars(n.data(), n.data() + n.size(), value);
        if (failure != std::errc{} || end != n.data() + n.size()) return names;
        numbers.emplace_back(value, n);
    }
    std::sort(numbers.begin(), numbers.end());
    for (std::size_t i = 0; i < names.size(); ++i) names[i] = numbers[i].second;
    return names;
}

inline image_list list_table(const std::filesystem::path& path, char separator, const list_options& options) {
    const file_bytes bytes(path);
    const auto rows =
        parse_table({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, separator, path.string());
    if (rows.empty())
        throw error("table is empty", path.string(),
                    "expected a first row with the columns path,label and perhaps split");
    constexpr std::size_t none = ~std::size_t{0};
    std::size_t path_column = none, label_column = none, split_column = none;
    for (std::size_t i = 0; i < rows[0].second.size(); ++i) {
        const std::string name = lower_case(rows[0].second[i]);
        for (const auto& [known, column] :
             {std::pair{"path", &path_column}, {"label", &label_column}, {"split", &split_column}})
            if (name == known) {
                if (*column != none) throw error("table has a column twice", path.string(), "column " + name);
                *column = i;
            }
    }
    if (path_column == none)
        throw error("table has no column path", path.string(),
                    "expected a first row with the columns path,label and perhaps split");
    if (!options.split.empty() && split_column == none)
        throw error("table has no column split", path.string(), "split " + options.split + " was asked for");
    // The classes are those of the whole table, so that a label is the same number in every split.
    image_list list;
    std::vector<std::string> names;
    for (std::size_t r = 1; r < rows.size(); ++r) {
        const auto& [line, fields] = rows[r];
        if (fields.size() != rows[0].second.size())
            throw error(
                "table row has a wrong number of fields", path.string() + ", line " + std::to_string(line),
                "expected " + std::to_string(rows[0].second.size()) + ", found " + std::to_string(fields.size()));
        if (fields[path_column].empty() || fields[path_column].find('\0') != std::string::npos)
            throw error("table row has no usable path", path.string() + ", line " + std::to_string(line));
        if (label_column != none && !fields[label_column].empty()) names.push_back(fields[label_column]);
    }
    list.class_names = sorted_classes(std::move(names));
    std::map<std::string, std::int32_t> number;
    for (const std::string& n : list.class_names) number.emplace(n, static_cast<std::int32_t>(number.size()));
    for (std::size_t r = 1; r < rows.size(); ++r) {
        const auto& fields = rows[r].second;
        if (!options.split.empty() && fields[split_column] != options.split) continue;
        list.files.push_back((path.parent_path() / fields[path_column]).lexically_normal());
        list.labels.push_back(label_column != none && !fields[label_column].empty() ? number.at(fields[label_column])
                                                                                    : -1);
    }
    return list;
}

}  // namespace detail

// Lists the images of one source:
//   a folder        its sub-folders, sorted, are the classes, with all images below them (.png, .jpg, .jpeg in any
//   case, sorted);
//                   images in the folder itself come first and have label -1; names that begin with a dot are passed
//                   over
//   a .csv or .tsv  columns path, label and perhaps split, named in the first row; paths are relative to the table;
//                   classes are the labels sorted (by value if all are whole numbers), an empty label is -1
//   an image file   itself, label -1
// psae::error if there is no such thing, if a table is malformed, or if nothing is left.
inline image_list read_image_list(const std::filesystem::path& path, const list_options& options = {}) {
    namespace fs = std::filesystem;
    image_list list;
    try {
        const std::string extension = detail::lower_case(path.extension().string());
        if (!fs::exists(path))
            throw error("no such file or folder", path.string(), "expected a folder, a .csv or .tsv, or a picture");
        if (fs::is_directory(path)) list = detail::list_folder(path, options);
        else if (extension == ".csv" || extension == ".tsv")
            list = detail::list_table(path, extension == ".csv" ? ',' : '\t', options);
        else if (detail::has_image_name(path)) list.files = {path}, list.labels = {-1};
        else
            throw error("not a list of images", path.string(),
                        "expected a folder, a .csv or .tsv table, or a .png or .jpg file");
    } catch (const fs::filesystem_error& e) {
        throw error("folder cannot be read", e.path1().string(), e.code().message());
    }
    if (list.files.empty())
        throw error("no images found", path.string(), options.split.empty() ? "" : "split " + options.split,
                    "files ending in .png, .jpg or .jpeg are taken");
    if (options.limit != 0 && list.files.size() > options.limit) {
        list.files.resize(options.limit);
        list.labels.resize(options.limit);
    }
    return list;
}

// Several sources one after the other; classes of the same name are one class, in the order of first appearance. The
// limit is on the whole.
inline image_list read_image_list(std::span<const std::filesystem::path> paths, const list_options& options = {}) {
    if (paths.size() == 1) return read_image_list(paths[0], options);
    image_list all;
    std::map<std::string, std::int32_t> number;
    for (const auto& path : paths) {
        const image_list part = read_image_list(path, {0, options.split});
        std::vector<std::int32_t> renamed;
        for (const std::string& name : part.class_names) {
            const auto [at, added] = number.emplace(name, static_cast<std::int32_t>(all.class_names.size()));
            if (added) all.class_names.push_back(name);
            renamed.push_back(at->second);
        }
        for (std::size_t i = 0; i < part.files.size() && (options.limit == 0 || all.files.size() < options.limit);
             ++i) {
            all.files.push_back(part.files[i]);
            all.labels.push_back(part.labels[i] < 0 ? -1 : renamed[static_cast<std::size_t>(part.labels[i])]);
        }
    }
    if (all.files.empty()) throw error("no images found", "", "no source was given");
    return all;
}

// Writes a list as a .csv that reads back as the same files and names of classes.
inline void write_image_list(const std::filesystem::path& path, const image_list& list) {
    std::string csv = "path,label\n";
    for (std::size_t i = 0; i < list.files.size(); ++i)
        csv += detail::quoted_field(std::filesystem::absolute(list.files[i]).string()) + "," +
               (list.labels[i] < 0 ? ""
                                   : detail::quoted_field(list.class_names[static_cast<std::size_t>(list.labels[i])])) +
               "\n";
    write_text(path, csv);
}

}  // namespace psae
