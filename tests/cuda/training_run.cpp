// Training runs whose steps are the GPU's beside those of the CPU: metrics, files, checkpoints.
#include <catch2/catch.hpp>

#include <memory>
#include <vector>

#include <psae/io/training_run.hpp>
#include <psae/sae/batch_topk.hpp>
#include <psae/sae/jump_relu.hpp>
#include <psae/sae/matryoshka.hpp>
#include <psae/sae/patchsae.hpp>
#include <psae/sae/topk.hpp>
#include <psae/sae/transcoder.hpp>

#include "../backend.hpp"
#include "../difference.hpp"
#include "../temporary_folder.hpp"

using namespace psae;

namespace {

constexpr std::size_t d = 12, latents = 40, batch = 24, steps = 10;

std::vector<float> rows_of_step(std::size_t step) {
    random_stream random(step + 100);
    std::vector<float> x(batch * d);
    for (float& v : x) v = 0.3f + random.normal();
    return x;
}
any_training_run::rows as_rows(const std::vector<float>& x) { return {x.data(), shape<dyn, dyn>{batch, d}}; }

// Explains the first columns by the others.
struct of_columns : transcoder<dyn, dyn, float, dyn, true> {
    static constexpr std::size_t targets = 5;
    of_columns(std::size_t columns, std::size_t latents) : transcoder(columns - targets, latents, targets) {
        lambda = 0.02f;
    }
};
template <class Variant>
constexpr bool has_targets = std::is_same_v<Variant, of_columns>;

// What a run has of rows.
template <class Variant>
struct parts {
    explicit parts(const std::vector<float>& x) : tokens(x), targets(x) {
        if (!has_targets<Variant>) return;
        tokens = select_columns(x, d, of_columns::targets, d - of_columns::targets);
        targets = select_columns(x, d, 0, of_columns::targets);
    }
    std::vector<float> tokens, targets;
    training_rows rows() const { return {tokens, targets}; }
};

// With resampling where there is such, with scales where there are targets; evaluation and checkpoints on the way.
template <class Variant, class Backend>
std::unique_ptr<any_training_run> make_run(const std::filesystem::path& to, training_rows held_out,
                                           const training_options& training) {
    training_run_options options;
    options.directory = to;
    options.seed = 7;
    options.checkpoint_every = 5;
    options.eval_every = 3;
    if (has_targets<Variant>) {
        options.first_column = of_columns::targets;
        options.target_column = 0;
        options.normalise_activations = true;
    } else {
        options.resample_every = 4;
    }
    if constexpr (Backend::memory == space::host)
        return std::make_unique<training_run<Variant>>(Variant(d, latents), training, options, cpu(1), held_out);
    else
        return std::make_unique<training_run<Variant, Backend>>(Variant(d, latents), training, options, cpu(1),
                                                                Backend(), held_out);
}

template <class Variant>
void compare_devices(training_options training) {
    training.lr = 1e-2;
    training.warmup_steps = 2;
    training.dead_after = 2;
    const temporary_folder work;
    const parts<Variant> held_out(rows_of_step(1000)), sample(rows_of_step(1001));
    const auto give_sample = [&] { return sample.rows(); };
    const auto host = make_run<Variant, cpu>(work / "host", held_out.rows(), training);
    auto device = make_run<Variant, backend>(work / "device", held_out.rows(), training);
    for (auto* run : {host.get(), device.get()}) {
        run->initialise(give_sample);
        run->begin();
    }
    for (std::size_t step = 0; step < steps; ++step) {
        INFO("step " << step);
        const auto x = rows_of_step(step);
        if (step == 5) {  // goes on from the checkpoint
            device = make_run<Variant, backend>(work / "device", held_out.rows(), training);
            REQUIRE(device->has_checkpoint());
            device->resume();
            device->begin();
            REQUIRE(device->steps_done() == 5);
        }
        for (auto* run : {host.get(), device.get()}) {
            run->step(as_rows(x), 0);
            run->wait();
        }
        const step_metrics &a = *host->last_step(), &b = *device->last_step();
        CHECK(b.loss == Approx(a.loss).epsilon(1e-4));
        CHECK(b.l0 == a.l0);
        CHECK(b.dead_fraction == a.dead_fraction);
        CHECK(b.explained_variance == Approx(a.explained_variance).epsilon(1e-4));
        REQUIRE(a.terms.size() == b.terms.size());
        for (std::size_t i = 0; i < a.terms.size(); ++i) {
            CHECK(a.terms[i].first == b.terms[i].first);
            CHECK(b.terms[i].second == Approx(a.terms[i].second).epsilon(1e-4).margin(1e-7));
        }
    }
    CHECK(device->summarise(held_out.rows()).quality.mse ==
          Approx(host->summarise(held_out.rows()).quality.mse).epsilon(1e-4));
    host->finish();
    device->finish();
    const sae_weights a = read_sae(work / "host"), b = read_sae(work / "device");
    CHECK(relative_difference(b.W_enc, a.W_enc) < 1e-4);
    CHECK(relative_difference(b.b_enc, a.b_enc) < 1e-4);
    CHECK(relative_difference(b.W_dec, a.W_dec) < 1e-4);
    CHECK(relative_difference(b.b_dec, a.b_dec) < 1e-4);
    CHECK(relative_difference(b.threshold, a.threshold) < 1e-4);
    CHECK(relative_difference(b.W_skip, a.W_skip) < 1e-4);
}

}  // namespace

TEST_CASE("a run of PatchSAE on the GPU is that of the CPU: entries, tiles, clipping") {
    compare_devices<patchsae<>>({.codes = codes_form::entries});
    compare_devices<patchsae<>>({.codes = codes_form::tiles});
    compare_devices<patchsae<>>({.clip_grad_norm = 0.05, .codes = codes_form::tiles});
    compare_devices<patchsae<>>({.clip_grad_norm = 0.05});
}

TEST_CASE("a run of TopK and BatchTopK on the GPU is that of the CPU") {
    compare_devices<topk<>>({});
    compare_devices<batch_topk<>>({});
}

TEST_CASE("a run of Matryoshka on the GPU is that of the CPU, with its gradients taken by prefixes and kept") {
    struct nested : matryoshka<batch_topk<>> {
        nested(std::size_t inputs, std::size_t latents) : matryoshka(inputs, latents) {
            k = 6;
            for (std::size_t end = 1; end < latents; ++end) prefixes.push_back(end);  // more than a kernel takes parts
        }
    };
    compare_devices<nested>({});
    compare_devices<nested>({.clip_grad_norm = 0.05});
}

TEST_CASE("a run of JumpReLU on the GPU is that of the CPU, with thresholds that resampling sets") {
    struct from_l0 : jump_relu<> {
        from_l0(std::size_t inputs, std::size_t latents) : jump_relu(inputs, latents) { first_l0 = 2; }
    };
    compare_devices<from_l0>({});
}

TEST_CASE("a run of a transcoder on the GPU is that of the CPU, with the scales of tokens and targets") {
    compare_devices<of_columns>({.unit_norm_decoder = false});
}

TEST_CASE("a run on the GPU that was stopped and went on writes the bytes of one that was not") {
    training_options training;
    training.lr = 1e-2;
    training.dead_after = 2;
    const temporary_folder work;
    const auto sample = rows_of_step(1001);
    for (const char* name : {"whole", "resumed"}) {
        auto run = make_run<patchsae<>, backend>(work / name, {}, training);
        run->initialise([&] { return training_rows(sample); });
        run->begin();
        for (std::size_t step = 0; step < steps; ++step) {
            if (step == 5 && name == std::string("resumed")) {
                run = make_run<patchsae<>, backend>(work / name, {}, training);
                run->resume();
                run->begin();
            }
            const auto x = rows_of_step(step);
            run->step(as_rows(x), 0);
            if (step == 4) run->wait();
        }
        run->finish();
    }
    for (const char* name : {"sae_weights.safetensors", "checkpoint/state.safetensors"}) {
        const file_bytes a(work / "whole" / name), b(work / "resumed" / name);
        INFO(name);
        REQUIRE(a.size() == b.size());
        CHECK(std::equal(a.data(), a.data() + a.size(), b.data()));
    }
}

TEST_CASE("a parameter that has no copy on the device is refused there") {
    patchsae<> sae(d, latents);
    backend device;
    arena<backend_memory> scratch;
    arena<> records;
    tape<backend> t(device, scratch, records, mode::train);
    if (backend_memory != space::host) CHECK_THROWS_WITH(t.collect(sae.W_enc), Catch::Contains("parameter_copies"));
}

TEST_CASE("a loss that is not finite ends the step before anything has changed") {
    patchsae<> sae(d, latents);
    random_stream random(3);
    sae.initialise(random);
    const std::vector<float> before(sae.W_enc.value.begin(), sae.W_enc.value.end());
    backend device;
    trainer<patchsae<>, backend> run(sae, {}, device);
    auto x = rows_of_step(0);
    x[5] = std::numeric_limits<float>::quiet_NaN();
    const auto there = on_device(device, x);
    CHECK_THROWS_WITH(
        run.step(const_view<float, shape<dyn, dyn>, backend_memory>{there.data(), shape<dyn, dyn>{batch, d}}),
        Catch::Contains("not finite"));
    run.read_parameters();
    CHECK(std::vector<float>(sae.W_enc.value.begin(), sae.W_enc.value.end()) == before);
    CHECK(run.steps_done() == 0);
}
