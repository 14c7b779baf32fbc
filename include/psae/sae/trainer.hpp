#pragma once
// The training step: normalise decoder rows, loss, gradients, projection, Adam. Each row of a weight gradient is made,
// projected and consumed by Adam while it is hot. Whole gradients are in memory only where the norm of all of them is
// asked for, or where the encoder is not the first stage of the loss while its codes are dense.

#include <algorithm>
#include <bit>
#include <cstdint>
#include <iterator>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <psae/core/repeated_work.hpp>
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
          state_(shape<dyn>{1}) {
        sae_.each_parameter([&](const char*, auto& p) {
            first_moments_.emplace_back(shape<dyn>{p.size()});
            second_moments_.emplace_back(shape<dyn>{p.size()});
        });
    }

    // One step on tokens [n, d_in] and, if not null, their weights [n]: memory of the device. Throws psae::error if the
    // loss is not finite; no more than the length of decoder rows has changed then. The metrics are overwritten by the
    // next step. On another device the host waits once, at the end; the first step, and one whose codes took more room
    // than those before, wait for that room too.
    template <class Shape>
    const step_metrics& step(view<const T, Shape, memory> tokens, const float* token_weights = nullptr) {
        return step(tokens, tokens, token_weights);
    }
    // The same for a variant that explains targets [n, d_out] by the tokens.
    template <class Shape, class TargetShape>
    const step_metrics& step(view<const T, Shape, memory> tokens, view<const T, TargetShape, memory> targets,
                             const float* token_weights = nullptr) {
        start(tokens, targets, token_weights);
        return finish();
    }

    // The same in two parts. Between them another device is at work, and its tokens must stay as they are; nothing but
    // finish() may be asked of the trainer.
    template <class Shape, class TargetShape>
    void start(view<const T, Shape, memory> tokens, view<const T, TargetShape, memory> targets,
               const float* token_weights = nullptr) {
        static_assert(Shape::rank == 2 && TargetShape::rank == 2, "psae: tokens and targets are matrices, [n, d]");
        if (at_work_) throw error("a step was started before the last one was finished", "trainer::start");
        make_current(device_);
        const auto standing_in = copies_.stand_in();
        staged_.clear();
        if (options_.unit_norm_decoder) normalise_rows(device_, sae_.W_dec.data(), sae_.latents(), sae_.outputs());
        if (options_.frequency_window > 0 && (step_ + 1) % options_.frequency_window == 0) {
            fill(device_, activation_count_.data(), activation_count_.size(), std::uint64_t{0});
            counted_tokens_ = 0;
        }
        if (!dead_count_) {
            list_dead();
            dead_count_ = read(device_, &state_.data()->dead);
        }
        report_.step = step_;
        report_.dead_fraction = static_cast<double>(*dead_count_) / static_cast<double>(sae_.latents());
        report_.lr = learning_rate(options_.lr, options_.schedule, step_, options_.warmup_steps, options_.steps);
        fill(device_, &state_.data()->update, 1, adam_update<T>(options_.optimiser.at(report_.lr, step_ + 1)));
        batch_ = {tokens.data, targets.data, token_weights, tokens.rows(), tokens.cols(), targets.cols()};
        give_work_ = &trainer::give_work<Shape, TargetShape>;
        (this->*give_work_)();
        at_work_ = true;
    }
    const step_metrics& finish() {
        if (!std::exchange(at_work_, false)) throw error("no step was started", "trainer::finish");
        device_state end = read(device_, state_.data());
        learn_room(end.needed);
        if (end.outcome.too_small != 0) {  // nothing has changed: once more, and wait for the room
            const auto standing_in = copies_.stand_in();
            known_encoders_ = 0;
            (this->*give_work_)();
            end = read(device_, state_.data());
            learn_room(end.needed);
        }
        tell(end.outcome);
        dead_count_ = end.dead;
        ++step_;
        return report_;
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
        dead_count_.reset();
    }
    std::size_t scratch_allocations() const { return scratch_.allocations(); }
    // How many steps the device replayed as a whole.
    std::size_t replays() const { return work_.replays(); }

    // Everything that a checkpoint holds beside the parameters: f(name, data, count) for each array. The data is the
    // host's and stays until the next call.
    template <class F>
    void each_state(F&& f) {
        staged_.clear();
        dead_count_.reset();
        known_encoders_ = 0;  // so that a run that goes on from here does as this one
        std::fill(std::begin(forecasts_), std::end(forecasts_), codes_forecast{});
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

    // What the device keeps beside arrays.
    struct device_state {
        std::size_t dead = 0;  // latents before the next step
        adam_update<T> update;
        step_outcome outcome;
        selection_room needed[tape<Backend>::max_encoders];
    };

    void list_dead() {
        find_dead(device_, scratch_, dead_.data(), &state_.data()->dead, since_fired_.data(), sae_.latents(),
                  options_.dead_after);
    }

    struct batch {
        const T *tokens, *targets;
        const float* token_weights;
        std::size_t rows, columns, target_columns;
    };

    // The step on the batch, from the loss on.
    template <class Shape, class TargetShape>
    void give_work() {
        const std::size_t extents[2] = {batch_.rows, batch_.columns},
                          target_extents[2] = {batch_.rows, batch_.target_columns};
        const view<const T, Shape, memory> tokens{batch_.tokens, Shape::from_extents(extents)};
        const view<const T, TargetShape, memory> targets{batch_.targets, TargetShape::from_extents(target_extents)};
        scratch_.reset();
        records_.reset();
        tape<Backend> t(device_, scratch_, records_, mode::train);
        t.form = options_.codes;
        t.codes_memory = options_.codes_memory;
        const gradients_released guard{sae_};
        sae_.each_parameter([&](const char*, auto& p) {
            t.collect(p);
            if (options_.clip_grad_norm == 0) p.gradient->taker = &taker_;
        });
        // On another device a bound in place of the number, so that one step is like the next.
        const std::size_t room =
            on_host ? *dead_count_ : std::min(std::bit_ceil(*dead_count_), std::size_t{sae_.latents()});
        const training_state now{{dead_.data(), &state_.data()->dead, room},
                                 *dead_count_ > 0,
                                 batch_.token_weights,
                                 step_,
                                 options_.steps,
                                 random_stream(options_.seed, std::uint64_t{step_} << 24)};
        const auto loss = evaluate(loss_of(t.input(tokens), t.input(targets), now));
        report_.terms.clear();  // keeps its memory
        t.template each_term<T>([&](const char* name, const T*) { report_.terms.emplace_back(name, 0); });
        has_codes_ = t.main_codes != nullptr;
        has_reconstruction_ = has_codes_ && t.reconstruction != nullptr;
        encoders_ = t.encoders();
        if constexpr (!on_host) {
            t.forecasts = encoders_ <= known_encoders_ ? forecasts_ : nullptr;
            t.needed = state_.data()->needed;
            t.too_small = &state_.data()->outcome.too_small;
        }
        const auto sweeps = [&] { run_sweeps(t, loss, targets); };
        if (!on_host && t.forecasts == nullptr) sweeps();  // which wait
        else
            work_.run(
                device_, [&](work_key& key) { add_key(key, t); }, sweeps);
    }

    // All that the device does in one go.
    template <class Loss, class TargetShape>
    void run_sweeps(tape<Backend>& t, const Loss& loss, view<const T, TargetShape, memory> targets) {
        step_outcome* outcome = &state_.data()->outcome;
        fill(device_, &outcome->too_small, 1, std::uint32_t{0});
        t.run();
        loss_numbers<T> numbers;
        numbers.number[numbers.count++] = loss.data;
        t.template each_term<T>([&](const char*, const T* value) { numbers.number[numbers.count++] = value; });
        const auto* z = static_cast<const codes_record<T>*>(t.main_codes);
        if (z != nullptr) numbers.least_rank = z->least_rank;
        judge(device_, outcome, numbers);
        if (z != nullptr) {
            const std::uint32_t* fired = z->fired;
            count_activity(device_, since_fired_.data(), activation_count_.data(), fired, sae_.latents(), &outcome->go);
            count_all_active(device_, &outcome->active, fired, sae_.latents());
        }
        if (has_reconstruction_) measure_variance(targets, static_cast<const T*>(t.reconstruction), outcome);
        backward(t, loss);
        update();
        list_dead();
    }

    // What tells one step's work from another's: all that has been recorded, what is measured, and the room that it gets.
    void add_key(work_key& key, const tape<Backend>& t) const {
        const auto add = [&](const void* data, std::size_t bytes) {
            const auto* first = static_cast<const std::byte*>(data);
            key.insert(key.end(), first, first + bytes);
        };
        const auto add_number = [&](std::size_t number) { add(&number, sizeof(number)); };
        records_.each_used(add);
        add(&batch_, sizeof(batch_));
        add(&t.main_codes, sizeof(t.main_codes));
        add(&t.reconstruction, sizeof(t.reconstruction));
        add_number(scratch_.allocations());
        for (std::size_t i = 0; i < encoders_; ++i) {
            add_number(forecasts_[i].dense);
            if (forecasts_[i].dense) continue;
            add_number(forecasts_[i].room.candidates);
            add_number(forecasts_[i].room.entries);
        }
    }

    // What the encoders of the next step can count on, where the host has to wait for such numbers.
    void learn_room(const selection_room* needed) {
        if (on_host) return;
        known_encoders_ = encoders_ <= tape<Backend>::max_encoders ? encoders_ : 0;
        // A quarter more than was needed, and the same for as long as that is neither too little nor twice too much.
        const auto adjust = [](std::size_t& room, std::size_t taken) {
            if (taken > room || room > 1024 + 2 * taken) room = 256 + taken + taken / 4;
        };
        const std::size_t tokens = std::max<std::size_t>(batch_.rows, 1);
        for (std::size_t i = 0; i < known_encoders_; ++i) {
            codes_forecast& f = forecasts_[i];
            f.dense = static_cast<double>(needed[i].entries) >
                      dense_from_share(device_) * static_cast<double>(tokens * sae_.latents());
            adjust(f.room.entries, needed[i].entries);
            // Tiles do not say what the token with the most active latents has.
            adjust(f.room.candidates, std::max(needed[i].candidates, 2 * needed[i].entries / tokens));
        }
    }

    // The metrics of a step that is done; psae::error if its loss is not finite.
    void tell(const step_outcome& outcome) {
        report_.loss = outcome.losses[0];
        for (std::size_t i = 0; i < report_.terms.size(); ++i) report_.terms[i].second = outcome.losses[1 + i];
        if (outcome.go == 0)
            throw error("the loss is not finite", "training step " + std::to_string(step_), "",
                        "look for NaN or rows of zeros in the activations, or lower the learning rate");
        report_.l0 = report_.explained_variance = 0;
        if (!has_codes_) return;
        const step_codes codes{batch_.rows, outcome.active, outcome.least_rank};
        if (batch_.rows > 0) report_.l0 = static_cast<double>(codes.active) / static_cast<double>(batch_.rows);
        counted_tokens_ += batch_.rows;
        if constexpr (requires { sae_.after_step(codes); }) sae_.after_step(codes);
        if (has_reconstruction_ && outcome.variance > 0)
            report_.explained_variance = 1 - outcome.residual / outcome.variance;
    }

    template <class Shape>
    void measure_variance(view<const T, Shape, memory> targets, const T* reconstruction, step_outcome* outcome) {
        const std::size_t n = targets.rows(), d = targets.cols();
        const const_view<T, shape<dyn, dyn>, memory> x{targets.data, shape<dyn, dyn>{n, d}},
            x_hat{reconstruction, shape<dyn, dyn>{n, d}};
        const auto mark = scratch_.position();
        const view<T, shape<dyn>, memory> mean{scratch_.template allocate<T>(d), shape<dyn>{d}};
        column_sums(device_, scratch_, mean.data, x, n, d);
        assign(device_, mean, mean / static_cast<T>(n));
        total(device_, scratch_, &outcome->residual, square(x - x_hat), n, d);
        total(device_, scratch_, &outcome->variance, square(x - mean), n, d);
        scratch_.release_to(mark);
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
                &state_.data()->update,
                nullptr,
                options_.clip_grad_norm,
                &state_.data()->outcome.go};
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
    batch batch_{};                           // of the step at hand
    void (trainer::*give_work_)() = nullptr;  // gives it to the device
    bool at_work_ = false, has_codes_ = false, has_reconstruction_ = false;
    std::size_t encoders_ = 0;
    std::vector<array<T>> first_moments_, second_moments_;
    array<std::uint32_t> since_fired_, dead_;
    array<std::uint64_t> activation_count_;
    array<device_state> state_;
    std::optional<std::size_t> dead_count_;  // latents before the next step, where the host knows it
    codes_forecast forecasts_[tape<Backend>::max_encoders];
    std::size_t known_encoders_ = 0;  // how many of them say something
    repeated_work<Backend> work_;
    const row_taker<T> taker_{[](void* self, const parameter_gradient<T>& of, std::size_t first, std::size_t count,
                                 const T* rows) { static_cast<trainer*>(self)->take_rows(of, first, count, rows); },
                              this};
    std::vector<std::vector<std::byte>> staged_;  // another device's arrays, for each_state
    std::uint64_t counted_tokens_ = 0;
    std::uint64_t counters_[2] = {};
    std::size_t step_ = 0;
};

}  // namespace psae
