#pragma once
// What a training step comes to, in memory of its device: the host reads it when the step is done.

#include <cstddef>
#include <cstdint>

#include <psae/core/annotations.hpp>

namespace psae {

inline constexpr std::size_t most_loss_numbers = 17;

// A loss and its named terms, in memory of the device.
template <class T>
struct loss_numbers {
    const T* number[most_loss_numbers];
    std::size_t count = 0;
    const T* least_rank = nullptr;  // of a top-k over the whole batch; or null
};

struct step_outcome {
    double losses[most_loss_numbers] = {};  // of the loss and its terms
    double least_rank = 0;                  // of a top-k over the whole batch
    double residual = 0, variance = 0;      // sum ||x - x_hat||^2, sum ||x - mean x||^2
    std::size_t active = 0;                 // latents over all tokens
    std::uint32_t too_small = 0;            // 1: an encoder had too little room (selection_plan)
    std::uint32_t go = 0;                   // 0: nothing changes in this step

    // The step goes on if its loss is finite and its codes are whole.
    template <class T>
    PSAE_FN void judge(const loss_numbers<T>& loss) {
        for (std::size_t i = 0; i < loss.count; ++i) losses[i] = static_cast<double>(*loss.number[i]);
        if (loss.least_rank != nullptr) least_rank = static_cast<double>(*loss.least_rank);
        go = losses[0] - losses[0] == 0 && too_small == 0 ? 1 : 0;
    }
};

}  // namespace psae
