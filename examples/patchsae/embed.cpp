#include "activations.hpp"

namespace patchsae {

namespace {

struct state {
    common_options common;
    image_options images;
    std::string pixels, replace, texts, out;
};

void run(const state& s, const CLI::App& sub) {
    prepare_folder_of(s.out);
    const auto tower = load_model(s.images.model, s.images.adapter);
    const auto how = psae::read_preprocessing(s.images.model, tower->image_size());
    const std::size_t layer = tower->hidden_index(s.images.layer), T = tower->tokens(), d = tower->width();
    const psae::cpu device(s.common.threads);
    std::vector<float> tokens, embeds, replacement;
    std::vector<std::string> files;
    std::vector<std::int64_t> labels;
    const std::size_t replaced = s.replace.empty() ? 0 : read_floats(s.replace, "tokens", {T, d}, replacement);
    std::size_t done = 0;
    // x [count, T, d]: of the layer.
    const auto go_on = [&](psae::arena<>& scratch, std::vector<float> x) {
        const std::size_t count = x.size() / (T * d);
        if (!replacement.empty()) {
            if (replaced < done + count)
                throw psae::error(
                    "fewer replacement tokens than pictures", s.replace,
                    fmt::format("expected tokens of at least {} pictures, found {}", done + count, replaced));
            std::copy_n(replacement.begin() + std::ptrdiff_t(done * T * d), count * T * d, x.begin());
        }
        tokens.insert(tokens.end(), x.begin(), x.end());
        embeds.resize(embeds.size() + count * tower->projection());
        tower->embeddings(device, scratch, x.data(), count, layer, embeds.data() + done * tower->projection());
        done += count;
    };
    std::size_t skipped = 0;
    if (!s.pixels.empty()) {
        std::vector<float> pixels;
        const std::size_t size = tower->image_size(), count = read_floats(s.pixels, "pixels", {3, size, size}, pixels);
        progress bar("pictures", count);
        psae::arena<> scratch;
        while (done < count) {
            stop_if_interrupted();
            scratch.reset();
            const std::size_t some = std::min(tower->pictures_of_pass(), count - done);
            std::vector<float> x(some * T * d);
            tower->begin(device, scratch, pixels.data() + done * 3 * size * size, some, layer, x.data());
            tower->finish(x.data());
            go_on(scratch, std::move(x));
            bar.show(done);
        }
        files.assign(count, "");
        labels.assign(count, -1);
    } else if (!s.images.images.empty()) {
        auto pictures = read_pictures(list_images(s.images), s.images, how);
        progress bar("pictures", pictures.size());
        const auto at = [&](psae::arena<>& scratch, const psae::hooked_tokens& h) {
            go_on(scratch, {h.tokens, h.tokens + h.pictures.size() * T * d});
            for (const std::size_t i : h.pictures) {
                files.push_back(pictures.list().files[i].string());
                labels.push_back(pictures.list().labels[i]);
            }
        };
        psae::each_hooked(device, *tower, pictures, std::span(&layer, 1), at, [&](std::size_t behind) {
            stop_if_interrupted();
            bar.show(behind);
        });
        skipped = count_unreadable(pictures, s.images);
    }
    if (replaced > done)
        throw psae::error("more replacement tokens than pictures", s.replace,
                          fmt::format("expected tokens of {} pictures, found {}", done, replaced));
    std::vector<float> text_embeds;
    if (!s.texts.empty()) {
        const auto text = load_text_model(s.images.model, s.images.adapter);
        text_embeds = psae::embed_texts(device, *text.tower, tokenize_file(text, s.texts));
    }
    const std::size_t texts = text_embeds.size() / tower->projection();
    psae::npz_writer out(s.out);
    if (done > 0) {
        out.add("tokens", tokens.data(), {done, T, d});
        out.add("image_embeds", embeds.data(), {done, tower->projection()});
        out.add("files", files);
        out.add("labels", labels);
    }
    if (texts > 0) out.add("text_embeds", text_embeds.data(), {texts, tower->projection()});
    out.close();
    save_configuration(sub, s.out);
    if (s.common.json)
        json_object{}
            .add("images", done)
            .add("skipped", skipped)
            .add("layer", layer)
            .add("tokens", T)
            .add("width", d)
            .add("texts", texts)
            .add("out", s.out)
            .print();
    else
        fmt::print("{} pictures, {} skipped: hidden state {} [{}, {}, {}]; {} texts: {}\n", done, skipped, layer, done,
                   T, d, texts, s.out);
}

}  // namespace

void add_embed(CLI::App& app) {
    auto* sub =
        add_command(app, "embed", "ViT forward: tokens [N,T,d] of a layer and image_embeds [N,p] of unit length",
                    "--model data/tiny-clip --images photos --layer -2 --out tokens.npz");
    auto s = std::make_shared<state>();
    s->common.add_to(*sub);
    s->images.add_to(*sub);
    auto* pixels = sub->add_option("--pixels", s->pixels, "array pixels [N,3,S,S] of an .npz in place of --images");
    sub->get_option("--images")->excludes(pixels);
    sub->add_option("--replace", s->replace, "array tokens [N,T,d] of an .npz put in at the hooked layer");
    sub->add_option("--texts", s->texts, "text file, a line a text: adds text_embeds [M,p] of unit length");
    sub->add_option("--out", s->out, "the .npz to write")->required();
    sub->callback([s, sub] {
        if (s->pixels.empty() && s->images.images.empty() && s->texts.empty())
            throw CLI::RequiredError("--images, --pixels or --texts");
        run(*s, *sub);
    });
}

}  // namespace patchsae
