// Tensors, views, the arena.
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include <catch2/catch.hpp>

#include <psae/core/arena.hpp>
#include <psae/core/tensor.hpp>

using namespace psae;

namespace {

using matrix = tensor<float, shape<dyn, 4>>;
using matrix_view = view<float, shape<dyn, 4>>;
using const_matrix_view = view<const float, shape<dyn, 4>>;
using device_view = view<float, shape<dyn, 4>, space::device>;
using any_matrix_view = view<const float, shape<dyn, dyn>>;

// What must and must not convert.
static_assert(std::is_trivially_copyable_v<matrix_view>);
static_assert(sizeof(view<float, shape<3, 4>>) == sizeof(float*), "a static shape costs a view nothing");
static_assert(std::is_convertible_v<matrix&, matrix_view>);
static_assert(std::is_convertible_v<const matrix&, const_matrix_view>);
static_assert(!std::is_convertible_v<const matrix&, matrix_view>, "const memory is not written");
static_assert(!std::is_convertible_v<matrix&&, matrix_view>, "a view of a temporary would dangle");
static_assert(!std::is_convertible_v<matrix&&, const_matrix_view>);
static_assert(std::is_convertible_v<matrix_view, const_matrix_view>);
static_assert(!std::is_convertible_v<const_matrix_view, matrix_view>);
static_assert(!std::is_convertible_v<matrix_view, device_view>, "host memory is not device memory");
static_assert(!std::is_convertible_v<device_view, matrix_view>);
static_assert(!std::is_convertible_v<matrix_view, view<double, shape<dyn, 4>>>, "elements are not converted by a view");
static_assert(!std::is_convertible_v<matrix_view, view<float, shape<dyn, 5>>>);
static_assert(!std::is_convertible_v<matrix_view, view<float, shape<dyn>>>);
static_assert(!std::is_copy_constructible_v<matrix> && !std::is_copy_assignable_v<matrix>,
              "copies are explicit: clone()");
static_assert(std::is_nothrow_move_constructible_v<matrix> && std::is_nothrow_move_assignable_v<matrix>);

matrix counted(std::size_t rows) {
    matrix x{shape<dyn, 4>{rows}};
    for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i);
    return x;
}

bool aligned(const void* p) { return reinterpret_cast<std::uintptr_t>(p) % 64 == 0; }

}  // namespace

TEST_CASE("a tensor is zeroed, aligned and row-major") {
    matrix x{shape<dyn, 4>{3}};
    CHECK(aligned(x.data()));
    CHECK(x.size() == 12);
    for (float v : x) CHECK(v == 0);
    x(2, 1) = 7;
    CHECK(x[9] == 7);
    CHECK(std::as_const(x)(2, 1) == 7);
    CHECK(x.view().row(2)[1] == 7);
}

TEST_CASE("large tensors are zeroed and aligned as well") {
    tensor<float, shape<dyn>> x{shape<dyn>{(std::size_t{2} << 20) + 5}};  // 8 MiB and a bit: huge pages
    CHECK(aligned(x.data()));
    std::size_t nonzero = 0;
    for (float v : x) nonzero += v != 0;
    CHECK(nonzero == 0);
    x[x.size() - 1] = 1;
}

TEST_CASE("a tensor without elements is valid") {
    matrix none;
    CHECK(none.size() == 0);
    CHECK(none.begin() == none.end());
    const matrix copy = none.clone();
    CHECK(copy.size() == 0);
    tensor<float, shape<>> scalar;
    scalar[0] = 2;
    CHECK(scalar.size() == 1);
    CHECK(scalar.view().load(position{5, 6}) == 2);
}

TEST_CASE("moving hands over the memory, clone copies it") {
    matrix x = counted(3);
    const float* memory = x.data();
    matrix copy = x.clone();
    CHECK(copy.data() != memory);
    CHECK(copy.shape() == x.shape());
    CHECK(std::memcmp(copy.data(), memory, x.size() * sizeof(float)) == 0);
    copy[0] = 100;
    CHECK(x[0] == 0);

    matrix moved = std::move(x);
    CHECK(moved.data() == memory);
    CHECK(moved.rows() == 3);
    matrix target = counted(5);
    target = std::move(moved);
    CHECK(target.data() == memory);
    CHECK(target.rows() == 3);
}

TEST_CASE("a view refers, and writes through") {
    matrix x = counted(3);
    matrix_view v = x;
    v(1, 2) = 50;
    CHECK(x(1, 2) == 50);
    const const_matrix_view c = v;
    CHECK(c.data == x.data());
    CHECK(c.rows() == 3);
    CHECK(c.end() - c.begin() == 12);
}

TEST_CASE("a view converts to a shape that its extents have") {
    const matrix x = counted(3);
    const const_matrix_view v = x;
    const any_matrix_view any = v;
    CHECK(any.rows() == 3);
    CHECK(any.cols() == 4);
    CHECK(any(2, 3) == 11);
    const const_matrix_view back = any;
    CHECK(back(2, 3) == 11);
    const view<const float, shape<3, 4>> fixed = any;
    CHECK(fixed(2, 3) == 11);
}

TEST_CASE("a view refuses a shape that its extents do not have") {
    const matrix x = counted(3);
    const any_matrix_view any = x.view();
    using five_columns = view<const float, shape<dyn, 5>>;
    using two_rows = view<const float, shape<2, dyn>>;
    CHECK_THROWS_AS(static_cast<five_columns>(any), error);
    CHECK_THROWS_AS(static_cast<two_rows>(any), error);
    try {
        (void)static_cast<five_columns>(any);
        FAIL("no error");
    } catch (const error& e) {
        CHECK(std::string(e.what()).find("[3, 4]") != std::string::npos);
    }
}

TEST_CASE("views broadcast as their types say") {
    matrix x = counted(3);
    CHECK(x.view().load(position{2, 1}) == 9);

    tensor<float, shape<4>> row;
    row[1] = 5;
    CHECK(row.view().load(position{0, 1}) == 5);
    CHECK(row.view().load(position{2, 1}) == 5);

    tensor<float, shape<dyn, 1>> column{shape<dyn, 1>{3}};
    column[2] = 6;
    CHECK(column.view().load(position{2, 0}) == 6);
    CHECK(column.view().load(position{2, 3}) == 6);

    tensor<float, shape<1>> single;
    single[0] = 7;
    CHECK(single.view().load(position{2, 3}) == 7);

    tensor<float, shape<2, 3, 4>> cube;
    cube[(1 * 3 + 2) * 4 + 3] = 8;
    CHECK(cube.view().load(position{1 * 3 + 2, 3}) == 8);
}

TEST_CASE("an arena hands out aligned pieces that do not overlap") {
    arena<> scratch;
    auto* a = scratch.allocate<float>(3);
    auto* b = scratch.allocate<double>(5);
    auto* c = scratch.allocate<char>(1);
    CHECK(aligned(a));
    CHECK(aligned(b));
    CHECK(aligned(c));
    for (int i = 0; i < 3; ++i) a[i] = 1;
    for (int i = 0; i < 5; ++i) b[i] = 2;
    *c = 3;
    for (int i = 0; i < 3; ++i) CHECK(a[i] == 1);
    for (int i = 0; i < 5; ++i) CHECK(b[i] == 2);
    CHECK(scratch.peak_bytes() == 3 * 64);
}

TEST_CASE("after the first step an arena does not allocate") {
    arena<> scratch;
    const auto step = [&] {
        scratch.reset();
        for (std::size_t mib = 1; mib <= 4; ++mib) {
            auto* piece = scratch.allocate<std::uint8_t>((mib << 20) - 17);
            piece[0] = piece[(mib << 20) - 18] = 1;
        }
        for (int i = 0; i < 100; ++i) *scratch.allocate<int>(1) = i;
    };
    step();  // grows block by block
    const std::size_t peak = scratch.peak_bytes();
    step();  // the reset joins them into one block
    const std::size_t allocations = scratch.allocations();
    for (int i = 0; i < 50; ++i) step();
    CHECK(scratch.allocations() == allocations);
    CHECK(scratch.peak_bytes() == peak);
}

TEST_CASE("a step may grow by a sixteenth without an allocation") {
    arena<> scratch;
    const auto step = [&](std::size_t elements) {
        scratch.reset();
        scratch.allocate<float>(elements);
        scratch.allocate<float>(elements);
    };
    step(std::size_t{1} << 20);
    step(std::size_t{1} << 20);
    const std::size_t allocations = scratch.allocations();
    step((std::size_t{1} << 20) + (std::size_t{1} << 16));
    CHECK(scratch.allocations() == allocations);
}

TEST_CASE("release_to takes back what came after the mark and nothing else") {
    arena<> scratch;
    auto* kept = scratch.allocate<int>(4);
    for (int i = 0; i < 4; ++i) kept[i] = i;
    const auto mark = scratch.position();
    auto* first = scratch.allocate<int>(1000);
    scratch.release_to(mark);
    auto* second = scratch.allocate<int>(1000);
    CHECK(first == second);
    for (int i = 0; i < 1000; ++i) second[i] = -1;
    for (int i = 0; i < 4; ++i) CHECK(kept[i] == i);
    CHECK(scratch.allocations() == 1);
}

TEST_CASE("release_to across a new block keeps every piece valid") {
    arena<> scratch;
    auto* kept = scratch.allocate<int>(4);
    for (int i = 0; i < 4; ++i) kept[i] = i;
    const auto mark = scratch.position();
    scratch.allocate<std::uint8_t>(std::size_t{3} << 20);  // does not fit in the first block
    scratch.release_to(mark);
    auto* more = scratch.allocate<int>(1000);
    for (int i = 0; i < 1000; ++i) more[i] = -1;
    for (int i = 0; i < 4; ++i) CHECK(kept[i] == i);
}

TEST_CASE("memory taken after a mark is handed out again, in new blocks as well") {
    arena<> scratch;
    scratch.allocate<int>(4);
    const auto mark = scratch.position();
    const auto work = [&] {
        auto* first = scratch.allocate<std::uint8_t>(std::size_t{3} << 20);  // does not fit in the first block
        auto* second = scratch.allocate<std::uint8_t>(std::size_t{5} << 20);
        scratch.release_to(mark);
        return std::pair(first, second);
    };
    const auto pieces = work();
    const std::size_t peak = scratch.peak_bytes(), allocations = scratch.allocations();
    for (int i = 0; i < 5; ++i) CHECK(work() == pieces);
    CHECK(scratch.peak_bytes() == peak);
    CHECK(scratch.allocations() == allocations);
}
