#pragma once
// Training runs through the program: their arguments, what they wrote, whether two are the same.

#include <psae/io/sae_file.hpp>

#include "program.hpp"

namespace program {

// A run on stored rows that takes a second or so.
inline std::vector<std::string> train_arguments(const temporary_folder& work, const std::string& out,
                                                const std::string& steps) {
    if (!fs::exists(work / "rows.npz")) write_npz(work / "rows.npz", "tokens", some_rows(3000, 24), {3000, 24});
    return {"train",
            "--activations",
            work / "rows.npz",
            "--out",
            work / out,
            "--steps",
            steps,
            "--batch-tokens",
            "48",
            "--d-sae",
            "96",
            "--warmup-steps",
            "20",
            "--checkpoint-every",
            "50",
            "--threads",
            "1",
            "--seed",
            "3",
            "--dead-after",
            "30",
            "--eval-every",
            "40"};
}
// With more options; "--name=value" takes the place of the one that is there.
inline std::vector<std::string> with(std::vector<std::string> arguments, const std::vector<std::string>& more) {
    for (const auto& m : more) {
        const auto there = std::find(arguments.begin(), arguments.end(), m.substr(0, m.find('=')));
        if (there != arguments.end()) arguments.erase(there, there + 2);
        arguments.push_back(m);
    }
    return arguments;
}

// The metrics of a run without what the clock said, the last number of each line.
inline std::string reproducible_metrics(const fs::path& run) {
    std::string kept;
    std::ifstream in(run / "metrics.jsonl");
    for (std::string line; std::getline(in, line);) {
        const auto rate = line.find(", \"tokens_per_s\": ");
        REQUIRE(rate != std::string::npos);
        REQUIRE(line.find(',', rate + 1) == std::string::npos);
        kept += line.substr(0, rate) + "\n";
    }
    return kept;
}

inline void check_same_run(const fs::path& a, const fs::path& b) {
    CHECK(reproducible_metrics(a) == reproducible_metrics(b));
    for (const char* name : {"sae_weights.safetensors", "cfg.json", "checkpoint/state.safetensors", "loss.png",
                             "l0.png", "dead.png", "explained_variance.png"}) {
        INFO(name);
        REQUIRE(fs::exists(a / name));
        CHECK(read_text(a / name) == read_text(b / name));
    }
}

// Sends `signal` once the run has written `lines` lines of metrics.
inline limits at_line(const fs::path& run, std::size_t lines, int signal) {
    return {.memory_bytes = 0,
            .signal_when = [=] { return count_lines(read_text(run / "metrics.jsonl")) >= lines ? signal : 0; }};
}

inline std::size_t checkpoint_steps(const fs::path& run) {
    return psae::safetensors_file(run / "checkpoint" / "state.safetensors").read<std::uint64_t>("counters", {2})[0];
}

}  // namespace program
