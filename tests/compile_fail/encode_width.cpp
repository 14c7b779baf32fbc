// expect: psae: encode: the tokens and W_enc have different d_in
#include <psae/psae.hpp>
struct wrong : psae::sae_parameters<8, 16> {
    psae::parameter<float, psae::shape<16, 9>> W_wrong;
    auto loss(auto x) const {
#ifdef PSAE_OK
        return mean_over_tokens(sum(encode(x, W_enc, b_enc, psae::relu{})));
#else
        return mean_over_tokens(sum(encode(x, W_wrong, b_enc, psae::relu{})));
#endif
    }
};
void f(psae::tape<psae::cpu>& t, wrong& w, psae::view<const float, psae::shape<psae::dyn, 8>> x) {
    (void)w.loss(t.input(x));
}
