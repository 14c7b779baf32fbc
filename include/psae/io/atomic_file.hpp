#pragma once
// Files that appear whole or not at all: written under a temporary name in the same folder, synced, renamed.

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <filesystem>
#include <string>
#include <utility>

#include <fcntl.h>
#include <unistd.h>

#include <psae/core/error.hpp>

namespace psae {

class atomic_file {
public:
    explicit atomic_file(std::filesystem::path path) : path_(std::move(path)), temporary_(path_) {
        // A name of its own for every writer, also for two of one process and after a crash that left one behind.
        static std::atomic<unsigned> writers{0};
        do {
            temporary_ = path_;
            temporary_ += ".partial" + std::to_string(::getpid()) + "." + std::to_string(writers++);
            descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
        } while (descriptor_ < 0 && errno == EEXIST);
        if (descriptor_ < 0) fail("file cannot be created");
    }
    atomic_file(const atomic_file&) = delete;
    atomic_file& operator=(const atomic_file&) = delete;
    // Without commit() nothing is left behind.
    ~atomic_file() {
        if (descriptor_ >= 0) {
            ::close(descriptor_);
            ::unlink(temporary_.c_str());
        }
    }

    void write(const void* data, std::size_t bytes) {
        const char* p = static_cast<const char*>(data);
        while (bytes > 0) {
            const ssize_t n = ::write(descriptor_, p, bytes);
            if (n < 0 && errno == EINTR) continue;
            if (n < 0) fail("file cannot be written");
            p += n;
            bytes -= static_cast<std::size_t>(n);
            written_ += static_cast<std::size_t>(n);
        }
    }
    void write(const std::string& text) { write(text.data(), text.size()); }
    std::size_t position() const { return written_; }
    // Replaces bytes that were written before.
    void overwrite(std::size_t at, const void* data, std::size_t bytes) {
        const char* p = static_cast<const char*>(data);
        while (bytes > 0) {
            const ssize_t n = ::pwrite(descriptor_, p, bytes, static_cast<off_t>(at));
            if (n < 0 && errno == EINTR) continue;
            if (n < 0) fail("file cannot be written");
            p += n;
            at += static_cast<std::size_t>(n);
            bytes -= static_cast<std::size_t>(n);
        }
    }
    // Zeros up to a size of `bytes`; where the file system can, they take no room.
    void extend(std::size_t bytes) {
        if (::ftruncate(descriptor_, static_cast<off_t>(bytes)) != 0) fail("file cannot be extended");
    }

    void commit() {
        if (::fsync(descriptor_) != 0) fail("file cannot be synced");
        // close() gives the descriptor up even when it fails, so the destructor must not see it again.
        const bool closed = ::close(std::exchange(descriptor_, -1)) == 0;
        if (!closed) {
            const int reason = errno;
            ::unlink(temporary_.c_str());
            errno = reason;
            fail("file cannot be closed");
        }
        if (::rename(temporary_.c_str(), path_.c_str()) != 0) {
            const int reason = errno;
            ::unlink(temporary_.c_str());
            errno = reason;
            fail("file cannot be renamed into place");
        }
    }

private:
    [[noreturn]] void fail(const char* what) const { throw error(what, path_.string(), std::strerror(errno)); }

    std::filesystem::path path_, temporary_;
    int descriptor_ = -1;
    std::size_t written_ = 0;
};

// Writes a whole text file.
inline void write_text(const std::filesystem::path& path, const std::string& text) {
    atomic_file file(path);
    file.write(text);
    file.commit();
}

}  // namespace psae
