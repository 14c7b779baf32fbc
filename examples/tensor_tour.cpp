// A tour of tensors and expressions: shapes known to the compiler, nothing computed before it is assigned, no hidden
// copies.
#include <cstdio>

#include <psae/psae.hpp>

int main() {
    using namespace psae;
    cpu device;

    // Owners. Only the `dyn` extents are given at run time; the rest is part of the type.
    tensor<float, shape<dyn, 4>> x{shape<dyn, 4>{3}};
    tensor<float, shape<4>> bias;
    for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i);
    for (std::size_t c = 0; c < 4; ++c) bias[c] = 0.5f;

    // Expressions are lazy. A rank-1 operand is the same in every row, [n, 1] the same in every column.
    const auto centred = x - bias;
    tensor<float, shape<dyn, 4>> y{x.shape()};
    assign(device, y, square(centred) * 2);
    std::printf("y(2, 3) = %g\n", double(y(2, 3)));

    // Shape errors that the compiler can see do not compile (tests/compile_fail); the others throw and name both
    // shapes.
    tensor<float, shape<dyn, 4>> two_rows{shape<dyn, 4>{2}};
    try {
        assign(device, y, x + two_rows);
    } catch (const error& e) {
        std::printf("refused: %s\n", e.what());
    }
    // Reading elsewhere what is being written is refused too; in place at the same position is fine.
    assign(device, y, y + 1);

    // Reductions and gradients live on a tape.
    arena<> scratch;
    tape<cpu> t(device, scratch, mode::train);
    auto v = t.variable_of(x.view());
    auto loss = mean(square(v - bias));
    t.run();
    backward(t, loss);
    std::printf("loss %g, d loss / d x(2, 3) = %g\n", double(loss.load(position{})), double(v.adjoint->data[11]));
}
