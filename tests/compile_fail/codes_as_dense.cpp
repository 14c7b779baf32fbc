// expect: codes are not dense: sum(...) or decode(...) them first
#include <psae/psae.hpp>
struct wrong : psae::sae_parameters<8, 16> {
    auto loss(auto x) const {
        auto z = encode(x, W_enc, b_enc, psae::relu{});
#ifdef PSAE_OK
        return mean_over_tokens(sum(square(z)));
#else
        return mean(column_means(z));
#endif
    }
};
void f(psae::tape<psae::cpu>& t, wrong& w, psae::view<const float, psae::shape<psae::dyn, 8>> x) {
    (void)w.loss(t.input(x));
}
