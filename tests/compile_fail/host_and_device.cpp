// expect: psae::space::device
#include <psae/psae.hpp>
void kernel(psae::view<const float, psae::shape<4>, psae::space::host>);
void f(psae::view<const float, psae::shape<4>, psae::space::host> host,
       psae::view<const float, psae::shape<4>, psae::space::device> device) {
#ifdef PSAE_OK
    kernel(host);
    (void)device;
#else
    kernel(device);
    (void)host;
#endif
}
