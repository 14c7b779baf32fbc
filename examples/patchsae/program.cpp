#include "program.hpp"

#include <cstdio>

namespace patchsae {

void common_options::add_to(CLI::App& app) {
    app.add_option("--threads", threads, "number of threads (default: all cores)")->check(CLI::Range(0, 4096));
    app.add_option("--seed", seed, "seed of everything random");
    app.add_flag("--json", json, "print the summary as one JSON object");
    app.add_option("--device", device, "cpu")->check([](const std::string& d) {
        return d == "cpu" ? std::string() : "this build has no CUDA backend; use --device cpu";
    });
    app.add_option("--dtype", dtype, "fp32")->check(CLI::IsMember({"fp32"}));
}

void image_options::add_to(CLI::App& app, bool model_required) {
    auto* m = app.add_option("--model", model, "Hugging Face CLIP directory");
    if (model_required) m->required();
    app.add_option("--images", images, "folder (sub-folders are classes), .csv or .tsv; repeatable");
    app.add_option("--split", split, "use only rows of this split");
    app.add_option("--limit", limit, "use at most so many pictures");
    app.add_option("--alpha", alpha, "transparency: blended over white, or dropped")
        ->check(CLI::IsMember({"white", "drop"}));
    app.add_flag("--strict", strict, "stop at the first unreadable picture");
    app.add_option("--layer", layer, "index into hidden_states, negative from the end");
}

psae::image_list list_images(const image_options& options) {
    if (options.images.size() == 1 && std::filesystem::is_regular_file(options.images[0]) &&
        psae::detail::has_image_name(options.images[0]))
        return {{options.images[0]}, {-1}, {}};
    const std::vector<std::filesystem::path> paths(options.images.begin(), options.images.end());
    return psae::read_image_list(paths, {options.limit, options.split});
}

std::optional<psae::image> try_read(const std::filesystem::path& file, const image_options& options) {
    try {
        return psae::read_image(file, options.alpha_mode());
    } catch (const psae::error& e) {
        if (options.strict) throw;
        fmt::print(stderr, "patchsae: skipped: {}\n", e.what());
        return std::nullopt;
    }
}

std::size_t each_batch(const psae::image_list& list, const image_options& options, const psae::preprocessing& how,
                       const psae::cpu& device, std::size_t batch,
                       const std::function<void(const std::vector<float>&, const std::vector<std::size_t>&)>& f) {
    const std::size_t size = 3 * how.crop * how.crop;
    std::size_t skipped = 0;
    for (std::size_t first = 0; first < list.files.size(); first += batch) {
        const std::size_t count = std::min(batch, list.files.size() - first);
        std::vector<float> pixels(count * size);
        std::vector<char> good(count, 0);
        std::exception_ptr failure;
        device.parallel_for(count, [&](std::size_t i) {
            try {
                if (const auto picture = try_read(list.files[first + i], options)) {
                    psae::preprocess(*picture, how, pixels.data() + i * size);
                    good[i] = 1;
                }
            } catch (...) {
#pragma omp critical
                failure = std::current_exception();
            }
        });
        if (failure) std::rethrow_exception(failure);
        std::vector<std::size_t> indices;
        for (std::size_t i = 0; i < count; ++i) {
            if (!good[i]) {
                ++skipped;
                continue;
            }
            std::copy_n(pixels.begin() + std::ptrdiff_t(i * size), size,
                        pixels.begin() + std::ptrdiff_t(indices.size() * size));
            indices.push_back(first + i);
        }
        pixels.resize(indices.size() * size);
        if (!indices.empty()) f(pixels, indices);
    }
    if (skipped == list.files.size())
        throw psae::error("no picture could be read", list.files.front().string(),
                          std::to_string(skipped) + " were tried");
    return skipped;
}

psae::codes_view<float> encode_rows(const psae::cpu& device, psae::arena<>& scratch, const psae::sae_weights& sae,
                                    const float* x, std::size_t n) {
    float* centred = scratch.allocate<float>(n * sae.d_in);
    for (std::size_t r = 0; r < n; ++r)
        for (std::size_t c = 0; c < sae.d_in; ++c) {
            const float v = x[r * sae.d_in + c];
            if (!std::isfinite(v))
                throw psae::error("activation is not finite",
                                  "row " + std::to_string(r) + ", column " + std::to_string(c));
            centred[r * sae.d_in + c] = v - sae.b_dec[c];
        }
    psae::codes_view<float> z;
    psae::cpu own = device;
    const float *W = sae.W_enc.data(), *b = sae.b_enc.data();
    const float* input = centred;
    if (sae.architecture == "topk")
        psae::encode(own, scratch, z, input, n, sae.d_in, W, b, sae.d_sae, psae::top_k{sae.k}, nullptr);
    else psae::encode(own, scratch, z, input, n, sae.d_in, W, b, sae.d_sae, psae::relu{}, nullptr);
    return z;
}

void require_fit(const psae::sae_weights& sae, const std::string& sae_path, std::size_t width,
                 const std::string& model_path) {
    if (sae.d_in != width)
        throw psae::error(
            "SAE and activations do not fit", sae_path + " and " + model_path,
            "the SAE takes d_in " + std::to_string(sae.d_in) + ", the activations have " + std::to_string(width));
}

}  // namespace patchsae
