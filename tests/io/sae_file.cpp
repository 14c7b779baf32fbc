// SAEs in the formats of the field: codes and reconstructions of other tools' files, conversions, and what cannot be
// read or expressed.
#include <catch2/catch.hpp>

#include <cmath>
#include <filesystem>
#include <fstream>

#include <psae/io/numpy.hpp>
#include <psae/io/sae_file.hpp>
#include <psae/sae/topk.hpp>
#include <psae/sae/transcoder.hpp>

#include "../difference.hpp"
#include "../temporary_folder.hpp"

using namespace psae;

namespace {

namespace fs = std::filesystem;
const fs::path formats = fs::path(PSAE_GOLDEN_DIR) / "formats";

std::vector<float> dense(const codes_view<float>& z) {
    std::vector<float> x(z.tokens * z.latents);
    for (std::size_t t = 0; t < z.tokens; ++t)
        for (std::size_t i = z.offsets[t]; i < z.offsets[t + 1]; ++i) x[t * z.latents + z.latent[i]] = z.value[i];
    return x;
}

// Codes [n, d_sae] and outputs [n, d_out] of rows x [n, d_in].
struct use {
    std::vector<float> z, x_hat;
    use(const sae_view& sae, const std::vector<float>& x) {
        const cpu device;
        arena<> scratch;
        const std::size_t n = x.size() / sae.d_in;
        const auto codes = encode_rows(device, scratch, sae, x.data(), n);
        z = dense(codes);
        x_hat.resize(n * sae.outputs());
        decode_rows(device, sae, codes, x.data(), x_hat.data());
    }
};

void check_equal(const sae_weights& a, const sae_weights& b) {
    CHECK(a.architecture == b.architecture);
    CHECK(a.d_in == b.d_in);
    CHECK(a.d_sae == b.d_sae);
    CHECK(a.d_out == b.d_out);
    CHECK(a.k == b.k);
    CHECK(a.centred_input == b.centred_input);
    CHECK(a.scaling == b.scaling);
    CHECK(a.rectified == b.rectified);
    CHECK(a.rescaled == b.rescaled);
    CHECK(a.W_enc == b.W_enc);
    CHECK(a.b_enc == b.b_enc);
    CHECK(a.W_dec == b.W_dec);
    CHECK(a.b_dec == b.b_dec);
    CHECK(a.threshold == b.threshold);
    CHECK(a.r_mag == b.r_mag);
    CHECK(a.b_mag == b.b_mag);
    CHECK(a.W_skip == b.W_skip);
}

// Every golden SAE, the file of its expected values and the names of its codes and outputs there.
struct golden_sae {
    std::string path, expected, z, x_hat;
};
std::vector<golden_sae> golden_saes() {
    std::vector<golden_sae> all;
    for (const std::string name : {"standard", "standard_no_centre", "standard_layer_norm", "standard_constant_norm",
                                   "topk", "topk_rescaled", "jumprelu", "gated", "skip_transcoder"})
        all.push_back({"saelens/" + name, "saelens", name + "_z", name + "_x_hat"});
    for (const std::string name : {"standard", "topk", "batch_topk", "jumprelu", "gated"})
        all.push_back({"dictionary_learning/" + name, "dictionary_learning", name + "_z", name + "_x_hat"});
    for (const auto& [file, name] : {std::pair{"schema1_relu", "relu"}, {"schema2", "topk"}, {"schema5", "relu"}})
        all.push_back(
            {std::string("saev_") + file + ".pt", "saev", std::string(name) + "_z", std::string(name) + "_x_hat"});
    for (const std::string name : {"patchsae.pt", "patchsae_config_dict.pt"})
        all.push_back({name, "patchsae", "z", "x_hat"});
    all.push_back({"sparsify", "sparsify", "z", "x_hat"});
    all.push_back({"sparsify_transcoder", "sparsify", "transcoder_z", "transcoder_y"});
    return all;
}

constexpr sae_format all_formats[] = {sae_format::patchsae, sae_format::saelens, sae_format::saev, sae_format::sparsify,
                                      sae_format::dictionary_learning};

// What an error says.
template <class F>
std::string refusal(F&& f) {
    try {
        f();
    } catch (const error& e) {
        return e.what();
    }
    return "";
}
bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("SAEs of every tool give its codes and outputs") {
    for (const auto& g : golden_saes()) {
        INFO(g.path);
        const auto expected = read_npz(formats / (g.expected + ".expected.npz"));
        const use got(read_sae(formats / g.path), to_floats(expected.at("x")));
        CHECK(relative_difference(got.z, to_floats(expected.at(g.z))) < 1e-5);
        CHECK(relative_difference(got.x_hat, to_floats(expected.at(g.x_hat))) < 1e-5);
    }
}

TEST_CASE("weights of every tool are read exactly") {
    for (const auto& [file, npz] : {std::pair{"patchsae.pt", "patchsae"},
                                    {"patchsae_config_dict.pt", "patchsae"},
                                    {"saev_schema1_relu.pt", "saev"},
                                    {"saev_schema2.pt", "saev"},
                                    {"saev_schema5.pt", "saev"},
                                    {"sparsify", "sparsify"}}) {
        INFO(file);
        const auto expected = read_npz(formats / (std::string(npz) + ".expected.npz"));
        const auto sae = read_sae(formats / file);
        CHECK(sae.W_enc == transpose(to_floats(expected.at("W_enc")).data(), 8, 24));
        CHECK(sae.b_enc == to_floats(expected.at("b_enc")));
        CHECK(sae.W_dec == to_floats(expected.at("W_dec")));
        CHECK(sae.b_dec == to_floats(expected.at("b_dec")));
    }
    const auto expected = read_npz(formats / "patchsae.expected.npz");
    const auto half = read_sae(formats / "patchsae_fp16.pt");
    CHECK(relative_difference(half.W_dec, to_floats(expected.at("W_dec"))) < 1e-3);
    const auto saelens = read_npz(formats / "saelens.expected.npz");
    for (const char* name : {"r_mag", "b_mag", "b_gate"}) {
        const auto gated = read_sae(formats / "saelens" / "gated");
        const auto& got = name == std::string("r_mag")   ? gated.r_mag
                          : name == std::string("b_mag") ? gated.b_mag
                                                         : gated.b_enc;
        CHECK(got == to_floats(saelens.at(name)));
    }
    CHECK(read_sae(formats / "saelens" / "skip_transcoder").W_skip == to_floats(saelens.at("W_skip")));
    CHECK(read_sae(formats / "saelens" / "skip_transcoder").d_out == 6);
}

TEST_CASE("SAELens' layout before version 6 is read") {
    const auto sae = read_sae(formats / "saelens" / "old_v3");
    CHECK(sae.architecture == "standard");
    CHECK(sae.d_in == 8);
    CHECK(sae.d_sae == 24);
    CHECK(sae.origin.model == "gpt2-small");
    CHECK(sae.origin.layer == 8);  // hook_resid_pre
    const safetensors_file file(formats / "saelens" / "old_v3" / "sae_weights.safetensors");
    CHECK(sae.W_enc == transpose(file.read("W_enc", {8, 24}).data(), 8, 24));
    CHECK(sae.W_dec == file.read("W_dec", {24, 8}));
}

TEST_CASE("a hooked layer that no model has is not one") {
    const temporary_folder work;
    const fs::path sae = work / "sae";
    fs::copy(formats / "saelens" / "standard", sae);
    const auto layer_of = [&](const std::string& hook) {
        auto json = read_json(sae / "cfg.json");
        json["metadata"]["hook_name"].SetString(hook.c_str(), json.GetAllocator());
        write_text(sae / "cfg.json", to_text(json));
        return read_sae(sae).origin.layer;
    };
    CHECK(layer_of("hidden_states.-2") == -2);
    CHECK(layer_of("blocks.7.hook_resid_post") == 8);
    CHECK_FALSE(layer_of("blocks.9223372036854775807.hook_resid_post"));
    CHECK_THROWS_WITH(layer_of("hidden_states.9223372036854775807"), Catch::Contains("hooked layer is not a number"));
}

TEST_CASE("the format of an SAE is recognised from its directory and from its files") {
    const auto format = [](const fs::path& path) { return sae_format_of(formats / path); };
    for (const auto& g : golden_saes()) {
        INFO(g.path);
        const auto expected = g.expected == "saelens"    ? sae_format::saelens
                              : g.expected == "saev"     ? sae_format::saev
                              : g.expected == "patchsae" ? sae_format::patchsae
                              : g.expected == "sparsify" ? sae_format::sparsify
                                                         : sae_format::dictionary_learning;
        CHECK(format(g.path) == expected);
    }
    CHECK(format("saelens/topk/sae_weights.safetensors") == sae_format::saelens);
    CHECK(format("sparsify/sae.safetensors") == sae_format::sparsify);
    CHECK(format("dictionary_learning/gated/ae.pt") == sae_format::dictionary_learning);
    for (const char* other :
         {"torch_everything.pt", "everything.safetensors", "numpy", "reference_results", "missing"}) {
        INFO(other);
        CHECK(!format(other));
        CHECK_THROWS_AS(read_sae(formats / other), error);
    }
    const temporary_folder work;
    fs::copy(formats / "dictionary_learning" / "topk" / "ae.pt", work / "renamed.pt");
    CHECK(!sae_format_of(work / "renamed.pt"));
    fs::copy(formats / "dictionary_learning" / "topk" / "config.json", work / "config.json");
    CHECK(sae_format_of(work / "renamed.pt") == sae_format::dictionary_learning);
    fs::create_directories(work / "checkpoint");
    fs::copy(formats / "saev_schema5.pt", work / "checkpoint" / "sae.pt");
    CHECK(sae_format_of(work / "checkpoint") == sae_format::saev);
}

TEST_CASE("an SAE goes through every format that can express it, and back, exactly") {
    const temporary_folder work;
    std::size_t written = 0, refused = 0, pair = 0;
    for (const auto& g : golden_saes()) {
        const auto sae = read_sae(formats / g.path);
        const auto own = *sae_format_of(formats / g.path);
        for (const sae_format to : all_formats) {
            INFO(g.path << " to " << name_of(to));
            const auto name = std::to_string(pair++);
            const auto out = work / (is_directory_format(to) ? name : name + ".pt");
            const auto why = refusal([&] { write_sae(out, sae, to); });
            if (!why.empty()) {
                CHECK(to != own);
                CHECK(contains(why, name_of(to)));
                CHECK(contains(why, "expected"));
                CHECK_FALSE(fs::exists(out));
                ++refused;
                continue;
            }
            ++written;
            CHECK(sae_format_of(out) == to);
            const auto back = read_sae(out);
            check_equal(back, sae);
            CHECK((to == sae_format::saev || to == sae_format::sparsify || back.origin.model == sae.origin.model));
            CHECK((to == sae_format::saev || to == sae_format::sparsify || back.origin.layer == sae.origin.layer));
            write_sae(work / (is_directory_format(own) ? name + "back" : name + "back.pt"), back, own);
            check_equal(read_sae(work / (is_directory_format(own) ? name + "back" : name + "back.pt")), sae);
        }
    }
    // Standard and centred: three formats. Not centred: two. Top-k of ReLU: three, of h: one. Batch top-k, jumprelu not
    // centred, gated: two each. Normalised, rescaled, jumprelu centred, transcoders: their own.
    const std::size_t saelens = 3 + 2 + 1 + 1 + 3 + 1 + 1 + 2 + 1, dictionary_learning = 3 + 3 + 2 + 2 + 2;
    const std::size_t saev = 2 + 1 + 2, patchsae = 3 + 3, sparsify = 3 + 1;
    CHECK(written == saelens + dictionary_learning + saev + patchsae + sparsify);
    CHECK(written + refused == golden_saes().size() * 5);
}

TEST_CASE("what a format cannot express is named, and nothing is written") {
    const temporary_folder work;
    const auto why = [&](const char* path, sae_format to) {
        return refusal([&] { write_sae(work / "out", read_sae(formats / path), to); });
    };
    CHECK(contains(why("saelens/gated", sae_format::sparsify), "architecture gated): expected topk"));
    CHECK(contains(why("patchsae.pt", sae_format::saev), "input centred by b_dec): expected an input that is not"));
    CHECK(contains(why("saelens/standard_layer_norm", sae_format::patchsae), "normalised input"));
    CHECK(contains(why("saelens/topk_rescaled", sae_format::dictionary_learning), "rescaled by the norms"));
    CHECK(contains(why("saelens/topk", sae_format::saev), "top-k of ReLU): expected top-k without ReLU"));
    CHECK(contains(why("saev_schema2.pt", sae_format::saelens), "top-k without ReLU): expected top-k of ReLU"));
    CHECK(contains(why("saelens/skip_transcoder", sae_format::sparsify), "architecture standard"));
    CHECK(contains(why("sparsify_transcoder", sae_format::dictionary_learning), "transcoder): expected an SAE"));
    CHECK(contains(why("sparsify_transcoder", sae_format::saelens), "architecture topk"));
    CHECK(contains(why("saelens/jumprelu", sae_format::dictionary_learning), "input centred"));
    CHECK_FALSE(fs::exists(work / "out"));

    // One directory holds one SAE: sparsify and SAELens both have a cfg.json.
    write_sae(work / "one", read_sae(formats / "saelens" / "topk"));
    CHECK(contains(refusal([&] { write_sae(work / "one", read_sae(formats / "sparsify"), sae_format::sparsify); }),
                   "directory holds an SAE of another format"));
}

TEST_CASE("centring and norms of decoder rows can be folded into the weights") {
    const auto x = to_floats(read_npz(formats / "saelens.expected.npz").at("x"));
    const temporary_folder work;
    std::size_t pair = 0;
    for (const auto& [path, to] : std::initializer_list<std::pair<const char*, sae_format>>{
             {"patchsae.pt", sae_format::saev},
             {"saelens/standard_no_centre", sae_format::patchsae},
             {"saelens/topk_rescaled", sae_format::sparsify},
             {"saelens/topk_rescaled", sae_format::dictionary_learning},
             {"saelens/jumprelu", sae_format::dictionary_learning}}) {
        INFO(path << " to " << name_of(to));
        auto sae = read_sae(formats / path);
        const use before(sae, x);
        fold_into(sae, to, path);
        const auto out = work / (std::to_string(pair++) + (is_directory_format(to) ? "" : ".pt"));
        write_sae(out, sae, to);
        const use after(read_sae(out), x);
        CHECK(relative_difference(after.z, before.z) < 1e-5);
        CHECK(relative_difference(after.x_hat, before.x_hat) < 1e-5);
    }
    auto gated = read_sae(formats / "saelens" / "gated");
    const use before(gated, x);
    fold_centring(gated, false);
    CHECK_FALSE(gated.centred_input);
    const use after(gated, x);
    CHECK(relative_difference(after.z, before.z) < 1e-5);
    CHECK(relative_difference(after.x_hat, before.x_hat) < 1e-5);
}

TEST_CASE("a batch top-k SAE of SAELens in training becomes the jumprelu SAE it is in use") {
    const temporary_folder work;
    const auto topk = read_sae(formats / "saelens" / "topk_rescaled");
    const auto W_enc = transpose(topk.W_enc.data(), 24, 8);
    const double threshold = 0.3;
    fs::create_directories(work / "batch");
    write_safetensors(work / "batch" / "sae_weights.safetensors",
                      {to_write("W_enc", {8, 24}, W_enc.data()), to_write("b_enc", {24}, topk.b_enc.data()),
                       to_write("W_dec", {24, 8}, topk.W_dec.data()), to_write("b_dec", {8}, topk.b_dec.data()),
                       to_write("topk_threshold", {}, &threshold)});
    write_text(
        work / "batch" / "cfg.json",
        R"({"architecture": "batchtopk", "d_in": 8, "d_sae": 24, "k": 4.0, "rescale_acts_by_decoder_norm": true})");
    const auto sae = read_sae(work / "batch");
    CHECK(sae.architecture == "jumprelu");
    CHECK(sae.k == 4);
    CHECK(sae.threshold == std::vector<float>(24, 0.3f));
    // h times the norm of the decoder row, where that is above the threshold.
    const auto x = to_floats(read_npz(formats / "saelens.expected.npz").at("x"));
    const use got(sae, x);
    std::size_t active = 0;
    for (std::size_t t = 0; t < 5; ++t)
        for (std::size_t f = 0; f < 24; ++f) {
            double h = double(topk.b_enc[f]), squares = 0;
            for (std::size_t c = 0; c < 8; ++c) {
                h += (double(x[t * 8 + c]) - double(topk.b_dec[c])) * double(topk.W_enc[f * 8 + c]);
                squares += double(topk.W_dec[f * 8 + c]) * double(topk.W_dec[f * 8 + c]);
            }
            const double z = h * std::sqrt(squares);
            active += z > threshold;
            CHECK(double(got.z[t * 24 + f]) == Approx(z > threshold ? z : 0).margin(1e-5));
        }
    CHECK(active > 10);
    write_sae(work / "dictionary_learning", sae, sae_format::dictionary_learning);
    check_equal(read_sae(work / "dictionary_learning"), sae);
}

TEST_CASE("a transcoder in training is written and does what its loss does") {
    random_stream random(3, 1);
    transcoder<dyn, dyn, float, dyn, true> own(8, 24, 6);
    own.initialise(random);
    for (float& w : own.W_skip.value) w = 2 * static_cast<float>(random.uniform()) - 1;
    for (float& b : own.b_dec.value) b = static_cast<float>(random.uniform());
    const temporary_folder work;
    write_sae(work / "transcoder", sae_view(own));
    const auto sae = read_sae(work / "transcoder");
    CHECK(sae.d_out == 6);
    CHECK_FALSE(sae.centred_input);
    const auto x = to_floats(read_npz(formats / "saelens.expected.npz").at("x"));
    const use got(sae, x);
    for (std::size_t t = 0; t < 5; ++t)
        for (std::size_t o = 0; o < 6; ++o) {
            double y = double(own.b_dec.data()[o]);
            for (std::size_t c = 0; c < 8; ++c) y += double(x[t * 8 + c]) * double(own.W_skip.data()[o * 8 + c]);
            for (std::size_t f = 0; f < 24; ++f) {
                double h = 0;
                for (std::size_t c = 0; c < 8; ++c) h += double(x[t * 8 + c]) * double(own.W_enc.data()[f * 8 + c]);
                y += std::max(h, 0.0) * double(own.W_dec.data()[f * 6 + o]);
            }
            CHECK(double(got.x_hat[t * 6 + o]) == Approx(y).epsilon(1e-4).margin(1e-5));
        }
    // It cannot stand in place of its input.
    reconstruction_sums sums(8, 24);
    arena<> scratch;
    CHECK(contains(refusal([&] { evaluate_rows(cpu(), scratch, sae, x.data(), 5, sums); }), "found a transcoder"));
    CHECK(contains(refusal([&] { evaluate_sae(cpu(), scratch, sae, x.data(), 5); }), "found a transcoder"));
    topk<> other(8, 24);
    CHECK(contains(refusal([&] { set_parameters(other, sae, "here"); }), "found a transcoder"));
    // Against targets its errors are those of its output.
    std::vector<float> y;
    for (std::size_t i = 0; i < 5 * 6; ++i) y.push_back(got.x_hat[i] + (i % 6 == 2 ? 0.5f : 0.0f));
    const auto quality = evaluate_sae(cpu(), scratch, sae, x.data(), y.data(), 5);
    CHECK(quality.mse == Approx(0.25 / 6).epsilon(1e-4));
    CHECK(quality.all.tokens == 5);
}

TEST_CASE(
    "scales of a transcoder's tokens and targets are folded into what is written, and its weights start another") {
    using skipping = transcoder<dyn, dyn, float, dyn, true>;
    random_stream random(4, 1);
    skipping own(8, 24, 6);
    own.initialise(random);
    own.each_parameter([&](const char*, auto& p) {
        for (float& w : p.value) w = 2 * static_cast<float>(random.uniform()) - 1;
    });
    const auto x = to_floats(read_npz(formats / "saelens.expected.npz").at("x"));
    auto scaled = x;
    for (float& v : scaled) v *= 0.3f;
    const use on_scaled(sae_view(own), scaled);
    auto expected = on_scaled.x_hat;  // as the loss has it: outputs for scaled tokens, of the size of scaled targets
    for (float& v : expected) v /= 7.0f;
    sae_view trained(own);
    trained.activation_scale = 0.3;
    trained.target_scale = 7;
    trained.origin = {"clip", 3, {}, 5, {}};
    CHECK(relative_difference(use(trained, x).x_hat, expected) < 1e-5);
    const temporary_folder work;
    write_sae(work / "transcoder", trained);
    const auto written = read_sae(work / "transcoder");
    const use plain(written, x);
    CHECK(relative_difference(plain.x_hat, expected) < 1e-5);
    CHECK(relative_difference(plain.z, on_scaled.z) < 1e-5);
    CHECK(written.origin.layer == 3);
    CHECK(written.origin.target_layer == 5);
    CHECK(written.origin.target_hook == "hidden_states.5");
    // And back.
    auto start = written;
    scale_input(start, 0.3, 7);
    skipping again(8, 24, 6);
    set_parameters(again, start);
    CHECK(relative_difference(again.W_enc.value, own.W_enc.value) < 1e-6);
    CHECK(relative_difference(again.W_dec.value, own.W_dec.value) < 1e-6);
    CHECK(relative_difference(again.b_dec.value, own.b_dec.value) < 1e-6);
    CHECK(relative_difference(again.W_skip.value, own.W_skip.value) < 1e-6);
    // Not of one of another form.
    transcoder<> without(8, 24, 6), narrower(8, 24, 5);
    CHECK(contains(refusal([&] { set_parameters(without, written, "here"); }), "no skip connection"));
    CHECK(contains(refusal([&] { set_parameters(narrower, written, "here"); }), "d_out 5"));
    sae_weights sae = written;
    sae.d_out = 0;
    CHECK(contains(refusal([&] { set_parameters(again, sae, "here"); }), "of a transcoder to d_out 6, found"));
}

TEST_CASE("damaged SAEs are refused") {
    for (const auto& entry : fs::directory_iterator(formats / "refuse" / "json")) {
        INFO(entry.path());
        const auto why = refusal([&] { read_sae(entry.path()); });
        CHECK(contains(why, "cfg.json"));
    }
    CHECK(
        contains(refusal([&] { read_sae(formats / "refuse" / "json" / "unknown_architecture"); }), "from_the_future"));
    const auto list = read_json(formats / "refuse.json");
    std::size_t refused = 0;
    for (const auto& f : list["files"].GetArray()) {
        const std::string name = f["file"].GetString();
        if (!name.starts_with("refuse/torch/")) continue;
        INFO(name);
        const auto why = refusal([&] { read_sae(formats / name); });
        CHECK(contains(why, fs::path(name).filename().string()));
        ++refused;
    }
    CHECK(refused > 40);
    CHECK(
        contains(refusal([&] { read_sae(formats / "refuse" / "torch" / "missing_tensor.pt"); }), "tensor state_dict."));
    CHECK(contains(refusal([&] { read_sae(formats / "refuse" / "torch" / "wrong_shapes.pt"); }), "another shape"));

    // Configurations that contradict the weights, or say what is not supported.
    const temporary_folder work;
    const auto changed = [&](const fs::path& from, const char* file, const std::string& was, const std::string& is) {
        fs::remove_all(work / "sae");
        if (fs::is_directory(from)) fs::copy(from, work / "sae");
        else fs::create_directories(work / "sae"), fs::copy(from, work / "sae" / file);
        std::ifstream in(work / "sae" / file, std::ios::binary);
        std::string text{std::istreambuf_iterator<char>(in), {}};
        const auto at = text.find(was);
        REQUIRE(at != std::string::npos);
        write_text(work / "sae" / file, text.replace(at, was.size(), is));
        return refusal([&] { read_sae(work / "sae"); });
    };
    const auto sparsify = formats / "sparsify", batch = formats / "dictionary_learning" / "batch_topk";
    CHECK(contains(changed(sparsify, "cfg.json", "\"num_latents\": 24", "\"num_latents\": 25"), "expected [25, 8]"));
    CHECK(contains(changed(sparsify, "cfg.json", "\"k\": 4", "\"k\": 25"), "key k): 1 to d_sae 24, found 25"));
    CHECK(contains(changed(sparsify, "cfg.json", "\"topk\"", "\"groupmax\""), "found groupmax"));
    CHECK(contains(changed(batch, "config.json", "BatchTopKSAE", "CrossCoder"), "found CrossCoder"));
    CHECK(contains(changed(batch, "config.json", "\"dict_size\": 24", "\"dict_size\": 23"), "expected [23, 8]"));
    CHECK(contains(changed(batch, "config.json", "\"trainer\"", "\"coach\""), "key trainer"));
    const auto saev = formats / "saev_schema5.pt";
    CHECK(contains(changed(saev, "sae.pt", "\"Relu\"", "\"Selu\""), "expected Relu or TopK, found Selu"));
    CHECK(contains(changed(saev, "sae.pt", "\"schema\": 5", "\"schema\": 6"), "at most 5, found 6"));
    CHECK(contains(changed(saev, "sae.pt", "\"d_sae\": 24", "\"d_sae\": 25"), "expected [8, 25], found [8, 24]"));
    CHECK(contains(changed(saev, "sae.pt", "\"cfg\": {", "\"cfg\": [{"), "not valid JSON"));
    const auto skip = formats / "saelens" / "skip_transcoder";
    CHECK(contains(changed(skip, "cfg.json", "\"apply_b_dec_to_input\": false", "\"apply_b_dec_to_input\": true"),
                   "key apply_b_dec_to_input): expected false"));
    CHECK(contains(changed(skip, "cfg.json", "\"d_out\": 6", "\"d_out\": 7"), "expected [24, 7], found [24, 6]"));
}
