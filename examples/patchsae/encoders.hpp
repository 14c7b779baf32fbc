#pragma once
// The library's encoders are compiled once for the program, in model.cpp: in every file that encodes they would cost
// half of its compile time.

#include <psae/sae/inference.hpp>

#define PATCHSAE_ENCODER(Activation)                                                                             \
    template void psae::encode<float, Activation>(cpu&, arena<>&, codes_view<float>&, const float*, std::size_t, \
                                                  std::size_t, const float*, const float*, std::size_t,          \
                                                  const Activation&, const latent_set*, float*, const selection_plan&)

extern PATCHSAE_ENCODER(psae::relu);
extern PATCHSAE_ENCODER(psae::top_k);
extern PATCHSAE_ENCODER(psae::weighted_top_k<float>);
extern PATCHSAE_ENCODER(psae::above<float>);
extern PATCHSAE_ENCODER(psae::detail::gate);
