#pragma once
// Several SAEs trained on one stream of activations: FILE.json says which, and what comes out at the end.

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "train_options.hpp"

namespace patchsae {

// An SAE to train: its options, and the command they were parsed by.
struct planned_run {
    std::string name;               // its directory in that of the sweep
    std::unique_ptr<CLI::App> app;  // owns the command where the run is one of a sweep
    CLI::App* command = nullptr;
    std::shared_ptr<train_options> options;
    std::size_t hidden_state = 0;  // the layer as an index from the start, where the tokens are of pictures
    std::optional<std::size_t> target_state{};  // that of a transcoder's targets
};

// The SAEs of a sweep. The file holds an object or an array of objects; each stands for all combinations of the values
// of its keys, which are long options of train (an array: several values). A key counts for the variants that have such
// an option. `given` is the command with the options that are meant for all. CLI::ParseError, naming file and key, for
// what train would not take, for options that belong to all SAEs, and for two SAEs of one name.
std::vector<planned_run> read_sweep(const std::string& file, const CLI::App& given);

struct sweep_result {
    const planned_run* run;
    std::size_t steps = 0;
    std::optional<psae::run_summary> summary;  // none where it could not be made
    std::string failure;                       // what ended the run before its time
};

// Writes sweep.csv and pareto.png (L0 against explained variance) into the directory, and prints the table or, with
// json, an object.
void report_sweep(const std::string& directory, const std::vector<sweep_result>& results, bool json);

}  // namespace patchsae
