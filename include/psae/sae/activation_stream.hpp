#pragma once
// Batches of activations in a shuffled order that depends on the seed and the position alone, so that a run resumes at
// any batch bit for bit without storing a buffer. The stream is an endless sequence of rows (epoch after epoch); it is
// cut into blocks of whole batches, a block is shuffled in itself, and the next block is made in the background while
// one is consumed.

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <numeric>
#include <thread>
#include <utility>
#include <vector>

#include <psae/core/random.hpp>
#include <psae/core/tensor.hpp>

namespace psae {

// The order of `count` items in epoch `epoch`: a permutation drawn from the seed, kept until another epoch is asked
// for.
class epoch_order {
public:
    epoch_order(std::size_t count, std::uint64_t seed) : order_(count), seed_(seed) {}

    // The item at position i of the endless stream.
    std::size_t at(std::uint64_t i) {
        const std::uint64_t epoch = i / order_.size();
        if (epoch != epoch_) {
            std::iota(order_.begin(), order_.end(), std::uint32_t{0});
            random_stream random(seed_ ^ 0x9E3779B97F4A7C15u, epoch << 40);
            shuffle(order_, random);
            epoch_ = epoch;
        }
        return order_[i % order_.size()];
    }

private:
    std::vector<std::uint32_t> order_;
    std::uint64_t seed_, epoch_ = ~std::uint64_t{0};
};

// Activations that are in memory: rows x [n, d], in order (and again from the start) or shuffled anew in each epoch.
class stored_activations {
public:
    stored_activations(std::vector<float> rows, std::size_t d, bool sequential, std::uint64_t seed)
        : rows_(std::move(rows)), d_(d), sequential_(sequential), seed_(seed), order_(rows_.size() / d, seed) {
        if (rows_.size() < d) throw error("there are no activations", "activations", "at least one row");
    }
    std::size_t columns() const { return d_; }
    std::size_t rows() const { return rows_.size() / d_; }
    // Up to `count` rows drawn at random. Returns [n, d].
    std::vector<float> sample(std::size_t count) const {
        epoch_order order(rows(), ~seed_);
        std::vector<float> sampled;
        for (std::size_t i = 0; i < std::min(count, rows()); ++i) {
            const float* row = rows_.data() + order.at(i) * d_;
            sampled.insert(sampled.end(), row, row + d_);
        }
        return sampled;
    }
    // Rows first .. first + count of the endless stream. out: [count, d].
    void read(std::uint64_t first, std::size_t count, float* out) {
        for (std::size_t i = 0; i < count; ++i) {
            const std::size_t row = sequential_ ? (first + i) % rows() : order_.at(first + i);
            std::copy_n(rows_.data() + row * d_, d_, out + i * d_);
        }
    }

private:
    std::vector<float> rows_;
    std::size_t d_;
    bool sequential_;
    std::uint64_t seed_;
    epoch_order order_;
};

// Source: columns(), read(first, count, out) as above. Reading happens on one background thread.
template <class Source>
class activation_stream {
public:
    // Batches of `batch` rows; a block holds `batches_per_block` of them; `shuffled` mixes the rows of a block. Nothing
    // is read ahead for batch `last_batch` and those behind it.
    activation_stream(Source& source, std::size_t batch, std::size_t batches_per_block, bool shuffled,
                      std::uint64_t seed, std::uint64_t first_batch = 0, std::uint64_t last_batch = ~std::uint64_t{0})
        : source_(source),
          batch_(batch),
          batches_per_block_(batches_per_block),
          shuffled_(shuffled),
          seed_(seed),
          next_batch_(first_batch),
          last_batch_(last_batch),
          current_(block_shape()),
          ahead_(block_shape()) {
        start(next_batch_ / batches_per_block_);
    }
    activation_stream(const activation_stream&) = delete;
    activation_stream& operator=(const activation_stream&) = delete;
    ~activation_stream() {
        stopping_ = true;
        if (worker_.joinable()) worker_.join();
    }

    // The next batch [batch, d]; valid until the next call. Errors of the source are thrown here.
    view<const float, shape<dyn, dyn>> next() {
        const std::uint64_t block = next_batch_ / batches_per_block_;
        if (!loaded_ || block != block_) {
            if (!worker_.joinable()) start(block);
            worker_.join();
            if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
            std::swap(current_, ahead_);
            block_ = block;
            loaded_ = true;
            if ((block + 1) * batches_per_block_ < last_batch_) start(block + 1);
        }
        const std::size_t within = next_batch_++ % batches_per_block_;
        return {current_.data() + within * batch_ * source_.columns(), shape<dyn, dyn>{batch_, source_.columns()}};
    }

private:
    shape<dyn, dyn> block_shape() const { return shape<dyn, dyn>{batch_ * batches_per_block_, source_.columns()}; }

    void start(std::uint64_t block) {
        worker_ = std::thread([this, block] {
            try {
                const std::size_t rows = batch_ * batches_per_block_, d = source_.columns();
                // Batch by batch, so that a stream that ends need not wait for a whole block.
                for (std::size_t b = 0; b < batches_per_block_; ++b) {
                    if (stopping_) return;
                    source_.read(block * rows + b * batch_, batch_, ahead_.data() + b * batch_ * d);
                }
                if (!shuffled_) return;
                random_stream random(seed_, block << 40);
                for (std::size_t i = rows; i > 1; --i) {
                    const std::size_t j = random.below(i);
                    if (j != i - 1)
                        std::swap_ranges(ahead_.data() + (i - 1) * d, ahead_.data() + i * d, ahead_.data() + j * d);
                }
            } catch (...) {
                failure_ = std::current_exception();
            }
        });
    }

    Source& source_;
    std::size_t batch_, batches_per_block_;
    bool shuffled_;
    std::uint64_t seed_, next_batch_, last_batch_, block_ = 0;
    bool loaded_ = false;
    tensor<float, shape<dyn, dyn>> current_, ahead_;
    std::atomic<bool> stopping_ = false;
    std::thread worker_;
    std::exception_ptr failure_;
};

}  // namespace psae
