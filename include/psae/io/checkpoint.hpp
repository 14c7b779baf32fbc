#pragma once
// The state of a training run in one safetensors file: parameters, Adam's moments (adam_m.*, adam_v.*) and the
// trainer's counters, all in the trainer's own layout ([d_sae, d_in]); the metadata hold the options the run was
// started with.

#include <algorithm>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include <psae/io/run_identity.hpp>
#include <psae/io/safetensors.hpp>
#include <psae/sae/trainer.hpp>

namespace psae {

namespace detail {

template <class Shape>
std::vector<std::size_t> extents_of(const Shape& shape) {
    std::vector<std::size_t> extents;
    for (std::size_t i = 0; i < Shape::rank; ++i) extents.push_back(shape.extent(i));
    return extents;
}

}  // namespace detail

// Of an SAE and what is kept beside its parameters: `run` is a trainer, or something else whose each_state(f) calls f as
// the trainer's does. Parameters that a trainer has on another device are brought up to date. The file appears whole or
// not at all, in place of the one before.
template <class Variant, class Run>
void write_checkpoint(const std::filesystem::path& path, Variant& sae, Run& run, const run_identity& identity) {
    if constexpr (requires { run.read_parameters(); }) run.read_parameters();
    std::map<std::string, std::vector<std::size_t>> shapes;
    std::vector<tensor_to_write> tensors;
    sae.each_parameter([&](const char* name, auto& p) {
        shapes[std::string("adam_m.") + name] = shapes[std::string("adam_v.") + name] = detail::extents_of(p.shape());
        tensors.push_back(to_write(name, detail::extents_of(p.shape()), p.data()));
    });
    run.each_state([&](const auto& given, auto* data, std::size_t count) {
        const std::string name(given);
        const auto shape = shapes.find(name);
        tensors.push_back(to_write(name, shape == shapes.end() ? std::vector{count} : shape->second, data));
    });
    write_safetensors(path, tensors, identity);
}

// Fills the SAE and the trainer. psae::error, naming what differs, if the checkpoint is of a run with another identity;
// if it is missing, damaged or of an SAE of another size. After an error the two hold nothing useful.
template <class Variant, class Run>
void read_checkpoint(const std::filesystem::path& path, Variant& sae, Run& run, const run_identity& identity) {
    if (!std::filesystem::exists(path))
        throw error("there is no checkpoint", path.string(), "", "start the run without resuming");
    const safetensors_file file(path);
    const std::string differences = identity_differences(identity, file.metadata(), "checkpoint");
    if (!differences.empty())
        throw error("checkpoint is of another run", path.string(), differences,
                    "resume with the same options, or start anew");
    const auto copy = [&]<class U>(const std::string& name, U* data, std::size_t count) {
        const auto& entry = file.at(name);
        if (checked_product(entry.shape) != count)
            throw error("tensor has another size", path.string() + ", tensor " + name,
                        "expected " + std::to_string(count) + " elements, found " + shape_text(entry.shape));
        const auto values = file.read<U>(name, entry.shape);
        std::copy(values.begin(), values.end(), data);
    };
    sae.each_parameter([&](const char* name, auto& p) { copy(name, p.data(), p.size()); });
    run.each_state([&](const auto& name, auto* data, std::size_t count) { copy(std::string(name), data, count); });
    if constexpr (requires { run.write_parameters(); }) run.write_parameters();
}

}  // namespace psae
