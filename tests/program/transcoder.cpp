// Transcoders through the program: trained from one hidden state to another, evaluated against the targets.
#include <array>
#include <numeric>

#include <psae/io/training_run.hpp>

#include "../pipeline.hpp"
#include "training_runs.hpp"

using namespace program;

namespace {

constexpr std::size_t pictures = 24, T = 17, d = 64;

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

std::vector<std::string> transcoder_arguments(const fs::path& out, const std::string& steps) {
    return {"train",
            "--variant",
            "transcoder",
            "--model",
            pipeline / "model",
            "--images",
            pipeline / "images",
            "--layer",
            "1",
            "--target-layer",
            "-2",
            "--out",
            out,
            "--steps",
            steps,
            "--batch-tokens",
            "64",
            "--d-sae",
            "96",
            "--lr",
            "3e-3",
            "--warmup-steps",
            "10",
            "--threads",
            "1",
            "--checkpoint-every",
            "20",
            "--eval-every",
            "30",
            "--l1",
            "0.1",
            "--seed",
            "3"};
}

// The tokens [pictures, T, d] of a hidden state.
std::vector<float> tokens_of(const temporary_folder& work, const std::string& layer) {
    const auto file = work / ("tokens" + layer + ".npz");
    if (!fs::exists(file))
        run_well({"embed", "--model", pipeline / "model", "--images", pipeline / "images", "--layer", layer, "--out",
                  file, "--threads", "1"});
    return floats(file, "tokens");
}
std::vector<float> of_pictures(const std::vector<float>& tokens, const std::vector<std::size_t>& which) {
    std::vector<float> rows;
    for (const std::size_t i : which)
        rows.insert(rows.end(), tokens.begin() + std::ptrdiff_t(i * T * d),
                    tokens.begin() + std::ptrdiff_t((i + 1) * T * d));
    return rows;
}

psae::reconstruction_quality quality_of(const fs::path& run, const std::vector<float>& x, const std::vector<float>& y) {
    psae::arena<> scratch;
    return psae::evaluate_sae(psae::cpu(), scratch, psae::read_sae(run), x.data(), y.data(), x.size() / d);
}

rapidjson::Document last_line_of(const fs::path& run) {
    std::ifstream metrics(run / "metrics.jsonl");
    std::string line, last;
    while (std::getline(metrics, line)) last = line;
    return psae::parse_json(last, "metrics");
}

// sqrt(d) over the mean norm of rows.
double scale_of(const std::vector<float>& rows) {
    double norms = 0;
    for (std::size_t r = 0; r < rows.size(); r += d) {
        double squares = 0;
        for (std::size_t c = r; c < r + d; ++c) squares += double(rows[c]) * double(rows[c]);
        norms += std::sqrt(squares);
    }
    return std::sqrt(double(d)) * double(rows.size() / d) / norms;
}

}  // namespace

TEST_CASE("a transcoder explains the target layer, and its numbers are those of the target's tokens") {
    const temporary_folder work;
    const auto x = tokens_of(work, "1"), y = tokens_of(work, "-2");
    for (const bool skip : {false, true}) {
        INFO("skip connection " << skip);
        auto arguments = transcoder_arguments(work / "run", "150");
        if (skip) arguments.push_back("--skip-connection");
        run_well(arguments);
        const auto sae = psae::read_sae(work / "run");
        CHECK(sae.is_transcoder());
        CHECK(sae.W_skip.size() == (skip ? d * d : 0));
        CHECK(sae.origin.layer == 1);
        CHECK(sae.origin.target_layer == 3);
        CHECK(run_well({"info", work / "run", "--json"}).json()["target_layer"].GetInt() == 3);
        run_well({"report", "--sae", work / "run", "--out", work / "report.html"});
        CHECK(contains(read_text(work / "report.html"), "Transcoder (standard), 96 latents of width 64"));
        CHECK(contains(read_text(work / "report.html"), "to hidden state 3"));
        // The held-out picture, as trained with scales and as written without.
        const auto held_out = psae::split_held_out(pictures, 16384 / T, 3).held_out;
        const auto there = quality_of(work / "run", of_pictures(x, held_out), of_pictures(y, held_out));
        const auto reported = last_line_of(work / "run");
        CHECK(reported["eval_mse"].GetDouble() == Approx(there.mse).epsilon(1e-4));
        CHECK(reported["eval_l0"].GetDouble() == Approx(there.l0).epsilon(1e-3));
        CHECK(reported["eval_explained_variance"].GetDouble() == Approx(there.explained_variance).epsilon(1e-4));
        // All pictures, through evaluate.
        const auto all = quality_of(work / "run", x, y);
        CHECK(all.explained_variance > (skip ? 0.7 : 0.5));
        const auto json = run_well({"evaluate", "--sae", work / "run", "--model", pipeline / "model", "--images",
                                    pipeline / "images", "--json"})
                              .json();
        const auto& evaluated = json["saes"][0];
        CHECK(evaluated["layer"].GetInt() == 1);
        CHECK(evaluated["target_layer"].GetInt() == 3);
        CHECK(evaluated["nmse"].GetDouble() == Approx(all.all.nmse).epsilon(1e-4));
        CHECK(evaluated["mse"].GetDouble() == Approx(all.mse).epsilon(1e-4));
        CHECK(evaluated["l0"].GetDouble() == Approx(all.l0).epsilon(1e-3));
    }
}

TEST_CASE("a transcoder starts on the targets, with a scale for them and one for its tokens") {
    const temporary_folder work;
    const auto x = tokens_of(work, "1"), y = tokens_of(work, "-2");
    // (All tokens are in the sample that it starts from.)
    run_well(with(transcoder_arguments(work / "run", "1"), {"--lr=1e-30", "--b-dec-init=mean", "--eval-every=0"}));
    const psae::safetensors_file state(work / "run" / "checkpoint" / "state.safetensors");
    CHECK(state.read<double>("activation_scale", {1})[0] == Approx(scale_of(x)).epsilon(1e-5));
    CHECK(state.read<double>("target_scale", {1})[0] == Approx(scale_of(y)).epsilon(1e-5));
    std::vector<float> mean(d);
    for (std::size_t c = 0; c < d; ++c) {
        double sum = 0;
        for (std::size_t at = c; at < y.size(); at += d) sum += double(y[at]);
        mean[c] = static_cast<float>(sum / double(pictures * T));
    }
    CHECK(relative_difference(psae::read_sae(work / "run").b_dec, mean) < 1e-4);
    // A trained one is the start of another: nothing changes at this rate.
    for (const std::string form : {"--skip-connection=false", "--skip-connection=true"}) {
        run_well(with(transcoder_arguments(work / "first", "40"), {form}));
        run_well(with(transcoder_arguments(work / "second", "1"),
                      {form, "--init=" + (work / "first").string(), "--lr=1e-30"}));
        const auto first = psae::read_sae(work / "first"), second = psae::read_sae(work / "second");
        CHECK(relative_difference(second.W_enc, first.W_enc) < 1e-5);
        CHECK(relative_difference(second.W_dec, first.W_dec) < 1e-5);
        CHECK(relative_difference(second.b_dec, first.b_dec) < 1e-5);
        CHECK(relative_difference(second.W_skip, first.W_skip) < 1e-5);
    }
    CHECK(contains(refused(with(transcoder_arguments(work / "second", "1"),
                                {"--skip-connection=true", "--init=" + (work / "run").string()})),
                   "a skip connection"));
    // One whose thresholds this variant does not have is no start.
    auto other = psae::read_sae(work / "run");
    other.architecture = "jumprelu";
    other.threshold.assign(other.d_sae, 0.5f);
    psae::write_sae(work / "other", other);
    const auto error =
        refused(with(transcoder_arguments(work / "second", "1"), {"--init=" + (work / "other").string()}));
    CHECK(contains(error, (work / "other").string()));
    CHECK(contains(error, "expected standard, found jumprelu"));
}

TEST_CASE("a transcoder that was killed resumes to the same bytes, and not to another target") {
    const temporary_folder work;
    const auto arguments = [&](const std::string& out, const std::vector<std::string>& more = {"--skip-connection"}) {
        return with(transcoder_arguments(work / out, "100"), more);
    };
    run_well(arguments("whole"));
    CHECK(run(arguments("killed"), at_line(work / "killed", 47, SIGKILL)).code == 128 + SIGKILL);
    CHECK(contains(refused(arguments("killed", {"--skip-connection", "--resume", "--target-layer=2"})),
                   "target layer 2"));
    CHECK(contains(refused(arguments("killed", {"--resume"})), "skip-connection"));
    run_well(arguments("killed", {"--skip-connection", "--resume"}));
    check_same_run(work / "whole", work / "killed");
}

TEST_CASE("a transcoder of a sweep has the bytes of the one trained alone") {
    const temporary_folder work;
    psae::write_text(work / "sweep.json", R"([
        {"variant": "topk", "k": 6, "layer": 2},
        {"variant": "transcoder", "skip-connection": [false, true]},
        {"name": "far", "variant": "transcoder", "layer": 0, "target-layer": 4, "l1": 1}])");
    const auto sweep =
        with(transcoder_arguments(work / "sweep", "40"), {"--sweep=" + (work / "sweep.json").string(), "--json"});
    const auto json = run_well(sweep).json();
    const std::vector<std::pair<std::string, std::vector<std::string>>> alone{
        {"transcoder_skip-connection=false", {}},
        {"transcoder_skip-connection=true", {"--skip-connection"}},
        {"far", {"--layer=0", "--target-layer=4", "--l1=1"}}};
    REQUIRE(json["runs"].Size() == 4);
    for (const auto& [name, options] : alone) {
        INFO(name);
        run_well(with(transcoder_arguments(work / "alone", "40"), options));
        check_same_run(work / "alone", work / "sweep" / name);
        fs::remove_all(work / "alone");
    }
    // The table is of the held-out picture, as the targets of each have it.
    const auto held_out = psae::split_held_out(pictures, 16384 / T, 3).held_out;
    const auto far = quality_of(work / "sweep" / "far", of_pictures(tokens_of(work, "0"), held_out),
                                of_pictures(tokens_of(work, "4"), held_out));
    CHECK(json["runs"][3]["explained_variance"].GetDouble() == Approx(far.explained_variance).epsilon(1e-3));
    CHECK(json["runs"][3]["mse"].GetDouble() == Approx(far.mse).epsilon(1e-4));
    CHECK(json["runs"][3]["target_layer"].GetInt() == 4);
    CHECK_FALSE(json["runs"][0].HasMember("target_layer"));
    const auto csv = read_text(work / "sweep" / "sweep.csv");
    CHECK(contains(csv, "\nfar,transcoder,0,4,96,l1,1,"));
    CHECK(contains(csv, "\ntopk_k=6_layer=2,topk,2,,96,k,6,"));
    CHECK(psae::read_sae(work / "sweep" / "far").origin.target_layer == 4);
}

TEST_CASE("evaluate puts a transcoder's output in place of the target layer") {
    const temporary_folder work;
    psae::write_text(work / "classes.txt", "0_cat\tcat\n1_tree\ttree\n2_red_car\tred car\n3_house\thouse\n");
    psae::write_text(work / "templates.txt", "a photo of a {}.\n");
    psae::write_text(work / "texts.txt",
                     "a photo of a cat.\na photo of a tree.\na photo of a red car.\na photo of a house.\n");
    const auto evaluate = [&](std::vector<fs::path> saes) {
        std::vector<std::string> arguments{
            "evaluate",           "--model",     pipeline / "model",     "--images", pipeline / "images", "--classes",
            work / "classes.txt", "--templates", work / "templates.txt", "--out",    work / "out",        "--json"};
        for (const auto& sae : saes) arguments.insert(arguments.end(), {"--sae", sae});
        return run_well(arguments).json();
    };
    // The SAE of the layer behind, whose codes are thrown away, and a transcoder that gives the same.
    auto sae = pipeline_sae();
    std::fill(sae.W_dec.begin(), sae.W_dec.end(), 0.0f);
    psae::write_sae(work / "sae", sae, "pipeline", 3);
    psae::write_sae(work / "early", sae, "pipeline", 1);
    sae.centred_input = false;
    sae.d_out = d;
    sae.origin = {"pipeline", 1, {}, 3, {}};
    psae::write_sae(work / "constant", sae);
    // One that hands its input on.
    std::fill(sae.b_dec.begin(), sae.b_dec.end(), 0.0f);
    sae.W_skip.assign(d * d, 0.0f);
    for (std::size_t c = 0; c < d; ++c) sae.W_skip[c * d + c] = 1;
    psae::write_sae(work / "identity", sae);
    const auto json = evaluate({work / "sae", work / "constant", work / "identity"});
    const auto number = [&](std::size_t i, const char* name) {
        return json["saes"][rapidjson::SizeType(i)][name].GetDouble();
    };
    CHECK(number(1, "accuracy_with_sae") == number(0, "accuracy_with_sae"));
    for (const char* name : {"mse", "nmse", "nmse_cls", "nmse_patches"}) CHECK(number(1, name) == number(0, name));
    const auto x = tokens_of(work, "1"), y = tokens_of(work, "3");
    double squares = 0;
    for (std::size_t i = 0; i < x.size(); ++i) squares += (double(y[i]) - double(x[i])) * (double(y[i]) - double(x[i]));
    CHECK(number(2, "mse") == Approx(squares / double(x.size())).epsilon(1e-5));
    const auto csv = read_text(work / "out" / "evaluation.csv");
    CHECK(contains(csv, "sae\",standard,96,3,,408,"));
    CHECK(contains(csv, "identity\",standard,96,1,3,408,"));
    // The tokens of layer 1 put in at layer 3 are classified alike.
    run_well({"embed", "--model", pipeline / "model", "--images", pipeline / "images", "--layer", "3", "--replace",
              work / "tokens1.npz", "--texts", work / "texts.txt", "--out", work / "replaced.npz", "--threads", "1"});
    const auto images = floats(work / "replaced.npz", "image_embeds"),
               texts = floats(work / "replaced.npz", "text_embeds");
    const std::size_t p = texts.size() / 4;
    std::size_t right = 0;
    for (std::size_t i = 0; i < pictures; ++i) {
        std::array<float, 4> logits{};
        for (std::size_t c = 0; c < 4; ++c)
            logits[c] = std::inner_product(&images[i * p], &images[i * p] + p, &texts[c * p], 0.0f);
        right += std::size_t(std::max_element(logits.begin(), logits.end()) - logits.begin()) == i / 6;
    }
    CHECK(right != pictures / 4);  // as many as any one answer to all gives
    CHECK(number(2, "accuracy_with_sae") == double(right) / pictures);
    // The plain model is plain, also where the last layer is a transcoder's target.
    const double plain = evaluate({work / "early"})["saes"][0]["accuracy"].GetDouble();
    CHECK(plain > number(2, "accuracy_with_sae"));
    CHECK(evaluate({work / "early", work / "identity"})["saes"][1]["accuracy"].GetDouble() == plain);
}

TEST_CASE("what is no transcoder's is refused in one line") {
    const temporary_folder work;
    const auto train = [&](const std::vector<std::string>& more, int code) {
        return refused(with(transcoder_arguments(work / "run", "2"), more), code);
    };
    CHECK(contains(train({"--target-layer=1"}, 1), "expected hidden state 2 or behind it, found 1"));
    CHECK(contains(train({"--target-layer=5"}, 1), "the model has no such layer"));
    psae::write_text(work / "sweep.json", R"({"layer": [1, 3], "target-layer": [2, 4]})");
    CHECK(contains(train({"--sweep=" + (work / "sweep.json").string()}, 1),
                   "transcoder_layer=3_target-layer=2: --target-layer"));
    CHECK(contains(train({"--dead-latents=resample"}, 2), "resample does not go with transcoder"));
    CHECK(contains(train({"--dead-latents=ghost"}, 2), "--dead-latents"));
    CHECK(contains(train({"--variant=topk"}, 2), "--target-layer: goes with --variant transcoder"));
    auto no_target = transcoder_arguments(work / "run", "2");
    const auto at = std::find(no_target.begin(), no_target.end(), "--target-layer");
    no_target.erase(at, at + 2);
    CHECK(contains(refused(no_target, 2), "--target-layer is required"));
    CHECK(contains(refused(with(no_target, {"--variant=topk", "--skip-connection"}), 2), "--skip-connection"));
    const auto stored = with(train_arguments(work, "run", "2"), {"--variant=transcoder", "--target-layer=3"});
    CHECK(contains(refused(stored, 2), "stored activations are of one layer"));
    CHECK(!fs::exists(work / "run"));
    // In place of its own layer its output has no meaning.
    run_well(transcoder_arguments(work / "run", "2"));
    const std::vector<std::string> rest{"--model", pipeline / "model", "--images", pipeline / "images",
                                        "--sae",   work / "run",       "--out",    work / "out"};
    for (const std::string command : {"classify", "intervene", "attribute", "compare"}) {
        INFO(command);
        std::vector<std::string> arguments{command};
        arguments.insert(arguments.end(), rest.begin(), rest.end());
        if (command == "intervene") arguments.insert(arguments.end(), {"--set", "1=2"});
        if (command == "compare") arguments.insert(arguments.end(), {"--adapted-model", pipeline / "model"});
        CHECK(contains(refused(arguments), "transcoder does not give back its input"));
    }
    write_npz(work / "rows.npz", "tokens", some_rows(50, d), {50, d});
    CHECK(contains(refused({"evaluate", "--sae", work / "run", "--activations", work / "rows.npz"}),
                   "a transcoder needs the tokens of two layers"));
    // Where it goes from and to must be in its file, or said.
    auto sae = psae::read_sae(work / "run");
    const auto evaluate = [&](const std::string& hook, const std::string& target_hook) {
        sae.origin = {"pipeline", {}, hook, {}, target_hook};
        psae::write_sae(work / "hooked", sae);
        return std::vector<std::string>{"evaluate",          "--model", pipeline / "model", "--images",
                                        pipeline / "images", "--sae",   work / "hooked"};
    };
    const std::string mlp = "blocks.1.ln2.hook_normalized", mlp_out = "blocks.1.hook_mlp_out";
    auto error = refused(evaluate("hidden_states.1", mlp_out));
    CHECK(contains(error, "target layer (" + (work / "hooked").string()));
    CHECK(contains(error, "expected hook_name_out of a hidden state, found " + mlp_out));
    error = refused(evaluate(mlp, "hidden_states.3"));
    CHECK(contains(error, "expected hook_name of a hidden state, found " + mlp));
    CHECK(contains(refused(evaluate("", "hidden_states.3")), "found none"));
    run_well(with(evaluate(mlp, "hidden_states.3"), {"--layer=1"}));
}
