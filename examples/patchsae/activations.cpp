#include "activations.hpp"

namespace patchsae {

namespace {

void require_finite(const std::vector<float>& x, std::size_t columns, const std::string& where) {
    for (std::size_t i = 0; i < x.size(); ++i)
        if (!std::isfinite(x[i]))
            throw psae::error("value is not finite",
                              fmt::format("{}, row {}, column {}", where, i / columns, i % columns));
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

std::size_t each_image_tokens(const psae::image_list& list, const image_options& options, const psae::cpu& device,
                              const std::function<void(const psae::vision_tower&, const std::vector<float>&,
                                                       const std::vector<std::size_t>&)>& f) {
    const auto tower = load_model(options.model);
    const auto how = psae::read_preprocessing(options.model, tower->image_size());
    const std::size_t layer = tower->hidden_index(options.layer);
    psae::arena<> scratch;
    return each_batch(list, options, how, device, 8,
                      [&](const std::vector<float>& pixels, const std::vector<std::size_t>& which) {
                          scratch.reset();
                          std::vector<float> x(which.size() * tower->tokens() * tower->width());
                          tower->embed(device, scratch, pixels.data(), which.size(), x.data());
                          tower->run(device, scratch, x.data(), which.size(), 0, layer);
                          f(*tower, x, which);
                      });
}

}  // namespace patchsae
