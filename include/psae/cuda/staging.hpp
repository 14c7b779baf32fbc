#pragma once
// Arrays of the host on their way to the GPU and back, beside what it computes: by a stream of copies, from and to
// page-locked memory, in two places by turns. Neither the host nor the backend's stream waits for more than it needs:
//
//   psae::staged_upload<float, psae::cuda> batches(device);
//   for (...) run.step({batches(rows, n), ...});         // copied while the step before is computed
//
//   psae::staged_download<float, psae::cuda> results(device);
//   float* y = results.next(n);                          // to be computed, in memory of the GPU
//   results.send(out, n);
//   ...                                                  // the same for another one; work of the host
//   results.finish(out);                                 // now they are there

#include <algorithm>
#include <cstddef>
#include <mutex>
#include <string>
#include <utility>

#include <psae/core/staging.hpp>
#include <psae/cuda/backend.hpp>

namespace psae {

namespace detail {

// Memory of the host that the GPU copies from and to by itself ("pinned").
template <class T>
class page_locked_array {
public:
    page_locked_array() = default;
    page_locked_array(const page_locked_array&) = delete;
    page_locked_array& operator=(const page_locked_array&) = delete;
    ~page_locked_array() {
        const std::lock_guard lock(capture_or_release());
        cudaFreeHost(data_);
    }
    // What was in it is lost.
    void resize(std::size_t count) {
        const std::lock_guard lock(capture_or_release());
        cudaFreeHost(std::exchange(data_, nullptr));
        void* p = nullptr;
        check(cudaMallocHost(&p, count * sizeof(T)), "page-locked memory");
        data_ = static_cast<T*>(p);
    }
    T* data() const { return data_; }

private:
    T* data_ = nullptr;
};

// A place among what a stream was given.
class stream_event {
public:
    explicit stream_event(const cuda& device) {
        device.make_current();
        check(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "CUDA event");
    }
    stream_event(const stream_event&) = delete;
    stream_event& operator=(const stream_event&) = delete;
    ~stream_event() { cudaEventDestroy(event_); }

    void record(cudaStream_t stream) { check(cudaEventRecord(event_, stream), "CUDA event"); }
    // Neither waits before the first record.
    void hold_back(cudaStream_t stream) const { check(cudaStreamWaitEvent(stream, event_, 0), "CUDA event"); }
    void wait() const { check(cudaEventSynchronize(event_), "copy"); }

private:
    cudaEvent_t event_ = nullptr;
};

class copy_stream {
public:
    explicit copy_stream(const cuda& device) {
        device.make_current();
        check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "CUDA stream");
    }
    copy_stream(const copy_stream&) = delete;
    copy_stream& operator=(const copy_stream&) = delete;
    ~copy_stream() {
        cudaStreamSynchronize(stream_);
        cudaStreamDestroy(stream_);
    }
    operator cudaStream_t() const { return stream_; }

private:
    cudaStream_t stream_ = nullptr;
};

// An array on both sides.
template <class T>
struct staged_array {
    explicit staged_array(const cuda& device) : copied(device), computed(device) {}
    // Before either is used again: what is smaller is replaced, by half as much again if it is not the first.
    void reserve(std::size_t count) {
        if (there.size() >= count) return;
        count = std::max(count, there.size() + there.size() / 2);
        here.resize(count);
        there = tensor<T, shape<dyn>, space::device>(shape<dyn>{count});
    }
    page_locked_array<T> here;
    tensor<T, shape<dyn>, space::device> there;
    stream_event copied, computed;
};

}  // namespace detail

template <class T>
class staged_upload<T, cuda> {
public:
    explicit staged_upload(const cuda& device)
        : device_(device), arrays_{detail::staged_array<T>(device), detail::staged_array<T>(device)}, copies_(device) {}

    const T* operator()(const T* from, std::size_t count) {
        std::copy_n(from, count, next(count));
        return send(count);
    }
    // The same in two steps: memory of the host for `count` numbers; and, once they are written there, where they are.
    T* next(std::size_t count) {
        arrays_[turn_].computed.record(device_.stream());  // behind all that uses what was sent last
        turn_ ^= 1;
        arrays_[turn_].copied.wait();
        arrays_[turn_].reserve(count);
        return arrays_[turn_].here.data();
    }
    const T* send(std::size_t count) {
        auto& [here, there, copied, computed] = arrays_[turn_];
        computed.hold_back(copies_);
        detail::check(cudaMemcpyAsync(there.data(), here.data(), count * sizeof(T), cudaMemcpyHostToDevice, copies_),
                      "upload");
        copied.record(copies_);
        copied.hold_back(device_.stream());
        return there.data();
    }

private:
    cuda device_;
    detail::staged_array<T> arrays_[2];
    unsigned turn_ = 0;
    detail::copy_stream copies_;  // done before the memory goes
};

// At most two arrays are on their way; one that is never finished makes room for the second one after it.
template <class T>
class staged_download<T, cuda> {
public:
    explicit staged_download(const cuda& device)
        : device_(device), arrays_{detail::staged_array<T>(device), detail::staged_array<T>(device)}, copies_(device) {}

    // Memory of the GPU for `count` numbers, for what it is given next.
    T* next(std::size_t count) {
        turn_ ^= 1;
        targets_[turn_] = {};
        arrays_[turn_].copied.wait();
        arrays_[turn_].reserve(count);
        return arrays_[turn_].there.data();
    }
    // What the GPU was given until now has written them; they go to `to`.
    void send(T* to, std::size_t count) {
        auto& [here, there, copied, computed] = arrays_[turn_];
        computed.record(device_.stream());
        computed.hold_back(copies_);
        detail::check(cudaMemcpyAsync(here.data(), there.data(), count * sizeof(T), cudaMemcpyDeviceToHost, copies_),
                      "download");
        copied.record(copies_);
        targets_[turn_] = {to, count};
    }
    // Waits until they are there. psae::error if nothing is on its way to `to`. Returns where they are on the GPU, until the
    // second call of next() behind theirs.
    const T* finish(T* to) {
        for (const unsigned i : {turn_, turn_ ^ 1}) {
            if (targets_[i].to != to) continue;
            arrays_[i].copied.wait();
            std::copy_n(arrays_[i].here.data(), std::exchange(targets_[i], {}).count, to);
            return arrays_[i].there.data();
        }
        throw error("nothing is on its way from the GPU", "download", "two others have been sent since, or none was");
    }

private:
    struct target {
        T* to = nullptr;
        std::size_t count = 0;
    };
    cuda device_;
    detail::staged_array<T> arrays_[2];
    target targets_[2];
    unsigned turn_ = 0;
    detail::copy_stream copies_;  // done before the memory goes
};

}  // namespace psae
