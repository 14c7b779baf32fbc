#pragma once
// Encode and select on the CPU. The pre-activations h = x W^T + b are made for one chunk of latents at a time, and what
// the activation keeps is compacted while the chunk is still in cache; no [tokens, latents] matrix is ever in memory.

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#include <psae/cpu/codes.hpp>
#include <psae/cpu/gemm.hpp>
#include <psae/stage/activation.hpp>

namespace psae {

namespace detail {

// Latents per chunk so that a tile [tokens, chunk] of floats takes about 4 MiB.
inline std::size_t encode_chunk(std::size_t tokens) {
    const std::size_t chunk = (std::size_t{1} << 20) / std::max<std::size_t>(tokens, 1) / 64 * 64;
    return std::clamp<std::size_t>(chunk, 128, 1024);
}

// Calls f(first, count, tile) for each chunk; tile: [tokens, count] pre-activations without the bias.
// With a set, only its latents are encoded, and first and count are positions in the set.
template <class T, class F>
void each_encode_chunk(cpu& device, arena<>& scratch, const T* x, std::size_t tokens, std::size_t d, const T* W,
                       std::size_t latents, const latent_set* among, const F& f) {
    const std::size_t total = among == nullptr ? latents : *among->count;
    const std::size_t chunk = encode_chunk(tokens);
    T* tile = scratch.allocate<T>(tokens * chunk);
    T* gathered = among == nullptr ? nullptr : scratch.allocate<T>(chunk * d);
    for (std::size_t first = 0; first < total; first += chunk) {
        const std::size_t count = std::min(chunk, total - first);
        const T* rows = W + first * d;
        if (among != nullptr) {
            for (std::size_t j = 0; j < count; ++j)
                std::copy_n(W + std::size_t{among->index[first + j]} * d, d, gathered + j * d);
            rows = gathered;
        }
        gemm(device, false, true, tokens, count, d, T(1), x, d, rows, d, T(0), tile, count);
        f(first, count, static_cast<const T*>(tile));
    }
}

// Calls hit(j) in ascending order for the j in [0, count) with wanted(j). Both passes over a block are without
// branches: most blocks hold no hit, and those that do would be mispredicted at every other entry.
template <class Wanted, class Hit>
PSAE_FN void each_hit(std::size_t count, const Wanted& wanted, const Hit& hit) {
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

// Above this share of active latents tiles are faster than entries: four GEMMs more against work in proportion to the
// entries. The crossover is flat; bench/sae_step.cpp measures it.
inline double dense_from_share(const cpu&) { return 1.0 / 24; }

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
    gemm(device, false, true, tokens, count, d, T(1), x, d, W, d, T(0), tile, count);
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
    for (std::size_t i = 0; i < rows; ++i) std::copy_n(x + i * tokens / rows * d, d, some_x + i * d);
    for (std::size_t j = 0; j < columns; ++j) {
        std::copy_n(W + j * latents / columns * d, d, some_W + j * d);
        some_b[j] = b[j * latents / columns];
    }
    encode_tile(device, scratch, tile, fired, static_cast<const T*>(some_x), rows, d, static_cast<const T*>(some_W),
                static_cast<const T*>(some_b), columns, activation,
                [=](std::size_t j) { return j * latents / columns; });
    std::size_t active = 0;
    for (std::size_t j = 0; j < columns; ++j) active += fired[j];
    scratch.release_to(mark);
    return rows * columns == 0 ? 0 : static_cast<double>(active) / static_cast<double>(rows * columns);
}

// Adds the latent-major view by a counting sort.
template <class T>
void add_latent_view(arena<>& scratch, codes_view<T>& z) {
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

// Codes of x [tokens, d] under an elementwise activation: entries where activation.active(h), with activation.value(h).
template <class T, class Activation>
requires detail::elementwise<Activation>
void encode(cpu& device, arena<>& scratch, codes_view<T>& z, const T* x, std::size_t tokens, std::size_t d, const T* W,
            const T* b, std::size_t latents, const Activation& activation, const latent_set* among) {
    struct piece {
        std::size_t* starts;  // [tokens + 1] of this chunk's entries
        std::uint32_t* latent;
        T* value;
        piece* next;
    };
    piece *head = nullptr, **tail = &head;
    T* bias = scratch.allocate<T>(detail::encode_chunk(tokens));
    detail::each_encode_chunk(
        device, scratch, x, tokens, d, W, latents, among, [&](std::size_t first, std::size_t count, const T* tile) {
            const auto latent_of = [&](std::size_t j) {
                return among == nullptr ? static_cast<std::uint32_t>(first + j) : among->index[first + j];
            };
            for (std::size_t j = 0; j < count; ++j) bias[j] = b[latent_of(j)];
            auto* p = new (scratch.allocate<piece>(1))
                piece{scratch.allocate<std::size_t>(tokens + 1), nullptr, nullptr, nullptr};
            detail::each_token(device, tokens, [&](std::size_t t) {
                const T* h = tile + t * count;
                std::size_t active = 0;
                for (std::size_t j = 0; j < count; ++j)
                    active += detail::is_active(activation, h[j] + bias[j], latent_of(j));
                p->starts[t + 1] = active;
            });
            p->starts[0] = 0;
            for (std::size_t t = 0; t < tokens; ++t) p->starts[t + 1] += p->starts[t];
            p->latent = scratch.allocate<std::uint32_t>(p->starts[tokens]);
            p->value = scratch.allocate<T>(p->starts[tokens]);
            detail::each_token(device, tokens, [&](std::size_t t) {
                const T* h = tile + t * count;
                std::size_t place = p->starts[t];
                if (place == p->starts[t + 1]) return;
                detail::each_hit(
                    count, [&](std::size_t j) { return detail::is_active(activation, h[j] + bias[j], latent_of(j)); },
                    [&](std::size_t j) {
                        p->latent[place] = latent_of(j);
                        p->value[place++] = detail::value_of(activation, h[j] + bias[j], latent_of(j));
                    });
            });
            *tail = p;
            tail = &p->next;
        });
    auto* offsets = scratch.allocate<std::size_t>(tokens + 1);
    std::fill(offsets, offsets + tokens + 1, std::size_t{0});
    for (const piece* p = head; p != nullptr; p = p->next)
        for (std::size_t t = 0; t < tokens; ++t) offsets[t + 1] += p->starts[t + 1] - p->starts[t];
    for (std::size_t t = 0; t < tokens; ++t) offsets[t + 1] += offsets[t];
    auto* latent = scratch.allocate<std::uint32_t>(offsets[tokens]);
    auto* value = scratch.allocate<T>(offsets[tokens]);
    detail::each_token(device, tokens, [&](std::size_t t) {
        std::size_t place = offsets[t];
        for (const piece* p = head; p != nullptr; p = p->next) {
            const std::size_t count = p->starts[t + 1] - p->starts[t];
            std::copy_n(p->latent + p->starts[t], count, latent + place);
            std::copy_n(p->value + p->starts[t], count, value + place);
            place += count;
        }
    });
    z.tokens = tokens;
    z.latents = latents;
    z.offsets = offsets;
    z.latent = latent;
    z.value = value;
}

// Codes of x under a top-k activation: per token the k largest activation.value(h) (by activation.rank(value, latent)
// where it has one), ties to the lower latent; entries that activation.active refuses (values that a rectified top-k
// sets to zero) are left out.
template <class T, class Activation>
requires detail::selects_per_token<Activation>
void encode(cpu& device, arena<>& scratch, codes_view<T>& z, const T* x, std::size_t tokens, std::size_t d, const T* W,
            const T* b, std::size_t latents, const Activation& activation, const latent_set* among) {
    struct candidate {
        T value;
        std::uint32_t latent;
    };
    const auto before = [&](const candidate& a, const candidate& c) {
        const T ra = detail::rank_of(activation, a.value, a.latent),
                rc = detail::rank_of(activation, c.value, c.latent);
        return ra > rc || (ra == rc && a.latent < c.latent);
    };
    const std::size_t k = std::min(activation.k, among == nullptr ? latents : *among->count);
    const std::size_t capacity = 2 * k + 64;
    auto* candidates = scratch.allocate<candidate>(tokens * capacity);
    auto* counts = scratch.allocate<std::size_t>(tokens);
    auto* bounds = scratch.allocate<T>(tokens);  // the k-th rank so far: nothing at or below it can still enter
    constexpr T unbounded = -std::numeric_limits<T>::infinity();
    std::fill(counts, counts + tokens, std::size_t{0});
    std::fill(bounds, bounds + tokens, unbounded);
    const auto prune = [&](std::size_t t) {
        candidate* own = candidates + t * capacity;
        if (counts[t] > k) std::nth_element(own, own + k, own + counts[t], before);
        if (counts[t] >= k && k > 0) {
            counts[t] = k;
            const candidate& last = *std::max_element(own, own + k, before);
            bounds[t] = detail::rank_of(activation, last.value, last.latent);
        }
    };
    T* bias = scratch.allocate<T>(detail::encode_chunk(tokens));
    if (k > 0)
        detail::each_encode_chunk(
            device, scratch, x, tokens, d, W, latents, among, [&](std::size_t first, std::size_t count, const T* tile) {
                const auto latent_of = [&](std::size_t j) {
                    return among == nullptr ? static_cast<std::uint32_t>(first + j) : among->index[first + j];
                };
                for (std::size_t j = 0; j < count; ++j) bias[j] = b[latent_of(j)];
                detail::each_token(device, tokens, [&](std::size_t t) {
                    const T* h = tile + t * count;
                    candidate* own = candidates + t * capacity;
                    std::size_t have = counts[t];
                    T bound = bounds[t];
                    detail::each_hit(
                        count,
                        [&](std::size_t j) {
                            const T pre = h[j] + bias[j];
                            return int{detail::is_active(activation, pre, latent_of(j))} &
                                   int{detail::rank_of(activation, activation.value(pre), latent_of(j)) > bound};
                        },
                        [&](std::size_t j) {
                            own[have++] = {activation.value(h[j] + bias[j]), latent_of(j)};
                            if (have < capacity) return;
                            counts[t] = have;
                            prune(t);
                            have = counts[t];
                            bound = bounds[t];
                        });
                    counts[t] = have;
                    if (have >= k && bound == unbounded) prune(t);
                });
            });
    detail::each_token(device, tokens, prune);
    auto* offsets = scratch.allocate<std::size_t>(tokens + 1);
    offsets[0] = 0;
    for (std::size_t t = 0; t < tokens; ++t) offsets[t + 1] = offsets[t] + counts[t];
    auto* latent = scratch.allocate<std::uint32_t>(offsets[tokens]);
    auto* value = scratch.allocate<T>(offsets[tokens]);
    detail::each_token(device, tokens, [&](std::size_t t) {
        candidate* own = candidates + t * capacity;
        std::sort(own, own + counts[t], [](const candidate& a, const candidate& c) { return a.latent < c.latent; });
        for (std::size_t i = 0; i < counts[t]; ++i) {
            latent[offsets[t] + i] = own[i].latent;
            value[offsets[t] + i] = own[i].value;
        }
    });
    z.tokens = tokens;
    z.latents = latents;
    z.offsets = offsets;
    z.latent = latent;
    z.value = value;
}

// Codes of x under a top-k of the whole batch: the entries with the largest ranks, activation.batch_entries(tokens) of
// them at most; of equal ones those of lower latents, then of earlier tokens. Returns the least rank kept (0 if none
// was).
template <class T, class Activation>
requires detail::selects_per_batch<Activation> T encode(cpu& device, arena<>& scratch, codes_view<T>& z, const T* x,
                                                        std::size_t tokens, std::size_t d, const T* W, const T* b,
                                                        std::size_t latents, const Activation& activation,
                                                        const latent_set* among) {
    struct candidate {
        T rank, value;
        std::uint32_t latent, token;
    };
    const auto before = [](const candidate& a, const candidate& c) {
        if (a.rank != c.rank) return a.rank > c.rank;
        return a.latent != c.latent ? a.latent < c.latent : a.token < c.token;
    };
    const std::size_t columns = among == nullptr ? latents : *among->count, chunk = detail::encode_chunk(tokens);
    const std::size_t wanted = std::min(activation.batch_entries(tokens), tokens * columns);
    // The candidates are cut down to those wanted when there are half as many again, so a chunk finds this much room.
    auto* candidates = scratch.allocate<candidate>(wanted + wanted / 2 + tokens * std::min(chunk, columns));
    auto* starts = scratch.allocate<std::size_t>(tokens + 1);
    T* bias = scratch.allocate<T>(chunk);
    std::size_t have = 0;
    T bound = -std::numeric_limits<T>::infinity();  // nothing at or below it can still come in
    const auto prune = [&] {
        if (have <= wanted) return;
        std::nth_element(candidates, candidates + wanted - 1, candidates + have, before);
        have = wanted;
        bound = candidates[wanted - 1].rank;
    };
    if (wanted > 0)
        detail::each_encode_chunk(
            device, scratch, x, tokens, d, W, latents, among, [&](std::size_t first, std::size_t count, const T* tile) {
                const auto latent_of = [&](std::size_t j) {
                    return among == nullptr ? static_cast<std::uint32_t>(first + j) : among->index[first + j];
                };
                for (std::size_t j = 0; j < count; ++j) bias[j] = b[latent_of(j)];
                const auto comes_in = [&](std::size_t t, std::size_t j) {
                    const T h = tile[t * count + j] + bias[j];
                    return int{detail::is_active(activation, h, latent_of(j))} &
                           int{detail::rank_of(activation, activation.value(h), latent_of(j)) > bound};
                };
                detail::each_token(device, tokens, [&](std::size_t t) {
                    int number = 0;
#pragma omp simd reduction(+ : number)
                    for (std::size_t j = 0; j < count; ++j) number += comes_in(t, j);
                    starts[t + 1] = static_cast<std::size_t>(number);
                });
                starts[0] = have;
                for (std::size_t t = 0; t < tokens; ++t) starts[t + 1] += starts[t];
                detail::each_token(device, tokens, [&](std::size_t t) {
                    candidate* own = candidates + starts[t];
                    detail::each_hit(
                        count, [&](std::size_t j) { return comes_in(t, j); },
                        [&](std::size_t j) {
                            const T value = activation.value(tile[t * count + j] + bias[j]);
                            *own++ = {detail::rank_of(activation, value, latent_of(j)), value, latent_of(j),
                                      static_cast<std::uint32_t>(t)};
                        });
                });
                have = starts[tokens];
                if (have > wanted + wanted / 2) prune();
            });
    prune();

    auto* offsets = scratch.allocate<std::size_t>(tokens + 2);
    std::fill(offsets, offsets + tokens + 2, std::size_t{0});
    for (std::size_t i = 0; i < have; ++i) ++offsets[candidates[i].token + 2];
    for (std::size_t t = 2; t < tokens + 2; ++t) offsets[t] += offsets[t - 1];
    auto* by_token = scratch.allocate<candidate>(have);
    T least = have > 0 ? candidates[0].rank : T(0);
    for (std::size_t i = 0; i < have; ++i) {
        by_token[offsets[candidates[i].token + 1]++] = candidates[i];
        least = std::min(least, candidates[i].rank);
    }
    auto* latent = scratch.allocate<std::uint32_t>(have);
    auto* value = scratch.allocate<T>(have);
    detail::each_token(device, tokens, [&](std::size_t t) {
        std::sort(by_token + offsets[t], by_token + offsets[t + 1],
                  [](const candidate& a, const candidate& c) { return a.latent < c.latent; });
        for (std::size_t i = offsets[t]; i < offsets[t + 1]; ++i) {
            latent[i] = by_token[i].latent;
            value[i] = by_token[i].value;
        }
    });
    z.tokens = tokens;
    z.latents = latents;
    z.offsets = offsets;
    z.latent = latent;
    z.value = value;
    return least;
}

}  // namespace psae
