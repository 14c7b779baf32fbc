#pragma once
// The options of train, and the run of one SAE that they describe.

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <psae/io/training_run.hpp>

#include "program.hpp"

namespace patchsae {

// The tokens of a run, and a transcoder's targets, as far as its options do not say it.
struct run_tokens {
    std::size_t d_in = 0, rows = 0, first_column = 0;
    std::optional<std::size_t> target_column;
    std::string fingerprint;  // of the data, for the identity of a run
    psae::training_rows held_out;
};

struct train_options {
    common_options common;
    image_options images;
    std::string activations, token_kind = "all", sweep, variant = "relu", loss, dead_latents, normalise_activations,
                             b_dec_init = "geometric_median", init, order = "shuffled", out, schedule = "constant";
    std::vector<std::size_t> prefixes;
    std::size_t expansion = 64, d_sae = 0, k = 32, random_prefixes = 0, batch_tokens = 4096, steps = 0, tokens = 0,
                warmup_steps = 500, sparsity_warmup_steps = 0, dead_after = 64, checkpoint_every = 1000, eval_every = 0;
    double l1 = 8e-5, target_l0 = 32, l0_coefficient = 0, bandwidth = 0.05, threshold_init = 0, lr = 4e-4,
           clip_grad_norm = 0;
    std::optional<long> target_layer;
    bool skip_connection = false, normalise_decoder = true, resume = false;

    void add_to(CLI::App& sub);
    // Checks choices that depend on one another, and fills in what the variant decides where it was not given.
    void complete(CLI::App& sub);
    // Fills in the numbers of latents and of steps.
    void resolve_sizes(CLI::App& sub, const run_tokens& tokens);
    // Bytes of the parameters and two moments of both matrices. After resolve_sizes.
    double bytes_of_parameters(const run_tokens& tokens) const;
    psae::stream_options stream() const;
    // After resolve_sizes.
    std::unique_ptr<psae::any_training_run> make_run(const CLI::App& sub, const run_tokens& tokens) const;
};

// Whether a variant has this option; options that are not of a variant are everybody's.
bool has_option(const std::string& variant, const std::string& option);

}  // namespace patchsae
