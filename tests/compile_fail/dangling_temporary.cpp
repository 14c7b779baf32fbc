// expect: psae: an expression would outlive this temporary tensor: give the tensor a name first
#include <psae/psae.hpp>
psae::tensor<float, psae::shape<4>> make();
void f(psae::tensor<float, psae::shape<4>>& x) {
#ifdef PSAE_OK
    auto named = make();
    auto y = x + named;
#else
    auto y = x + make();
#endif
    (void)y;
}
