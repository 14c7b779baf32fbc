// expect: psae: a row does not broadcast over this shape: last extents differ
#include <psae/psae.hpp>
void f(psae::tensor<float, psae::shape<psae::dyn, 768>>& x, psae::tensor<float, psae::shape<768>>& good,
       psae::tensor<float, psae::shape<767>>& bad) {
#ifdef PSAE_OK
    (void)(x + good);
    (void)bad;
#else
    (void)(x + bad);
    (void)good;
#endif
}
