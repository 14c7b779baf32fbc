// The public gradient checker.
#include "model.hpp"

using namespace psae;

namespace {

// A square whose derivative is no number at one place.
struct broken_square {
    double place;
    template <class T>
    PSAE_FN T value(T a) const {
        return a * a;
    }
    template <class T>
    PSAE_FN partials<T, 1> derivative(T a) const {
        return {{a == T(place) ? std::numeric_limits<T>::quiet_NaN() : 2 * a}};
    }
};

}  // namespace

TEST_CASE("the checker does not lose a NaN") {
    for (const std::size_t place : {std::size_t{0}, std::size_t{1}, d - 1}) {
        model<double> m;
        const broken_square f{m.row.data()[place]};
        const auto worst = check_gradients(
            m, [&](auto x) { return mean(x * map(f, m.row)); }, std::as_const(m.x).view());
        CHECK(worst.error == std::numeric_limits<double>::infinity());
        CHECK(worst.where == "row[" + std::to_string(place) + "]");
    }
}
