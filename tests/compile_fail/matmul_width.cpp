// expect: matmul_shapes<psae::shape<18446744073709551615, 768>, psae::shape<10, 769>
#include <psae/psae.hpp>
void f(psae::tape<psae::cpu>& t, psae::view<const float, psae::shape<psae::dyn, 768>> x,
       psae::view<const float, psae::shape<10, 768>> good, psae::view<const float, psae::shape<10, 769>> bad) {
#ifdef PSAE_OK
    matmul(t.input(x), good);
    (void)bad;
#else
    matmul(t.input(x), bad);
    (void)good;
#endif
}
