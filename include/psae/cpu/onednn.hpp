#pragma once
// oneDNN's matmul primitive through its C header: owners of its handles, the packing of weights, and a cache of
// primitives by shape.

#include <array>
#include <cstddef>
#include <map>
#include <memory>
#include <type_traits>

#include <dnnl.h>

#include <psae/core/arena.hpp>
#include <psae/cpu/backend.hpp>

namespace psae::detail {

inline void require_onednn(dnnl_status_t status, const char* where) {
    if (status == dnnl_out_of_memory) throw std::bad_alloc();
    if (status != dnnl_success) throw error("oneDNN refused an operation", where, "status " + std::to_string(status));
}

template <class Handle, dnnl_status_t (*Destroy)(Handle)>
struct onednn_deleter {
    void operator()(Handle h) const { Destroy(h); }
};
template <class Handle, dnnl_status_t (*Destroy)(Handle)>
using onednn_owner = std::unique_ptr<std::remove_pointer_t<Handle>, onednn_deleter<Handle, Destroy>>;
using onednn_engine = onednn_owner<dnnl_engine_t, dnnl_engine_destroy>;
using onednn_stream = onednn_owner<dnnl_stream_t, dnnl_stream_destroy>;
using onednn_memory = onednn_owner<dnnl_memory_t, dnnl_memory_destroy>;
using onednn_primitive = onednn_owner<dnnl_primitive_t, dnnl_primitive_destroy>;
using onednn_primitive_desc = onednn_owner<dnnl_primitive_desc_t, dnnl_primitive_desc_destroy>;
using onednn_attributes = onednn_owner<dnnl_primitive_attr_t, dnnl_primitive_attr_destroy>;
using onednn_post_ops = onednn_owner<dnnl_post_ops_t, dnnl_post_ops_destroy>;

// The engine and stream of the calling thread.
struct onednn_context {
    onednn_engine engine;
    onednn_stream stream;

    static onednn_context& of_this_thread() {
        thread_local onednn_context context = [] {
            dnnl_engine_t engine = nullptr;
            require_onednn(dnnl_engine_create(&engine, dnnl_cpu, 0), "engine");
            onednn_context c{onednn_engine(engine), {}};
            dnnl_stream_t stream = nullptr;
            require_onednn(dnnl_stream_create(&stream, engine, dnnl_stream_default_flags), "stream");
            c.stream.reset(stream);
            return c;
        }();
        return context;
    }
    onednn_memory memory(const dnnl_memory_desc_t& layout, void* data = DNNL_MEMORY_NONE) const {
        dnnl_memory_t m = nullptr;
        require_onednn(dnnl_memory_create(&m, &layout, engine.get(), data), "memory");
        return onednn_memory(m);
    }
};

// A matrix [rows, columns] of floats: dnnl_ab is row-major, dnnl_ba column-major, dnnl_format_tag_any up to oneDNN.
inline dnnl_memory_desc_t onednn_matrix(std::size_t rows, std::size_t columns, dnnl_format_tag_t order = dnnl_ab) {
    const dnnl_dims_t extents = {static_cast<dnnl_dim_t>(rows), static_cast<dnnl_dim_t>(columns)};
    dnnl_memory_desc_t layout;
    require_onednn(dnnl_memory_desc_init_by_tag(&layout, 2, extents, dnnl_f32, order), "layout");
    return layout;
}

// oneDNN asks OpenMP for the number of threads, a setting of the calling thread: set here, and set back at the end.
class onednn_threads {
public:
    explicit onednn_threads(int threads) : before_(omp_get_max_threads()) { omp_set_num_threads(threads); }
    onednn_threads(const onednn_threads&) = delete;
    onednn_threads& operator=(const onednn_threads&) = delete;
    ~onednn_threads() { omp_set_num_threads(before_); }

private:
    int before_;
};

// Steps that are fused into the product.
enum class fused_step : std::size_t { none, residual, quick_gelu, gelu };
using fused_steps = std::array<fused_step, 3>;

// One product x W^T with its epilogue: x [rows, inner], W [columns, inner], given as it is or packed.
struct matmul_shape {
    std::size_t rows, inner, columns;
    bool packed, bias;
    fused_steps steps;
    int threads;
    auto operator<=>(const matmul_shape&) const = default;
};

inline onednn_primitive_desc make_matmul(const matmul_shape& s, const dnnl_memory_desc_t& weights) {
    dnnl_primitive_attr_t attributes = nullptr;
    require_onednn(dnnl_primitive_attr_create(&attributes), "matmul");
    const onednn_attributes attributes_owner(attributes);
    dnnl_post_ops_t post_ops = nullptr;
    require_onednn(dnnl_post_ops_create(&post_ops), "matmul");
    const onednn_post_ops post_ops_owner(post_ops);
    const auto x = onednn_matrix(s.rows, s.inner), out = onednn_matrix(s.rows, s.columns),
               bias = onednn_matrix(1, s.columns);
    for (const fused_step step : s.steps) {
        if (step == fused_step::residual)
            require_onednn(dnnl_post_ops_append_binary(post_ops, dnnl_binary_add, &out), "matmul");
        if (step == fused_step::quick_gelu)
            require_onednn(dnnl_post_ops_append_eltwise(post_ops, 1, dnnl_eltwise_swish, 1.702f, 0), "matmul");
        if (step == fused_step::gelu)
            require_onednn(dnnl_post_ops_append_eltwise(post_ops, 1, dnnl_eltwise_gelu_erf, 0, 0), "matmul");
    }
    require_onednn(dnnl_primitive_attr_set_post_ops(attributes, post_ops), "matmul");
    require_onednn(dnnl_primitive_attr_set_scratchpad_mode(attributes, dnnl_scratchpad_mode_user), "matmul");
    dnnl_matmul_desc_t operation;
    require_onednn(dnnl_matmul_desc_init(&operation, &x, &weights, s.bias ? &bias : nullptr, &out), "matmul");
    dnnl_primitive_desc_t made = nullptr;
    const auto& context = onednn_context::of_this_thread();
    require_onednn(dnnl_primitive_desc_create(&made, &operation, attributes, context.engine.get(), nullptr), "matmul");
    return onednn_primitive_desc(made);
}

// The layout that weights [columns, inner] are packed in. One layout for all numbers of rows.
inline dnnl_memory_desc_t packed_layout(std::size_t columns, std::size_t inner) {
    constexpr std::size_t typical_rows = 256;
    const onednn_threads one(1);
    const auto made = make_matmul({typical_rows, inner, columns, true, false, {}, 1},
                                  onednn_matrix(inner, columns, dnnl_format_tag_any));
    return *dnnl_primitive_desc_query_md(made.get(), dnnl_query_weights_md, 0);
}

inline void onednn_reorder(const dnnl_memory_desc_t& from, const void* source, const dnnl_memory_desc_t& to,
                           void* target) {
    const auto& context = onednn_context::of_this_thread();
    dnnl_primitive_desc_t made = nullptr;
    require_onednn(
        dnnl_reorder_primitive_desc_create(&made, &from, context.engine.get(), &to, context.engine.get(), nullptr),
        "reorder");
    const onednn_primitive_desc desc(made);
    dnnl_primitive_t primitive = nullptr;
    require_onednn(dnnl_primitive_create(&primitive, made), "reorder");
    const onednn_primitive primitive_owner(primitive);
    const auto source_memory = context.memory(from, const_cast<void*>(source)),
               target_memory = context.memory(to, target);
    const dnnl_exec_arg_t arguments[] = {{DNNL_ARG_FROM, source_memory.get()}, {DNNL_ARG_TO, target_memory.get()}};
    require_onednn(dnnl_primitive_execute(primitive, context.stream.get(), 2, arguments), "reorder");
}

// A product with everything it needs to be called again on other memory.
class matmul_primitive {
public:
    matmul_primitive(const matmul_shape& s, const dnnl_memory_desc_t& weights_layout) {
        const auto& context = onednn_context::of_this_thread();
        const auto made = make_matmul(s, weights_layout);
        dnnl_primitive_t primitive = nullptr;
        require_onednn(dnnl_primitive_create(&primitive, made.get()), "matmul");
        primitive_.reset(primitive);
        const auto argument = [&](int which, const dnnl_memory_desc_t& layout) {
            memories_[count_] = context.memory(layout);
            arguments_[count_] = {which, memories_[count_].get()};
            ++count_;
        };
        const auto& scratch = *dnnl_primitive_desc_query_md(made.get(), dnnl_query_scratchpad_md, 0);
        scratch_bytes_ = dnnl_memory_desc_get_size(&scratch);
        argument(DNNL_ARG_SCRATCHPAD, scratch);
        argument(DNNL_ARG_SRC, onednn_matrix(s.rows, s.inner));
        argument(DNNL_ARG_WEIGHTS, weights_layout);
        argument(DNNL_ARG_DST, onednn_matrix(s.rows, s.columns));
        if (s.bias) argument(DNNL_ARG_BIAS, onednn_matrix(1, s.columns));
        int place = 0;
        for (const fused_step step : s.steps) {
            if (step == fused_step::residual)
                argument(DNNL_ARG_ATTR_MULTIPLE_POST_OP(place) | DNNL_ARG_SRC_1, onednn_matrix(s.rows, s.columns));
            if (step != fused_step::none) ++place;
        }
    }

    // data: x, W, out, then the bias if there is one, then the residuals in the order of their steps.
    template <std::size_t Count>
    void operator()(arena<>& scratch, const std::array<const void*, Count>& data) {
        const auto mark = scratch.position();
        set(0, scratch.allocate<char>(scratch_bytes_));
        for (std::size_t i = 0; i + 1 < count_; ++i) set(i + 1, data[i]);
        const auto& context = onednn_context::of_this_thread();
        require_onednn(
            dnnl_primitive_execute(primitive_.get(), context.stream.get(), static_cast<int>(count_), arguments_),
            "matmul");
        scratch.release_to(mark);
    }

    // The primitive of this shape, made when the calling thread first asks for it.
    static matmul_primitive& cached(const matmul_shape& s, const dnnl_memory_desc_t& weights_layout) {
        thread_local std::map<matmul_shape, matmul_primitive> cache;
        return cache.try_emplace(s, s, weights_layout).first->second;
    }

private:
    void set(std::size_t i, const void* data) {
        require_onednn(dnnl_memory_set_data_handle(memories_[i].get(), const_cast<void*>(data)), "matmul");
    }

    static constexpr std::size_t most_arguments = 8;
    onednn_primitive primitive_;
    onednn_memory memories_[most_arguments];
    dnnl_exec_arg_t arguments_[most_arguments] = {};
    std::size_t count_ = 0, scratch_bytes_ = 0;
};

}  // namespace psae::detail
