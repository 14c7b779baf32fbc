#pragma once
// Reverse-mode differentiation at the granularity of stages.
//
// A stage called on variables records itself on the tape and returns a typed variable; pointwise parts stay
// compile-time expressions. Nothing runs until `tape.run()`, which runs the stages in order; `backward(tape, loss)` runs
// their adjoints in reverse. (With mode::infer every stage runs when it is called and nothing is kept for gradients.)
// Since an encoder knows all that reads its codes before it runs, it may pass them on chunk by chunk instead of keeping
// them. Values and adjoints live in an arena of the backend's memory, the records in one of the host's (on the CPU it is
// the same): a step allocates nothing once they have their size.

#include <algorithm>
#include <cstddef>
#include <memory>
#include <new>
#include <type_traits>
#include <vector>

#include <psae/core/arena.hpp>
#include <psae/expr/functors.hpp>
#include <psae/sparse/codes.hpp>

namespace psae {

enum class mode { infer, train };

// The adjoint of a dense value. `written` is false while nothing has been added, so the first addition overwrites. Nothing
// may be added once it is used up.
template <class T>
struct gradient {
    T* data = nullptr;
    bool written = false, used_up = false;
};

// A share of a weight gradient that is never stored dense: dW[f, :] = sum over the entries (t, f) of weight * rows[t,
// :]. With rows null it is a share of a bias gradient: db[f] = sum of weights.
template <class T>
struct outer_product {
    const codes_view<T>* codes;
    const T* weights;  // [nnz], by entry
    const T* rows;     // [n, d] or null
    std::size_t columns;
    latent_range range;  // f outside it has no share
    outer_product* next;
};

// A share of a weight gradient in proportion to the weights themselves, row by row: dW[f, :] = slope[f] / divisor[f] *
// W[f, :]. It is the gradient of the rows' norms, with the norms as divisors; slope: their gradient, [rows].
template <class T>
struct row_multiples {
    gradient<T>* slope;
    const T* divisor;
    const T* rows;
    row_multiples* next;
};

template <class T>
struct parameter_gradient;

// Takes the rows first .. first + count of a gradient as soon as they are complete, so that an optimiser can use them
// (and change the parameter's rows) while what they are made of is in memory: the parts of the gradient and, unless it
// is null, `rows`, [count, d].
template <class T>
struct row_taker {
    void (*take)(void* self, const parameter_gradient<T>& of, std::size_t first, std::size_t count, const T* rows);
    void* self;
};

// The gradient of a parameter: a dense part and shares that are never stored dense.
template <class T>
struct parameter_gradient : gradient<T> {
    outer_product<T>* products = nullptr;
    row_multiples<T>* multiples = nullptr;
    const row_taker<T>* taker = nullptr;  // set by who wants rows early; there may be none that are early
    bool taken = false;                   // all rows went to the taker
    gradient<T> chunk;  // the rows of the chunk of latents at hand, while an encoder goes through tiles
    std::size_t chunk_columns = 0;
    parameter_gradient* next_with_chunk = nullptr;
};

// To be called when all rows have gone to the taker.
template <class T>
void all_rows_taken(parameter_gradient<T>& p) {
    p.taken = true;
    for (row_multiples<T>* m = p.multiples; m != nullptr; m = m->next) m->slope->used_up = true;
}

// How an encoder holds its codes in a training step: as entries, or, while a large share of the latents fires for every
// token, as tiles that are made, used and made again in the backward sweep, and never in memory all at once.
enum class codes_form { by_density, entries, tiles };

// The places an encoder has chosen: what its codes, and others made from them, have in common.
template <class T>
struct codes_support {
    bool dense = false;                              // known once the encoder has run
    bool entries_needed = false;                     // by something that cannot take codes chunk by chunk
    std::size_t stage = 0;                           // the number of the encoder among all stages of its tape, from 1
    std::size_t encoder = 0;                         // and among the encoders, from 0
    std::size_t tile_latents = 0;                    // of every tile but the last
    const parameter_gradient<T>* weights = nullptr;  // the gradient of the encoder's
    parameter_gradient<T>* with_chunk = nullptr;     // parameters that get gradient rows from the tile at hand
};

// What an encoder can count on from the steps before, so that it need not wait for the device to learn it.
struct codes_forecast {
    bool dense = false;
    selection_room room;
};

// Codes on a tape, in either form.
template <class T>
struct codes_record {
    codes_support<T>* support = nullptr;
    codes_view<T> entries;           // empty in dense form
    codes_tile<T> tile;              // in dense form: the chunk at hand
    std::uint32_t* fired = nullptr;  // [d_sae]: for how many tokens each latent is active
    std::size_t tokens = 0;
    T* least_rank = nullptr;  // of a top-k over the whole batch: the rank of the last entry that came in

    bool dense() const { return support->dense; }
};

// Calls f with the form the codes are in.
template <class T, class F>
void with_form(const codes_record<T>& z, const F& f) {
    if (z.dense()) f(z.tile);
    else f(z.entries);
}

// A learned tensor. As an operand it is a view; on a tape in train mode its gradient is collected in `gradient`. It
// belongs to the host. A trainer on another device keeps a copy there, which stands in for it during a step: a variant's
// loss is the same on all devices.
template <class T, class Shape>
struct parameter {
    using value_type = T;
    using shape_type = Shape;

    parameter() = default;
    explicit parameter(const Shape& extents) : value(extents) {}

    tensor<T, Shape> value;
    T* on_device = nullptr;                     // set while the copy stands in
    parameter_gradient<T>* gradient = nullptr;  // set while a tape collects gradients

    const Shape& shape() const { return value.shape(); }
    T* data() { return on_device != nullptr ? on_device : value.data(); }
    const T* data() const { return on_device != nullptr ? on_device : value.data(); }
    std::size_t size() const { return value.size(); }
};

// Leaves of expressions -----------------------------------------------------------------------------------------------

// A constant input that carries the tape.
template <class T, class Shape, class Tape>
struct input_node : view<const T, Shape, Tape::memory> {
    Tape* owner;
};
// The result of a stage (or a differentiable input): computed once, used any number of times.
template <class T, class Shape, class Tape>
struct variable : view<const T, Shape, Tape::memory> {
    static constexpr bool is_differentiable = true;
    Tape* owner;
    psae::gradient<T>* adjoint;
    T* storage;
    std::size_t stage = 0;  // the number of the stage that makes it; 0 for inputs

    // Its memory, for the stage that makes it, and its adjoint, once something has been added to it.
    view<T, Shape, Tape::memory> result() const { return {storage, this->shape()}; }
    const_view<T, Shape, Tape::memory> cotangent() const { return {adjoint->data, this->shape()}; }
};
// Its memory is that of the tape it is used on.
template <class T, class Shape>
struct parameter_node : view<const T, Shape> {
    static constexpr bool is_differentiable = true, is_anywhere = true;
    parameter_gradient<T>* adjoint;
};
template <class T, class Shape>
parameter_node<T, Shape> as_node(const parameter<T, Shape>& p) {
    return {{p.data(), p.shape()}, p.gradient};
}
// Codes as an operand: stands for the value of the entry an expression is evaluated at.
template <class T, class Tape>
struct codes_variable {
    using value_type = T;
    using shape_type = psae::shape<dyn, dyn>;
    static constexpr bool is_differentiable = true;
    static constexpr bool is_over_codes = true;

    Tape* owner;
    codes_record<T>* codes;      // filled when the encoder runs
    psae::gradient<T>* adjoint;  // on the same support: [nnz], or [n, count] for the tile at hand
    std::size_t tokens, latents;

    // The memory of a gradient on this support: by entry, or of the tile at hand.
    T* gradient_data() const {
        return owner->dense(*adjoint, codes->dense() ? tokens * codes->support->tile_latents : codes->entries.room);
    }
    PSAE_FN shape_type shape() const { return shape_type{tokens, latents}; }
    template <class P>
    PSAE_FN T load(P p) const {
        if constexpr (requires { p.value; }) return p.value;
        else return T(0);  // only named by the node concept; codes are evaluated at their entries
    }
};

namespace detail {

// The tape an expression belongs to (nullptr_t if none of its leaves has one).
template <class N>
auto tape_of(const N& n) {
    if constexpr (requires { n.owner; }) return n.owner;
    else return nullptr;
}
template <class F, class... A>
auto tape_of(const map_node<F, A...>& n);
template <class A>
auto tape_of(const stopped_node<A>& n) {
    return tape_of(n.argument);
}
template <class Pack>
auto tape_of_pack(const Pack& pack) {
    if constexpr (requires { pack.first; }) {
        if constexpr (std::is_null_pointer_v<decltype(tape_of(pack.first))>) return tape_of_pack(pack.rest);
        else return tape_of(pack.first);
    } else {
        return nullptr;
    }
}
template <class F, class... A>
auto tape_of(const map_node<F, A...>& n) {
    return tape_of_pack(n.arguments);
}

// As above, and an error at compile time where there is none.
template <class N>
auto& require_tape(const N& n) {
    using pointer = decltype(tape_of(n));
    static_assert(!std::is_null_pointer_v<pointer>,
                  "psae: no operand belongs to a tape; start from tape.input(...), or use on_tape_of(x, ...)");
    return *tape_of(n);
}

// The number of the last stage that has a part in the expression, codes aside.
template <class N>
std::size_t latest_stage(const N& n) {
    if constexpr (requires { n.stage; }) return n.stage;
    else return 0;
}
template <class F, class... A>
std::size_t latest_stage(const map_node<F, A...>& n);
template <class A>
std::size_t latest_stage(const stopped_node<A>& n) {
    return latest_stage(n.argument);
}
template <class F, class... A>
std::size_t latest_stage(const map_node<F, A...>& n) {
    return [&]<std::size_t... I>(std::index_sequence<I...>) {
        std::size_t latest = 0;
        ((latest = std::max(latest, latest_stage(get<I>(n.arguments)))), ...);
        return latest;
    }
    (std::index_sequence_for<A...>{});
}

// The codes an expression over codes stands on; throws if it mixes two supports.
template <class N>
auto codes_of(const N& n);
template <class Pack>
auto codes_of_pack(const Pack& pack) {
    if constexpr (requires { pack.first; }) {
        if constexpr (over_codes<std::remove_cvref_t<decltype(pack.first)>>) {
            auto found = codes_of(pack.first);
            auto rest = codes_of_pack(pack.rest);
            if constexpr (!std::is_null_pointer_v<decltype(rest)>)
                if (rest != found)
                    throw error("an expression mixes codes of two encoders", "", "their supports differ");
            return found;
        } else {
            return codes_of_pack(pack.rest);
        }
    } else {
        return nullptr;
    }
}
template <class N>
auto codes_of(const N& n) {
    if constexpr (requires { n.codes; }) return n.codes;
    else if constexpr (requires { n.argument; }) return codes_of(n.argument);
    else return codes_of_pack(n.arguments);
}

}  // namespace detail

template <class Backend>
class tape {
public:
    static constexpr space memory = Backend::memory;

    // Values go to `scratch`, records to `records`.
    tape(Backend& device, psae::arena<memory>& scratch, psae::arena<>& records, psae::mode how)
        : device_(device), arena_(scratch), records_(records), mode_(how) {}
    tape(Backend& device, psae::arena<memory>& scratch, psae::mode how) requires(memory == space::host)
        : tape(device, scratch, scratch, how) {}
    tape(const tape&) = delete;
    tape& operator=(const tape&) = delete;

    Backend& device() { return device_; }
    psae::arena<memory>& arena() { return arena_; }
    // A record of the host, or several, that live as long as what the tape keeps.
    template <class Record>
    Record* make(const Record& record) {
        static_assert(std::is_trivially_destructible_v<Record>, "psae: what a tape keeps lives in the arena");
        return new (records_.template allocate<Record>(1)) Record(record);
    }
    template <class Record>
    const Record* make_array(const std::vector<Record>& records) {
        static_assert(std::is_trivially_destructible_v<Record>, "psae: what a tape keeps lives in the arena");
        Record* copies = records_.template allocate<Record>(records.size());
        std::uninitialized_copy(records.begin(), records.end(), copies);
        return copies;
    }
    bool training() const { return mode_ == mode::train; }

    // x as an operand without a gradient.
    template <class T, class Shape>
    input_node<std::remove_const_t<T>, Shape, tape> input(view<T, Shape, memory> x) {
        return {{x.data, x.shape()}, this};
    }
    // x as an operand whose gradient is wanted: after backward() it stands in the variable's `adjoint`.
    template <class T, class Shape>
    variable<std::remove_const_t<T>, Shape, tape> variable_of(view<T, Shape, memory> x) {
        using U = std::remove_const_t<T>;
        return {{x.data, x.shape()}, this, make(gradient<U>{}), const_cast<U*>(x.data), 0};
    }
    // Memory for the result of a stage: fresh, or a place that is given.
    template <class T, class Shape>
    variable<T, Shape, tape> result(const Shape& extents, T* place = nullptr) {
        T* storage = place != nullptr ? place : arena_.template allocate<T>(extents.size());
        return {{storage, extents}, this, training() ? make(gradient<T>{}) : nullptr, storage, next_stage()};
    }
    // The number of the stage that is recorded next, from 1.
    std::size_t next_stage() const { return recorded_ + 1; }
    std::size_t stages() const { return recorded_; }
    // The number of an encoder that is about to be recorded, from 0.
    std::size_t number_encoder() { return encoders_++; }
    std::size_t encoders() const { return encoders_; }
    // Lets a parameter collect its gradient on this tape. Rows in outer-product form need no dense memory;
    // `dense` is where a dense gradient goes, taken from the arena when it is first needed.
    template <class T, class Shape>
    void collect(parameter<T, Shape>& p) {
        if (memory != space::host && p.on_device == nullptr)
            throw error("a parameter is in the host's memory", "tape of another device", to_string(p.shape()),
                        "make parameter_copies and let them stand in");
        p.gradient = make(parameter_gradient<T>{});
    }

    // Dense memory of a gradient, taken when first needed.
    template <class T>
    T* dense(gradient<T>& g, std::size_t count) {
        if (g.data == nullptr) g.data = arena_.template allocate<T>(count);
        return g.data;
    }

    // Keeps a stage: an object with forward(tape&) and backward(tape&). One without backward is for mode::infer.
    template <class Entry>
    void record(Entry entry) {
        ++recorded_;
        keep(entry, nullptr);
    }
    // Keeps a stage that reads codes. In dense form the encoder runs it, once for each tile. That takes that all its
    // other inputs are there when the encoder runs: `latest` is the number of the last stage that makes one of them.
    template <class T, class Entry>
    void record_reader(codes_record<T>& codes, std::size_t latest, Entry entry) {
        if (codes.dense())
            throw error("codes in dense form have gone by", "tape", "", "record what reads them before run()");
        if (latest >= codes.support->stage) codes.support->entries_needed = true;
        ++recorded_;
        keep(entry, &codes.support->dense);
    }
    // Keeps a stage whose result is one row or number, without a number of its own: it is there when what was recorded
    // before it is, stage number stages(), and encoders after it may still be the first stage.
    template <class Entry>
    void record_row(Entry entry) {
        keep(entry, nullptr);
    }

    // Runs what has been recorded and not run yet.
    void run() {
        for (link* l = done_ == nullptr ? first_ : done_->next; l != nullptr; l = l->next) {
            if (!by_tiles(l)) l->run(l, *this);
            done_ = l;
        }
    }
    // Runs the adjoints of everything, last to first. The seed is whatever has been added to adjoints before.
    void run_adjoints() {
        for (link* l = last_; l != nullptr; l = l->previous)
            if (!by_tiles(l)) l->run_adjoint(l, *this);
    }
    // What reads codes of this support, on their tile at hand: forwards in order; or, once the tile
    // has been made again, what follows from it (again(tape&) of a stage) and then adjoints in reverse.
    template <class T>
    void run_readers(const codes_support<T>& codes) {
        for (link* l = first_; l != nullptr; l = l->next)
            if (l->reads_dense == &codes.dense) l->run(l, *this);
    }
    template <class T>
    void run_reader_adjoints(const codes_support<T>& codes) {
        for (link* l = first_; l != nullptr; l = l->next)
            if (l->reads_dense == &codes.dense && l->run_again != nullptr) l->run_again(l, *this);
        for (link* l = last_; l != nullptr; l = l->previous)
            if (l->reads_dense == &codes.dense) l->run_adjoint(l, *this);
    }

    // Forgets the records. The arena is reset by its owner.
    void clear() {
        first_ = last_ = done_ = nullptr;
        recorded_ = encoders_ = 0;
        terms_count_ = 0;
        main_codes = nullptr;
        reconstruction = nullptr;
    }

    // Named scalars of the loss, in the order of their terms: f(name, const T*), memory of the device.
    static constexpr std::size_t max_terms = 16;
    template <class T>
    void add_term(const char* name, const T* value) {
        if (terms_count_ == max_terms) throw error("a loss has too many named terms", name, "at most 16");
        terms_[terms_count_++] = {name, value};
    }
    template <class T, class F>
    void each_term(F&& f) const {
        for (std::size_t i = 0; i < terms_count_; ++i) f(terms_[i].name, static_cast<const T*>(terms_[i].value));
    }

    // How encoders hold their codes in train mode, and how many bytes of tiles they may keep for the backward sweep
    // instead of making them again.
    codes_form form = codes_form::by_density;
    std::size_t codes_memory = 0;

    // What the first encoders, up to max_encoders, are told and tell (selection_plan): by their numbers, or null. `needed`
    // and `too_small` are memory of the device.
    static constexpr std::size_t max_encoders = 8;
    const codes_forecast* forecasts = nullptr;
    selection_room* needed = nullptr;
    std::uint32_t* too_small = nullptr;
    const codes_forecast* forecast_of(std::size_t encoder) const {
        return forecasts == nullptr || encoder >= max_encoders ? nullptr : forecasts + encoder;
    }
    selection_plan plan_of(std::size_t encoder) const {
        const codes_forecast* known = forecast_of(encoder);
        return {known == nullptr ? nullptr : &known->room,
                needed == nullptr || encoder >= max_encoders ? nullptr : needed + encoder, too_small};
    }

    // What metrics speak of: the codes (a codes_record) that are decoded first, and what is decoded from them, unless
    // the loss names another reconstruction.
    const void* main_codes = nullptr;
    const void* reconstruction = nullptr;

private:
    struct link {
        link *previous = nullptr, *next = nullptr;
        const bool* reads_dense = nullptr;  // whether the codes it reads are dense; null for what reads none
        void (*run)(link*, tape&) = nullptr;
        void (*run_again)(link*, tape&) = nullptr;
        void (*run_adjoint)(link*, tape&) = nullptr;
    };
    template <class Entry>
    struct kept_entry : link {
        Entry entry;
    };
    struct term_record {
        const char* name;
        const void* value;  // of the loss's type
    };

    static bool by_tiles(const link* l) { return l->reads_dense != nullptr && *l->reads_dense; }

    template <class Entry>
    void keep(Entry& entry, const bool* reads_dense) {
        if (mode_ == mode::infer) {
            entry.forward(*this);
            return;
        }
        if constexpr (!requires { entry.backward(*this); }) {
            throw error("a stage with rounded activations has no gradient", "tape", "expected mode::infer");
        } else {
            keep_both_ways(entry, reads_dense);
        }
    }
    template <class Entry>
    void keep_both_ways(Entry& entry, const bool* reads_dense) {
        auto* kept = make(kept_entry<Entry>{{}, entry});
        kept->previous = last_;
        kept->reads_dense = reads_dense;
        kept->run = [](link* l, tape& t) { static_cast<kept_entry<Entry>*>(l)->entry.forward(t); };
        if constexpr (requires { entry.again(*this); })
            kept->run_again = [](link* l, tape& t) { static_cast<kept_entry<Entry>*>(l)->entry.again(t); };
        kept->run_adjoint = [](link* l, tape& t) { static_cast<kept_entry<Entry>*>(l)->entry.backward(t); };
        if (last_ != nullptr) last_->next = kept;
        else first_ = kept;
        last_ = kept;
    }

    Backend& device_;
    psae::arena<memory>& arena_;
    psae::arena<>& records_;
    psae::mode mode_;
    link *first_ = nullptr, *last_ = nullptr, *done_ = nullptr;
    term_record terms_[max_terms];
    std::size_t terms_count_ = 0, recorded_ = 0, encoders_ = 0;
};

}  // namespace psae
