#pragma once
// The bytes of a file, mapped read-only: nothing is allocated for what a header claims.

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <filesystem>
#include <utility>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <psae/core/error.hpp>

namespace psae {

class file_bytes {
public:
    explicit file_bytes(const std::filesystem::path& path) {
        const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
        if (descriptor < 0) throw error("file cannot be opened", path.string(), std::strerror(errno));
        struct stat info {};
        const bool regular = ::fstat(descriptor, &info) == 0 && S_ISREG(info.st_mode);
        if (regular && info.st_size > 0) {
            size_ = static_cast<std::size_t>(info.st_size);
            data_ = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, descriptor, 0);
        }
        ::close(descriptor);
        if (!regular) throw error("not a regular file", path.string());
        if (data_ == MAP_FAILED) throw error("file cannot be mapped", path.string(), std::strerror(errno));
    }
    file_bytes(file_bytes&& other) noexcept
        : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
    file_bytes& operator=(file_bytes&& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(size_, other.size_);
        return *this;
    }
    ~file_bytes() {
        if (data_ != nullptr) ::munmap(data_, size_);
    }
    const std::byte* data() const { return static_cast<const std::byte*>(data_); }
    std::size_t size() const { return size_; }

private:
    void* data_ = nullptr;
    std::size_t size_ = 0;
};

}  // namespace psae
