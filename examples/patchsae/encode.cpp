#include "activations.hpp"

namespace patchsae {

namespace {

struct state {
    common_options common;
    image_options images;
    std::string sae, activations, token_kind = "all", out;
};

void run(state& s, const CLI::App& sub) {
    prepare_folder_of(s.out);
    const auto weights = load_sae(s.sae);
    const auto sae = on_chosen_device(weights);
    s.images.take_layer(sae.origin);
    const psae::cpu device(s.common.threads);
    std::vector<float> data;
    std::vector<std::int32_t> indices;
    std::vector<std::int64_t> indptr{0};
    psae::arena<> scratch;
    std::size_t skipped = 0;
    const auto add = [&](const float* x, std::size_t n) {
        constexpr std::size_t rows = 4096;
        for (std::size_t first = 0; first < n; first += rows) {
            stop_if_interrupted();
            scratch.reset();
            const auto z = encode_rows(device, scratch, sae, x + first * sae.d_in, std::min(rows, n - first));
            data.insert(data.end(), z.value, z.value + z.entries());
            indices.insert(indices.end(), z.latent, z.latent + z.entries());
            for (std::size_t t = 0; t < z.tokens; ++t)
                indptr.push_back(indptr.back() + std::int64_t(z.offsets[t + 1] - z.offsets[t]));
        }
    };
    if (!s.activations.empty() && is_store(s.activations)) {
        const psae::activation_store store(s.activations);
        require_fit(sae, s.sae, store.columns(), s.activations);
        psae::activation_store_source rows(store, {.sequential = true, .kind = token_kind_of(s.token_kind)});
        constexpr std::size_t at_once = 4096;
        std::vector<float> x(at_once * sae.d_in);
        for (std::size_t first = 0; first < rows.rows(); first += at_once) {
            const std::size_t n = std::min(at_once, rows.rows() - first);
            rows.read(first, n, x.data());
            add(x.data(), n);
        }
    } else if (!s.activations.empty()) {
        std::size_t d = 0;
        const auto rows = read_activations(s.activations, d);
        require_fit(sae, s.sae, d, s.activations);
        add(rows.data(), rows.size() / d);
    } else {
        skipped = each_image_tokens(
            list_images(s.images), s.images, device,
            [&](const psae::vision_tower& tower, std::span<const float> tokens, std::span<const std::size_t>) {
                require_fit(sae, s.sae, tower.width(), s.images.model);
                add(tokens.data(), tokens.size() / sae.d_in);
            });
    }
    const std::size_t rows = indptr.size() - 1;
    psae::write_scipy_csr(s.out, data, indices, indptr, rows, sae.d_sae);
    const double l0 = double(data.size()) / double(rows);
    save_configuration(sub, s.out);
    if (s.common.json)
        json_object{}
            .add("rows", rows)
            .add("d_sae", sae.d_sae)
            .add("l0", l0)
            .add("skipped", skipped)
            .add("out", s.out)
            .print();
    else
        fmt::print("codes of {} rows over {} latents, L0 {:.2f}, {} pictures skipped: {}\n", rows, sae.d_sae, l0,
                   skipped, s.out);
}

}  // namespace

void add_encode(CLI::App& app) {
    auto* sub = add_command(app, "encode", "codes of activations or pictures, as SciPy CSR [rows, d_sae]",
                            "--sae run --model data/tiny-clip --images photos --out codes.npz");
    auto s = std::make_shared<state>();
    s->common.add_to(*sub);
    s->images.add_to(*sub, false);
    sub->add_option("--sae", s->sae, "SAE: directory or file of any format (see convert)")->required();
    sub->add_option("--activations", s->activations, "a store (see cache), an .npy [N,d] or an .npz with tokens");
    add_token_kind(*sub, s->token_kind);
    sub->add_option("--out", s->out, "the .npz to write")->required();
    sub->callback([s, sub] {
        if (s->activations.empty() == s->images.images.empty())
            throw CLI::ValidationError("encode", "expected --activations, or --model and --images");
        if (!s->images.images.empty() && s->images.model.empty()) throw CLI::RequiredError("--model");
        if (!s->activations.empty() && !s->images.adapter.empty())
            throw CLI::ValidationError("--adapter", "goes with pictures");
        if (s->token_kind != "all" && !is_store(s->activations))
            throw CLI::ValidationError("--token-kind", "goes with a store as --activations");
        run(*s, *sub);
    });
}

}  // namespace patchsae
