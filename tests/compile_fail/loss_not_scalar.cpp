// expect: psae: a term of a loss is a scalar
#include <psae/psae.hpp>
void f(psae::tape<psae::cpu>& t, psae::view<const float, psae::shape<psae::dyn, 8>> x) {
#ifdef PSAE_OK
    (void)term("l2", mean(square(t.input(x))));
#else
    (void)term("l2", sum(square(t.input(x))));
#endif
}
