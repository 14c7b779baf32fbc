#pragma once
// Arrays of the host on their way to a backend and back, beside what it computes. Each backend has its own.

namespace psae {

// operator()(from, count): where `from` is for what the backend is given next. `from` can be overwritten on return where
// the memory is another; what is returned is valid until the second call after it.
template <class T, class Backend>
class staged_upload;

// The way back, of backends with memory of their own: next, send, finish as psae/cuda/staging.hpp says.
template <class T, class Backend>
class staged_download;

}  // namespace psae
