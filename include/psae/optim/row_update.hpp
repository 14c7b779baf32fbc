#pragma once
// What a step does to the rows of a parameter, whose gradient is made and used up row by row.

#include <cmath>
#include <cstddef>
#include <cstdint>

#include <psae/optim/adam.hpp>

namespace psae {

// Of w, [rows, cols], with Adam's moments m and v. Pointers are to memory of the device that updates; what differs from
// step to step stands behind one.
template <class T>
struct row_update {
    T *w, *m, *v;
    std::size_t rows, cols;
    bool projected;  // a gradient row loses its component along its row of w, which has unit length
    const adam_update<T>* update;
    const double* squares;  // of the norm of the whole gradient, that it may be clipped to `clip`; or null
    double clip;
    const std::uint32_t* go;  // nothing changes where it is 0; or null

    PSAE_FN bool goes() const { return go == nullptr || *go != 0; }
    // What the gradient is multiplied by, as torch's clip_grad_norm_ computes it.
    PSAE_FN T clipping() const {
        if (squares == nullptr) return T(1);
        const double length = std::sqrt(*squares);
        return length > clip ? static_cast<T>(clip / (length + 1e-6)) : T(1);
    }
};

}  // namespace psae
