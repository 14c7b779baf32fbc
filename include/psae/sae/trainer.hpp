#pragma once
// The training step: normalise decoder rows, loss, gradients, projection, Adam. Each row of a weight gradient is made,
// projected and consumed by Adam while it is hot. Whole gradients are in memory only where the norm of all of them is
// asked for, or where the encoder is not the first stage of the loss while its codes are dense.

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <psae/cpu/training.hpp>
#include <psae/grad/differentiate.hpp>
#include <psae/sae/parameter_copies.hpp>
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

// The parameters of the SAE are the host's. On another device the trainer has its own copies, and those of the SAE are
// as old as the last read_parameters().
template <class Variant, class Backend = cpu>
class trainer {
    static constexpr space memory = Backend::memory;
    static constexpr bool on_host = memory == space::host;
    template <class U>
    using array = tensor<U, shape<dyn>, memory>;

public:
    using T = typename Variant::value_type;

    trainer(Variant& sae, const training_options& options, Backend& device)
        : sae_(sae),
          options_(options),
          device_(device),
          copies_(sae, device),
          since_fired_(shape<dyn>{sae.latents()}),
          dead_(shape<dyn>{sae.latents()}),
          activation_count_(shape<dyn>{sae.latents()}),
          dead_count_(shape<dyn>{1}) {
        sae_.each_parameter([&](const char*, auto& p) {
            first_moments_.emplace_back(shape<dyn>{p.size()});
            second_moments_.emplace_back(shape<dyn>{p.size()});
        });
    }

    // One step on tokens [n, d_in] and, if not null, their weights [n]: memory of the device. Throws psae::error if the
    // loss is not finite; no more than the length of decoder rows has changed then. The metrics are overwritten by the
    // next step. (They are what the host waits for: for the number of dead latents, the loss, and at the end.)
    template <class Shape>
    const step_metrics& step(view<const T, Shape, memory> tokens, const float* token_weights = nullptr) {
        return step(tokens, tokens, token_weights);
    }
    // The same for a variant that explains targets [n, d_out] by the tokens.
    template <class Shape, class TargetShape>
    const step_metrics& step(view<const T, Shape, memory> tokens, view<const T, TargetShape, memory> targets,
                             const float* token_weights = nullptr) {
        make_current(device_);
        const auto standing_in = copies_.stand_in();
        staged_.clear();
        step_metrics& report = report_;
        report.step = step_;
        report.terms.clear();  // keeps its memory
        report.l0 = report.explained_variance = 0;
        scratch_.reset();
        records_.reset();
        if (options_.unit_norm_decoder) normalise_rows(device_, sae_.W_dec.data(), sae_.latents(), sae_.outputs());
        if (options_.frequency_window > 0 && (step_ + 1) % options_.frequency_window == 0) {
            fill(device_, activation_count_.data(), activation_count_.size(), std::uint64_t{0});
            counted_tokens_ = 0;
        }
        find_dead(device_, scratch_, dead_.data(), dead_count_.data(), since_fired_.data(), sae_.latents(),
                  options_.dead_after);
        const std::size_t dead_count = read(device_, dead_count_.data());
        report.dead_fraction = static_cast<double>(dead_count) / static_cast<double>(sae_.latents());

        tape<Backend> t(device_, scratch_, records_, mode::train);
        t.form = options_.codes;
        t.codes_memory = options_.codes_memory;
        const row_taker<T> taker{[](void* self, const parameter_gradient<T>& of, std::size_t first, std::size_t count,
                                    const T* rows) { static_cast<trainer*>(self)->take_rows(of, first, count, rows); },
                                 this};
        const gradients_released guard{sae_};
        sae_.each_parameter([&](const char*, auto& p) {
            t.collect(p);
            if (options_.clip_grad_norm == 0) p.gradient->taker = &taker;
        });
        const training_state now{{dead_.data(), dead_count_.data(), dead_count},
                                 dead_count > 0,
                                 token_weights,
                                 step_,
                                 options_.steps,
                                 random_stream(options_.seed, std::uint64_t{step_} << 24)};
        const auto loss = evaluate(loss_of(t.input(tokens), t.input(targets), now));
        t.run();
        report.loss = static_cast<double>(read(device_, loss.data));
        t.each_term([&](const char* name, double value) { report.terms.emplace_back(name, value); });
        if (!std::isfinite(report.loss))
            throw error("the loss is not finite", "training step " + std::to_string(step_), "",
                        "look for NaN or rows of zeros in the activations, or lower the learning rate");
        report_activity(t, targets, report);
        report.lr = learning_rate(options_.lr, options_.schedule, step_, options_.warmup_steps, options_.steps);
        factors_ = options_.optimiser.at(report.lr, step_ + 1);
        backward(t, loss);
        update();
        ++step_;
        return report;
    }

    // Brings the SAE's parameters up to date, and the device's to those of the SAE. On the host they are the same.
    void read_parameters() { copies_.read(); }
    void write_parameters() { copies_.write(); }

    std::size_t steps_done() const { return step_; }
    std::vector<std::uint32_t> since_fired() const { return on_the_host(since_fired_); }
    // Tokens each latent fired for since the counts were last zeroed, and the number of tokens seen since then.
    std::vector<std::uint64_t> activation_count() const { return on_the_host(activation_count_); }
    std::uint64_t counted_tokens() const { return counted_tokens_; }
    // Lets latents count as alive, as if they had just fired.
    void revive(const std::vector<std::uint32_t>& latents) {
        auto since = since_fired();
        for (const std::uint32_t f : latents) since[f] = 0;
        upload(device_, since_fired_.data(), since.data(), since.size());
    }
    std::size_t scratch_allocations() const { return scratch_.allocations(); }

    // Everything that a checkpoint holds beside the parameters: f(name, data, count) for each array. The data is the
    // host's and stays until the next call.
    template <class F>
    void each_state(F&& f) {
        staged_.clear();
        std::size_t i = 0;
        sae_.each_parameter([&](const char* name, auto&) {
            give(f, std::string("adam_m.") + name, first_moments_[i]);
            give(f, std::string("adam_v.") + name, second_moments_[i]);
            ++i;
        });
        give(f, "since_fired", since_fired_);
        give(f, "activation_count", activation_count_);
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
    // f(name, data, count) for an array, which may be read or written.
    template <class F, class U>
    void give(F& f, const std::string& name, array<U>& a) {
        if constexpr (on_host) {
            f(name, a.data(), a.size());
        } else {
            auto& here = staged_.emplace_back(a.size() * sizeof(U));
            auto* data = reinterpret_cast<U*>(here.data());
            download(device_, data, a.data(), a.size());
            f(name, data, a.size());
            upload(device_, a.data(), data, a.size());
        }
    }
    template <class U>
    std::vector<U> on_the_host(const array<U>& a) const {
        std::vector<U> here(a.size());
        download(device_, here.data(), a.data(), a.size());
        return here;
    }
    // Gradients live in the arena, for one step, however it ends.
    struct gradients_released {
        Variant& sae;
        ~gradients_released() {
            sae.each_parameter([](const char*, auto& p) { p.gradient = nullptr; });
        }
    };

    template <class Tape, class Shape>
    void report_activity(Tape& t, view<const T, Shape, memory> targets, step_metrics& report) {
        if (t.main_codes == nullptr) return;
        const auto& z = *static_cast<const codes_record<T>*>(t.main_codes);
        const auto* every_step = static_cast<const std::uint32_t*>(nullptr);
        count_activity(device_, since_fired_.data(), activation_count_.data(), z.fired, sae_.latents(), every_step);
        fired_.resize(sae_.latents());
        download(device_, fired_.data(), z.fired, fired_.size());
        step_codes codes{z.tokens};
        for (const std::uint32_t tokens : fired_) codes.active += tokens;
        if (z.least_rank != nullptr) codes.least_rank = static_cast<double>(read(device_, z.least_rank));
        report.l0 = z.tokens == 0 ? 0 : static_cast<double>(codes.active) / static_cast<double>(z.tokens);
        counted_tokens_ += z.tokens;
        if constexpr (requires { sae_.after_step(codes); }) sae_.after_step(codes);
        if (t.reconstruction != nullptr)
            report.explained_variance = explained_variance(targets, static_cast<const T*>(t.reconstruction));
    }
    template <class Shape>
    double explained_variance(view<const T, Shape, memory> targets, const T* reconstruction) {
        const std::size_t n = targets.rows(), d = targets.cols();
        const const_view<T, shape<dyn, dyn>, memory> x{targets.data, shape<dyn, dyn>{n, d}},
            x_hat{reconstruction, shape<dyn, dyn>{n, d}};
        const auto mark = scratch_.position();
        const view<T, shape<dyn>, memory> mean{scratch_.template allocate<T>(d), shape<dyn>{d}};
        double* sums = scratch_.template allocate<double>(2);
        column_sums(device_, scratch_, mean.data, x, n, d);
        assign(device_, mean, mean / static_cast<T>(n));
        total(device_, scratch_, sums, square(x - x_hat), n, d);
        total(device_, scratch_, sums + 1, square(x - mean), n, d);
        const double residual = read(device_, sums), variance = read(device_, sums + 1);
        scratch_.release_to(mark);
        return variance > 0 ? 1 - residual / variance : 0;
    }

    // What a step does to the rows of parameter number `which`.
    template <class P>
    row_update<T> update_of(std::size_t which, P& p) {
        using S = typename P::shape_type;
        const bool rows_are_latents = p.shape().extent(0) == sae_.latents() && p.gradient->products != nullptr;
        const std::size_t cols = S::rank == 1 ? (rows_are_latents ? 1 : p.size()) : p.shape().cols();
        const bool projected =
            options_.unit_norm_decoder && static_cast<const void*>(&p) == static_cast<const void*>(&sae_.W_dec);
        return {p.data(),
                first_moments_[which].data(),
                second_moments_[which].data(),
                cols == 0 ? 0 : p.size() / cols,
                cols,
                projected,
                factors_,
                nullptr,
                options_.clip_grad_norm,
                nullptr};
    }
    // f(number, parameter) for those whose gradient has not been taken.
    template <class F>
    void each_waiting(const F& f) {
        std::size_t index = 0;
        sae_.each_parameter([&](const char*, auto& p) {
            const std::size_t which = index++;
            if (!p.gradient->taken) f(which, p);
        });
    }

    // Rows that are complete in the middle of the backward sweep.
    void take_rows(const parameter_gradient<T>& of, std::size_t first, std::size_t count, const T* rows) {
        each_waiting([&](std::size_t which, auto& p) {
            if (p.gradient == &of) update_rows(device_, scratch_, rows, first, count, of, update_of(which, p));
        });
    }

    void update() {
        const double* squares = nullptr;
        if (options_.clip_grad_norm > 0) {  // by the norm of the whole gradient, as torch's clip_grad_norm_ does
            double* sum = scratch_.template allocate<double>(1);
            fill(device_, sum, 1, 0.0);
            each_waiting([&](std::size_t which, auto& p) {
                add_gradient_squares(device_, scratch_, *p.gradient, update_of(which, p), sum);
            });
            squares = sum;
        }
        each_waiting([&](std::size_t which, auto& p) {
            row_update<T> u = update_of(which, p);
            u.squares = squares;
            update_rows(device_, scratch_, *p.gradient, u);
        });
    }

    Variant& sae_;
    training_options options_;
    Backend& device_;
    parameter_copies<Variant, Backend> copies_;
    arena<memory> scratch_;
    arena<> records_;
    step_metrics report_;
    std::vector<array<T>> first_moments_, second_moments_;
    array<std::uint32_t> since_fired_, dead_;
    array<std::uint64_t> activation_count_;
    array<std::size_t> dead_count_;
    std::vector<std::uint32_t> fired_;            // in the last step, on the host
    std::vector<std::vector<std::byte>> staged_;  // another device's arrays, for each_state
    std::uint64_t counted_tokens_ = 0;
    std::uint64_t counters_[2] = {};
    std::size_t step_ = 0;
    adam::factors factors_{};
};

}  // namespace psae
