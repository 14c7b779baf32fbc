#pragma once
// Encode and select on the CPU. The pre-activations h = x W^T + b are made for one chunk of latents at a time, and what
// the activation keeps is compacted while the chunk is still in cache; no [tokens, latents] matrix is ever in memory.
//
// Where the machine is faster at products of bf16 or of whole numbers of 16 bits, the pre-activations are screened by
// such a product: it says between which bounds h lies, latents that cannot be kept whatever h is are dropped, and h is
// computed in float for the others alone (pre_activations.hpp). What is kept is the same up to the rounding of h.

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include <psae/cpu/codes.hpp>
#include <psae/cpu/gemm.hpp>
#include <psae/cpu/pre_activations.hpp>
#include <psae/stage/activation.hpp>

namespace psae {

namespace detail {

// Calls hit(j) in ascending order for the j in [0, count) with wanted(j). Both passes over a block are without
// branches: most blocks hold no hit, and those that do would be mispredicted at every other entry.
template <class Wanted, class Hit>
PSAE_HOST_FN void each_hit(std::size_t count, const Wanted& wanted, const Hit& hit) {
    constexpr std::size_t block = 64, word = 8;
    for (std::size_t first = 0; first < count; first += block) {
        const std::size_t n = std::min(count - first, block);
        int any = 0;
#pragma omp simd reduction(| : any)
        for (std::size_t j = 0; j < n; ++j) any |= wanted(first + j);
        if (any == 0) continue;
        alignas(block) unsigned char wants[block] = {};
#pragma omp simd
        for (std::size_t j = 0; j < n; ++j) wants[j] = wanted(first + j);
        for (std::size_t w = 0; w < block; w += word) {
            std::uint64_t bytes;
            std::memcpy(&bytes, wants + w, word);
            for (; bytes != 0; bytes &= bytes - 1)  // the lowest one is taken off; bytes are 0 or 1
                hit(first + w + static_cast<std::size_t>(std::countr_zero(bytes)) / 8);
        }
    }
}

}  // namespace detail

// Above this share of active latents tiles are faster than entries (or nearly, and need less memory): products of whole
// tiles against work in proportion to the entries. The two meet at 1/16 where products are float, 1/64 where they are
// bf16; bench/sae_step.cpp measures it.
inline double dense_from_share(const cpu& device) { return device.products == precision::bf16 ? 1.0 / 64 : 1.0 / 24; }

// Latents of one dense tile: about 16 MiB of floats. An odd number of cache lines: a product with a transposed tile
// reads it down its columns, and rows a power of two apart would share few sets of the cache (28% slower).
inline std::size_t encode_tile_latents(const cpu&, std::size_t tokens, std::size_t latents) {
    const std::size_t lines = (std::size_t{1} << 22) / std::max<std::size_t>(tokens, 1) / 16;
    return std::min(latents, (std::clamp<std::size_t>(lines, 8, 256) | 1) * 16);
}

// A dense tile of codes [tokens, count] of x [tokens, d] under an elementwise activation, 0 where a latent is not
// active (unless the activation is `everywhere`); fired[j] = for how many tokens latent j is, unless null. W: [count,
// d], b: [count]; column j is the latent latent_of(j).
template <class T, class Activation, class LatentOf>
void encode_tile(cpu& device, arena<>& scratch, T* tile, std::uint32_t* fired, const T* x, std::size_t tokens,
                 std::size_t d, const T* W, const T* b, std::size_t count, const Activation& activation,
                 const LatentOf& latent_of) {
    product(device, scratch, false, true, tokens, count, d, x, W, write::overwrite, tile);
    const auto mark = scratch.position();
    if (fired == nullptr) fired = scratch.allocate<std::uint32_t>(count);
    std::fill_n(fired, count, std::uint32_t{0});
    detail::add_tile_column_sums(device, scratch, fired, tokens, count, [&](std::size_t t, std::uint32_t* active) {
        T* row = tile + t * count;
#pragma omp simd
        for (std::size_t j = 0; j < count; ++j) {
            const T h = row[j] + b[j];
            const bool is_active = detail::is_active(activation, h, latent_of(j));
            row[j] =
                is_active || detail::is_everywhere<Activation>() ? detail::value_of(activation, h, latent_of(j)) : T(0);
            active[j] += is_active;
        }
    });
    scratch.release_to(mark);
}

// An estimate of the share of latents that are active, from at most 64 tokens and 1024 latents spread evenly.
template <class T, class Activation>
double active_share(cpu& device, arena<>& scratch, const T* x, std::size_t tokens, std::size_t d, const T* W,
                    const T* b, std::size_t latents, const Activation& activation) {
    const auto mark = scratch.position();
    const std::size_t rows = std::min<std::size_t>(tokens, 64), columns = std::min<std::size_t>(latents, 1024);
    T* some_x = scratch.allocate<T>(rows * d);
    T* some_W = scratch.allocate<T>(columns * d);
    T* some_b = scratch.allocate<T>(columns);
    T* tile = scratch.allocate<T>(rows * columns);
    auto* fired = scratch.allocate<std::uint32_t>(columns);
    const spread_evenly tokens_of{tokens, rows}, latents_of{latents, columns};
    for (std::size_t i = 0; i < rows; ++i) std::copy_n(x + tokens_of(i) * d, d, some_x + i * d);
    for (std::size_t j = 0; j < columns; ++j) {
        std::copy_n(W + latents_of(j) * d, d, some_W + j * d);
        some_b[j] = b[latents_of(j)];
    }
    encode_tile(device, scratch, tile, fired, static_cast<const T*>(some_x), rows, d, static_cast<const T*>(some_W),
                static_cast<const T*>(some_b), columns, activation, latents_of);
    std::size_t active = 0;
    for (std::size_t j = 0; j < columns; ++j) active += fired[j];
    scratch.release_to(mark);
    return rows * columns == 0 ? 0 : static_cast<double>(active) / static_cast<double>(rows * columns);
}

// Adds the latent-major view by a counting sort.
template <class T>
void add_latent_view(cpu&, arena<>& scratch, codes_view<T>& z) {
    const std::size_t nnz = z.entries();
    auto* offsets = scratch.allocate<std::size_t>(z.latents + 2);
    auto* tokens = scratch.allocate<std::uint32_t>(nnz);
    auto* entries = scratch.allocate<std::uint32_t>(nnz);
    std::fill(offsets, offsets + z.latents + 2, std::size_t{0});
    for (std::size_t i = 0; i < nnz; ++i) ++offsets[z.latent[i] + 2];
    for (std::size_t f = 2; f < z.latents + 2; ++f) offsets[f] += offsets[f - 1];
    for (std::size_t t = 0; t < z.tokens; ++t)
        for (std::size_t i = z.offsets[t]; i < z.offsets[t + 1]; ++i) {
            const std::size_t place = offsets[z.latent[i] + 1]++;
            tokens[place] = static_cast<std::uint32_t>(t);
            entries[place] = static_cast<std::uint32_t>(i);
        }
    z.latent_offsets = offsets;
    z.token_by_latent = tokens;
    z.entry_by_latent = entries;
}

namespace detail {

// Codes of the pre-activations `pre` under an elementwise activation: entries where activation.active(h), with
// activation.value(h).
template <class T, class Pre, class Activation>
requires elementwise<Activation>
void select(cpu& device, arena<>& scratch, codes_view<T>& z, std::size_t tokens, Pre& pre,
            const encoded_latents& latent_of, const Activation& activation) {
    struct piece {
        std::size_t* starts;  // [tokens + 1]: where this chunk's entries of a token begin, with room up to the next
        std::uint32_t* counts;
        std::uint32_t* latent;
        T* value;
        piece* next;
    };
    piece *head = nullptr, **tail = &head;
    pre.each_chunk([&](auto chunk) {
        auto* p =
            new (scratch.allocate<piece>(1)) piece{scratch.allocate<std::size_t>(tokens + 1),
                                                   scratch.allocate<std::uint32_t>(tokens), nullptr, nullptr, nullptr};
        const auto wanted = [&](const auto& row) {
            return [&activation, row, first = chunk.first, &latent_of](std::size_t j) {
                return is_active(activation, row.high(j), latent_of[first + j]);
            };
        };
        const auto count = [&] {
            each_token(device, tokens, [&](std::size_t t) {
                const auto is_wanted = wanted(chunk(t));
                std::uint32_t number = 0;
#pragma omp simd reduction(+ : number)
                for (std::size_t j = 0; j < chunk.count; ++j) number += is_wanted(j);
                p->starts[t + 1] = number;
            });
            p->starts[0] = 0;
            for (std::size_t t = 0; t < tokens; ++t) p->starts[t + 1] += p->starts[t];
        };
        count();
        if constexpr (Pre::is_screened)
            if (!chunk.is_exact && computes_too_many(p->starts[tokens], tokens * chunk.count)) {
                pre.make_exact(chunk);
                count();
            }
        p->latent = scratch.allocate<std::uint32_t>(p->starts[tokens]);
        p->value = scratch.allocate<T>(p->starts[tokens]);
        each_token(device, tokens, [&](std::size_t t) {
            std::size_t place = p->starts[t];
            if (place != p->starts[t + 1]) {
                const auto row = chunk(t);
                each_hit(chunk.count, wanted(row), [&](std::size_t j) {
                    const std::uint32_t latent = latent_of[chunk.first + j];
                    const T h = pre.exactly(t, latent, row.low(j), row.high(j));
                    if (Pre::is_screened && !is_active(activation, h, latent)) return;
                    if (place == p->starts[t + 1]) return;  // whatever the compiler makes of the bounds in two loops
                    p->latent[place] = latent;
                    p->value[place++] = value_of(activation, h, latent);
                });
            }
            p->counts[t] = static_cast<std::uint32_t>(place - p->starts[t]);
        });
        *tail = p;
        tail = &p->next;
    });
    auto* offsets = scratch.allocate<std::size_t>(tokens + 1);
    std::fill(offsets, offsets + tokens + 1, std::size_t{0});
    for (const piece* p = head; p != nullptr; p = p->next)
        for (std::size_t t = 0; t < tokens; ++t) offsets[t + 1] += p->counts[t];
    for (std::size_t t = 0; t < tokens; ++t) offsets[t + 1] += offsets[t];
    auto* latent = scratch.allocate<std::uint32_t>(offsets[tokens]);
    auto* value = scratch.allocate<T>(offsets[tokens]);
    each_token(device, tokens, [&](std::size_t t) {
        std::size_t place = offsets[t];
        for (const piece* p = head; p != nullptr; p = p->next) {
            std::copy_n(p->latent + p->starts[t], p->counts[t], latent + place);
            std::copy_n(p->value + p->starts[t], p->counts[t], value + place);
            place += p->counts[t];
        }
    });
    z.offsets = offsets;
    z.latent = latent;
    z.value = value;
    z.room = offsets[tokens];
}

// A latent that may be kept: its pre-activation lies between low and high, which are the same where it is known.
template <class T>
struct candidate {
    T low, high;
    std::uint32_t latent;
};

// The order in which a top-k keeps candidates: by what their rank is at least, which is nothing for those that may not
// be active.
template <class T, class Activation>
struct candidate_ranking {
    static constexpr T unbounded = -std::numeric_limits<T>::infinity();
    const Activation& activation;

    PSAE_HOST_FN T rank(T h, std::uint32_t latent) const { return rank_of(activation, activation.value(h), latent); }
    bool is_surely_active(const candidate<T>& c) const { return is_active(activation, c.low, c.latent); }
    T sure_rank(const candidate<T>& c) const { return is_surely_active(c) ? rank(c.low, c.latent) : unbounded; }
    // Without the candidates first .. last that are not active, which are known exactly: the new end.
    template <class Candidate>
    Candidate* drop_inactive(Candidate* first, Candidate* last) const {
        return std::remove_if(first, last, [&](const candidate<T>& c) { return !is_surely_active(c); });
    }
};

// The same under a top-k activation: per token the k largest activation.value(h) (by activation.rank(value, latent)
// where it has one), ties to the lower latent; entries that activation.active refuses (values that a rectified top-k
// sets to zero) are left out.
template <class T, class Pre, class Activation>
requires selects_per_token<Activation>
void select(cpu& device, arena<>& scratch, codes_view<T>& z, std::size_t tokens, Pre& pre,
            const encoded_latents& latent_of, const Activation& activation) {
    using candidate = detail::candidate<T>;
    const candidate_ranking<T, Activation> ranking{activation};
    const auto by_sure_rank = [&](const candidate& a, const candidate& c) {
        const T ra = ranking.sure_rank(a), rc = ranking.sure_rank(c);
        return ra > rc || (ra == rc && a.latent < c.latent);
    };
    const std::size_t k = std::min(activation.k, latent_of.count), capacity = 2 * k + 64;
    auto* candidates = scratch.allocate<candidate>(tokens * capacity);
    auto* counts = scratch.allocate<std::size_t>(tokens);
    auto* bounds =
        scratch.allocate<T>(tokens);  // the k-th rank so far at least: nothing at or below it can still enter
    std::fill(counts, counts + tokens, std::size_t{0});
    std::fill(bounds, bounds + tokens, ranking.unbounded);
    std::atomic<std::size_t> computed = 0;
    const auto make_exact = [&](std::size_t t) {
        candidate* own = candidates + t * capacity;
        std::size_t here = 0;
        for (candidate* c = own; c != own + counts[t]; ++c) {
            here += c->low != c->high;
            c->low = c->high = pre.exactly(t, c->latent, c->low, c->high);
        }
        counts[t] = static_cast<std::size_t>(ranking.drop_inactive(own, own + counts[t]) - own);
        computed += here;
    };
    // Drops what cannot be among the k.
    const auto prune = [&](std::size_t t) {
        candidate* own = candidates + t * capacity;
        if (k == 0 || counts[t] < k) return;
        std::nth_element(own, own + (k - 1), own + counts[t], by_sure_rank);
        bounds[t] = ranking.sure_rank(own[k - 1]);
        counts[t] = k + static_cast<std::size_t>(std::remove_if(own + k, own + counts[t],
                                                                [&](const candidate& c) {
                                                                    return c.low == c.high ||
                                                                           ranking.rank(c.high, c.latent) < bounds[t];
                                                                }) -
                                                 (own + k));
    };
    if (k > 0)
        pre.each_chunk([&](const auto& chunk) {
            each_token(device, tokens, [&](std::size_t t) {
                const auto row = chunk(t);
                candidate* own = candidates + t * capacity;
                std::size_t have = counts[t];
                T bound = bounds[t];
                each_hit(
                    chunk.count,
                    [&, row](std::size_t j) {
                        const std::uint32_t latent = latent_of[chunk.first + j];
                        const T h = row.high(j);
                        return int{is_active(activation, h, latent)} & int{ranking.rank(h, latent) > bound};
                    },
                    [&](std::size_t j) {
                        own[have++] = {row.low(j), row.high(j), latent_of[chunk.first + j]};
                        if (have < capacity) return;
                        counts[t] = have;
                        prune(t);
                        if (counts[t] == capacity) {  // the bounds do not tell them apart
                            make_exact(t);
                            prune(t);
                        }
                        have = counts[t];
                        bound = bounds[t];
                    });
                counts[t] = have;
                if (have >= k && bound == ranking.unbounded) prune(t);
            });
            if constexpr (Pre::is_screened)
                if (computes_too_many(computed, tokens * latent_of.count)) pre.give_up();
        });
    each_token(device, tokens, [&](std::size_t t) {
        if constexpr (Pre::is_screened) {
            prune(t);
            make_exact(t);
        }
        prune(t);
        candidate* own = candidates + t * capacity;
        std::sort(own, own + counts[t], [](const candidate& a, const candidate& c) { return a.latent < c.latent; });
    });
    auto* offsets = scratch.allocate<std::size_t>(tokens + 1);
    offsets[0] = 0;
    for (std::size_t t = 0; t < tokens; ++t) offsets[t + 1] = offsets[t] + counts[t];
    auto* latent = scratch.allocate<std::uint32_t>(offsets[tokens]);
    auto* value = scratch.allocate<T>(offsets[tokens]);
    each_token(device, tokens, [&](std::size_t t) {
        const candidate* own = candidates + t * capacity;
        for (std::size_t i = 0; i < counts[t]; ++i) {
            latent[offsets[t] + i] = own[i].latent;
            value[offsets[t] + i] = activation.value(own[i].low);
        }
    });
    z.offsets = offsets;
    z.latent = latent;
    z.value = value;
    z.room = offsets[tokens];
}

// Numbers of 16 bits that rise with a floating-point number, and the least number that has one.
inline std::uint32_t rising_key(float rank) {
    const auto bits = std::bit_cast<std::uint32_t>(rank);
    return (bits ^ (bits >> 31 != 0 ? ~std::uint32_t{0} : std::uint32_t{1} << 31)) >> 16;
}
inline float least_of_key(std::uint32_t key) {
    const std::uint32_t bits = key << 16;
    return std::bit_cast<float>(bits ^ (bits >> 31 != 0 ? std::uint32_t{1} << 31 : ~std::uint32_t{0}));
}

// The same under a top-k of the whole batch: the entries with the largest ranks, activation.batch_entries(tokens) of
// them at most; of equal ones those of lower latents, then of earlier tokens. *least_rank = the least rank kept (0 if
// none was), unless null.
template <class T, class Pre, class Activation>
requires selects_per_batch<Activation>
void select(cpu& device, arena<>& scratch, codes_view<T>& z, std::size_t tokens, Pre& pre,
            const encoded_latents& latent_of, const Activation& activation, T* least_rank) {
    struct batch_candidate : candidate<T> {
        std::uint32_t token;
    };
    const candidate_ranking<T, Activation> ranking{activation};
    const auto by_sure_rank = [&](const batch_candidate& a, const batch_candidate& c) {
        const T ra = ranking.sure_rank(a), rc = ranking.sure_rank(c);
        if (ra != rc) return ra > rc;
        return a.latent != c.latent ? a.latent < c.latent : a.token < c.token;
    };
    const std::size_t chunk_room = tokens * encode_chunk(tokens, latent_of.count);
    const std::size_t wanted = std::min(activation.batch_entries(tokens), tokens * latent_of.count);
    const std::size_t most = wanted + wanted / 2;  // what may stay behind a chunk
    auto* candidates = scratch.allocate<batch_candidate>(most + chunk_room);
    auto* starts = scratch.allocate<std::size_t>(tokens + 1);
    std::size_t have = 0;
    T bound = ranking.unbounded;  // nothing at or below it can still come in

    constexpr std::size_t keys = std::size_t{1} << 16, block = std::size_t{1} << 16;
    auto* histograms = scratch.allocate<std::uint32_t>(keys * ((most + chunk_room) / block + 1));
    const auto each_block = [&](const auto& f) {  // f(block, first, end)
        device.parallel_for((have + block - 1) / block,
                            [&](std::size_t b) { f(b, b * block, std::min(have, (b + 1) * block)); });
    };
    const auto make_exact = [&] {
        std::atomic<std::size_t> computed = 0;
        each_block([&](std::size_t, std::size_t first, std::size_t end) {
            std::size_t here = 0;
            for (std::size_t i = first; i < end; ++i) {
                batch_candidate& c = candidates[i];
                here += c.low != c.high;
                c.low = c.high = pre.exactly(c.token, c.latent, c.low, c.high);
            }
            computed += here;
        });
        have = static_cast<std::size_t>(ranking.drop_inactive(candidates, candidates + have) - candidates);
        return computed.load();
    };
    // Drops most of what cannot be among those wanted: the bound is the foot of the histogram's bin they end in.
    const auto prune = [&] {
        if (have <= wanted) return;
        each_block([&](std::size_t b, std::size_t first, std::size_t end) {
            std::uint32_t* own = histograms + b * keys;
            std::fill_n(own, keys, std::uint32_t{0});
            for (std::size_t i = first; i < end; ++i)
                ++own[rising_key(static_cast<float>(ranking.sure_rank(candidates[i])))];
        });
        std::size_t above = 0, key = keys;
        while (above < wanted) {
            --key;
            for (std::size_t b = 0; b * block < have; ++b) above += histograms[b * keys + key];
        }
        T foot = static_cast<T>(least_of_key(static_cast<std::uint32_t>(key)));
        // A rank of double that was rounded up into its bin may stand below its foot.
        if constexpr (!std::is_same_v<T, float>) foot = std::nextafter(static_cast<float>(foot), -INFINITY);
        if (foot > bound) bound = foot;  // the bin of -infinity has none
        have = static_cast<std::size_t>(
            std::remove_if(candidates, candidates + have,
                           [&](const batch_candidate& c) { return ranking.rank(c.high, c.latent) < bound; }) -
            candidates);
    };
    const auto keep_exactly = [&] {
        if (have <= wanted) return;
        std::nth_element(candidates, candidates + (wanted - 1), candidates + have, by_sure_rank);
        have = wanted;
        bound = ranking.sure_rank(candidates[wanted - 1]);
    };
    std::size_t computed = 0;
    if (wanted > 0)
        pre.each_chunk([&](const auto& chunk) {
            const auto comes_in = [&](const auto& row) {
                return [&, row](std::size_t j) {
                    const std::uint32_t latent = latent_of[chunk.first + j];
                    const T h = row.high(j);
                    return int{is_active(activation, h, latent)} & int{ranking.rank(h, latent) > bound};
                };
            };
            each_token(device, tokens, [&](std::size_t t) {
                const auto is_in = comes_in(chunk(t));
                int number = 0;
#pragma omp simd reduction(+ : number)
                for (std::size_t j = 0; j < chunk.count; ++j) number += is_in(j);
                starts[t + 1] = static_cast<std::size_t>(number);
            });
            starts[0] = have;
            for (std::size_t t = 0; t < tokens; ++t) starts[t + 1] += starts[t];
            each_token(device, tokens, [&](std::size_t t) {
                const auto row = chunk(t);
                batch_candidate* own = candidates + starts[t];
                if (starts[t] != starts[t + 1])
                    each_hit(chunk.count, comes_in(row), [&](std::size_t j) {
                        if (own !=
                            candidates + starts[t + 1])  // whatever the compiler makes of the bounds in two loops
                            *own++ = {{row.low(j), row.high(j), latent_of[chunk.first + j]},
                                      static_cast<std::uint32_t>(t)};
                    });
            });
            have = starts[tokens];
            if (have > wanted + wanted / 4) prune();
            if (have > most) {  // the bounds, or the bins, do not tell them apart
                computed += make_exact();
                keep_exactly();
            }
            if constexpr (Pre::is_screened)
                if (computes_too_many(computed, tokens * latent_of.count)) pre.give_up();
        });
    prune();
    if constexpr (Pre::is_screened) make_exact();
    keep_exactly();

    auto* offsets = scratch.allocate<std::size_t>(tokens + 2);
    std::fill(offsets, offsets + tokens + 2, std::size_t{0});
    for (std::size_t i = 0; i < have; ++i) ++offsets[candidates[i].token + 2];
    for (std::size_t t = 2; t < tokens + 2; ++t) offsets[t] += offsets[t - 1];
    auto* by_token = scratch.allocate<batch_candidate>(have);
    T least = have > 0 ? std::numeric_limits<T>::infinity() : T(0);
    for (std::size_t i = 0; i < have; ++i) {
        by_token[offsets[candidates[i].token + 1]++] = candidates[i];
        least = std::min(least, ranking.rank(candidates[i].low, candidates[i].latent));
    }
    auto* latent = scratch.allocate<std::uint32_t>(have);
    auto* value = scratch.allocate<T>(have);
    each_token(device, tokens, [&](std::size_t t) {
        std::sort(by_token + offsets[t], by_token + offsets[t + 1],
                  [](const candidate<T>& a, const candidate<T>& c) { return a.latent < c.latent; });
        for (std::size_t i = offsets[t]; i < offsets[t + 1]; ++i) {
            latent[i] = by_token[i].latent;
            value[i] = activation.value(by_token[i].low);
        }
    });
    z.offsets = offsets;
    z.latent = latent;
    z.value = value;
    z.room = offsets[tokens];
    if (least_rank != nullptr) *least_rank = least;
}

}  // namespace detail

// What the pre-activations of so many tokens and latents are screened by, screening::never if they are not. Where it is
// left to the machine, not those of products so small that setting one up would show (some milliseconds of work), nor
// where so many latents are kept that computing them one by one would cost what the product does.
template <class Activation>
screening screened_by(const cpu& device, const Activation& activation, std::size_t tokens, std::size_t latents,
                      std::size_t d) {
    if (device.screening != screening::where_faster) return device.screening;
    std::size_t kept = 0;
    if constexpr (detail::selects_per_token<Activation>) kept = tokens * std::min(activation.k, latents);
    else if constexpr (detail::selects_per_batch<Activation>) kept = activation.batch_entries(tokens);
    if (double(tokens) * double(latents) * double(d) <= 1e8 || detail::computes_too_many(kept, tokens * latents))
        return screening::never;
    return multiplies_bf16_faster()    ? screening::by_bf16
           : multiplies_int16_faster() ? screening::by_int16
                                       : screening::never;
}

// Codes of x [tokens, d] under an activation, with W: [latents, d], b: [latents]; of the latents of a set alone unless
// `among` is null. Under a top-k of the whole batch *least_rank becomes the least rank kept (0 if none was), unless
// null. (Room is no question here: a plan for it is for other devices.)
template <class T, class Activation>
void encode(cpu& device, arena<>& scratch, codes_view<T>& z, const T* x, std::size_t tokens, std::size_t d, const T* W,
            const T* b, std::size_t latents, const Activation& activation, const latent_set* among,
            [[maybe_unused]] std::type_identity_t<T>* least_rank = nullptr, const selection_plan& = {}) {
    z = {};
    z.tokens = tokens;
    z.latents = latents;
    const detail::encoded_latents encoded(latents, among);
    const auto select = [&](auto&& pre) {
        if constexpr (detail::selects_per_batch<Activation>)
            detail::select(device, scratch, z, tokens, pre, encoded, activation, least_rank);
        else detail::select(device, scratch, z, tokens, pre, encoded, activation);
    };
    if constexpr (std::is_same_v<T, float> && detail::is_rising<Activation>()) {
        const auto select_by = [&](detail::screen&& by) {
            select(detail::screened_pre_activations(device, scratch, x, tokens, d, W, b, encoded, by));
        };
        const std::size_t chunk = detail::encode_chunk(tokens, encoded.count);
        switch (screened_by(device, activation, tokens, encoded.count, d)) {
            case screening::by_bf16:
                return select_by(detail::bf16_screen(device, scratch, tokens, d, chunk));
            case screening::by_int16:
                return select_by(detail::int16_screen(device, scratch, tokens, d, chunk));
            default:
                break;
        }
    }
    select(detail::exact_pre_activations<T>(device, scratch, x, tokens, d, W, b, encoded));
}

}  // namespace psae
