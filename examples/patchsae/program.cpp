#include "program.hpp"

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <optional>

#include <unistd.h>

#ifdef PATCHSAE_CUDA
#include "gpu.hpp"
#endif

namespace patchsae {

namespace {

volatile std::sig_atomic_t signal_seen = 0;

CLI::Validator number_check(bool zero_allowed, const char* expected) {
    return CLI::Validator(
        [=](const std::string& text) {
            char* end = nullptr;
            const double v = std::strtod(text.c_str(), &end);
            return *end == '\0' && std::isfinite(v) && (v > 0 || (zero_allowed && v == 0))
                       ? std::string()
                       : fmt::format("expected {}, found {}", expected, text);
        },
        "");
}

#ifdef PATCHSAE_CUDA
void require_gpu(int number, const std::string& where) {
    const int count = count_gpus();
    if (number >= count)
        throw psae::error(
            "there is no such CUDA device", where,
            count == 0 ? "no GPU can be used; is its driver installed?" : fmt::format("there are {}", count),
            "use --device cpu");
}
#else
int count_gpus() { return 0; }

void require_gpu(int, const std::string& where) {
    throw psae::error("there is no CUDA device", where, "this build has the CPU backend only", "use --device cpu");
}
#endif

std::optional<int> gpu_number;  // what --device says
psae::precision precision_of_products = psae::precision::fp32;

}  // namespace

int chosen_gpu() {
    if (!gpu_number) gpu_number = count_gpus() > 0 ? 0 : -1;
    return *gpu_number;
}

psae::precision chosen_precision() { return precision_of_products; }

CLI::Validator positive() { return number_check(false, "a number above 0"); }
CLI::Validator not_negative() { return number_check(true, "a number not below 0"); }

void add_precision(CLI::App& app, const std::string& names, std::string& precision, bool bf16_on_cpu,
                   const std::string& description) {
    // Options are checked in the order they were added in: --device has been seen.
    app.add_option(names, precision, description)->check([=](const std::string& p) -> std::string {
        using psae::precision;
        if (p != "fp32" && p != "tf32" && p != "bf16") return "expected fp32, tf32 or bf16, found " + p;
        precision_of_products = p == "fp32" ? precision::fp32 : p == "tf32" ? precision::tf32 : precision::bf16;
        const bool on_cpu = p == "fp32" || (p == "bf16" && bf16_on_cpu);
        if (!on_cpu && chosen_gpu() < 0)
            throw psae::error("the CPU does not compute in " + p, "--precision " + p,
                              bf16_on_cpu ? "expected fp32 or bf16" : "expected fp32",
                              "a GPU does, with --device cuda; weights in bf16 are read all the same");
        return "";
    });
}

void common_options::add_to(CLI::App& app) {
    app.add_option("--threads", threads, "number of threads (0: all cores)")->check(CLI::Range(0, 1024));
    app.add_option("--seed", seed, "seed of everything random");
    app.add_flag("--json", json, "print the summary as one JSON object");
    app.add_option("--device", device, "cpu, cuda, cuda:N, or auto: cuda where there is one")
        ->check([](const std::string& d) -> std::string {
            if (d == "auto") return gpu_number.reset(), "";
            const bool numbered = d.starts_with("cuda:") && d.size() > 5 && d.size() < 10 &&
                                  d.find_first_not_of("0123456789", 5) == std::string::npos;
            if (d != "cpu" && d != "cuda" && !numbered) return "expected cpu, cuda, cuda:N or auto, found " + d;
            gpu_number = d == "cpu" ? -1 : numbered ? std::stoi(d.substr(5)) : 0;
            if (*gpu_number >= 0) require_gpu(*gpu_number, "--device " + d);
            return "";
        });
    add_precision(app, "--dtype,--precision", precision, false, "of products on the GPU: fp32, tf32 or bf16");
    app.add_option("--config", config, "JSON file of long options; options on the command line beat it");
}

void image_options::add_to(CLI::App& app, bool model_required) {
    auto* m = app.add_option("--model", model, "Hugging Face CLIP directory");
    if (model_required) m->required();
    app.add_option("--adapter", adapter, "MaPLe checkpoint (model.pth.tar-N) that the model is adapted by")->needs(m);
    app.add_option("--images", images, "folder (sub-folders are classes), .csv, .tsv or picture; repeatable")
        ->default_str("");
    app.add_option("--split", split, "use only rows of this split");
    app.add_option("--limit", limit, "use at most so many pictures (0: all)");
    app.add_option("--alpha", alpha, "transparency: blended over white, or dropped")
        ->check(CLI::IsMember({"white", "drop"}));
    app.add_flag("--strict", strict, "stop at the first unreadable picture");
    app.add_option("--preprocess-on", preprocess_on,
                   "where decoded pictures are resized and cropped, to the same numbers: cpu or cuda, the tower's GPU")
        ->check([](const std::string& where) -> std::string {
            if (where != "cpu" && where != "cuda") return "expected cpu or cuda, found " + where;
            if (where == "cuda" && chosen_gpu() < 0)  // --device has been seen
                throw psae::error("pictures are preprocessed where the tower runs, or on the CPU",
                                  "--preprocess-on cuda", "the tower runs on the CPU", "--device cuda chooses a GPU");
            return "";
        });
    layer_option_ = app.add_option("--layer", layer,
                                   "index into hidden_states, negative from the end; where an SAE is given, its own "
                                   "layer unless this says otherwise");
}

void image_options::take_layer(const psae::sae_origin& origin) {
    if (!origin.layer || layer_option_ == nullptr || layer_option_->count() > 0) return;
    layer = *origin.layer;
    layer_option_->default_str(std::to_string(layer));
}

CLI::App* add_command(CLI::App& app, const std::string& name, const std::string& description,
                      const std::string& example) {
    auto* sub = app.add_subcommand(name, description);
    sub->footer("Example:\n  patchsae " + name + " " + example);
    sub->option_defaults()->always_capture_default();
    return sub;
}

void prepare_folder_of(const std::filesystem::path& result) {
    if (std::filesystem::is_directory(result))
        throw psae::error("file cannot be created", result.string(), "expected the name of a file, found a folder");
    const auto folder = std::filesystem::absolute(result).parent_path();
    std::filesystem::create_directories(folder);
    if (access(folder.c_str(), W_OK) != 0)
        throw psae::error("folder cannot be written to", folder.string(), std::strerror(errno));
}

void report_line(std::string text) {
    for (char& c : text)
        if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = ' ';
    fmt::print(stderr, "{}\n", text);
}

json_object& json_object::add_value(const char* key, rapidjson::Value value) {
    auto& a = document_.GetAllocator();
    document_.AddMember(rapidjson::Value(key, a), value, a);
    return *this;
}
json_object& json_object::add(const char* key, const std::string& text) {
    return add_value(
        key, rapidjson::Value(text.data(), static_cast<rapidjson::SizeType>(text.size()), document_.GetAllocator()));
}
json_object& json_object::add(const char* key, double number) {
    return add_value(key, std::isfinite(number) ? rapidjson::Value(number) : rapidjson::Value());
}
json_object& json_object::add(const char* key, bool value) { return add_value(key, rapidjson::Value(value)); }
json_object& json_object::add(const char* key, const std::vector<std::size_t>& numbers) {
    rapidjson::Value array(rapidjson::kArrayType);
    for (const std::size_t n : numbers)
        array.PushBack(rapidjson::Value(static_cast<std::uint64_t>(n)), document_.GetAllocator());
    return add_value(key, std::move(array));
}
json_object& json_object::add(const char* key, const std::vector<json_object>& objects) {
    rapidjson::Value array(rapidjson::kArrayType);
    for (const json_object& object : objects)
        array.PushBack(rapidjson::Value(object.document_, document_.GetAllocator()), document_.GetAllocator());
    return add_value(key, std::move(array));
}
std::string json_object::text() const {
    rapidjson::StringBuffer buffer;
    rapidjson::Writer<rapidjson::StringBuffer> writer(buffer);
    document_.Accept(writer);
    return {buffer.GetString(), buffer.GetSize()};
}

void json_object::print_lines() const {
    for (const auto& m : document_.GetObject()) {
        rapidjson::StringBuffer buffer;
        rapidjson::Writer<rapidjson::StringBuffer> writer(buffer);
        m.value.Accept(writer);
        fmt::print("{}: {}\n", m.name.GetString(), m.value.IsString() ? m.value.GetString() : buffer.GetString());
    }
}

std::string text_of(double number, int digits) {
    return std::isfinite(number) ? fmt::format("{:.{}g}", number, digits) : "-";
}

void print_table(const std::vector<std::vector<std::string>>& table) {
    std::vector<std::size_t> widths(table.front().size());
    for (const auto& row : table)
        for (std::size_t c = 0; c < row.size(); ++c) widths[c] = std::max(widths[c], row[c].size());
    for (const auto& row : table) {
        std::string line;
        for (std::size_t c = 0; c < row.size(); ++c) line += fmt::format("{:<{}}  ", row[c], widths[c]);
        line.erase(line.find_last_not_of(' ') + 1);
        fmt::print("{}\n", line);
    }
}

progress::progress(std::string unit, std::size_t total)
    : unit_(std::move(unit)),
      total_(total),
      terminal_(isatty(2)),
      begin_(std::chrono::steady_clock::now()),
      shown_(begin_) {}
progress::~progress() {
    if (drawn_) fmt::print(stderr, "\n");
}
void progress::show(std::size_t done, const std::string& more, double rate) {
    const auto now = std::chrono::steady_clock::now();
    if (now - shown_ < std::chrono::milliseconds(terminal_ ? 200 : 10000)) return;
    shown_ = now;
    const double elapsed = std::chrono::duration<double>(now - begin_).count();
    if (rate == 0) rate = double(done) / elapsed;
    const double left = rate > 0 ? double(total_ - std::min(done, total_)) / rate : 0;
    const std::string line =
        fmt::format("{}/{} {}  {:.3g} {}/s  {:.0f} s left{}", done, total_, unit_, rate, unit_, left, more);
    if (terminal_) fmt::print(stderr, "\r{}\033[K", line), drawn_ = true;
    else fmt::print(stderr, "{}\n", line);
}

void catch_signals() {
    struct sigaction action {};
    action.sa_handler = [](int) { signal_seen = 1; };
    action.sa_flags = SA_RESETHAND | SA_RESTART;
    sigaction(SIGINT, &action, nullptr);
    sigaction(SIGTERM, &action, nullptr);
}
bool interrupted() { return signal_seen != 0; }
void stop_if_interrupted() {
    if (interrupted()) throw interruption{};
}

psae::image_list list_images(const image_options& options) {
    const std::vector<std::filesystem::path> paths(options.images.begin(), options.images.end());
    return psae::read_image_list(paths, {options.limit, options.split});
}

psae::picture_reader read_pictures(psae::image_list list, const image_options& options,
                                   const psae::preprocessing& how) {
    const auto report = [strict = options.strict](const psae::error& e) {
        if (strict) throw e;
        report_line(std::string("patchsae: skipped: ") + e.what());
    };
    return psae::picture_reader(
        std::move(list), how, options.alpha_mode(), report,
        options.preprocess_on == "cuda" ? psae::preprocessed_by::tower : psae::preprocessed_by::reader);
}

std::size_t count_unreadable(const psae::picture_reader& pictures, const image_options& options) {
    if (pictures.unreadable() == pictures.size() && !options.none_allowed)
        throw psae::error("no picture could be read", pictures.list().files.front().string(),
                          std::to_string(pictures.size()) + " were tried");
    return pictures.unreadable();
}

std::size_t each_batch(const psae::image_list& list, const image_options& options, const psae::preprocessing& how,
                       const psae::cpu& device, std::size_t batch,
                       const std::function<void(const psae::picture_batch&)>& f) {
    auto pictures = read_pictures(list, options, how);
    progress bar("pictures", pictures.size());
    psae::picture_batch now;
    std::vector<std::size_t> which;
    for (std::size_t first = 0; first < pictures.size(); first += batch) {
        stop_if_interrupted();
        which.resize(std::min(batch, pictures.size() - first));
        std::iota(which.begin(), which.end(), first);
        pictures.read(device, which, now);
        f(now);
        bar.show(first + which.size());
    }
    return count_unreadable(pictures, options);
}

std::filesystem::path find_data_file(const std::string& name) {
    namespace fs = std::filesystem;
    std::error_code ignored;
    const fs::path installed =
        fs::read_symlink("/proc/self/exe", ignored).parent_path().parent_path() / PSAE_INSTALLED_DATA / name;
    for (const fs::path& path : {installed, fs::path(PSAE_DATA_DIR) / name})
        if (fs::exists(path, ignored)) return path;
    throw psae::error("data file of psae is missing", name, "expected it as " + installed.string());
}

void require_fit(const psae::sae_description& sae, const std::string& sae_path, std::size_t width,
                 const std::string& model_path) {
    if (sae.d_in != width)
        throw psae::error(
            "SAE and activations do not fit", sae_path + " and " + model_path,
            "the SAE takes d_in " + std::to_string(sae.d_in) + ", the activations have " + std::to_string(width));
}

}  // namespace patchsae
