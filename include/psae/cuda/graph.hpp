#pragma once
// Repeated work as CUDA graphs: one launch in place of a hundred.

#include <array>
#include <utility>

#include <psae/core/repeated_work.hpp>
#include <psae/cuda/backend.hpp>

namespace psae {

template <>
class repeated_work<cuda> {
public:
    repeated_work() = default;
    repeated_work(const repeated_work&) = delete;
    repeated_work& operator=(const repeated_work&) = delete;
    ~repeated_work() {
        for (known& k : known_) k.forget();
    }

    // Work is done as it comes the first time, recorded the second, and replayed from then on, until a few other pieces
    // have come.
    template <class AddKey, class F>
    void run(cuda& device, const AddKey& add_key, const F& f) {
        key_.assign({static_cast<std::byte>(device.products)});
        add_key(key_);
        for (known& k : known_) {
            if (k.key != key_) continue;
            if (k.graph == nullptr) k.graph = record(device, f);
            else ++replays_;
            detail::check(cudaGraphLaunch(k.graph, device.stream()), "CUDA graph");
            return;
        }
        known& oldest = known_[next_++ % known_.size()];
        oldest.forget();
        f();
        oldest.key = key_;
    }
    std::size_t replays() const { return replays_; }

private:
    struct known {
        work_key key;
        cudaGraphExec_t graph = nullptr;
        void forget() {
            key.clear();
            if (graph != nullptr) cudaGraphExecDestroy(std::exchange(graph, nullptr));
        }
    };

    template <class F>
    static cudaGraphExec_t record(cuda& device, const F& f) {
        const std::lock_guard lock(detail::capture_or_release());
        cudaGraph_t graph = nullptr;
        detail::check(cudaStreamBeginCapture(device.stream(), cudaStreamCaptureModeThreadLocal), "CUDA graph");
        try {
            f();
        } catch (...) {
            cudaStreamEndCapture(device.stream(), &graph);
            if (graph != nullptr) cudaGraphDestroy(graph);
            throw;
        }
        detail::check(cudaStreamEndCapture(device.stream(), &graph), "CUDA graph");
        cudaGraphExec_t recorded = nullptr;
        const cudaError_t status = cudaGraphInstantiate(&recorded, graph, 0);
        cudaGraphDestroy(graph);
        detail::check(status, "CUDA graph");
        return recorded;
    }

    // A few: batches may lie in buffers that take turns.
    std::array<known, 4> known_;
    std::size_t next_ = 0, replays_ = 0;
    work_key key_;
};

}  // namespace psae
