#include "program.hpp"

namespace patchsae {

namespace {

struct state {
    common_options common;
    image_options images;
    std::string pixels, replace, out;
    std::size_t batch = 8;
};

// A float array of a file, its trailing extents as expected; returns the leading extent.
std::size_t read_batch(const std::string& path, const char* name, const std::vector<std::size_t>& inner,
                       std::vector<float>& values) {
    const auto a = psae::read_npz(path, name);
    auto shape = a.shape;
    const std::size_t count = shape.empty() ? 0 : shape.front();
    if (!shape.empty()) shape.erase(shape.begin());
    if (shape != inner || count == 0)
        throw psae::error("array has another shape", path + ", array " + name,
                          "expected [N] x " + psae::shape_text(inner) + ", found " + psae::shape_text(a.shape));
    values = psae::to_floats(a);
    return count;
}

void run(const state& s) {
    const auto tower = psae::load_clip_vision(s.images.model);
    const auto how = psae::read_preprocessing(s.images.model, tower->image_size());
    const std::size_t layer = tower->hidden_index(s.images.layer), T = tower->tokens(), d = tower->width();
    const psae::cpu device(s.common.threads);
    psae::arena<> scratch;
    std::vector<float> tokens, embeds, replacement;
    std::vector<std::string> files;
    std::vector<std::int64_t> labels;
    if (!s.replace.empty()) read_batch(s.replace, "tokens", {T, d}, replacement);
    std::size_t done = 0;
    const auto forward = [&](const float* pixels, std::size_t count) {
        scratch.reset();
        std::vector<float> x(count * T * d), e(count * tower->projection());
        tower->embed(device, scratch, pixels, count, x.data());
        tower->run(device, scratch, x.data(), count, 0, layer);
        if (!replacement.empty()) {
            if (replacement.size() < (done + count) * T * d)
                throw psae::error("fewer replacement tokens than pictures", s.replace,
                                  "at least " + std::to_string(done + count) + " pictures");
            std::copy_n(replacement.begin() + std::ptrdiff_t(done * T * d), count * T * d, x.begin());
        }
        tokens.insert(tokens.end(), x.begin(), x.end());
        tower->run(device, scratch, x.data(), count, layer, tower->layers());
        tower->project(device, scratch, x.data(), count, e.data(), true);
        embeds.insert(embeds.end(), e.begin(), e.end());
        done += count;
    };
    std::size_t skipped = 0;
    if (!s.pixels.empty()) {
        std::vector<float> pixels;
        const std::size_t size = tower->image_size(), count = read_batch(s.pixels, "pixels", {3, size, size}, pixels);
        for (std::size_t first = 0; first < count; first += s.batch)
            forward(pixels.data() + first * 3 * size * size, std::min(s.batch, count - first));
        files.assign(count, "");
        labels.assign(count, -1);
    } else {
        const auto list = list_images(s.images);
        skipped = each_batch(list, s.images, how, device, s.batch,
                             [&](const std::vector<float>& pixels, const std::vector<std::size_t>& which) {
                                 forward(pixels.data(), which.size());
                                 for (const std::size_t i : which) {
                                     files.push_back(list.files[i].string());
                                     labels.push_back(list.labels[i]);
                                 }
                             });
    }
    psae::npz_writer out(s.out);
    out.add("tokens", tokens.data(), {done, T, d});
    out.add("image_embeds", embeds.data(), {done, tower->projection()});
    out.add("files", files);
    out.add("labels", labels);
    out.close();
    if (s.common.json)
        fmt::print("{{\"images\": {}, \"skipped\": {}, \"layer\": {}, \"tokens\": {}, \"width\": {}}}\n", done, skipped,
                   layer, T, d);
    else
        fmt::print("{} pictures, {} skipped: hidden state {} [{}, {}, {}] in {}\n", done, skipped, layer, done, T, d,
                   s.out);
}

}  // namespace

void add_embed(CLI::App& app) {
    auto* sub = app.add_subcommand("embed",
                                   "ViT forward: tokens of a layer and image embeddings\n  patchsae embed --model "
                                   "data/tiny-clip --images photos --out tokens.npz");
    auto s = std::make_shared<state>();
    s->common.add_to(*sub);
    s->images.add_to(*sub);
    auto* pixels = sub->add_option("--pixels", s->pixels, "array pixels [N,3,S,S] of an .npz in place of --images");
    sub->get_option("--images")->excludes(pixels);
    sub->add_option("--replace", s->replace, "array tokens [N,T,d] of an .npz put in at the hooked layer");
    sub->add_option("--batch-images", s->batch, "pictures per forward pass")->check(CLI::Range(1, 4096));
    sub->add_option("--out", s->out, "the .npz to write")->required();
    sub->callback([s] {
        if (s->pixels.empty() && s->images.images.empty()) throw CLI::RequiredError("--images or --pixels");
        run(*s);
    });
}

}  // namespace patchsae
