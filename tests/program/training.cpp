// train through the program: the reference's trajectories, resuming after a kill, signals, the same bytes twice.
#include <psae/io/training_run.hpp>

#include "training_runs.hpp"

using namespace program;

namespace {

std::vector<float> transposed(const std::vector<float>& x, std::size_t rows, std::size_t cols) {
    return psae::transpose(x.data(), rows, cols);
}

// The start of the reference's trajectories and its 20 batches of 40 tokens.
void write_reference_start(const temporary_folder& work) {
    const auto inputs = golden / "sae_patchsae" / "inputs.npz";
    psae::sae_weights sae;
    sae.d_in = 16;
    sae.d_sae = 64;
    sae.W_enc = transposed(floats(inputs, "W_enc"), 16, 64);
    sae.b_enc = floats(inputs, "b_enc");
    sae.W_dec = floats(inputs, "W_dec_raw");
    sae.b_dec = floats(inputs, "b_dec");
    psae::write_sae(work / "start", sae, "reference", -2);
    write_npz(work / "batches.npz", "tokens", floats(inputs, "batches"), {20, 40, 16});
}

}  // namespace

TEST_CASE("train follows the reference's trajectories, Adam's moments included") {
    const temporary_folder work;
    write_reference_start(work);
    for (const bool ghost : {false, true}) {
        const auto want = psae::read_npz(golden / "sae_patchsae" / (ghost ? "train_ghost.npz" : "train_plain.npz"));
        const auto get = [&](const std::string& name) { return psae::to_floats(want.at(name)); };
        for (const std::size_t steps : {1, 2, 5, 20}) {
            INFO("ghost " << ghost << ", after step " << steps);
            run_well({"train",
                      "--activations",
                      work / "batches.npz",
                      "--init",
                      work / "start",
                      "--order",
                      "sequential",
                      "--out",
                      work / "run",
                      "--steps",
                      std::to_string(steps),
                      "--batch-tokens",
                      "40",
                      "--l1",
                      "8e-5",
                      "--lr",
                      "4e-4",
                      "--warmup-steps",
                      "5",
                      "--dead-after",
                      "3",
                      "--dead-latents",
                      ghost ? "ghost" : "none"});
            const psae::safetensors_file state(work / "run" / "checkpoint" / "state.safetensors");
            const std::string prefix = "step" + std::to_string(steps) + "_";
            for (const std::string name : {"W_enc", "b_enc", "W_dec", "b_dec"}) {
                INFO(name);
                const auto in_our_layout = [&](const std::vector<float>& x) {
                    return name == "W_enc" ? transposed(x, 16, 64) : x;
                };
                const auto ours = [&](const std::string& tensor) { return state.read(tensor, state.at(tensor).shape); };
                const auto parameter = ours(name), expected = in_our_layout(get(prefix + name + "_f64"));
                CHECK(largest_difference(parameter, expected) < 2e-5);
                // Moments are sums of gradients, to which the forward pass's tolerances apply.
                const double tolerance = ghost ? 2.9e-4 : 2e-5;
                CHECK(relative_difference(ours("adam_m." + name), in_our_layout(get(prefix + "m_" + name))) <
                      tolerance);
                CHECK(relative_difference(ours("adam_v." + name), in_our_layout(get(prefix + "v_" + name))) <
                      tolerance);
            }
            const auto since = get("since_fired"), loss = get("loss"), rate = get("lr"), dead = get("dead");
            const auto ours = state.read<std::uint32_t>("since_fired", {64});
            for (std::size_t f = 0; f < 64; ++f) CHECK(float(ours[f]) == since[(steps - 1) * 64 + f]);
            // Every line of the metrics.
            std::ifstream metrics(work / "run" / "metrics.jsonl");
            std::size_t step = 0;
            for (std::string line; std::getline(metrics, line); ++step) {
                const auto json = psae::parse_json(line, "metrics");
                CHECK(json["step"].GetUint64() == step + 1);
                CHECK(json["loss"].GetDouble() == Approx(loss[step]).epsilon(1e-5));
                CHECK(json["lr"].GetDouble() == Approx(rate[step]).epsilon(1e-6));
                CHECK(std::lround(json["dead_fraction"].GetDouble() * 64) == std::lround(dead[step]));
            }
            CHECK(step == steps);
        }
    }
}

TEST_CASE("a killed run resumes to the same bytes as one that was not") {
    const temporary_folder work;
    run_well(train_arguments(work, "whole", "600"));
    REQUIRE(count_lines(read_text(work / "whole" / "metrics.jsonl")) == 600);
    CHECK(read_text(work / "whole" / "metrics.jsonl").find("eval_explained_variance") != std::string::npos);
    auto killed = run(train_arguments(work, "killed", "600"), at_line(work / "killed", 75, SIGKILL));
    CHECK(killed.code == 128 + SIGKILL);
    for (const std::size_t lines : {140, 141, 333, 500}) {
        killed =
            run(with(train_arguments(work, "killed", "600"), {"--resume"}), at_line(work / "killed", lines, SIGKILL));
        CHECK(killed.code == 128 + SIGKILL);
        CHECK_FALSE(fs::exists(work / "killed" / "sae_weights.safetensors"));
    }
    run_well(with(train_arguments(work, "killed", "600"), {"--resume"}));
    check_same_run(work / "whole", work / "killed");
}

TEST_CASE("a killed run on pictures resumes to the same bytes") {
    const temporary_folder work;
    const auto arguments = [&](const std::string& out) {
        return std::vector<std::string>{"train",
                                        "--model",
                                        golden / "pipeline" / "model",
                                        "--images",
                                        golden / "pipeline" / "images",
                                        "--images",
                                        golden / "preprocess" / "refuse",
                                        "--out",
                                        work / out,
                                        "--expansion",
                                        "2",
                                        "--batch-tokens",
                                        "64",
                                        "--steps",
                                        "120",
                                        "--checkpoint-every",
                                        "10",
                                        "--threads",
                                        "1",
                                        "--variant",
                                        "topk",
                                        "--k",
                                        "8"};
    };
    const auto whole = run_well(arguments("whole"));
    // Each unreadable picture is reported once in five epochs, and once in sum.
    std::size_t reports = 0;
    for (std::size_t at = whole.err.find("bad_zlib.png"); at != std::string::npos;
         at = whole.err.find("bad_zlib.png", at + 1))
        ++reports;
    CHECK(reports == 1);
    CHECK(whole.err.find("15 pictures could not be read") != std::string::npos);
    CHECK(run(arguments("killed"), at_line(work / "killed", 57, SIGKILL)).code == 128 + SIGKILL);
    run_well(with(arguments("killed"), {"--resume"}));
    check_same_run(work / "whole", work / "killed");
}

TEST_CASE("Ctrl-C and SIGTERM finish the step, write a checkpoint and exit with 130") {
    for (const int signal : {SIGINT, SIGTERM}) {
        const temporary_folder work;
        const auto stopped = run(train_arguments(work, "run", "1000000"), at_line(work / "run", 60, signal));
        CHECK(stopped.code == 130);
        const auto steps = checkpoint_steps(work / "run");
        CHECK(steps >= 60);
        CHECK(steps == count_lines(read_text(work / "run" / "metrics.jsonl")));
        CHECK(fs::exists(work / "run" / "sae_weights.safetensors"));
        const std::string more = std::to_string(steps + 25);
        run_well(with(train_arguments(work, "run", more), {"--resume"}));
        run_well(train_arguments(work, "whole", more));
        check_same_run(work / "whole", work / "run");
    }
}

namespace {

// Notes what is asked of it.
struct noting_run final : psae::any_training_run {
    std::size_t steps = 0;
    std::string asked;
    std::optional<psae::step_metrics> none;

    std::size_t steps_done() const override { return steps; }
    const std::optional<psae::step_metrics>& last_step() const override { return none; }
    bool has_checkpoint() const override { return false; }
    void initialise(const std::function<psae::training_rows()>&) override {}
    void start_from(psae::sae_weights, const std::string&, const std::function<psae::training_rows()>&) override {}
    void resume() override {}
    void begin() override { asked += "b"; }
    void step(rows, double) override { asked += "s", ++steps; }
    void wait() override {}
    void finish() override { asked += "f"; }
    psae::run_summary summarise(psae::training_rows) override { return {}; }
};

}  // namespace

TEST_CASE("a run that is stopped before its first step leaves an earlier one in its directory alone") {
    const auto asked = [](std::size_t steps_done, std::size_t asks_before_stop) {
        psae::stored_activations source(some_rows(64, 4), 4, true, 1);
        noting_run run;
        run.steps = steps_done;
        psae::any_training_run* const runs[] = {&run};
        std::size_t asks = 0;
        psae::train_runs(
            source, std::span(runs), psae::stream_options{.steps = 5, .batch_tokens = 8},
            [&] { return asks++ >= asks_before_stop; }, [](const auto&) {});
        return run.asked;
    };
    CHECK(asked(0, 0).empty());
    CHECK(asked(0, 1).empty());  // while the first rows were made
    CHECK(asked(0, 2) == "bsf");
    CHECK(asked(3, 0).empty());
    CHECK(asked(3, 9) == "bssf");
    CHECK(asked(5, 0) == "f");  // all was done before: the SAE may not have been written
}

TEST_CASE("two runs with one seed write the same bytes, another seed does not") {
    const temporary_folder work;
    for (const char* out : {"a", "b"})
        run_well(with(train_arguments(work, out, "100"), {"--threads=2", "--variant=topk", "--k=6"}));
    check_same_run(work / "a", work / "b");
    run_well(with(train_arguments(work, "c", "100"), {"--threads=2", "--variant=topk", "--k=6", "--seed=4"}));
    CHECK(read_text(work / "a" / "sae_weights.safetensors") != read_text(work / "c" / "sae_weights.safetensors"));
}

TEST_CASE("the number of threads changes weights by rounding only") {
    const temporary_folder work;
    for (const char* threads : {"1", "2"})
        run_well(with(train_arguments(work, std::string("t") + threads, "100"), {std::string("--threads=") + threads}));
    const auto one = psae::read_sae(work / "t1"), two = psae::read_sae(work / "t2");
    // docs/program.md states this tolerance.
    CHECK(relative_difference(two.W_enc, one.W_enc) < 1e-4);
    CHECK(relative_difference(two.W_dec, one.W_dec) < 1e-4);
}

TEST_CASE("train in bf16 does as in fp32 to the precision of bf16, and a run does not go on in another type") {
    const temporary_folder work;
    for (const char* dtype : {"fp32", "bf16"})
        run_well(with(train_arguments(work, dtype, "50"), {std::string("--dtype=") + dtype}));
    const auto whole = psae::read_sae(work / "fp32"), rounded = psae::read_sae(work / "bf16");
    const double difference = relative_difference(rounded.W_dec, whole.W_dec);
    CHECK(difference > 0);
    CHECK(difference < 2e-2);
    CHECK(refused(with(train_arguments(work, "bf16", "60"), {"--precision=fp32", "--resume"})).find("dtype") !=
          std::string::npos);
}

TEST_CASE("runs that cannot be resumed say why in one line") {
    const temporary_folder work;
    const auto resume = [&](const std::vector<std::string>& more) {
        return refused(with(with(train_arguments(work, "run", "60"), {"--resume"}), more));
    };
    CHECK(resume({}).find("there is no checkpoint") != std::string::npos);
    run_well(train_arguments(work, "run", "60"));
    const auto before = read_text(work / "run" / "sae_weights.safetensors");
    CHECK(resume({"--lr=0.001"}).find("lr 0.001 (checkpoint: 0.0004)") != std::string::npos);
    CHECK(resume({"--variant=topk"}).find("variant topk (checkpoint: relu)") != std::string::npos);
    CHECK(resume({"--d-sae=48"}).find("d-sae 48 (checkpoint: 96)") != std::string::npos);
    write_npz(work / "wider.npz", "tokens", some_rows(500, 32), {500, 32});
    CHECK(resume({"--activations=" + (work / "wider.npz").string()}).find("data 500 x 32") != std::string::npos);
    CHECK(read_text(work / "run" / "sae_weights.safetensors") == before);
    CHECK(refused(with(train_arguments(work, "other", "60"), {"--init=" + (work / "run").string(), "--d-sae=48"}))
              .find("SAE has another size") != std::string::npos);
    const auto checkpoint = work / "run" / "checkpoint" / "state.safetensors";
    fs::resize_file(checkpoint, fs::file_size(checkpoint) / 2);
    resume({});
}

TEST_CASE("a run on pictures does not go on with other pictures, weights or preprocessing") {
    const temporary_folder work;
    const auto model = work / "model", images = work / "images";
    fs::copy(golden / "pipeline" / "model", model);
    fs::copy(golden / "pipeline" / "images" / "0_cat", images);
    const std::vector<std::string> arguments{"train", "--model",        model,         "--images",  images,
                                             "--out", work / "run",     "--expansion", "2",         "--steps",
                                             "3",     "--batch-tokens", "32",          "--threads", "1"};
    run_well(arguments);
    const auto resume = [&](const std::vector<std::string>& more = {}) {
        return refused(with(with(arguments, {"--resume"}), more));
    };
    run_well(with(arguments, {"--resume", "--steps=4"}));
    CHECK(resume({"--alpha=drop"}).find("alpha drop (checkpoint: white)") != std::string::npos);
    const auto config = read_text(model / "preprocessor_config.json");
    auto other = config;
    REQUIRE(other.find("0.48145466") != std::string::npos);
    psae::write_text(model / "preprocessor_config.json", other.replace(other.find("0.48145466"), 10, "0.5"));
    CHECK(resume().find("data 6 pictures") != std::string::npos);
    psae::write_text(model / "preprocessor_config.json", config);
    // One bit of one weight of the last layer norm, which no other check would see.
    auto weights = read_text(model / "model.safetensors");
    const psae::safetensors_file file(model / "model.safetensors");
    const auto& norm = file.at("vision_model.post_layernorm.bias");
    auto changed = weights;
    changed[norm.offset] = static_cast<char>(changed[norm.offset] ^ 1);
    psae::write_text(model / "model.safetensors", changed);
    CHECK(resume().find("data 6 pictures") != std::string::npos);
    psae::write_text(model / "model.safetensors", weights);
    run_well(with(arguments, {"--resume", "--steps=5"}));
    // Another picture under the same name.
    fs::copy(golden / "pipeline" / "images" / "1_tree" / "00.png", images / "00.png",
             fs::copy_options::overwrite_existing);
    CHECK(resume().find("data 6 pictures") != std::string::npos);
}

namespace {

// Latents that started anew over all steps of a run.
std::uint64_t count_resampled(const fs::path& run) {
    std::uint64_t resampled = 0;
    std::ifstream metrics(run / "metrics.jsonl");
    for (std::string line; std::getline(metrics, line);)
        resampled += psae::json_size(psae::parse_json(line, "metrics"), "resampled", 0, "metrics");
    return resampled;
}

}  // namespace

TEST_CASE("what the trainer's options do is seen in the metrics") {
    const temporary_folder work;
    const auto last_line = [&](const std::vector<std::string>& more) {
        run_well(with(train_arguments(work, "run", "50"), more));
        std::ifstream in(work / "run" / "metrics.jsonl");
        std::string line, last;
        while (std::getline(in, line)) last = line;
        return psae::parse_json(last, "metrics");
    };
    CHECK(last_line({"--schedule=linear"})["lr"].GetDouble() == Approx(4e-4 / 30).epsilon(1e-6));
    CHECK(last_line({"--schedule=cosine", "--steps=51"})["lr"].GetDouble() < 2e-6);
    CHECK(last_line({"--variant=topk", "--k=7"})["l0"].GetDouble() <= 7);
    const auto unused = run_well(with(train_arguments(work, "run", "2"), {"--variant=topk", "--k=7", "--l1=3"})).err;
    CHECK(unused.find("--l1 is not an option of topk and does nothing") != std::string::npos);
    CHECK(unused.find("--k is") == std::string::npos);
    const double patchsae = last_line({})["mse"].GetDouble(), plain = last_line({"--loss=mse"})["mse"].GetDouble();
    CHECK(plain > 1.2 * patchsae);  // tokens are longer than 1
    CHECK(last_line({"--steps=0", "--tokens=480"})["step"].GetUint64() == 10);
    // Latents that are dead after 9 steps start anew in step 10, and the run can be resumed all the same.
    const std::vector<std::string> resampling{"--dead-latents=resample", "--dead-after=9", "--l1=0.5", "--lr=0.01",
                                              "--checkpoint-every=25"};
    last_line(resampling);
    CHECK(count_resampled(work / "run") > 0);
    run_well(with(train_arguments(work, "part", "33"), resampling));
    run_well(with(with(train_arguments(work, "part", "50"), resampling), {"--resume"}));
    check_same_run(work / "run", work / "part");
    const auto with_clipping = last_line({"--clip-grad-norm=1e-3"})["loss"].GetDouble();
    CHECK(with_clipping != last_line({})["loss"].GetDouble());
    for (const char* kind : {"mean", "zero", "geometric_median"}) last_line({std::string("--b-dec-init=") + kind});
    // The start of b_dec comes from rows of the whole file, not from its beginning.
    auto rows = some_rows(3000, 24);
    for (std::size_t i = 0; i < 500 * 24; ++i) rows[i] = 100;
    write_npz(work / "uneven.npz", "tokens", rows, {3000, 24});
    run_well(with(train_arguments(work, "run", "1"),
                  {"--activations=" + (work / "uneven.npz").string(), "--order=sequential", "--lr=1e-12"}));
    for (const float b : psae::read_sae(work / "run").b_dec) CHECK(std::abs(b) < 5);
}

TEST_CASE("a new run takes nothing over from the one that was in its directory") {
    const temporary_folder work;
    auto first = train_arguments(work, "run", "20");
    run_well(first);
    CHECK(refused({"info", work / "run" / "cfg.json"}).find("not known") != std::string::npos);
    // Killed before its first checkpoint, it leaves no SAE: what the other wrote is gone.
    limits kill_early;
    kill_early.signal_when = [&] {
        const auto lines = count_lines(read_text(work / "run" / "metrics.jsonl"));
        return lines >= 5 && lines != 20 ? SIGKILL : 0;  // 20 are of the run before
    };
    const auto killed = run(with(train_arguments(work, "run", "400000"), {"--variant=topk", "--k=4"}), kill_early);
    INFO(killed.err);
    REQUIRE(killed.code == 128 + SIGKILL);
    for (const char* name : {"sae_weights.safetensors", "cfg.json", "loss.png"})
        CHECK(!fs::exists(work / "run" / name));
}

TEST_CASE("resuming a run that is done says so and reports no losses") {
    const temporary_folder work;
    run_well(train_arguments(work, "run", "20"));
    auto again = train_arguments(work, "run", "20");
    again.push_back("--resume");
    CHECK(run_well(again).out.find("all 20 steps were done before") != std::string::npos);
    again.push_back("--json");
    const auto json = run_well(again).json();
    CHECK(json["steps"].GetInt() == 20);
    CHECK(json["loss"].IsNull());
}

TEST_CASE("an SAE is looked for where it is said to be, and used on its own layer") {
    const temporary_folder work;
    const auto model = golden / "pipeline" / "model";
    run_well({"train", "--model", model, "--images", golden / "pipeline" / "images", "--layer", "1", "--out",
              work / "run", "--steps", "2", "--batch-tokens", "64", "--d-sae", "32"});
    const auto codes = [&](const std::string& name, const std::vector<std::string>& more) {
        std::vector<std::string> arguments{
            "encode", "--sae",    work / "run", "--model", model, "--images", golden / "pipeline" / "images",
            "--out",  work / name};
        arguments.insert(arguments.end(), more.begin(), more.end());
        run_well(arguments);
        return floats(work / name, "data");
    };
    CHECK(codes("own.npz", {}) == codes("same.npz", {"--layer", "1"}));
    CHECK(codes("own.npz", {}) != codes("other.npz", {"--layer", "-2"}));
    for (const std::string place : {"typo", "run/typo", "run/cfg.json"})
        CHECK(refused({"encode", "--sae", work / place, "--activations", work / "own.npz", "--out", work / "x.npz"})
                  .find("cfg.json and sae_weights.safetensors") != std::string::npos);
    // --patch writes nothing and needs no --out.
    const auto picture = fs::recursive_directory_iterator(golden / "pipeline" / "images");
    for (const auto& entry : picture) {
        if (!entry.is_regular_file()) continue;
        const std::vector<std::string> mask{"mask", "--sae", work / "run", "--model", model, "--image", entry.path()};
        run_well(with(mask, {"--patch=0,0"}));
        CHECK(refused(with(mask, {"--latent=1"}), 2).find("--out") != std::string::npos);
        break;
    }
}

TEST_CASE("activations too large for an SAE are refused") {
    const temporary_folder work;
    run_well(train_arguments(work, "run", "2"));
    write_npz(work / "huge.npz", "tokens", std::vector<float>(48, 3e38f), {2, 24});
    CHECK(refused({"encode", "--sae", work / "run", "--activations", work / "huge.npz", "--out", work / "x.npz"})
              .find("not finite") != std::string::npos);
    CHECK(!fs::exists(work / "x.npz"));
}

TEST_CASE("BatchTopK and Matryoshka: the learned threshold is kept and used") {
    const temporary_folder work;
    for (const std::string variant : {"batch_topk", "matryoshka"}) {
        INFO(variant);
        const std::vector<std::string> options{"--variant=" + variant, "--k=5", "--lr=0.003"};
        run_well(with(train_arguments(work, "whole", "120"), options));
        limits kill_midway;
        kill_midway.signal_when = [&] {
            return count_lines(read_text(work / "parts" / "metrics.jsonl")) >= 60 ? SIGKILL : 0;
        };
        REQUIRE(run(with(train_arguments(work, "parts", "120"), options), kill_midway).code == 128 + SIGKILL);
        auto rest = with(train_arguments(work, "parts", "120"), options);
        rest.push_back("--resume");
        run_well(rest);
        check_same_run(work / "whole", work / "parts");
        const auto sae = psae::read_sae(work / "whole");
        CHECK(sae.architecture == "jumprelu");
        const psae::safetensors_file checkpoint(work / "whole" / "checkpoint" / "state.safetensors");
        CHECK(sae.threshold == std::vector<float>(96, float(checkpoint.read<double>("threshold", {1})[0])));
        CHECK(sae.threshold[0] > 0);
        // Row by row, about as many latents are active as in batches.
        const auto json = run_well({"encode", "--sae", work / "whole", "--activations", work / "rows.npz", "--out",
                                    work / "z.npz", "--json"})
                              .json();
        CHECK(json["l0"].GetDouble() == Approx(5).margin(2.5));
        fs::remove_all(work / "whole");
        fs::remove_all(work / "parts");
    }
    auto prefixes = with(train_arguments(work, "x", "2"), {"--variant=matryoshka"});
    prefixes.insert(prefixes.end(), {"--prefixes", "20", "10"});
    CHECK(refused(prefixes).find("--prefixes") != std::string::npos);
}

TEST_CASE("a scale of activations is folded into the SAE: on plain tokens it does what was trained on scaled ones") {
    const temporary_folder work;
    // Tokens far from the mean norm of sqrt(24) that they are scaled to.
    auto rows = some_rows(3000, 24);
    for (float& x : rows) x *= 37;
    write_npz(work / "large.npz", "tokens", rows, {3000, 24});
    for (const std::string variant : {"relu", "topk", "batch_topk", "matryoshka", "jump_relu", "gated"}) {
        INFO(variant);
        const std::vector<std::string> options{"--activations=" + (work / "large.npz").string(),
                                               "--variant=" + variant,
                                               "--normalise-activations=expected_average_only_in",
                                               "--k=5",
                                               "--target-l0=5",
                                               "--lr=0.003",
                                               "--eval-every=60"};
        run_well(with(train_arguments(work, "run", "60"), options));
        const psae::safetensors_file state(work / "run" / "checkpoint" / "state.safetensors");
        const double scale = state.read<double>("activation_scale", {1})[0];
        CHECK(scale < 0.5);
        CHECK(read_text(work / "run" / "cfg.json").find("\"normalize_activations\": \"none\"") != std::string::npos);
        // The SAE as it was trained, and as it was written.
        const auto written = psae::read_sae(work / "run");
        auto trained = written;
        const auto parameter = [&](const char* name) { return state.read(name, state.at(name).shape); };
        trained.W_enc = parameter("W_enc");
        trained.W_dec = parameter("W_dec");
        trained.b_enc = parameter(variant == "gated" ? "b_gate" : "b_enc");
        trained.b_dec = parameter("b_dec");
        auto scaled = rows;
        for (float& x : scaled) x *= float(scale);
        const psae::cpu device;
        psae::arena<> scratch;
        const std::size_t n = 500;
        std::vector<float> x_hat(n * 24), scaled_x_hat(n * 24);
        const auto z = psae::encode_rows(device, scratch, written, rows.data(), n);
        psae::decode_rows(device, written, z, rows.data(), x_hat.data());
        const auto scaled_z = psae::encode_rows(device, scratch, trained, scaled.data(), n);
        psae::decode_rows(device, trained, scaled_z, scaled.data(), scaled_x_hat.data());
        for (float& x : scaled_x_hat) x /= float(scale);
        REQUIRE(z.entries() > n);
        REQUIRE(z.entries() == scaled_z.entries());
        CHECK(std::equal(z.latent, z.latent + z.entries(), scaled_z.latent));
        CHECK(relative_difference(std::vector<float>(z.value, z.value + z.entries()),
                                  std::vector<float>(scaled_z.value, scaled_z.value + z.entries())) < 1e-5);
        CHECK(relative_difference(x_hat, scaled_x_hat) < 1e-5);
        // What was reported on the way is what the written SAE does to the tokens as they are.
        std::ifstream metrics(work / "run" / "metrics.jsonl");
        std::string line, last;
        while (std::getline(metrics, line)) last = line;
        const auto json = psae::parse_json(last, "metrics");
        const auto held_out = psae::hold_out_rows(rows, 24, 16384, 3);
        const auto quality =
            psae::evaluate_sae(device, scratch, psae::sae_view(written), held_out.data(), held_out.size() / 24);
        CHECK(json["eval_mse"].GetDouble() == Approx(quality.mse).epsilon(1e-4));
        CHECK(json["eval_explained_variance"].GetDouble() == Approx(quality.explained_variance).epsilon(1e-4));
        CHECK(json["eval_l0"].GetDouble() == Approx(quality.l0).epsilon(1e-3));
        rows = some_rows(3000, 24);
        for (float& x : rows) x *= 37;
        // The written SAE is a start for another such run, whose tokens have the same scale.
        auto further = options;
        std::replace(further.begin(), further.end(), std::string("--lr=0.003"), std::string("--lr=1e-30"));
        further.insert(further.end(), {"--init=" + (work / "run").string(), "--no-normalise-decoder"});
        run_well(with(train_arguments(work, "more", "1"), further));
        CHECK(relative_difference(psae::read_sae(work / "more").W_enc, written.W_enc) < 1e-5);
        CHECK(relative_difference(psae::read_sae(work / "more").W_dec, written.W_dec) < 1e-5);
        CHECK(relative_difference(psae::read_sae(work / "more").b_dec, written.b_dec) < 1e-5);
    }
}

TEST_CASE("jump_relu and gated resume to the same bytes, with their scale and their thresholds") {
    const temporary_folder work;
    for (const std::string variant : {"jump_relu", "gated"}) {
        INFO(variant);
        const std::vector<std::string> options{"--variant=" + variant, "--lr=0.003", "--dead-latents=resample",
                                               "--dead-after=19"};
        run_well(with(train_arguments(work, "whole", "120"), options));
        run_well(with(train_arguments(work, "parts", "70"), options));
        run_well(with(with(train_arguments(work, "parts", "120"), options), {"--resume"}));
        check_same_run(work / "whole", work / "parts");
        CHECK(count_resampled(work / "whole") > 0);
        CHECK(psae::read_sae(work / "whole").architecture == (variant == "gated" ? "gated" : "jumprelu"));
        fs::remove_all(work / "whole");
        fs::remove_all(work / "parts");
    }
    CHECK(refused(with(train_arguments(work, "x", "2"), {"--variant=gated", "--dead-latents=ghost"}), 2)
              .find("--dead-latents") != std::string::npos);
    CHECK(refused(with(train_arguments(work, "x", "2"), {"--random-prefixes=3"}), 2).find("matryoshka") !=
          std::string::npos);
}

TEST_CASE("the sparsity term warms up, and jump_relu starts at its target") {
    const temporary_folder work;
    const auto first_line = [&](const std::vector<std::string>& more) {
        run_well(with(train_arguments(work, "run", "1"), more));
        return psae::parse_json(read_text(work / "run" / "metrics.jsonl"), "metrics");
    };
    for (const std::string variant : {"relu", "gated", "jump_relu"}) {
        INFO(variant);
        const char* term = variant == "jump_relu" ? "sparsity" : "l1";
        const auto weight = [&](const std::string& steps) {
            // (A penalty that is not 0 from the start: thresholds far below the target.)
            return first_line(
                       {"--variant=" + variant, "--sparsity-warmup-steps=" + steps, "--threshold-init=0.001"})[term]
                .GetDouble();
        };
        CHECK(weight("0") > 0);
        CHECK(weight("8") == Approx(weight("0") / 8).epsilon(1e-5));
        // As long as that of the learning rate, 20 steps, where nothing else is said; none for relu.
        const double otherwise = first_line({"--variant=" + variant, "--threshold-init=0.001"})[term].GetDouble();
        CHECK(otherwise == Approx(weight(variant == "relu" ? "0" : "20")).epsilon(1e-5));
    }
    CHECK(first_line({"--variant=jump_relu", "--target-l0=9"})["l0"].GetDouble() == Approx(9).epsilon(0.3));
    CHECK(first_line({"--variant=jump_relu", "--threshold-init=0.001"})["l0"].GetDouble() > 30);
}
