#pragma once
// What the subcommands share: options that mean the same everywhere, pictures, progress, summaries, interruption.

#include <chrono>
#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <psae/io/image_activations.hpp>
#include <psae/io/json.hpp>
#include <psae/io/numpy.hpp>
#include <psae/io/sae_file.hpp>
#include <psae/io/zero_shot_accuracy.hpp>
#include <psae/vit/read_preprocessing.hpp>

#include "encoders.hpp"

namespace patchsae {

// The vision tower of a Hugging Face directory, as an adapter changes it (no path: none). It is instantiated once for the
// program: every configuration that is compiled in costs seconds of compiling.
std::unique_ptr<psae::vision_tower> load_model(const std::filesystem::path& directory,
                                               const std::filesystem::path& adapter = {});
psae::clip_text_model load_text_model(const std::filesystem::path& directory,
                                      const std::filesystem::path& adapter = {});

// An SAE of any format; here for the same reason.
psae::sae_weights load_sae(const std::filesystem::path& path);

// The GPU that --device chooses, or -1 for the CPU: without the option the first one, if the program was built with CUDA
// and there is one.
int chosen_gpu();

// The SAE as it is used on the device that --device chooses.
psae::sae_view on_chosen_device(const psae::sae_weights& sae);
// What --precision chooses: of the products on the GPU, or of the steps of train on the CPU.
psae::precision chosen_precision();

// Options ------------------------------------------------------------------------------------------------------------

struct common_options {
    int threads = 0;
    std::uint64_t seed = 0;
    bool json = false;
    std::string device = "auto", precision = "fp32", config;
    void add_to(CLI::App& app);
};

// The option of `names` whose value is what chosen_precision() says. On the CPU it is fp32 or, if the command has other
// products there than a tower's, bf16.
void add_precision(CLI::App& app, const std::string& names, std::string& precision, bool bf16_on_cpu,
                   const std::string& description);

struct image_options {
    std::string model, adapter;
    std::vector<std::string> images;
    std::string split, alpha = "white", preprocess_on = "cpu";
    std::size_t limit = 0;
    bool strict = false;
    bool none_allowed = false;  // no option: that none of the pictures can be read is no error
    long layer = -2;
    void add_to(CLI::App& app, bool model_required = true);
    // Where --layer is not given: the layer that an SAE says it was trained on.
    void take_layer(const psae::sae_origin& origin);
    psae::alpha_mode alpha_mode() const { return alpha == "drop" ? psae::alpha_mode::drop : psae::alpha_mode::white; }

private:
    CLI::Option* layer_option_ = nullptr;
};

// A subcommand whose --help ends with an example.
CLI::App* add_command(CLI::App& app, const std::string& name, const std::string& description,
                      const std::string& example);

// Checks for numbers: finite and above 0, or not below 0.
CLI::Validator positive();
CLI::Validator not_negative();

// Lets options that count something refuse negative numbers (CLI11 would let -3 wrap around), in all subcommands.
void check_counts(CLI::App& app);

// The command line (without the program's name) with the options of its --config FILE.json added, as far as they are
// not given on it. CLI::ParseError, naming the key, for a file that is no object of options of this subcommand.
std::vector<std::string> with_configuration(const CLI::App& app, std::vector<std::string> arguments);

// The option that a configuration file names by its long name. CLI::ParseError, which says `where`, if there is none.
const CLI::Option& option_of(const CLI::App& subcommand, const std::string& key, const std::string& where);
// Whether it takes several values.
bool is_list(const CLI::Option& option);
// A value of it from a file as arguments --KEY=.., one for each element of an array where it takes several.
// CLI::ParseError, which says `where`, for a value of another type.
std::vector<std::string> arguments_of(const CLI::Option& option, const std::string& key, const rapidjson::Value& value,
                                      const std::string& where);
// The options that were given to a subcommand, as arguments --KEY=..
std::vector<std::string> given_arguments(const CLI::App& subcommand);

// The value of an option after parsing, given or default, as text.
std::string effective_value(const CLI::App& subcommand, const std::string& name);

inline constexpr const char* configuration_file = "run_config.json";

// Writes the options the subcommand ran with, in the form --config reads: beside a file result as RESULT.config.json,
// into a directory as configuration_file.
void save_configuration(const CLI::App& subcommand, const std::filesystem::path& result);

// Before the work on a result file: makes its folder. psae::error if the file could not be written there.
void prepare_folder_of(const std::filesystem::path& result);

// The texts of a file, a line a text, tokenized. Texts that are longer than the context are reported on stderr.
psae::token_ids tokenize_file(const psae::clip_text_model& model, const std::string& path);

// A file of data/, as it was installed beside the program or as it lies in the source folder.
std::filesystem::path find_data_file(const std::string& name);

// Reporting ----------------------------------------------------------------------------------------------------------

// Writes a line to stderr; control characters (a file name may hold any) become spaces, so that it stays one.
void report_line(std::string text);

// A summary as one line of JSON, fields in the order they are added.
class json_object {
public:
    json_object& add(const char* key, const std::string& text);
    json_object& add(const char* key, const char* text) { return add(key, std::string(text)); }
    json_object& add(const char* key, double number);  // null if not finite
    json_object& add(const char* key, bool value);
    template <std::integral I>
    json_object& add(const char* key, I number) {
        return add_value(key, rapidjson::Value(static_cast<std::int64_t>(number)));
    }
    json_object& add(const char* key, const std::vector<std::size_t>& numbers);
    json_object& add(const char* key, const std::vector<json_object>& objects);
    std::string text() const;
    void print() const { fmt::print("{}\n", text()); }
    // For people: a line for each field.
    void print_lines() const;

private:
    json_object& add_value(const char* key, rapidjson::Value value);
    rapidjson::Document document_{rapidjson::kObjectType};
};

// A number for a table with so many digits; - if it is not finite.
std::string text_of(double number, int digits);
// Rows of one length, printed in columns as wide as their longest entry.
void print_table(const std::vector<std::vector<std::string>>& table);

// A line on stderr: redrawn five times a second on a terminal, written anew every ten seconds elsewhere.
class progress {
public:
    progress(std::string unit, std::size_t total);
    ~progress();
    // rate: units per second; 0: as measured since the start. `more` is put behind.
    void show(std::size_t done, const std::string& more = "", double rate = 0);

private:
    std::string unit_;
    std::size_t total_;
    bool terminal_, drawn_ = false;
    std::chrono::steady_clock::time_point begin_, shown_;
};

// Ctrl-C and SIGTERM set a flag; a second one ends the program at once.
void catch_signals();
bool interrupted();
// Thrown where work stops because of it: the program then exits with 130.
struct interruption {};
void stop_if_interrupted();

// Pictures and SAEs --------------------------------------------------------------------------------------------------

// The pictures of --images; a single picture stands for itself.
psae::image_list list_images(const image_options& options);

// Reads the pictures; unreadable ones are reported on stderr (strict: are errors).
psae::picture_reader read_pictures(psae::image_list list, const image_options& options, const psae::preprocessing& how);

// The number of pictures that could not be read, after all were asked for. psae::error if none could be, unless the
// options allow that.
std::size_t count_unreadable(const psae::picture_reader& pictures, const image_options& options);

// Pictures in order, decoded and preprocessed on the CPU, `batch` at a time; unreadable ones are left out. Returns their
// number.
std::size_t each_batch(const psae::image_list& list, const image_options& options, const psae::preprocessing& how,
                       const psae::cpu& device, std::size_t batch,
                       const std::function<void(const psae::picture_batch&)>& f);

// Refuses an SAE whose d_in is not the model's width.
void require_fit(const psae::sae_description& sae, const std::string& sae_path, std::size_t width,
                 const std::string& model_path);

// Subcommands: each adds itself to the program.
void add_info(CLI::App& app);
void add_preprocess(CLI::App& app);
void add_tokenize(CLI::App& app);
void add_embed(CLI::App& app);
void add_cache(CLI::App& app);
void add_train(CLI::App& app);
void add_encode(CLI::App& app);
void add_evaluate(CLI::App& app);
void add_latents(CLI::App& app);
void add_mask(CLI::App& app);
void add_classes(CLI::App& app);
void add_classify(CLI::App& app);
void add_intervene(CLI::App& app);
void add_compare(CLI::App& app);
void add_attribute(CLI::App& app);
void add_report(CLI::App& app);
void add_convert(CLI::App& app);

}  // namespace patchsae
