// SPDX-License-Identifier: MIT
#pragma once

// Sizes of a mixed-precision cache, and where its pools stand in one piece of memory.
//
//   | sinks k | sinks v | tail k | tail v | middle k | middle v | means k | means v |
//
//   sinks     [kv_heads, sinks]              of the tail's codecs, unless the mix has others
//   tail      [kv_heads, ring]               position p stands in row p mod ring
//   middle    [kv_heads, blocks * bs]        position p stands in slot p
//   means     float [kv_heads, head_dim]     where keys or values are centred
//
// Every part starts at a multiple of 64 bytes, and of the tokens that a codec of the middle packs together. No query
// needs codes of more than c(max_tokens - 1) blocks.

#include <butterfly/cache/mix.hpp>
#include <butterfly/cache/pools.hpp>

namespace butterfly {

/// Sizes of a mixed-precision cache. With W = exact_window and bs = block_size a query sees its own and at least W - 1
/// tokens before it exactly, back to the start of a block.
struct mixed_cache_config {
    index_t kv_heads       = 0;
    index_t head_dim       = 0;
    index_t value_head_dim = 0;   // 0: head_dim
    index_t block_size     = 64;  // tokens that become packed together; a multiple of a codec's tile
    index_t exact_window   = 128; // at least this many latest tokens are exact, the query's own included
    index_t exact_sinks    = 4;   // first tokens that stay exact
    index_t centre_keys    = 0;   // packed keys are less the mean of this many first keys of their head
    index_t centre_values  = 0;   // the same of values; 0: they are packed as they are
    index_t max_tokens     = 0;
    index_t max_append     = 512; // tokens of one append
    index_t max_rollback   = 0;   // tokens that trim may take back beyond the last append

    [[nodiscard]] index_t value_dim() const noexcept { return value_head_dim == 0 ? head_dim : value_head_dim; }
    [[nodiscard]] index_t sinks() const noexcept { return exact_sinks; }
};

namespace detail {

/// The cache that counts as this one does: blocks are whole, and packed when they have left the window of all queries.
[[nodiscard]] inline cache_config counted_as(mixed_cache_config const& c) noexcept {
    return {.kv_heads       = c.kv_heads,
            .head_dim       = c.head_dim,
            .value_head_dim = c.value_head_dim,
            .block_size     = c.block_size,
            .exact_window   = c.exact_window,
            .exact_sinks    = c.exact_sinks,
            .max_tokens     = c.max_tokens,
            .max_append     = c.max_append,
            .max_rollback   = c.max_rollback,
            .rules          = {.whole_blocks = true, .counted = false, .sinks = true, .late = true}};
}

/// Throws shape_error unless a mean of the first `tokens` tokens can be taken whenever block 0 is packed.
inline void check_centre(mixed_cache_config const& c, index_t tokens, char const* name) {
    check_cache_size(tokens, 0, name);
    if (tokens > c.exact_window + c.block_size - 1)
        fail<shape_error>(
            std::string("cache: ") + name + " is " + std::to_string(tokens) +
            ", more than exact_window + block_size - 1 = " + std::to_string(c.exact_window + c.block_size - 1) +
            ", the tokens there are when the first block is packed");
}

/// Throws shape_error where a block does not consist of whole tiles of a codec.
template <quant::decoder Codec>
void check_block(Codec const&, mixed_cache_config const& c, char const* name) {
    constexpr index_t tile = quant::tile_tokens_of<Codec>();
    if (c.block_size % tile != 0)
        fail<shape_error>("cache: block_size " + std::to_string(c.block_size) + " is not a multiple of the " +
                          std::to_string(tile) + " tokens that " + name + " packs together");
}

/// Throws shape_error naming what makes no sense.
template <mixed_mix Mix>
void check_config(mixed_cache_config const& c, Mix const& mix) {
    check_config(counted_as(c));
    check_centre(c, c.centre_keys, "centre_keys");
    check_centre(c, c.centre_values, "centre_values");
    check_block(mix.middle_k, c, "middle_k");
    check_block(mix.middle_v, c, "middle_v");
    check_exact_dims(mix, c.head_dim, c.value_dim());
    check_dim(mix.middle_k, c.head_dim);
    check_dim(mix.middle_v, c.value_dim());
}

/// What the address of every part is a multiple of.
template <mixed_mix Mix>
[[nodiscard]] constexpr index_t alignment_of() noexcept {
    using key_codec   = std::remove_cvref_t<decltype(std::declval<Mix const&>().middle_k)>;
    using value_codec = std::remove_cvref_t<decltype(std::declval<Mix const&>().middle_v)>;
    return std::max({cache_alignment, quant::tile_tokens_of<key_codec>(), quant::tile_tokens_of<value_codec>()});
}

/// Offsets in bytes of the parts of a cache, and how many slots they have.
struct mixed_layout {
    index_t ring   = 0;
    index_t middle = 0;
    index_t sink_k = 0, sink_v = 0, tail_k = 0, tail_v = 0, middle_k = 0, middle_v = 0, mean_k = 0, mean_v = 0;
    index_t bytes = 0;
};

/// Throws shape_error where a size makes no sense or the memory overflows index_t.
template <mixed_mix Mix>
[[nodiscard]] mixed_layout layout_of(mixed_cache_config const& c, Mix const& mix) {
    check_config(c, mix);
    index_t const dk = c.head_dim, dv = c.value_dim();
    mixed_layout at{.ring   = ring_of(counted_as(c)),
                    .middle = round_down(std::max<index_t>(c.max_tokens - c.exact_window, 0), c.block_size)};
    constexpr auto size = static_cast<index_t>(sizeof(float));
    cache_parts parts(alignment_of<Mix>());
    at.sink_k   = parts.place(c.kv_heads, c.exact_sinks, sink_k_of(mix).row_bytes(dk));
    at.sink_v   = parts.place(c.kv_heads, c.exact_sinks, sink_v_of(mix).row_bytes(dv));
    at.tail_k   = parts.place(c.kv_heads, at.ring, tail_k_of(mix).row_bytes(dk));
    at.tail_v   = parts.place(c.kv_heads, at.ring, tail_v_of(mix).row_bytes(dv));
    at.middle_k = parts.place(c.kv_heads, at.middle, mix.middle_k.row_bytes(dk));
    at.middle_v = parts.place(c.kv_heads, at.middle, mix.middle_v.row_bytes(dv));
    at.mean_k   = parts.place(c.centre_keys > 0 ? c.kv_heads : 0, dk, size);
    at.mean_v   = parts.place(c.centre_values > 0 ? c.kv_heads : 0, dv, size);
    at.bytes    = parts.bytes();
    return at;
}

} // namespace detail
} // namespace butterfly
