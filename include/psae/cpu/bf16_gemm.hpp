#pragma once
// Products of bf16 matrices, summed up in float, by oneDNN.

#include <algorithm>
#include <cstddef>
#include <memory>
#include <type_traits>
#include <vector>

#include <psae/core/element.hpp>
#include <psae/cpu/gemm.hpp>
#include <psae/expr/node.hpp>

namespace psae {

// Whether this machine multiplies bf16 well faster than float: by AMX, or by AVX-512 BF16 as AMD has it (on Intel's
// cores those instructions are slower than float's: 0.6 of its rate was measured). Decided by the kind of machine and
// not by a measurement, so that a run gives the same bits each time.
inline bool multiplies_bf16_faster() {
    static const bool yes = [] {
        const auto has = [isa = static_cast<unsigned>(dnnl_get_effective_cpu_isa())](unsigned wanted) {
            return (isa & wanted) == wanted;
        };
        return has(dnnl_cpu_isa_avx512_core_amx) || (has(dnnl_cpu_isa_avx512_core_bf16) && __builtin_cpu_is("amd"));
    }();
    return yes;
}

// C [M, N] = op(A) op(B), or C + op(A) op(B): row-major and without gaps, for one shape. What is transposed is stored as
// [K, M] or [N, K].
// For use by one thread at a time. A machine without instructions for bf16 multiplies the same numbers as floats.
class bf16_product {
public:
    bf16_product(const cpu& device, bool transpose_a, bool transpose_b, std::size_t M, std::size_t N, std::size_t K,
                 write mode = write::overwrite)
        : device_(device), transpose_a_(transpose_a), transpose_b_(transpose_b), M_(M), N_(N), K_(K), mode_(mode) {
        if (!has_instructions()) return;
        const auto i = [](std::size_t n) { return static_cast<dnnl_dim_t>(n); };
        const dnnl_dims_t of_a{i(M), i(K)}, of_b{i(K), i(N)}, of_c{i(M), i(N)};
        const dnnl_dims_t along_a{transpose_a ? 1 : i(K), transpose_a ? i(M) : 1},
            along_b{transpose_b ? 1 : i(N), transpose_b ? i(K) : 1}, along_c{i(N), 1};
        const setting threads(device_.threads);
        check(dnnl_stream_create(out(stream_), engine(), dnnl_stream_default_flags));
        owner<dnnl_primitive_attr_t> attributes;
        check(dnnl_primitive_attr_create(out(attributes)));
        if (mode == write::add) {
            owner<dnnl_post_ops_t> after;
            check(dnnl_post_ops_create(out(after)));
            append_sum(after.get());
            check(dnnl_primitive_attr_set_post_ops(attributes.get(), after.get()));
        }
        owner<dnnl_primitive_desc_t> how;
#if DNNL_VERSION_MAJOR >= 3
        const auto description = [&](const dnnl_dims_t dims, dnnl_data_type_t type, const dnnl_dims_t strides) {
            dnnl_memory_desc_t made = nullptr;
            check(dnnl_memory_desc_create_with_strides(&made, 2, dims, type, strides));
            return std::unique_ptr<std::remove_pointer_t<dnnl_memory_desc_t>, destroy>(made);
        };
        const auto a = description(of_a, dnnl_bf16, along_a), b = description(of_b, dnnl_bf16, along_b),
                   c = description(of_c, dnnl_f32, along_c);
        const auto of = [](const auto& d) { return d.get(); };
        check(dnnl_matmul_primitive_desc_create(out(how), engine(), a.get(), b.get(), nullptr, c.get(),
                                                attributes.get()));
#else
        const auto description = [&](const dnnl_dims_t dims, dnnl_data_type_t type, const dnnl_dims_t strides) {
            dnnl_memory_desc_t made;
            check(dnnl_memory_desc_init_by_strides(&made, 2, dims, type, strides));
            return made;
        };
        const auto a = description(of_a, dnnl_bf16, along_a), b = description(of_b, dnnl_bf16, along_b),
                   c = description(of_c, dnnl_f32, along_c);
        const auto of = [](const dnnl_memory_desc_t& d) { return &d; };
        dnnl_matmul_desc_t product;
        check(dnnl_matmul_desc_init(&product, &a, &b, nullptr, &c));
        check(dnnl_primitive_desc_create(out(how), &product, attributes.get(), engine(), nullptr));
#endif
        check(dnnl_primitive_create(out(primitive_), how.get()));
        check(dnnl_memory_create(out(a_), of(a), engine(), DNNL_MEMORY_NONE));
        check(dnnl_memory_create(out(b_), of(b), engine(), DNNL_MEMORY_NONE));
        check(dnnl_memory_create(out(c_), of(c), engine(), DNNL_MEMORY_NONE));
    }

    void run(const bf16* A, const bf16* B, float* C) const {
        if (primitive_ == nullptr) {
            std::vector<float> a(M_ * K_), b(N_ * K_);
            std::transform(A, A + a.size(), a.begin(), [](bf16 x) { return widen(x); });
            std::transform(B, B + b.size(), b.begin(), [](bf16 x) { return widen(x); });
            gemm(device_, transpose_a_, transpose_b_, M_, N_, K_, 1.0f, a.data(), transpose_a_ ? M_ : K_, b.data(),
                 transpose_b_ ? K_ : N_, mode_ == write::add ? 1.0f : 0.0f, C, N_);
            return;
        }
        check(dnnl_memory_set_data_handle(a_.get(), const_cast<bf16*>(A)));
        check(dnnl_memory_set_data_handle(b_.get(), const_cast<bf16*>(B)));
        check(dnnl_memory_set_data_handle(c_.get(), C));
        const dnnl_exec_arg_t arguments[] = {
            {DNNL_ARG_SRC, a_.get()}, {DNNL_ARG_WEIGHTS, b_.get()}, {DNNL_ARG_DST, c_.get()}};
        const setting threads(device_.threads);
        check(dnnl_primitive_execute(primitive_.get(), stream_.get(), 3, arguments));
        check(dnnl_stream_wait(stream_.get()));
    }

private:
    struct destroy {
        void operator()(dnnl_stream_t s) const { dnnl_stream_destroy(s); }
        void operator()(dnnl_primitive_t p) const { dnnl_primitive_destroy(p); }
        void operator()(dnnl_memory_t m) const { dnnl_memory_destroy(m); }
        void operator()(dnnl_primitive_desc_t d) const { dnnl_primitive_desc_destroy(d); }
        void operator()(dnnl_primitive_attr_t a) const { dnnl_primitive_attr_destroy(a); }
        void operator()(dnnl_post_ops_t p) const { dnnl_post_ops_destroy(p); }
#if DNNL_VERSION_MAJOR >= 3
        void operator()(dnnl_memory_desc_t d) const { dnnl_memory_desc_destroy(d); }
#endif
    };
    template <class Handle>
    using owner = std::unique_ptr<std::remove_pointer_t<Handle>, destroy>;
    // Where a C function is to put a handle.
    template <class Owner>
    struct out_handle {
        Owner& to;
        typename Owner::pointer made = nullptr;
        operator typename Owner::pointer *() { return &made; }
        ~out_handle() { to.reset(made); }
    };
    template <class Owner>
    static out_handle<Owner> out(Owner& to) {
        return {to};
    }
    // oneDNN asks OpenMP for the number of threads; the setting is the calling thread's own.
    struct setting {
        explicit setting(int threads) : before(omp_get_max_threads()) { omp_set_num_threads(threads); }
        ~setting() { omp_set_num_threads(before); }
        int before;
    };

    static void append_sum(dnnl_post_ops_t after) {
#if DNNL_VERSION_MAJOR >= 3
        check(dnnl_post_ops_append_sum(after, 1.0f, 0, dnnl_data_type_undef));
#else
        check(dnnl_post_ops_append_sum(after, 1.0f));
#endif
    }
    static bool has_instructions() {
        return (static_cast<unsigned>(dnnl_get_effective_cpu_isa()) & dnnl_cpu_isa_avx512_core) ==
               static_cast<unsigned>(dnnl_cpu_isa_avx512_core);
    }
    static void check(dnnl_status_t status) {
        if (status != dnnl_success)
            throw error("oneDNN refused a matrix product", "bf16_product", "status " + std::to_string(status));
    }
    static dnnl_engine_t engine() {
        static const dnnl_engine_t one = [] {
            dnnl_engine_t made = nullptr;
            check(dnnl_engine_create(&made, dnnl_cpu, 0));
            return made;
        }();
        return one;
    }

    cpu device_;
    bool transpose_a_, transpose_b_;
    std::size_t M_, N_, K_;
    write mode_;
    owner<dnnl_stream_t> stream_;
    owner<dnnl_primitive_t> primitive_;
    owner<dnnl_memory_t> a_, b_, c_;
};

// out[i] = x[i] rounded. out, x: [count].
inline void round_to_bf16(const cpu& device, bf16* out, const float* x, std::size_t count) {
    constexpr std::size_t block = std::size_t{1} << 14;
    device.parallel_for((count + block - 1) / block, [&](std::size_t b) {
        const std::size_t end = std::min(count, (b + 1) * block);
#pragma omp simd
        for (std::size_t i = b * block; i < end; ++i) out[i] = to_bf16(x[i]);
    });
}

// x [count] for several products; here each rounds its own.
template <class T>
const T* operand_of_products(const cpu&, arena<>&, const T* x, std::size_t) {
    return x;
}

// C [M, N] (+)= op(A) op(B) without gaps, in the precision of the device; rounded operands stand in scratch memory.
template <class T>
void product(const cpu& device, arena<>& scratch, bool transpose_a, bool transpose_b, std::size_t M, std::size_t N,
             std::size_t K, const T* A, const T* B, write mode, T* C) {
    if constexpr (std::is_same_v<T, float>)
        if (device.products == precision::bf16 && M * N * K > 0) {
            const auto mark = scratch.position();
            auto* a = scratch.allocate<bf16>(M * K);
            auto* b = scratch.allocate<bf16>(N * K);
            round_to_bf16(device, a, A, M * K);
            round_to_bf16(device, b, B, N * K);
            bf16_product(device, transpose_a, transpose_b, M, N, K, mode).run(a, b, C);
            scratch.release_to(mark);
            return;
        }
    gemm(device, transpose_a, transpose_b, M, N, K, T(1), A, transpose_a ? M : K, B, transpose_b ? K : N,
         mode == write::add ? T(1) : T(0), C, N);
}

}  // namespace psae
