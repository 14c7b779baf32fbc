#pragma once
// Scratch memory of a step. Pieces are handed out in order and taken back all at once (or down to a mark). What did not
// fit is remembered, and the next reset() replaces everything by one block that is large enough: after the first step
// nothing allocates.

#include <cstddef>
#include <vector>

#include <psae/core/tensor.hpp>

namespace psae {

template <space Space = space::host>
class arena {
public:
    arena() = default;
    arena(const arena&) = delete;
    arena& operator=(const arena&) = delete;
    ~arena() { release(); }

    // Uninitialised memory for `count` elements, aligned to 64 bytes, valid until reset() or release_to(an earlier
    // mark).
    template <class T>
    T* allocate(std::size_t count) {
        return static_cast<T*>(allocate_bytes(count * sizeof(T)));
    }

    struct mark {
        std::size_t block, used, before;
    };
    // A place to return to: pieces handed out after it are taken back by release_to and their memory is handed out
    // again.
    mark position() const { return {current_, used_, before_}; }
    void release_to(mark m) {
        current_ = m.block;
        used_ = m.used;
        before_ = m.before;
    }

    // Takes everything back.
    void reset() {
        if (blocks_.size() > 1) {
            const std::size_t total = peak_ + peak_ / 16;  // room for codes that grow a little from step to step
            release();
            add_block(total);
        }
        current_ = used_ = before_ = 0;
    }

    // f(data, bytes) for the memory that pieces have been handed out of, gaps between them included.
    template <class F>
    void each_used(const F& f) const {
        for (std::size_t i = 0; i < current_; ++i) f(static_cast<const void*>(blocks_[i].data), blocks_[i].bytes);
        if (used_ > 0) f(static_cast<const void*>(blocks_[current_].data), used_);
    }

    // How often memory was asked from the system: constant once the arena has its size.
    std::size_t allocations() const { return allocations_; }
    std::size_t peak_bytes() const { return peak_; }

private:
    static constexpr std::size_t smallest_block = std::size_t{1} << 20;
    struct block {
        void* data;
        std::size_t bytes;
    };

    void* allocate_bytes(std::size_t bytes) {
        bytes = (bytes + 63) / 64 * 64;
        while (current_ == blocks_.size() || used_ + bytes > blocks_[current_].bytes) {
            if (current_ == blocks_.size()) {
                add_block(bytes > smallest_block ? bytes : smallest_block);
            } else {
                before_ += used_;
                ++current_;
            }
            used_ = 0;
        }
        void* p = static_cast<char*>(blocks_[current_].data) + used_;
        used_ += bytes;
        if (before_ + used_ > peak_) peak_ = before_ + used_;
        return p;
    }
    void add_block(std::size_t bytes) {
        blocks_.push_back({memory_space<Space>::allocate(bytes), bytes});
        ++allocations_;
    }
    void release() {
        for (const block& b : blocks_) memory_space<Space>::release(b.data, b.bytes);
        blocks_.clear();
    }

    std::vector<block> blocks_;
    // used_: bytes taken of blocks_[current_]; before_: bytes taken of the blocks before it.
    std::size_t current_ = 0, used_ = 0, before_ = 0, peak_ = 0, allocations_ = 0;
};

}  // namespace psae
