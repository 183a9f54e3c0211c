// SPDX-License-Identifier: MIT
#pragma once

// Context shift: a cache forgets its oldest tokens but the first, and the others take their places.
//
//   H = exact_sinks rounded up to whole blocks (0 without sinks), A = where the tail starts, n = tokens that go
//
//   before    [0, H)   [H, H + n)    [H + n, tokens)                    block_size divides n,  H + n <= A
//   after     [0, H)   forgotten     [H, tokens - n): p is p - n now
//
// Those before H stay, so that sinks stay sinks and blocks stay whole. What goes is what no query asks for exactly.
//
// Without a rope rows only move, whatever packs them, and bits stay what they are. That is for keys which have no
// position, and for engines that go on counting positions as if nothing had gone: a score depends on the distance of
// query and key alone, and distances stay true, though positions grow without end.
//
// With a rope (rope.hpp) keys that move are turned back by n positions, and no position exceeds max_tokens. Sinks stay
// at theirs: their distance to every later token shrinks by n. Values have no position.
//
//   raw         turned and rounded to their type: f32 about once, f16 and bf16 once more with every shift
//   summaries   turned as keys are: a mean of turned keys is the mean turned, and so is what any pooling makes that
//               turning commutes with
//   packed      refused, unless options.requantize: decode, turn, encode adds the error of the codec once more. Codes
//               are turned as codes even where the tail has their rows, so that chunks decide nothing

#include <butterfly/cache/append.hpp>
#include <butterfly/cache/compressed_kv_cache.hpp>
#include <butterfly/cache/mixed_kv_cache.hpp>
#include <butterfly/cache/rope.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>
#include <string>

namespace butterfly {

/// Options of one shift.
struct shift_options {
    butterfly::rope rope{};           // how keys got their positions; no frequencies: they are not turned
    bool requantize = false;          // turns packed keys too, which adds their codec's error once more
    std::span<std::byte> workspace{}; // scratch of shift_workspace_bytes(...); empty: one allocation at entry
};

namespace detail {

/// H: first tokens that a shift leaves where they are.
template <class Config>
[[nodiscard]] index_t staying(Config const& c) noexcept {
    return round_up(c.sinks(), c.block_size);
}

template <class Config>
[[nodiscard]] index_t droppable(Config const& c, cache_counters const& at) noexcept {
    return std::max<index_t>(at.tail_start() - staying(c), 0);
}

/// Throws where a cache cannot forget `count` tokens.
template <class Config>
void check_shift(Config const& c, cache_counters const& at, index_t count) {
    if (count > droppable(c, at))
        fail<capacity_error>("shift: " + std::to_string(count) + " tokens, the cache can drop " +
                             std::to_string(droppable(c, at)) + ": those from position " + std::to_string(staying(c)) +
                             " to where its tail starts, " + std::to_string(at.tail_start()));
    if (count < 0 || count % c.block_size != 0) {
        std::string const below = std::to_string(round_down(count, c.block_size));
        std::string const above = std::to_string(round_up(count, c.block_size));
        fail<shape_error>("shift: " + std::to_string(count) +
                          " tokens, must be 0 or more, and a multiple of block_size " + std::to_string(c.block_size) +
                          (count < 0 ? "" : ": " + below + " or " + above));
    }
}

/// Throws where a rope cannot turn keys of head_dim channels by `count` positions.
inline void check_rope(rope const& r, index_t head_dim, index_t count) {
    if (r.dims() > head_dim)
        fail<shape_error>("shift: rope has " + std::to_string(r.frequencies.size()) + " frequencies for " +
                          std::to_string(r.dims()) + " channels, keys have head_dim " + std::to_string(head_dim));
    for (std::size_t i = 0; i < r.frequencies.size(); ++i)
        if (!std::isfinite(r.frequencies[i] * static_cast<double>(count)))
            fail<shape_error>("shift: rope.frequencies[" + std::to_string(i) + "] is not finite, or not times " +
                              std::to_string(count) + " tokens");
}

/// Throws shape_error where keys of a pool cannot be turned.
template <quant::decoder Codec>
void check_turn(Codec const& codec, char const* pool, shift_options const& options) {
    constexpr bool is_raw = id_of<Codec> != codec_id::packed && id_of<Codec> != codec_id::foreign;
    if (is_raw || options.requantize) return;
    std::string name = "a codec without a name";
    if constexpr (quant::named<Codec>) name = codec.name();
    fail<shape_error>(std::string("shift: rope cannot turn ") + pool + ", which is kept as " + name +
                      ": its codes are of keys as they stood, and turning those means decoding and encoding them, "
                      "which adds the codec's error once more. options.requantize = true accepts that; without rope "
                      "rows only move");
}

template <cache_mix Mix, pooling Pooling>
void check_turns(compressed_kv_cache<Mix, Pooling> const& cache, shift_options const& options) {
    check_turn(tail_k_of(cache.mix()), "tail_k", options);
    check_turn(cache.mix().summary_k, "summary_k", options);
}

template <mixed_mix Mix>
void check_turns(mixed_kv_cache<Mix> const& cache, shift_options const& options) {
    check_turn(tail_k_of(cache.mix()), "tail_k", options);
    check_turn(cache.mix().middle_k, "middle_k", options);
}

/// Adds the part of a shift of `count` tokens that all caches have.
template <class Pools>
void add_tail(cache_shift& s, Pools const& p, cache_counters const& at, index_t count) noexcept {
    s.add(slot_move{.rows = p.tail_k, .first = at.tail_start(), .end = at.tokens(), .by = count, .turns = true});
    s.add(slot_move{.rows = p.tail_v, .first = at.tail_start(), .end = at.tokens(), .by = count});
}

/// Floats of a cache, one a slot, as a storage that moves.
[[nodiscard]] inline storage_ref weights(memory_ref data, index_t slots, index_t ring) noexcept {
    return {.data = data, .shape = {1, slots, 1}, .slot_stride = static_cast<index_t>(sizeof(float)), .ring = ring};
}

template <class Policy, cache_mix Mix, pooling Pooling>
[[nodiscard]] cache_shift
plan_shift(Policy const& policy, compressed_kv_cache<Mix, Pooling> const& cache, index_t count, rope const& turn) {
    cache_pools const p  = cache.pools(policy);
    index_t const bs     = cache.config().block_size;
    index_t const first  = staying(cache.config()) / bs + count / bs;
    index_t const blocks = cache.summaries();
    cache_shift s{.positions = count, .rope = turn};
    add_tail(s, p, cache.counters(), count);
    s.add(slot_move{.rows = p.summary_k, .first = first, .end = blocks, .by = count / bs, .turns = true});
    s.add(slot_move{.rows = p.summary_v, .first = first, .end = blocks, .by = count / bs});
    if (p.log_weights)
        s.add(slot_move{.rows = weights(p.log_weights, blocks, 0), .first = first, .end = blocks, .by = count / bs});
    if (p.token_weights)
        s.add(slot_move{.rows  = weights(p.token_weights, cache.tokens(), p.tail_k.ring),
                        .first = cache.tail_start(),
                        .end   = cache.tokens(),
                        .by    = count});
    return s;
}

template <class Policy, mixed_mix Mix>
[[nodiscard]] cache_shift
plan_shift(Policy const& policy, mixed_kv_cache<Mix> const& cache, index_t count, rope const& turn) {
    mixed_pools const p = cache.pools(policy);
    index_t const first = staying(cache.config()) + count;
    cache_shift s{.positions = count, .rope = turn};
    add_tail(s, p, cache.counters(), count);
    s.add(slot_move{.rows = p.middle_k, .first = first, .end = cache.packed(), .by = count, .turns = true});
    s.add(slot_move{.rows = p.middle_v, .first = first, .end = cache.packed(), .by = count});
    return s;
}

} // namespace detail

/// Tokens that shift can drop at most: a multiple of block_size.
template <kv_cache Cache>
[[nodiscard]] index_t droppable(Cache const& cache) noexcept {
    return detail::droppable(cache.config(), cache.counters());
}

/// Forgets the `count` oldest tokens after the sinks and their block; see the top of this file. Those after them have
/// positions less by `count` from then on, in attend, trim and rows of a topology. Dropping nothing changes nothing.
/// Throws shape_error where count is no multiple of block_size, the rope does not fit, or it would turn packed keys
/// without options.requantize; capacity_error where count > droppable(cache); backend_error without scratch memory.
/// Then the cache is as it was.
template <class Policy, kv_cache Cache>
void shift(Policy const& policy, Cache& cache, index_t count, shift_options const& options = {}) {
    detail::check_shift(cache.config(), cache.counters(), count);
    detail::check_rope(options.rope, cache.config().head_dim, count);
    if (!options.rope.frequencies.empty()) detail::check_turns(cache, options);
    cache_shift const s = detail::plan_shift(policy, cache, count, options.rope);
    if (count == 0) return;
    shift_cache(policy, s, options.workspace, [&]() noexcept { cache.commit_shift(count); });
}

/// Scratch bytes of any shift.
template <class Policy, kv_cache Cache>
[[nodiscard]] index_t shift_workspace_bytes(Policy const& policy, Cache const& cache) {
    return workspace_bytes(policy, detail::plan_shift(policy, cache, 0, {}));
}

} // namespace butterfly
