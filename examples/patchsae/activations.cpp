#include "activations.hpp"

#include <zlib.h>

namespace patchsae {

namespace {

void require_finite(const std::vector<float>& x, std::size_t columns, const std::string& where) {
    for (std::size_t i = 0; i < x.size(); ++i)
        if (!std::isfinite(x[i]))
            throw psae::error("value is not finite",
                              fmt::format("{}, row {}, column {}", where, i / columns, i % columns));
}

// Of the tensors of a file whose names have one of these parts.
template <class Weights, class Bytes>
std::string crc_of_tensors(const Weights& weights, std::initializer_list<const char*> parts, const Bytes& bytes_of) {
    unsigned long crc = 0;
    std::vector<std::byte> gathered;
    for (const auto& e : weights.entries())
        if (std::any_of(parts.begin(), parts.end(), [&](const char* p) { return e.name.find(p) != e.name.npos; })) {
            stop_if_interrupted();
            const auto bytes = bytes_of(e, gathered);
            crc = crc_of(crc, e.name.data(), e.name.size());
            crc = crc_of(crc, bytes.data(), bytes.size());
        }
    return fmt::format("crc32 {:08x}", crc);
}

// Of the vision tower's weights: two models of one architecture differ in nothing else, but for their adapters.
std::string crc_of_weights(const image_options& images) {
    const psae::model_weights model(images.model);
    std::string text =
        "weights " + crc_of_tensors(model, {"vision_model.", "visual."},
                                    [&](const auto& e, auto& memory) { return model.bytes(e.name, memory); });
    if (images.adapter.empty()) return text;
    const psae::torch_file adapter(images.adapter);
    return text + ", adapter " +
           crc_of_tensors(adapter, {"prompt_learner.", "image_encoder."},
                          [&](const auto& e, auto& memory) { return adapter.bytes(e, memory); });
}

}  // namespace

std::size_t read_floats(const std::string& path, const char* name, const std::vector<std::size_t>& inner,
                        std::vector<float>& values) {
    const auto a = psae::read_npz(path, name);
    auto shape = a.shape;
    const std::size_t count = shape.empty() ? 0 : shape.front();
    if (!shape.empty()) shape.erase(shape.begin());
    if (shape != inner || count == 0 || !a.strings.empty())
        throw psae::error("array has another shape", path + ", array " + name,
                          "expected [N] x " + psae::shape_text(inner) + ", found " + psae::shape_text(a.shape));
    values = psae::to_floats(a);
    require_finite(values, values.size() / count, path + ", array " + name);
    return count;
}

std::vector<float> read_activations(const std::string& path, std::size_t& d) {
    const auto a = path.ends_with(".npz") ? psae::read_npz(path, "tokens") : psae::read_npy(path);
    if (a.shape.size() < 2 || a.size() == 0 || !a.strings.empty())
        throw psae::error("not a matrix of activations", path, "expected [N, d], found " + psae::shape_text(a.shape));
    d = a.shape.back();
    auto x = psae::to_floats(a);
    require_finite(x, d, path);
    return x;
}

unsigned long crc_of(unsigned long crc, const void* bytes, std::size_t count) {
    return crc32_z(crc, static_cast<const Bytef*>(bytes), count);
}

psae::run_identity identity_of_tokens(const psae::image_list& list, const psae::vision_tower& tower, std::size_t layer,
                                      const image_options& images, const psae::preprocessing& how) {
    unsigned long crc = 0;
    for (const auto& file : list.files) {
        const std::string name = file.filename().string();
        std::error_code unreadable;  // reported when its turn to be read comes
        const std::uint64_t bytes = std::filesystem::file_size(file, unreadable);
        crc = crc_of(crc, name.c_str(), name.size() + 1);
        crc = crc_of(crc, &bytes, sizeof bytes);
    }
    psae::run_identity identity{
        {"list", fmt::format("{} pictures, names and sizes crc32 {:08x}", list.files.size(), crc)},
        {"model", fmt::format("{}, {}", tower.name(), crc_of_weights(images))},
        {"layer", std::to_string(layer)},
        {"preprocessing", fmt::format("crc32 {:08x}", crc_of(0, &how, sizeof how))}};
    if (chosen_gpu() >= 0) {
        constexpr const char* names[] = {"fp32", "tf32", "bf16"};
        identity["device"] = "cuda";  // its sums have another order
        identity["precision"] = names[static_cast<int>(chosen_precision())];
    }
    return identity;
}

bool is_store(const std::filesystem::path& path) {
    return std::filesystem::exists(path / "store.json") ||
           (std::filesystem::exists(path / "metadata.json") && std::filesystem::exists(path / "shards.json"));
}

psae::token_kind token_kind_of(const std::string& name) {
    return name == "cls"       ? psae::token_kind::cls
           : name == "patches" ? psae::token_kind::patches
                               : psae::token_kind::all;
}
void add_token_kind(CLI::App& app, std::string& kind) {
    app.add_option("--token-kind", kind, "of a store: all tokens, the class tokens (cls) or the patches")
        ->check(CLI::IsMember({"all", "cls", "patches"}));
}

std::size_t each_image_tokens(
    const psae::image_list& list, const image_options& options, const psae::cpu& device,
    const std::function<void(const psae::vision_tower&, std::span<const float>, std::span<const std::size_t>)>& f) {
    const auto tower = load_model(options.model, options.adapter);
    const auto how = psae::read_preprocessing(options.model, tower->image_size());
    const std::size_t layer = tower->hidden_index(options.layer);
    auto pictures = read_pictures(list, options, how);
    progress bar("pictures", list.files.size());
    std::vector<float> memory;
    const auto at = [&](psae::arena<>&, const psae::hooked_tokens& h) {
        const std::size_t count = h.pictures.size();
        f(*tower,
          {psae::tokens_of_images(*tower, h.tokens, count, memory), count * tower->image_tokens() * tower->width()},
          h.pictures);
    };
    psae::each_hooked(device, *tower, pictures, std::span(&layer, 1), at, [&](std::size_t done) {
        stop_if_interrupted();
        bar.show(done);
    });
    return count_unreadable(pictures, options);
}

}  // namespace patchsae
