#pragma once
// Work that a backend is given again and again, such as a training step.

#include <cstddef>
#include <vector>

namespace psae {

// Bytes that tell one piece of work from another.
using work_key = std::vector<std::byte>;

// Backends for which starting many small pieces costs time specialise it (cuda/graph.hpp): they record work that comes
// again in the same form, and replay it. Others just do it.
template <class Backend>
class repeated_work {
public:
    // f() gives the work to the device, waits for nothing and allocates nothing, from the second time it comes on. add_key(key)
    // appends whatever f tells the device by value: pointers, sizes, numbers.
    template <class AddKey, class F>
    void run(Backend&, const AddKey&, const F& f) {
        f();
    }
    // How often work was replayed.
    std::size_t replays() const { return 0; }
};

}  // namespace psae
