#pragma once
// The training step: normalise decoder rows, loss, gradients, projection, Adam. Each row of a weight gradient is made,
// projected and consumed by Adam while it is hot. Whole gradients are in memory only where the norm of all of them is
// asked for, or where the encoder is not the first stage of the loss while its codes are dense.

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <psae/cpu/codes.hpp>
#include <psae/cpu/encode.hpp>
#include <psae/cpu/pointwise.hpp>
#include <psae/grad/differentiate.hpp>
#include <psae/optim/adam.hpp>
#include <psae/sae/parameters.hpp>

namespace psae {

struct training_options {
    double lr = 4e-4;
    std::size_t warmup_steps = 500;
    psae::schedule schedule = psae::schedule::constant;
    std::size_t steps = 0;   // the total, for schedules that end
    std::uint64_t seed = 0;  // of what a loss draws
    adam optimiser{};
    double clip_grad_norm = 0;            // over all parameters; 0: no clipping
    bool unit_norm_decoder = true;        // rows normalised before each step, gradients projected off their direction
    std::size_t dead_after = 64;          // a latent is dead once it has not fired for more than this many steps
    std::size_t frequency_window = 1000;  // activation frequencies are counted anew every so many steps (0: never)
    codes_form codes = codes_form::by_density;
    std::size_t codes_memory =
        0;  // bytes that dense codes may take between the two sweeps; what does not fit is made again
};

// What one step reports.
struct step_metrics {
    std::size_t step = 0;  // from 0
    std::vector<std::pair<std::string, double>> terms;
    double loss = 0, l0 = 0, lr = 0;
    double explained_variance = 0;  // centred: 1 - sum ||x - x_hat||^2 / sum ||x - mean x||^2 over the batch
    double dead_fraction = 0;       // of the latents, before this batch
};

template <class Variant>
class trainer {
public:
    using T = typename Variant::value_type;

    trainer(Variant& sae, const training_options& options, cpu& device)
        : sae_(sae), options_(options), device_(device) {
        sae_.each_parameter([&](const char*, auto& p) {
            first_moments_.emplace_back(shape<dyn>{p.size()});
            second_moments_.emplace_back(shape<dyn>{p.size()});
        });
        since_fired_.assign(sae_.latents(), 0);
        activation_count_.assign(sae_.latents(), 0);
        dead_.reserve(sae_.latents());
    }

    // One step on tokens [n, d_in]; token_weights [n] or null. Throws psae::error if the loss is not finite; no more than
    // the length of decoder rows has changed then. The metrics are overwritten by the next step.
    template <class Shape>
    const step_metrics& step(view<const T, Shape> tokens, const float* token_weights = nullptr) {
        return step(tokens, tokens, token_weights);
    }
    // The same for a variant that explains targets [n, d_out] by the tokens.
    template <class Shape, class TargetShape>
    const step_metrics& step(view<const T, Shape> tokens, view<const T, TargetShape> targets,
                             const float* token_weights = nullptr) {
        step_metrics& report = report_;
        report.step = step_;
        report.terms.clear();  // keeps its memory
        report.l0 = report.explained_variance = 0;
        if (options_.unit_norm_decoder) sae_.normalise_decoder(device_);
        if (options_.frequency_window > 0 && (step_ + 1) % options_.frequency_window == 0) {
            std::fill(activation_count_.begin(), activation_count_.end(), std::uint64_t{0});
            counted_tokens_ = 0;
        }
        dead_.clear();
        for (std::size_t f = 0; f < since_fired_.size(); ++f)
            if (since_fired_[f] > options_.dead_after) dead_.push_back(static_cast<std::uint32_t>(f));
        const std::size_t dead_count = dead_.size();
        report.dead_fraction = static_cast<double>(dead_count) / static_cast<double>(since_fired_.size());

        scratch_.reset();
        tape<cpu> t(device_, scratch_, mode::train);
        t.form = options_.codes;
        t.codes_memory = options_.codes_memory;
        const row_taker<T> taker{[](void* self, const parameter_gradient<T>& of, std::size_t first, std::size_t count,
                                    T* rows) { static_cast<trainer*>(self)->take_rows(of, first, count, rows); },
                                 this};
        const gradients_released guard{sae_};
        sae_.each_parameter([&](const char*, auto& p) {
            t.collect(p);
            if (options_.clip_grad_norm == 0) p.gradient->taker = &taker;
        });
        const training_state now{{dead_.data(), &dead_count},
                                 dead_count > 0,
                                 token_weights,
                                 step_,
                                 options_.steps,
                                 random_stream(options_.seed, std::uint64_t{step_} << 24)};
        const auto loss = loss_of(t.input(tokens), t.input(targets), now);
        t.run();
        report.loss = static_cast<double>(loss.load(position{}));
        t.each_term([&](const char* name, double value) { report.terms.emplace_back(name, value); });
        if (!std::isfinite(report.loss))
            throw error("the loss is not finite", "training step " + std::to_string(step_), "",
                        "look for NaN or rows of zeros in the activations, or lower the learning rate");
        count_activity(t, targets, report);
        report.lr = learning_rate(options_.lr, options_.schedule, step_, options_.warmup_steps, options_.steps);
        factors_ = options_.optimiser.at(report.lr, step_ + 1);
        backward(t, loss);
        update();
        ++step_;
        return report;
    }

    std::size_t steps_done() const { return step_; }
    const std::vector<std::uint32_t>& since_fired() const { return since_fired_; }
    // Tokens each latent fired for since the counts were last zeroed, and the number of tokens seen since then.
    const std::vector<std::uint64_t>& activation_count() const { return activation_count_; }
    std::uint64_t counted_tokens() const { return counted_tokens_; }
    // Lets latents count as alive, as if they had just fired.
    void revive(const std::vector<std::uint32_t>& latents) {
        for (const std::uint32_t f : latents) since_fired_[f] = 0;
    }
    std::size_t scratch_allocations() const { return scratch_.allocations(); }

    // Everything that a checkpoint holds beside the parameters: f(name, data, count) for each array.
    template <class F>
    void each_state(F&& f) {
        std::size_t i = 0;
        sae_.each_parameter([&](const char* name, auto&) {
            f(std::string("adam_m.") + name, first_moments_[i].data(), first_moments_[i].size());
            f(std::string("adam_v.") + name, second_moments_[i].data(), second_moments_[i].size());
            ++i;
        });
        f(std::string("since_fired"), since_fired_.data(), since_fired_.size());
        f(std::string("activation_count"), activation_count_.data(), activation_count_.size());
        counters_[0] = step_;
        counters_[1] = counted_tokens_;
        f(std::string("counters"), counters_, std::size_t{2});
        step_ = counters_[0];
        counted_tokens_ = counters_[1];
        if constexpr (requires { sae_.each_state(f); }) sae_.each_state(f);
    }

private:
    auto loss_of(auto x, auto y, const training_state& now) {
        if constexpr (requires { sae_.loss(x, y, now); }) return sae_.loss(x, y, now);
        else if constexpr (requires { sae_.loss(x, now); }) return sae_.loss(x, now);
        else return sae_.loss(x);
    }
    // Gradients live in the arena, for one step, however it ends.
    struct gradients_released {
        Variant& sae;
        ~gradients_released() {
            sae.each_parameter([](const char*, auto& p) { p.gradient = nullptr; });
        }
    };

    template <class Tape, class Shape>
    void count_activity(Tape& t, view<const T, Shape> targets, step_metrics& report) {
        if (t.main_codes == nullptr) return;
        const auto& z = *static_cast<const codes_record<T>*>(t.main_codes);
        report.l0 = z.l0();
        for (std::size_t f = 0; f < since_fired_.size(); ++f) {
            activation_count_[f] += z.fired[f];
            since_fired_[f] = z.fired[f] > 0 ? 0 : since_fired_[f] + 1;
        }
        counted_tokens_ += z.tokens;
        if constexpr (requires { sae_.after_step(z); }) sae_.after_step(z);
        if (t.reconstruction == nullptr) return;
        const std::size_t n = targets.rows(), d = targets.cols();
        const view<const T, shape<dyn, dyn>> x{targets.data, shape<dyn, dyn>{n, d}},
            x_hat{static_cast<const T*>(t.reconstruction), shape<dyn, dyn>{n, d}};
        const auto mark = scratch_.position();
        T* mean = scratch_.template allocate<T>(d);
        column_sums(device_, scratch_, mean, x, n, d);
        for (std::size_t c = 0; c < d; ++c) mean[c] /= static_cast<T>(n);
        const double residual = total(device_, scratch_, square(x - x_hat), n, d);
        const double variance =
            total(device_, scratch_, square(x - view<const T, shape<dyn>>{mean, shape<dyn>{d}}), n, d);
        scratch_.release_to(mark);
        report.explained_variance = variance > 0 ? 1 - residual / variance : 0;
    }

    static constexpr std::size_t row_block = 64;  // rows of one parallel task

    template <class P>
    bool is_projected(const P& p) const {
        return options_.unit_norm_decoder && static_cast<const void*>(&p) == static_cast<const void*>(&sae_.W_dec);
    }
    // Takes off the component of a gradient row that is parallel to its decoder row (of unit length).
    static void project(const T* w, T* g, std::size_t cols) {
        T parallel = 0;
#pragma omp simd reduction(+ : parallel)
        for (std::size_t c = 0; c < cols; ++c) parallel += g[c] * w[c];
#pragma omp simd
        for (std::size_t c = 0; c < cols; ++c) g[c] -= parallel * w[c];
    }
    void adam_row(std::size_t which, T* w, std::size_t offset, const T* g, std::size_t cols) {
        adam_update(factors_, w + offset, first_moments_[which].data() + offset, second_moments_[which].data() + offset,
                    g, cols);
    }

    // Rows that are complete in the middle of the backward sweep.
    void take_rows(const parameter_gradient<T>& of, std::size_t first, std::size_t count, T* rows) {
        std::size_t index = 0;
        sae_.each_parameter([&](const char*, auto& p) {
            const std::size_t which = index++;
            if (p.gradient != &of) return;
            const std::size_t cols = p.shape().cols();
            device_.parallel_for((count + row_block - 1) / row_block, [&](std::size_t b) {
                for (std::size_t r = b * row_block; r < std::min(count, (b + 1) * row_block); ++r) {
                    T* g = rows + r * cols;
                    const std::size_t offset = (first + r) * cols;
                    if (is_projected(p)) project(p.data() + offset, g, cols);
                    adam_row(which, p.data(), offset, g, cols);
                }
            });
        });
    }

    // f(number of the parameter, parameter, row, cols, gradient row) for all rows that have not been taken yet; blocks
    // of rows in parallel.
    template <class F>
    void each_gradient_row(const F& f) {
        std::size_t index = 0;
        sae_.each_parameter([&](const char*, auto& p) {
            const std::size_t which = index++;
            if (p.gradient->taken) return;
            using S = typename std::remove_cvref_t<decltype(p)>::shape_type;
            const bool rows_are_latents = p.shape().extent(0) == sae_.latents() && p.gradient->products != nullptr;
            const std::size_t cols = S::rank == 1 ? (rows_are_latents ? 1 : p.size()) : p.shape().cols();
            const std::size_t rows = cols == 0 ? 0 : p.size() / cols;
            device_.parallel_for((rows + row_block - 1) / row_block, [&](std::size_t b) {
                thread_local std::vector<T> row;
                if (row.size() < cols) row.resize(cols);
                for (std::size_t r = b * row_block; r < std::min(rows, (b + 1) * row_block); ++r) {
                    gradient_row(*p.gradient, r, cols, row.data());
                    if (is_projected(p)) project(p.data() + r * cols, row.data(), cols);
                    f(which, p, r, cols, row.data());
                }
            });
        });
    }

    // The factor that brings the norm of the whole gradient down to clip_grad_norm, as torch's clip_grad_norm_ does.
    T clipping_scale() {
        row_squares_.resize(first_moments_.size());
        std::size_t i = 0;
        sae_.each_parameter([&](const char*, auto& p) { row_squares_[i++].assign(p.shape().extent(0), 0.0); });
        each_gradient_row([&](std::size_t which, auto&, std::size_t r, std::size_t cols, const T* g) {
            double squares = 0;
            for (std::size_t c = 0; c < cols; ++c) squares += static_cast<double>(g[c]) * static_cast<double>(g[c]);
            row_squares_[which][r] = squares;
        });
        double squares = 0;
        for (const auto& rows : row_squares_)
            for (double s : rows) squares += s;
        const double length = std::sqrt(squares);
        return length > options_.clip_grad_norm ? static_cast<T>(options_.clip_grad_norm / (length + 1e-6)) : T(1);
    }

    void update() {
        const T scale = options_.clip_grad_norm > 0 ? clipping_scale() : T(1);
        each_gradient_row([&](std::size_t which, auto& p, std::size_t r, std::size_t cols, T* g) {
            if (scale != T(1))
                for (std::size_t c = 0; c < cols; ++c) g[c] *= scale;
            adam_row(which, p.data(), r * cols, g, cols);
        });
    }

    Variant& sae_;
    training_options options_;
    cpu& device_;
    arena<> scratch_;
    step_metrics report_;
    std::vector<tensor<T, shape<dyn>>> first_moments_, second_moments_;
    std::vector<std::uint32_t> since_fired_, dead_;
    std::vector<std::uint64_t> activation_count_;
    std::vector<std::vector<double>> row_squares_;
    std::uint64_t counted_tokens_ = 0;
    std::uint64_t counters_[2] = {};
    std::size_t step_ = 0;
    adam::factors factors_{};
};

}  // namespace psae
