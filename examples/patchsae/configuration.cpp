// --config: long options from a JSON file, and the options a command ran with saved as such a file.

#include <algorithm>
#include <charconv>
#include <optional>

#include "program.hpp"

namespace patchsae {

namespace {

bool is_flag(const CLI::Option& option) { return option.get_expected_max() == 0; }
// UINT, INT, FLOAT or TEXT; what checks add to it is left out.
std::string type_of(const CLI::Option& option) {
    const std::string type = option.get_type_name();
    return type.substr(0, type.find(':'));
}

// The JSON value as the command line would say it; nothing if the option takes another type.
std::optional<std::string> argument_of(const CLI::Option& option, const rapidjson::Value& value) {
    const std::string type = type_of(option);
    if (is_flag(option) && value.IsBool()) return value.GetBool() ? "true" : "false";
    if (type == "UINT" && value.IsUint64()) return std::to_string(value.GetUint64());
    if (type == "INT" && value.IsInt64()) return std::to_string(value.GetInt64());
    if (type == "FLOAT" && value.IsNumber()) return fmt::format("{}", value.GetDouble());
    if (type == "TEXT" && value.IsString()) return std::string(value.GetString(), value.GetStringLength());
    return std::nullopt;
}
const char* expected_type(const CLI::Option& option) {
    const std::string type = type_of(option);
    return is_flag(option)   ? "true or false"
           : type == "UINT"  ? "an integer not below 0"
           : type == "INT"   ? "an integer"
           : type == "FLOAT" ? "a number"
           : is_list(option) ? "a string or an array of strings"
                             : "a string";
}

rapidjson::Value value_of(const CLI::Option& option, const std::string& text, rapidjson::Document::AllocatorType& a) {
    const std::string type = type_of(option);
    if (is_flag(option)) return rapidjson::Value(text == "true" || text == "1");
    if (type == "UINT") return rapidjson::Value(std::uint64_t(std::strtoull(text.c_str(), nullptr, 10)));
    if (type == "INT") return rapidjson::Value(std::int64_t(std::strtoll(text.c_str(), nullptr, 10)));
    if (type == "FLOAT") return rapidjson::Value(std::strtod(text.c_str(), nullptr));
    return rapidjson::Value(text.data(), static_cast<rapidjson::SizeType>(text.size()), a);
}

}  // namespace

void check_counts(CLI::App& app) {
    for (CLI::App* sub : app.get_subcommands([](const CLI::App*) { return true; }))
        for (CLI::Option* option : sub->get_options())
            if (type_of(*option) == "UINT")
                option->check(CLI::Validator(
                    [](const std::string& text) {
                        std::uint64_t n = 0;
                        const auto [end, failure] = std::from_chars(text.data(), text.data() + text.size(), n);
                        return failure == std::errc{} && end == text.data() + text.size()
                                   ? std::string()
                                   : "expected an integer from 0 to 2^64 - 1, found " + text;
                    },
                    ""));
}

bool is_list(const CLI::Option& option) { return option.get_expected_max() > 1; }

const CLI::Option& option_of(const CLI::App& subcommand, const std::string& key, const std::string& where) {
    const CLI::Option* option = subcommand.get_option_no_throw("--" + key);
    const auto is_key = [&] {  // of a flag only the name that sets it
        const auto& names = option->get_lnames();
        const auto end = option->get_items_expected_max() == 0 ? names.begin() + 1 : names.end();
        return std::find(names.begin(), end, key) != end;
    };
    if (option == nullptr || key == "config" || key == "help" || !is_key())
        throw CLI::ValidationError(where, "unknown key " + key + "; see patchsae " + subcommand.get_name() + " --help");
    return *option;
}

std::vector<std::string> arguments_of(const CLI::Option& option, const std::string& key, const rapidjson::Value& value,
                                      const std::string& where) {
    std::vector<std::string> arguments;
    const bool list = is_list(option) && value.IsArray();
    for (rapidjson::SizeType i = 0; i < (list ? value.Size() : 1); ++i) {
        const auto argument = argument_of(option, list ? value[i] : value);
        if (!argument)
            throw CLI::ValidationError(
                where, "key " + key + ": expected " + expected_type(option) + ", " + psae::detail::found_json(value));
        arguments.push_back("--" + key + "=" + *argument);
    }
    return arguments;
}

std::vector<std::string> given_arguments(const CLI::App& subcommand) {
    std::vector<std::string> arguments;
    for (const CLI::Option* option : subcommand.get_options())
        for (const std::string& value : option->results())
            arguments.push_back("--" + option->get_lnames().front() + "=" + value);
    return arguments;
}

std::vector<std::string> with_configuration(const CLI::App& app, std::vector<std::string> arguments) {
    std::string file;
    for (std::size_t i = 0; i < arguments.size(); ++i) {
        if (arguments[i].starts_with("--config=")) file = arguments[i].substr(9);
        else if (arguments[i] == "--config" && i + 1 < arguments.size()) file = arguments[i + 1];
    }
    const auto named =
        app.get_subcommands([&](const CLI::App* s) { return !arguments.empty() && s->get_name() == arguments[0]; });
    if (file.empty() || named.empty()) return arguments;
    const CLI::App* sub = named[0];
    const auto refuse = [&](const std::string& text) { throw CLI::ValidationError("--config " + file, text); };
    const rapidjson::Document json = [&] {
        try {
            auto document = psae::read_json(file);
            if (!document.IsObject()) refuse("expected a JSON object");
            psae::require_unique_keys(document, file);
            return document;
        } catch (const psae::error& e) {
            throw CLI::ValidationError("--config " + file, e.what());
        }
    }();
    const auto is_given = [&](const CLI::Option& option) {
        for (const std::string& name : option.get_lnames())
            for (const std::string& argument : arguments)
                if (argument == "--" + name || argument.starts_with("--" + name + "=")) return true;
        return false;
    };
    std::vector<std::string> from_file;
    for (const auto& member : json.GetObject()) {
        const std::string key(member.name.GetString(), member.name.GetStringLength());
        const CLI::Option& option = option_of(*sub, key, "--config " + file);
        const auto values = arguments_of(option, key, member.value, "--config " + file);
        if (!is_given(option)) from_file.insert(from_file.end(), values.begin(), values.end());
    }
    arguments.insert(arguments.begin() + 1, from_file.begin(), from_file.end());
    return arguments;
}

namespace {

// What the option holds after parsing; null for an option that has no value.
rapidjson::Value effective(const CLI::Option& option, rapidjson::Document::AllocatorType& a) {
    std::vector<std::string> texts = option.results();
    if (texts.empty() && !is_list(option)) texts = {option.get_default_str()};
    if (texts.empty() || (texts[0].empty() && !is_flag(option))) return rapidjson::Value();
    if (!is_list(option)) return value_of(option, texts.back(), a);
    rapidjson::Value list(rapidjson::kArrayType);
    for (const std::string& text : texts) list.PushBack(value_of(option, text, a), a);
    return list;
}

}  // namespace

std::string effective_value(const CLI::App& subcommand, const std::string& name) {
    rapidjson::Document document;
    const auto value = effective(*subcommand.get_option("--" + name), document.GetAllocator());
    if (value.IsString()) return value.GetString();
    rapidjson::StringBuffer buffer;
    rapidjson::Writer<rapidjson::StringBuffer> writer(buffer);
    value.Accept(writer);
    return {buffer.GetString(), buffer.GetSize()};
}

void save_configuration(const CLI::App& subcommand, const std::filesystem::path& result) {
    rapidjson::Document json(rapidjson::kObjectType);
    auto& a = json.GetAllocator();
    for (const CLI::Option* option : subcommand.get_options()) {
        if (option->get_lnames().empty()) continue;
        const std::string name = option->get_lnames().front();
        if (name == "help" || name == "config" || name == "json" || name == "resume") continue;
        auto value = effective(*option, a);
        if (!value.IsNull()) json.AddMember(rapidjson::Value(name.c_str(), a), value, a);
    }
    auto file = result / configuration_file;
    if (!std::filesystem::is_directory(result)) (file = result) += ".config.json";
    psae::write_text(file, psae::to_text(json));
}

}  // namespace patchsae
