#include <cstdio>
#include <string>

#include <psae/cuda.hpp>

// A sum on the GPU, or psae's word that there is none.
int main() try {
    psae::cuda device;
    psae::tensor<float, psae::shape<psae::dyn, 4>, psae::space::device> x{psae::shape<psae::dyn, 4>{2}};
    psae::assign(device, x, x + 1);
    float values[8], sum = 0;
    psae::download(device, values, x.data(), 8);
    for (float v : values) sum += v;
    std::printf("%g\n", double(sum));
    return sum == 8 ? 0 : 1;
} catch (const psae::error& e) {
    std::printf("%s\n", e.what());
    return std::string(e.what()).find("no GPU can be used") == std::string::npos;
}
