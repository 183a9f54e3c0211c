// SPDX-License-Identifier: MIT
#pragma once

// One part of a cache's memory and which of its slots mean something: what a saver stores and a loader fills.
//
//   memory   [heads, capacity, row_bytes]     slot s stands in row s, or s mod capacity where the part is a ring

#include <butterfly/cache/counters.hpp>
#include <butterfly/cache/mix.hpp>
#include <butterfly/core/memory.hpp>

#include <algorithm>
#include <string>

namespace butterfly {

/// A part of a cache. Rows of a codec that packs tiles are whole tiles.
struct cache_part {
    char const* name = ""; // of the codec's place in the mix: "tail_k", or "mean_k", "log_weights", ...
    std::string codec{};   // its name, with seeds and parameters; empty: it has none
    memory_ref memory{};   // slot 0 of head 0
    index_t heads     = 1;
    index_t capacity  = 0; // slots of a head there is room for
    bool ring         = false;
    index_t row_bytes = 0;      // of a slot
    index_t first = 0, end = 0; // slots that mean something

    /// Slots of a head that mean something.
    [[nodiscard]] index_t slots() const noexcept { return end - first; }

    /// Bytes that mean something.
    [[nodiscard]] index_t bytes() const noexcept { return heads * slots() * row_bytes; }

    /// Calls f(memory_ref, bytes) for each run of memory that means something: head by head, slots ascending.
    /// Slots that mean something fit: counters without a misfit say so.
    template <class F>
    void for_each_run(F const& f) const {
        BUTTERFLY_ASSERT(slots() <= capacity);
        for (index_t head = 0; head < heads; ++head)
            for (index_t slot = first; slot < end;) {
                index_t const row   = ring ? slot % capacity : slot;
                index_t const count = std::min(end - slot, capacity - row);
                f(memory_ref(memory.base, memory.offset + (head * capacity + row) * row_bytes), count * row_bytes);
                slot += count;
            }
    }
};

namespace detail {

/// A part like another, with rows of `dim` values of a codec.
template <class Codec>
[[nodiscard]] cache_part
part_of(cache_part like, char const* name, Codec const& codec, memory_ref memory, index_t dim) {
    like.name = name;
    if constexpr (quant::named<Codec>) like.codec = codec.name();
    like.memory    = memory;
    like.row_bytes = codec.row_bytes(dim);
    return like;
}

/// Calls part(cache_part, name, codec, offset, dim) for sinks and tail, which every cache has, at these counters.
template <exact_mix Mix, class Config, class Layout, class Part>
void each_exact_part(
    Mix const& mix, Config const& c, Layout const& layout, counter_values const& at, Part const& part) {
    index_t const dk = c.head_dim, dv = c.value_dim();
    cache_part const sinks{.heads = c.kv_heads, .capacity = c.sinks(), .end = std::min(c.sinks(), at.tokens)};
    part(sinks, "sink_k", sink_k_of(mix), layout.sink_k, dk);
    part(sinks, "sink_v", sink_v_of(mix), layout.sink_v, dv);
    cache_part const tail{
        .heads = c.kv_heads, .capacity = layout.ring, .ring = true, .first = at.tail_start, .end = at.tokens};
    part(tail, "tail_k", tail_k_of(mix), layout.tail_k, dk);
    part(tail, "tail_v", tail_v_of(mix), layout.tail_v, dv);
}

} // namespace detail
} // namespace butterfly
