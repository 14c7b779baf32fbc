#include <cstdio>

#include <psae/psae.hpp>

float sum_of(psae::view<const float, psae::shape<psae::dyn, 4>> x);

int main() {
    psae::tensor<float, psae::shape<psae::dyn, 4>> x{psae::shape<psae::dyn, 4>{2}};
    psae::cpu device;
    psae::assign(device, x, x + 1);
    const float sum = sum_of(x);
    std::printf("%g\n", double(sum));
    return sum == 8 ? 0 : 1;
}
