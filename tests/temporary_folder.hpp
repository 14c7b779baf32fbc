#pragma once
// A folder of its own for one test, removed with it. The same test may run twice at once, with and without sanitizers.

#include <filesystem>
#include <string>
#include <string_view>

#include <stdlib.h>

#include <psae/core/error.hpp>

struct temporary_folder {
    temporary_folder() = default;
    temporary_folder(const temporary_folder&) = delete;
    temporary_folder& operator=(const temporary_folder&) = delete;
    ~temporary_folder() { std::filesystem::remove_all(path); }
    std::filesystem::path operator/(std::string_view name) const { return path / name; }

    const std::filesystem::path path = [] {
        std::string name = (std::filesystem::temp_directory_path() / "psae_test_XXXXXX").string();
        if (mkdtemp(name.data()) == nullptr) throw psae::error("no temporary folder", name);
        return std::filesystem::path(name);
    }();
};
