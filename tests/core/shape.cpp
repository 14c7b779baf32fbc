// Shapes: what the compiler knows, what is known at run time, and the errors between them.
#include <type_traits>

#include <catch2/catch.hpp>

#include <psae/core/shape.hpp>

using namespace psae;

// Compile-time facts.
static_assert(shape<>::rank == 0 && shape<>::static_cols == 1);
static_assert(shape<dyn, 197, 768>::rank == 3 && shape<dyn, 197, 768>::rank_dynamic == 1);
static_assert(shape<dyn, 197, 768>::static_extent(0) == dyn && shape<dyn, 197, 768>::static_extent(2) == 768);
static_assert(shape<4, dyn>::static_cols == dyn);
static_assert(shape<3, 4>{}.size() == 12 && shape<3, 4>{}.rows() == 3 && shape<3, 4>{}.cols() == 4);
static_assert(shape<dyn, 4>{7}.size() == 28);
static_assert(std::is_empty_v<shape<3, 4>>, "a shape known to the compiler takes no room");
static_assert(sizeof(shape<dyn, 4, dyn>) == 2 * sizeof(std::size_t));
static_assert(std::is_trivially_copyable_v<shape<dyn, 4>>);
static_assert(!std::is_constructible_v<shape<dyn, 4>, int, int>, "exactly the dyn extents are given");
static_assert(!std::is_constructible_v<shape<3, 4>, int>);
static_assert(!std::is_convertible_v<int, shape<dyn>>, "a number is not a shape by accident");

static_assert(compatible_shapes<shape<dyn, 4>, shape<3, 4>>);
static_assert(compatible_shapes<shape<dyn, dyn>, shape<3, 4>>);
static_assert(!compatible_shapes<shape<dyn, 4>, shape<dyn, 5>>);
static_assert(!compatible_shapes<shape<dyn>, shape<dyn, 4>>);
static_assert(!compatible_shapes<shape<4>, shape<5>>);

TEST_CASE("a scalar has one element, one row and one column") {
    const shape<> s;
    CHECK(s.size() == 1);
    CHECK(s.rows() == 1);
    CHECK(s.cols() == 1);
    CHECK(to_string(s) == "[]");
}

TEST_CASE("static and run-time extents stand side by side") {
    const shape<dyn, 197, dyn> s{8, 768};
    CHECK(s.extent(0) == 8);
    CHECK(s.extent(1) == 197);
    CHECK(s.extent(2) == 768);
    CHECK(s.size() == std::size_t{8} * 197 * 768);
    CHECK(s.rows() == std::size_t{8} * 197);
    CHECK(s.cols() == 768);
    CHECK(to_string(s) == "[8, 197, 768]");
}

TEST_CASE("a rank-1 shape is one row") {
    const shape<dyn> s{5};
    CHECK(s.rows() == 1);
    CHECK(s.cols() == 5);
}

TEST_CASE("an extent may be zero, and a default-constructed dyn extent is") {
    const shape<dyn, 4> none{0};
    CHECK(none.size() == 0);
    CHECK(shape<dyn, 4>{} == none);
}

TEST_CASE("products beyond 32 bits are exact") {
    const shape<dyn, dyn> s{std::size_t{1} << 20, std::size_t{1} << 20};
    CHECK(s.size() == std::size_t{1} << 40);
}

TEST_CASE("from_extents takes the dyn extents and keeps the static ones") {
    const std::size_t extents[] = {3, 4, 5};
    const auto s = shape<dyn, 4, dyn>::from_extents(extents);
    CHECK(s.extent(0) == 3);
    CHECK(s.extent(1) == 4);
    CHECK(s.extent(2) == 5);
}

TEST_CASE("shapes compare by their extents") {
    CHECK(shape<dyn, 4>{3} == shape<dyn, 4>{3});
    CHECK(shape<dyn, 4>{3} != shape<dyn, 4>{2});
    CHECK(shape<dyn, dyn>{3, 4} != shape<dyn, dyn>{4, 3});
}

TEST_CASE("require_same_shape names both shapes and the place") {
    CHECK_NOTHROW(require_same_shape(shape<dyn, 4>{3}, shape<3, dyn>{4}, "here"));
    CHECK_NOTHROW(require_same_shape(shape<>{}, shape<>{}, "here"));
    try {
        require_same_shape(shape<dyn, 4>{3}, shape<dyn, dyn>{3, 5}, "decode");
        FAIL("no error");
    } catch (const error& e) {
        CHECK(std::string(e.what()) == "shapes differ (decode): [3, 4] against [3, 5]");
    }
}

TEST_CASE("an error leaves out its empty parts") {
    CHECK(std::string(error("what").what()) == "what");
    CHECK(std::string(error("what", "where").what()) == "what (where)");
    CHECK(std::string(error("what", "", "expected").what()) == "what: expected");
    CHECK(std::string(error("what", "where", "expected", "hint").what()) == "what (where): expected; hint");
    CHECK(std::string(error("what", "", "", "hint").what()) == "what; hint");
}
