// The hidden states of a layer, written to disk once so that many SAEs can train on them.

#include <algorithm>
#include <optional>

#include "activations.hpp"

namespace patchsae {

namespace {

struct state {
    common_options common;
    image_options images;
    std::string out, dtype = "fp32";
    std::size_t tokens_per_shard = 262144;
    bool resume = false;
};

psae::store_layout layout_of(const state& s, const psae::vision_tower& tower, std::size_t layer, std::size_t pictures) {
    psae::store_layout layout;
    layout.model = std::filesystem::absolute(s.images.model).lexically_normal().string();
    layout.dataset = std::filesystem::absolute(s.images.images.front()).lexically_normal().string();
    layout.layer = static_cast<long>(layer);
    layout.tokens = tower.image_tokens();
    layout.width = tower.width();
    layout.type = s.dtype == "fp16"   ? psae::element_type::f16
                  : s.dtype == "bf16" ? psae::element_type::bf16
                                      : psae::element_type::f32;
    if (s.tokens_per_shard < tower.image_tokens())
        throw psae::error("a shard cannot hold a picture", "--max-tokens-per-shard",
                          fmt::format("expected at least {}, found {}", tower.image_tokens(), s.tokens_per_shard));
    // As few shards as the limit allows, of equal size, so that the last one has little padding.
    const std::size_t most = s.tokens_per_shard / tower.image_tokens(), shards = (pictures + most - 1) / most;
    layout.pictures_per_shard = (pictures + shards - 1) / shards;
    return layout;
}

// What is still to be written must find room: it is asked for before the work.
void require_room(const std::string& folder, std::uint64_t bytes) {
    const auto there = std::filesystem::space(folder).available;
    if (bytes > there)
        throw psae::error("there is too little room on the disk", folder,
                          fmt::format("the store takes another {:.3g} GiB, {:.3g} are free", double(bytes) / (1 << 30),
                                      double(there) / (1 << 30)),
                          "--dtype fp16 or bf16 halves it");
}

// The pictures that the store does not have yet. A pass of the tower takes the pictures at fixed places of the list:
// what a product rounds may depend on how many go through it, and a store that was stopped must get the same bytes.
void write_pictures(const state& s, const psae::vision_tower& tower, std::size_t layer, psae::picture_reader& pictures,
                    psae::activation_store_writer& writer) {
    const psae::cpu device(s.common.threads);
    const std::size_t batch = tower.pictures_of_pass(), size = tower.image_tokens() * tower.width(),
                      count = pictures.size(), found = writer.position();
    psae::picture_passes passes(device, tower, pictures, layer);
    std::vector<float> memory;
    progress bar("pictures", count - found);
    const auto skip_to = [&](std::size_t picture) {  // those before it could not be read
        while (writer.position() < picture) writer.skip();
    };
    for (std::size_t first = found / batch * batch; first < count && writer.position() < count;) {
        stop_if_interrupted();
        const std::size_t end = std::min(first + batch, count);
        const auto& pass = passes.finished(first, end);
        const float* tokens = psae::tokens_of_images(tower, pass.tokens.data(), pass.pictures.size(), memory);
        for (const std::size_t picture : pass.pictures) {
            skip_to(picture);
            if (picture == writer.position()) writer.add(tokens, pictures.list().files[picture].string());
            tokens += size;
        }
        skip_to(end);
        bar.show(writer.position() - found);
        first = std::max(end, writer.position() / batch * batch);  // behind shards that are whole
    }
}

void run(const state& s, const CLI::App& sub) {
    if (s.resume && !std::filesystem::exists(std::filesystem::path(s.out) / "store.json"))
        throw psae::error("there is no store to go on with", s.out, "expected store.json", "start without --resume");
    const auto tower = load_model(s.images.model, s.images.adapter);
    const auto how = psae::read_preprocessing(s.images.model, tower->image_size());
    const std::size_t layer = tower->hidden_index(s.images.layer);
    const auto list = list_images(s.images);
    const auto layout = layout_of(s, *tower, layer, list.files.size());
    auto identity = identity_of_tokens(list, *tower, layer, s.images, how);
    identity["alpha"] = s.images.alpha;

    std::optional<progress> checked(std::in_place, "shards checked",
                                    (list.files.size() - 1) / layout.pictures_per_shard + 1);
    psae::activation_store_writer writer(s.out, layout, list.files.size(), identity,
                                         [&](std::size_t shard, std::size_t) {
                                             stop_if_interrupted();
                                             checked->show(shard);
                                         });
    checked.reset();
    for (const auto& e : writer.damage()) report_line(std::string("patchsae: made again: ") + e.what());
    const std::size_t found = writer.shards_found();
    require_room(s.out, writer.bytes_missing());
    auto pictures = read_pictures(list, s.images, how);
    try {
        write_pictures(s, *tower, layer, pictures, writer);
    } catch (const interruption&) {
        report_line(fmt::format("patchsae: {} of {} pictures are in whole shards; the same command goes on from there",
                                writer.pictures_in_whole_shards(), list.files.size()));
        throw;
    }
    writer.finish();
    std::vector<std::size_t> kept;
    for (std::size_t i = 0; i < list.files.size(); ++i)
        if (!std::binary_search(writer.skipped().begin(), writer.skipped().end(), i)) kept.push_back(i);
    psae::write_image_list(std::filesystem::path(s.out) / "pictures.csv", psae::select(list, kept));
    save_configuration(sub, s.out);

    const psae::activation_store store(s.out);
    if (s.common.json)
        json_object{}
            .add("images", store.pictures())
            .add("skipped", writer.skipped().size())
            .add("layer", layer)
            .add("tokens", tower->image_tokens())
            .add("width", tower->width())
            .add("dtype", s.dtype)
            .add("shards", store.shards())
            .add("shards_found", found)
            .add("bytes", store.bytes())
            .add("out", s.out)
            .print();
    else
        fmt::print("{} pictures, {} skipped: hidden state {} [{}, {}, {}] in {} shards ({} found), {:.2f} GiB: {}\n",
                   store.pictures(), writer.skipped().size(), layer, store.pictures(), tower->image_tokens(),
                   tower->width(), store.shards(), found, double(store.bytes()) / (1 << 30), s.out);
}

}  // namespace

void add_cache(CLI::App& app) {
    auto* sub = add_command(app, "cache", "writes the tokens of a layer for a list of pictures to disk, to train on",
                            "--model data/tiny-clip --images photos --layer -2 --out store");
    auto s = std::make_shared<state>();
    s->common.add_to(*sub);
    sub->remove_option(sub->get_option("--dtype"));
    add_precision(*sub, "--precision", s->common.precision, false, "of products on the GPU: fp32, tf32 or bf16");
    sub->add_option("--dtype", s->dtype, "of the stored numbers: fp32 (which saev reads), fp16 or bf16")
        ->check(CLI::IsMember({"fp32", "fp16", "bf16"}));
    s->images.add_to(*sub);
    sub->get_option("--images")->required();
    sub->add_option("--max-tokens-per-shard", s->tokens_per_shard,
                    "size of a shard, which is what is kept or made anew")
        ->check(positive());
    sub->add_flag("--resume", s->resume, "go on with the store in --out: it must be there");
    sub->add_option("--out", s->out, "store directory")->required();
    sub->callback([s, sub] { run(*s, *sub); });
}

}  // namespace patchsae
