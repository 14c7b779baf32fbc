#pragma once
// The weights of a model's directory, in whatever files it has.
//
//   const model_weights weights("clip-vit-base-patch32");
//   const std::vector<float> W = weights.read("visual_projection.weight", {512, 768});

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include <psae/io/json.hpp>
#include <psae/io/safetensors.hpp>
#include <psae/io/torch_file.hpp>

namespace psae {

// The first that is there, as transformers chooses: model.safetensors, the shards that model.safetensors.index.json
// names, pytorch_model.bin, the shards of pytorch_model.bin.index.json; and after these the only .pt file, which is how
// OpenAI's models come. psae::error if there is none, or an index names a shard or tensor that is not there.
class model_weights {
public:
    explicit model_weights(const std::filesystem::path& directory) : directory_(directory.string()) {
        const auto path = choose(directory);
        if (path.extension() == ".json") add_shards(path);
        else add(path);
    }

    struct entry {
        std::string name;
        std::vector<std::size_t> shape;
        std::size_t file;
    };
    const std::vector<entry>& entries() const { return entries_; }
    const entry* find(std::string_view name) const {
        const auto i = index_.find(name);
        return i == index_.end() ? nullptr : &entries_[i->second];
    }
    bool contains(std::string_view name) const { return find(name) != nullptr; }
    // "safetensors", "torch" or "torchscript".
    const char* format() const {
        const auto* torch = std::get_if<torch_file>(&files_.front());
        return torch == nullptr ? "safetensors" : torch->form() == torch_form::torchscript ? "torchscript" : "torch";
    }

    // The elements converted to T; the shape must be the given one. Floating-point values must be finite.
    template <class T = float>
    std::vector<T> read(std::string_view name, const std::vector<std::size_t>& shape) const {
        return std::visit([&](const auto& f) { return f.template read<T>(name, shape); }, files_[at(name).file]);
    }
    // The elements as they are stored, row-major; those of a torch view come together in `gathered`.
    std::span<const std::byte> bytes(std::string_view name, std::vector<std::byte>& gathered) const {
        const auto& file = files_[at(name).file];
        if (const auto* torch = std::get_if<torch_file>(&file)) return torch->bytes(torch->at(name), gathered);
        const auto& safe = std::get<safetensors_file>(file);
        const tensor_entry& e = safe.at(name);
        return {safe.data(e), e.bytes};
    }

private:
    std::filesystem::path choose(const std::filesystem::path& directory) const {
        // A folder that cannot be read has no weights; nothing else than psae::error is thrown.
        std::error_code ignored;
        for (const char* name :
             {"model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"})
            if (std::filesystem::exists(directory / name, ignored)) return directory / name;
        std::vector<std::filesystem::path> found;
        for (const auto& entry : std::filesystem::directory_iterator(directory, ignored))
            if (entry.path().extension() == ".pt") found.push_back(entry.path());
        if (found.size() == 1) return found[0];
        throw error("no weights found", directory_,
                    "expected model.safetensors, model.safetensors.index.json, pytorch_model.bin, "
                    "pytorch_model.bin.index.json or one .pt file");
    }
    const entry& at(std::string_view name) const {
        if (const auto* e = find(name)) return *e;
        throw error("tensor is missing", directory_ + ", tensor " + std::string(name),
                    "found in none of " + std::to_string(files_.size()) + " weight files");
    }
    void add(const std::filesystem::path& path) {
        if (path.extension() == ".safetensors") files_.emplace_back(std::in_place_type<safetensors_file>, path);
        else files_.emplace_back(std::in_place_type<torch_file>, path);
        std::visit(
            [&](const auto& f) {
                for (const auto& e : f.entries())
                    if (index_.emplace(e.name, entries_.size()).second)  // the first shard that has it
                        entries_.push_back({e.name, e.shape, files_.size() - 1});
            },
            files_.back());
    }
    void add_shards(const std::filesystem::path& index) {
        const auto json = read_json(index);
        const auto* map = find_member(json, "weight_map");
        if (map == nullptr || !map->IsObject()) throw error("shard index has no weight_map", index.string());
        require_unique_keys(*map, index.string() + ", weight_map");
        std::map<std::string, std::size_t> opened;
        for (const auto& m : map->GetObject()) {
            if (!m.value.IsString()) throw error("shard name is not a string", index.string());
            const std::string shard = m.value.GetString();
            if (shard.empty() || shard.find('/') != std::string::npos || shard[0] == '.')
                throw error("shard name leaves the directory", index.string(), shard);
            const auto path = index.parent_path() / shard;
            if (opened.emplace(shard, files_.size()).second) add(path);
            const auto& file = files_[opened.at(shard)];
            if (!std::visit([&](const auto& f) { return f.contains(m.name.GetString()); }, file))
                throw error("shard does not hold a tensor of the index",
                            path.string() + ", tensor " + m.name.GetString());
        }
        if (files_.empty()) throw error("shard index names no shard", index.string());
    }

    std::string directory_;
    std::vector<std::variant<safetensors_file, torch_file>> files_;
    std::vector<entry> entries_;
    std::map<std::string, std::size_t, std::less<>> index_;
};

}  // namespace psae
