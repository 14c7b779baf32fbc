#include "sweep.hpp"

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <map>
#include <set>

#include <psae/attribution/chart.hpp>

namespace patchsae {

namespace {

// What all SAEs of a sweep have in common: the stream, and the command itself.
bool is_shared(const std::string& option) {
    static const std::set<std::string> shared{
        "model",      "adapter",          "images",        "activations", "token-kind", "split",   "limit",
        "alpha",      "strict",           "preprocess-on", "order",       "seed",       "threads", "steps",
        "tokens",     "batch-tokens",     "device",        "dtype",       "precision",  "json",    "out",
        "eval-every", "checkpoint-every", "resume"};
    return shared.contains(option);
}

// One value of a key: its part of a name, and the arguments that say it.
struct choice {
    std::string label;
    std::vector<std::string> arguments;
};
struct axis {
    std::string key;
    std::vector<choice> choices;
};

std::string file_name_of(std::string text) {
    for (char& c : text)
        if (!std::isalnum(static_cast<unsigned char>(c)) && std::string_view("=._+-").find(c) == std::string_view::npos)
            c = '-';
    return text;
}

class sweep_reader {
public:
    sweep_reader(std::string where, const CLI::App& given) : where_(std::move(where)), given_(given) {}

    // The SAEs an object stands for, added to `runs`.
    void read(const rapidjson::Value& object, std::vector<planned_run>& runs) const {
        if (!object.IsObject()) refuse("expected an object of options");
        try {
            psae::require_unique_keys(object, where_);
        } catch (const psae::error& e) {
            refuse(e.what());
        }
        std::string name;
        std::vector<axis> axes{{"variant", {}}};  // the first part of a name
        for (const auto& member : object.GetObject()) {
            const std::string key(member.name.GetString(), member.name.GetStringLength());
            if (key == "name") {
                if (!member.value.IsString()) refuse("key name: expected a string");
                name = member.value.GetString();
                if (name.empty() || name != file_name_of(name) || name.front() == '.')
                    refuse("key name: expected letters, digits and any of =._+-, found " + name);
                for (const char* file : {"sweep.csv", "pareto.png", configuration_file})
                    if (name == file) refuse("key name: " + name + " is a file of the sweep");
            } else {
                axis a = axis_of(key, member.value);
                if (key == "variant") axes.front() = std::move(a);
                else axes.push_back(std::move(a));
            }
        }
        if (axes.front().choices.empty()) axes.front().choices = {{effective_value(given_, "variant"), {}}};
        for (const axis& a : axes)
            if (std::none_of(axes.front().choices.begin(), axes.front().choices.end(),
                             [&](const choice& variant) { return has_option(variant.label, a.key); }))
                refuse("key " + a.key + " is not of this variant");
        std::set<std::vector<std::string>> seen;  // without the options a variant does not have, runs may be the same
        std::vector<std::size_t> at(axes.size(), 0);
        for (bool more = true; more; more = advance(at, axes)) {
            const std::string& variant = axes.front().choices[at.front()].label;
            std::string label = variant;
            std::vector<std::string> arguments = axes.front().choices[at.front()].arguments;
            bool expansion = false;
            for (std::size_t i = 1; i < axes.size(); ++i) {
                if (!has_option(variant, axes[i].key)) continue;
                const choice& c = axes[i].choices[at[i]];
                label += "_" + axes[i].key + "=" + c.label;
                arguments.insert(arguments.end(), c.arguments.begin(), c.arguments.end());
                expansion = expansion || axes[i].key == "expansion";
            }
            if (!seen.insert(arguments).second) continue;
            if (!name.empty() && seen.size() > 1) refuse("key name: the object stands for several SAEs");
            runs.push_back(plan(name.empty() ? file_name_of(label) : name, arguments, expansion));
        }
    }

    [[noreturn]] void refuse(const std::string& text) const { throw CLI::ValidationError(where_, text); }

private:
    axis axis_of(const std::string& key, const rapidjson::Value& value) const {
        if (is_shared(key)) refuse("key " + key + " is the same for all SAEs: give it on the command line");
        if (key == "sweep") refuse("unknown key " + key);
        if (key == "layer" && given_.count("--activations") > 0) refuse("key layer goes with pictures");
        const CLI::Option& option = option_of(given_, key, where_);
        const bool several = value.IsArray() && (!is_list(option) || (!value.Empty() && value[0].IsArray()));
        if (value.IsArray() && value.Empty()) refuse("key " + key + ": expected at least one value");
        axis a{key, {}};
        for (rapidjson::SizeType i = 0; i < (several ? value.Size() : 1); ++i) {
            choice c;
            c.arguments = arguments_of(option, key, several ? value[i] : value, where_);
            for (const std::string& argument : c.arguments)
                c.label += (c.label.empty() ? "" : "-") + argument.substr(key.size() + 3);
            a.choices.push_back(std::move(c));
        }
        return a;
    }
    static bool advance(std::vector<std::size_t>& at, const std::vector<axis>& axes) {
        for (std::size_t i = axes.size(); i-- > 0; at[i] = 0)
            if (++at[i] < axes[i].choices.size()) return true;
        return false;
    }

    // The command with the options given for all, and after them those of the SAE.
    planned_run plan(const std::string& name, const std::vector<std::string>& own, bool expansion) const {
        planned_run run{name, std::make_unique<CLI::App>(), nullptr, std::make_shared<train_options>()};
        run.command = add_command(*run.app, "train", "", "");
        run.options->add_to(*run.command);
        check_counts(*run.app);
        std::vector<std::string> arguments{"train"};
        const auto names = [](const std::string& argument) { return argument.substr(0, argument.find('=')); };
        for (const std::string& argument : given_arguments(given_)) {
            const std::string option = names(argument);
            const bool replaced =
                std::any_of(own.begin(), own.end(), [&](const auto& a) { return names(a) == option; }) ||
                (expansion && option == "--d-sae") || !has_option(variant_of(own), option.substr(2));
            if (!replaced && option != "--sweep" && option != "--out" && option != "--json" && option != "--config")
                arguments.push_back(argument);
        }
        arguments.insert(arguments.end(), own.begin(), own.end());
        arguments.push_back("--out=" + (std::filesystem::path(effective_value(given_, "out")) / name).string());
        std::reverse(arguments.begin(), arguments.end());
        try {
            run.app->parse(std::move(arguments));
            run.options->complete(*run.command);
        } catch (const CLI::ParseError& e) {
            refuse(name + ": " + e.what());
        }
        return run;
    }
    std::string variant_of(const std::vector<std::string>& own) const {
        const std::string start = "--variant=";
        for (const std::string& argument : own)
            if (argument.starts_with(start)) return argument.substr(start.size());
        return effective_value(given_, "variant");
    }

    std::string where_;
    const CLI::App& given_;
};

}  // namespace

std::vector<planned_run> read_sweep(const std::string& file, const CLI::App& given) {
    const std::string where = "--sweep " + file;
    const sweep_reader whole(where, given);
    const rapidjson::Document json = [&] {
        try {
            return psae::read_json(file);
        } catch (const psae::error& e) {
            whole.refuse(e.what());
        }
    }();
    std::vector<planned_run> runs;
    if (!json.IsArray()) whole.read(json, runs);
    else
        for (rapidjson::SizeType i = 0; i < json.Size(); ++i)
            sweep_reader(where + ", object " + std::to_string(i + 1), given).read(json[i], runs);
    if (runs.empty()) whole.refuse("expected at least one SAE");
    std::set<std::string> names;
    for (const planned_run& run : runs)
        if (!names.insert(run.name).second) whole.refuse("two SAEs are " + run.name + "; give one a name of its own");
    return runs;
}

namespace {

// The option that sets how sparse the variant's codes are.
std::string sparsity_option(const std::string& variant) {
    for (const char* option : {"k", "l1", "target-l0"})
        if (has_option(variant, option)) return option;
    return "";
}

}  // namespace

void report_sweep(const std::string& directory, const std::vector<sweep_result>& results, bool json) {
    std::string csv =
        "name,variant,layer,target_layer,d_sae,sparsity_option,sparsity_value,steps,l0,explained_variance,mse,"
        "dead_fraction,tokens_per_s,failure\n";
    std::vector<std::vector<std::string>> table{
        {"name", "variant", "sparsity", "d_sae", "L0", "explained", "mse", "dead", "tokens/s", ""}};
    std::vector<json_object> objects;
    std::map<std::string, psae::series> points;
    for (const sweep_result& r : results) {
        constexpr double nan = std::numeric_limits<double>::quiet_NaN();
        const train_options& o = *r.run->options;
        const psae::run_summary s = r.summary.value_or(psae::run_summary{{nan, nan, nan}, nan, nan});
        const std::string option = sparsity_option(o.variant),
                          value =
                              fmt::format("{}", std::strtod(effective_value(*r.run->command, option).c_str(), nullptr)),
                          layer = o.activations.empty() ? std::to_string(o.images.layer) : "",
                          target_layer = o.target_layer ? std::to_string(*o.target_layer) : "";
        const auto number = [](double v) { return std::isfinite(v) ? fmt::format("{}", v) : std::string(); };
        std::string failure = r.failure;
        for (std::size_t i = 0; (i = failure.find('"', i)) != std::string::npos; i += 2) failure.insert(i, 1, '"');
        csv +=
            fmt::format("{},{},{},{},{},{},{},{},{},{},{},{},{},\"{}\"\n", r.run->name, o.variant, layer, target_layer,
                        o.d_sae, option, value, r.steps, number(s.quality.l0), number(s.quality.explained_variance),
                        number(s.quality.mse), number(s.dead_fraction), number(s.tokens_per_s), failure);
        table.push_back({r.run->name, o.variant, option + " " + value, std::to_string(o.d_sae),
                         text_of(s.quality.l0, 4), text_of(s.quality.explained_variance, 4), text_of(s.quality.mse, 4),
                         text_of(100 * s.dead_fraction, 3) + "%", text_of(s.tokens_per_s, 4),
                         r.failure.empty() ? "" : "failed: " + r.failure});
        json_object object;
        object.add("name", r.run->name).add("variant", o.variant).add("layer", o.images.layer);
        if (o.target_layer) object.add("target_layer", *o.target_layer);
        object.add("d_sae", o.d_sae);
        object.add("steps", r.steps).add("l0", s.quality.l0).add("explained_variance", s.quality.explained_variance);
        object.add("mse", s.quality.mse).add("dead_fraction", s.dead_fraction).add("tokens_per_s", s.tokens_per_s);
        object.add("failure", r.failure).add("out", o.out);
        objects.push_back(std::move(object));
        auto& series = points[o.variant];
        series.name = o.variant;
        series.x.push_back(s.quality.l0);
        series.y.push_back(s.quality.explained_variance);
    }
    psae::write_text(std::filesystem::path(directory) / "sweep.csv", csv);
    std::vector<psae::series> data;
    for (auto& [variant, series] : points) data.push_back(std::move(series));
    psae::write_png(std::filesystem::path(directory) / "pareto.png",
                    psae::to_image(psae::scatter_plot("Sparsity against reconstruction", "L0: latents active per token",
                                                      "explained variance", std::move(data), {.log_x = true})));
    if (json) json_object{}.add("runs", objects).add("out", directory).print();
    else print_table(table);
}

}  // namespace patchsae
