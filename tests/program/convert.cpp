// convert: SAEs between the formats of the field, through the program; the other commands take any of them.
#include "program.hpp"

#include <psae/io/sae_file.hpp>

using namespace program;

namespace {

const fs::path formats = golden / "formats";

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

// Codes of rows as `encode` writes them.
std::vector<float> codes(const fs::path& sae, const fs::path& rows, const fs::path& out) {
    run_well({"encode", "--sae", sae, "--activations", rows, "--out", out});
    return floats(out, "data");
}

}  // namespace

TEST_CASE("convert goes from each format to those that can express the SAE, and back to the same bytes of weights") {
    const temporary_folder work;
    write_npz(work / "rows.npz", "tokens", some_rows(50, 8), {50, 8});
    std::size_t number = 0;
    for (const auto& [from, own, to] : std::initializer_list<std::tuple<const char*, const char*, const char*>>{
             {"patchsae.pt", "patchsae", "saelens"},
             {"patchsae.pt", "patchsae", "dictionary_learning"},
             {"saelens/standard_no_centre", "saelens", "saev"},
             {"saelens/topk", "saelens", "sparsify"},
             {"saelens/gated", "saelens", "dictionary_learning"},
             {"saelens/skip_transcoder", "saelens", "saelens"},
             {"saev_schema2.pt", "saev", "saev"},
             {"saev_schema1_relu.pt", "saev", "saelens"},
             {"sparsify", "sparsify", "dictionary_learning"},
             {"sparsify_transcoder", "sparsify", "sparsify"},
             {"dictionary_learning/batch_topk", "dictionary_learning", "saelens"},
             {"dictionary_learning/jumprelu", "dictionary_learning", "saelens"},
             {"dictionary_learning/standard", "dictionary_learning", "patchsae"}}) {
        INFO(from << " to " << to);
        const auto there = work / ("there" + std::to_string(number)), back = work / ("back" + std::to_string(number));
        ++number;
        const auto json = run_well({"convert", "--from", formats / from, "--to", to, "--out", there, "--json"}).json();
        CHECK(json["from_format"].GetString() == std::string(own));
        CHECK(json["format"].GetString() == std::string(to));
        CHECK(json["d_sae"].GetUint64() == 24);
        const auto described = run_well({"info", there, "--json"}).json();
        CHECK(described["format"].GetString() == std::string(to));
        CHECK(described["kind"].GetString() == std::string("sae"));
        run_well({"convert", "--from", there, "--to", own, "--out", back});
        const auto first = psae::read_sae(formats / from), last = psae::read_sae(back);
        CHECK(last.W_enc == first.W_enc);
        CHECK(last.b_enc == first.b_enc);
        CHECK(last.W_dec == first.W_dec);
        CHECK(last.b_dec == first.b_dec);
        CHECK(last.threshold == first.threshold);
        CHECK(last.k == first.k);
        const auto want = codes(formats / from, work / "rows.npz", work / "a.npz");
        CHECK(codes(there, work / "rows.npz", work / "b.npz") == want);
        CHECK(codes(back, work / "rows.npz", work / "c.npz") == want);
    }
}

TEST_CASE("convert writes beside the SAE unless told otherwise, and says where") {
    const temporary_folder work;
    fs::copy(formats / "patchsae.pt", work / "mine.pt");
    fs::copy(formats / "saelens" / "topk", work / "topk");
    const auto out = [&](const fs::path& from, const std::string& to) {
        return std::string(run_well({"convert", "--from", from, "--to", to, "--json"}).json()["out"].GetString());
    };
    const auto here = fs::weakly_canonical(work.path);
    CHECK(out(work / "mine.pt", "saelens") == (here / "mine-saelens").string());
    CHECK(out(work / "topk", "sparsify") == (here / "topk-sparsify").string());
    CHECK(out(work / "topk" / "sae_weights.safetensors", "dictionary_learning") ==
          (here / "topk-dictionary_learning").string());
    CHECK(out(work / "mine-saelens", "patchsae") == (here / "mine-saelens-patchsae.pt").string());
    CHECK(contains(run_well({"convert", "--from", work / "topk", "--to", "sparsify"}).out, "topk-sparsify"));
    CHECK(psae::read_sae(work / "mine-saelens-patchsae.pt").W_enc == psae::read_sae(formats / "patchsae.pt").W_enc);
    // Model and layer go along.
    const auto described = run_well({"info", work / "mine-saelens", "--json"}).json();
    CHECK(described["model"].GetString() == std::string("openai/clip-vit-base-patch32"));
    CHECK(described["layer"].GetInt() == -2);
}

TEST_CASE("convert says what a format cannot express, and folds it if asked") {
    const temporary_folder work;
    const auto refusal = [&](const char* from, const char* to) {
        const auto text = refused({"convert", "--from", formats / from, "--to", to, "--out", work / "out"});
        CHECK_FALSE(fs::exists(work / "out"));
        return text;
    };
    CHECK(contains(refusal("saelens/gated", "sparsify"), "architecture gated): expected topk"));
    CHECK(contains(refusal("patchsae.pt", "saev"), "convert --fold"));
    CHECK(contains(refusal("saelens/topk", "saev"), "top-k of ReLU"));
    CHECK(contains(refusal("everything.safetensors", "saev"), "not an SAE"));
    CHECK(contains(refusal("refuse/torch/missing_tensor.pt", "saev"), "missing_tensor.pt"));
    CHECK(contains(refused({"convert", "--from", work / "none", "--to", "saev"}), "there is no SAE"));
    refused({"convert", "--from", formats / "sparsify", "--to", "safetensors"}, 2);
    refused({"convert", "--from", formats / "sparsify"}, 2);

    write_npz(work / "rows.npz", "tokens", some_rows(50, 8), {50, 8});
    run_well({"convert", "--from", formats / "patchsae.pt", "--to", "saev", "--out", work / "saev.pt", "--fold"});
    CHECK(relative_difference(codes(work / "saev.pt", work / "rows.npz", work / "a.npz"),
                              codes(formats / "patchsae.pt", work / "rows.npz", work / "b.npz")) < 1e-5);
}

TEST_CASE("commands that replace tokens refuse a transcoder and those that encode take it") {
    const temporary_folder work;
    write_npz(work / "rows.npz", "tokens", some_rows(50, 8), {50, 8});
    const auto transcoder = formats / "sparsify_transcoder";
    CHECK(codes(transcoder, work / "rows.npz", work / "codes.npz").size() > 50);
    CHECK(contains(refused({"evaluate", "--sae", transcoder, "--activations", work / "rows.npz"}),
                   "a transcoder needs the tokens of two layers"));
    CHECK(contains(refused({"classify", "--model", golden / "clip_tiny", "--images", golden / "pipeline" / "images",
                            "--sae", transcoder, "--out", work / "out.csv"}),
                   "transcoder does not give back its input"));
    CHECK(contains(refused({"train", "--activations", work / "rows.npz", "--out", work / "run", "--init", transcoder,
                            "--variant", "topk", "--k", "4", "--steps", "2", "--batch-tokens", "8"}),
                   "transcoder does not give back its input"));
}

TEST_CASE("runs of every variant that a format has are converted to it") {
    const temporary_folder work;
    write_npz(work / "rows.npz", "tokens", some_rows(200, 8), {200, 8});
    for (const auto& [variant, to] :
         std::initializer_list<std::pair<const char*, const char*>>{{"relu", "patchsae"},
                                                                    {"topk", "sparsify"},
                                                                    {"batch_topk", "dictionary_learning"},
                                                                    {"jump_relu", "dictionary_learning"},
                                                                    {"gated", "dictionary_learning"}}) {
        INFO(variant);
        const auto run_directory = work / variant;
        std::vector<std::string> train{"train",
                                       "--activations",
                                       work / "rows.npz",
                                       "--out",
                                       run_directory,
                                       "--variant",
                                       variant,
                                       "--d-sae",
                                       "16",
                                       "--steps",
                                       "20",
                                       "--batch-tokens",
                                       "16"};
        if (std::string(variant).ends_with("topk")) train.insert(train.end(), {"--k", "4"});
        run_well(train);
        const auto out = work / (std::string(variant) + "_" + to + ".pt");
        run_well({"convert", "--from", run_directory, "--to", to, "--out", out});
        CHECK(codes(out, work / "rows.npz", work / "a.npz") == codes(run_directory, work / "rows.npz", work / "b.npz"));
        // What was converted can be trained on.
        std::vector<std::string> more{"train",
                                      "--activations",
                                      work / "rows.npz",
                                      "--out",
                                      work / "more",
                                      "--variant",
                                      variant,
                                      "--init",
                                      out,
                                      "--steps",
                                      "2",
                                      "--batch-tokens",
                                      "16"};
        if (std::string(variant).ends_with("topk")) more.insert(more.end(), {"--k", "4"});
        run_well(more);
        fs::remove_all(work / "more");
    }
}
