// A second translation unit: a function of the headers that is not inline would be defined twice.
#include <psae/psae.hpp>

float sum_of(psae::view<const float, psae::shape<psae::dyn, 4>> x) {
    float sum = 0;
    for (float v : x) sum += v;
    return sum;
}
