#pragma once
// Owning tensors and views of them. Both are dense and row-major. The memory space is part of the type, so host and
// device cannot be mixed by accident.
//
//   tensor<float, shape<dyn, 768>> x{shape<dyn, 768>{4096}};   // zeroed, 64-byte aligned, huge pages when large
//   view<const float, shape<dyn, 768>> v = x;                  // trivially copyable; this is what expressions hold

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <new>
#include <type_traits>
#include <utility>

#include <sys/mman.h>

#include <psae/core/annotations.hpp>
#include <psae/core/error.hpp>
#include <psae/core/shape.hpp>

namespace psae {

enum class space { host, device };

// A position in an expression: the row (all axes but the last, flattened) and the column (the last axis).
struct position {
    std::size_t row, col;
};

// Non-owning, trivially copyable. As a node of an expression it broadcasts where its type says so: a rank-0 view is the
// same everywhere, a rank-1 view is the same in every row, and a last extent that is statically 1 is the same in every
// column.
template <class T, class Shape, space Space = space::host>
struct view : private detail::part_of<Shape, view<T, Shape, Space>> {
    using value_type = std::remove_const_t<T>;
    using shape_type = Shape;
    static constexpr space memory = Space;

    T* data = nullptr;

    view() = default;
    PSAE_FN view(T* data, const Shape& extents) : detail::part_of<Shape, view<T, Shape, Space>>(extents), data(data) {}

    PSAE_FN Shape shape() const { return this->part(); }
    PSAE_FN std::size_t size() const { return shape().size(); }
    PSAE_FN std::size_t rows() const { return shape().rows(); }
    PSAE_FN std::size_t cols() const { return shape().cols(); }
    PSAE_FN T* row(std::size_t r) const { return data + r * cols(); }
    PSAE_FN T& operator()(std::size_t r, std::size_t c) const { return data[r * cols() + c]; }
    PSAE_FN T& operator[](std::size_t i) const { return data[i]; }
    T* begin() const { return data; }
    T* end() const { return data + size(); }

    // Converts to a view of const elements, and to any shape that can be equal (checked at run time).
    template <class U, class OtherShape>
    requires(std::is_convertible_v<T (*)[], U (*)[]>&& compatible_shapes<Shape, OtherShape> &&
             (!std::is_same_v<U, T> || !std::is_same_v<Shape, OtherShape>))
    operator view<U, OtherShape, Space>() const {
        return {data, convert_shape<OtherShape>(shape())};
    }

    template <class P>
    PSAE_FN value_type load(P p) const {
        if constexpr (Shape::rank == 0) return data[0];
        else if constexpr (Shape::rank == 1) return data[Shape::static_cols == 1 ? 0 : p.col];
        else if constexpr (Shape::static_cols == 1) return data[p.row];
        else return data[p.row * cols() + p.col];
    }

private:
    template <class To>
    static To convert_shape(const Shape& from) {
        std::size_t extents_of_from[Shape::rank + 1] = {};
        for (std::size_t i = 0; i != Shape::rank; ++i) {
            extents_of_from[i] = from.extent(i);
            if (To::static_extent(i) != dyn && To::static_extent(i) != from.extent(i))
                throw error("view has another shape than the type it is converted to", "", "found " + to_string(from));
        }
        return To::from_extents(extents_of_from);
    }
};

template <class T, class Shape, space Space = space::host>
using const_view = view<const T, Shape, Space>;

// Allocation in a memory space: zeroed bytes, aligned to 64, released by `release`; and copies into it, done on return.
template <space Space>
struct memory_space;

template <>
struct memory_space<space::host> {
    static constexpr std::size_t huge = std::size_t{2}
                                        << 20;  // transparent huge pages halve the cost of sweeps over weights

    static void* allocate(std::size_t bytes) {
        const std::size_t alignment = bytes >= huge ? huge : 64;
        const std::size_t rounded = (bytes + alignment - 1) / alignment * alignment;
        void* p = std::aligned_alloc(alignment, rounded == 0 ? alignment : rounded);
        if (p == nullptr) throw std::bad_alloc();
        if (bytes >= huge) madvise(p, rounded, MADV_HUGEPAGE);
        std::memset(p, 0, rounded);
        return p;
    }
    static void release(void* p, std::size_t) { std::free(p); }
    static void copy_from_host(void* to, const void* from, std::size_t bytes) {
        if (bytes > 0) std::memcpy(to, from, bytes);
    }
};

// Owns its memory; zeroed on construction; moves, and copies only by clone().
template <class T, class Shape, space Space = space::host>
class tensor {
    static_assert(std::is_trivially_copyable_v<T>, "psae: tensors hold plain numbers");

public:
    using value_type = T;
    using shape_type = Shape;
    using view_type = psae::view<T, Shape, Space>;
    using const_view_type = psae::view<const T, Shape, Space>;
    static constexpr space memory = Space;

    tensor() : tensor(Shape{}) {}
    explicit tensor(const Shape& extents)
        : extents_(extents), data_(static_cast<T*>(memory_space<Space>::allocate(extents.size() * sizeof(T)))) {}
    tensor(tensor&& other) noexcept : extents_(other.extents_), data_(std::exchange(other.data_, nullptr)) {}
    tensor& operator=(tensor&& other) noexcept {
        std::swap(extents_, other.extents_);
        std::swap(data_, other.data_);
        return *this;
    }
    tensor(const tensor&) = delete;
    tensor& operator=(const tensor&) = delete;
    ~tensor() {
        if (data_ != nullptr) memory_space<Space>::release(data_, size() * sizeof(T));
    }

    tensor clone() const requires(Space == space::host) {
        tensor copy(extents_);
        std::memcpy(copy.data_, data_, size() * sizeof(T));
        return copy;
    }

    view_type view() { return {data_, extents_}; }
    const_view_type view() const { return {data_, extents_}; }
    operator view_type() & { return view(); }
    operator const_view_type() const& { return view(); }
    operator view_type() && = delete;  // the view would outlive the memory
    operator const_view_type() const&& = delete;

    const Shape& shape() const { return extents_; }
    std::size_t size() const { return extents_.size(); }
    std::size_t rows() const { return extents_.rows(); }
    std::size_t cols() const { return extents_.cols(); }
    T* data() { return data_; }
    const T* data() const { return data_; }
    T& operator()(std::size_t r, std::size_t c) { return data_[r * extents_.cols() + c]; }
    const T& operator()(std::size_t r, std::size_t c) const { return data_[r * extents_.cols() + c]; }
    T& operator[](std::size_t i) { return data_[i]; }
    const T& operator[](std::size_t i) const { return data_[i]; }
    T* begin() { return data_; }
    T* end() { return data_ + size(); }
    const T* begin() const { return data_; }
    const T* end() const { return data_ + size(); }

private:
    [[no_unique_address]] Shape extents_{};
    T* data_ = nullptr;
};

}  // namespace psae
