// SPDX-License-Identifier: MIT
#pragma once

// How a problem is cut into items, and what the two kernel classes share: the rows of an item, and its key tiles.
//
// Stream class: few rows (decode, some tokens of speculation). Memory binds: keys are read in place.
//
// Tile class: more rows (prefill). Arithmetic binds: keys and values are packed once for all rows of an item. Rows that
// have too few keys in common go through the stream class one by one.
//
// Calls of few tokens have few items, and perhaps many threads: in either class they walk keys in spans of span_slots
// slots, each from an empty state, that may run on different threads.
//
// The class and every boundary that a bit depends on follow from the call's shape and positions. Threads decide only
// how many rows share an item of the tile class.

#include <butterfly/backend/host/logits.hpp>
#include <butterfly/backend/host/rows.hpp>
#include <butterfly/backend/simd/fma_unit.hpp>
#include <butterfly/backend/simd/raw_codec.hpp>
#include <butterfly/backend/simd/tile_part.hpp>
#include <butterfly/sdpa/softmax_state.hpp>

#include <algorithm>
#include <bit>
#include <numeric>

namespace butterfly::backend::vec {
inline namespace BUTTERFLY_ISA_NAMESPACE {

/// Most rows of an item of the stream class.
inline constexpr int stream_rows = 128;

/// Most tokens of a call of decode or speculation, which walks keys in spans whatever its rows. (Explicit graphs do
/// not: their spans do not count slots.)
inline constexpr index_t few_tokens = 8;

/// Whether calls of so many tokens are of the stream class: 16 rows, or few tokens with stream_rows rows. Tiles
/// multiply 17 rows and more faster where keys are in a cache.
[[nodiscard]] constexpr bool are_few(index_t tokens, index_t group) noexcept {
    return tokens * group <= 16 || (tokens <= few_tokens && tokens * group <= stream_rows);
}

/// Slots of one span: partial results of spans are combined in slot order.
inline constexpr index_t span_slots = 4096;

/// Most spans that an item of a call of few tokens sees of a pool, wherever its queries stand.
[[nodiscard]] inline index_t most_spans(problem const& p, pool_ref const& pool) noexcept {
    visibility_description const& sees = pool.visibility.description;
    auto const held                    = [&](index_t slots) { return std::min(slots, pool.slots); };
    index_t most                       = detail::ceil_div(pool.slots, span_slots);
    if (pool.keys.ring != 0) most = std::min(most, detail::ceil_div(pool.keys.ring, span_slots) + 1);
    if (sees.kind != visibility_kind::interval || pool.key_positions) return most;
    if (sees.before > 0) return std::min(most, detail::ceil_div(held(sees.before), span_slots));
    if (sees.window == 0 || !p.options.causal || p.options.q_positions) return most;
    index_t const seen = held(sees.window) + held(sees.align) + p.tokens();
    return std::min(most, detail::ceil_div(seen, span_slots) + 1); // they need not begin at a span
}

/// Most spans of all pools.
[[nodiscard]] inline index_t most_spans(problem const& p) noexcept {
    index_t count = 0;
    for (int k = 0; k < p.pool_count; ++k) count += most_spans(p, p.pools[k]);
    return count;
}

/// Whether some pool may show more than two spans: enough for threads to share.
[[nodiscard]] inline bool are_spans_many(problem const& p) noexcept {
    return std::any_of(p.pools, p.pools + p.pool_count, [&](pool_ref const& pool) { return most_spans(p, pool) > 2; });
}

/// Bytes that the spans of a problem of the tile class may leave: with more, threads share rows alone.
inline constexpr index_t most_part_bytes = 256 << 20;

/// Items for each thread that a call should have before they grow: enough to deal them evenly.
inline constexpr index_t enough_items = 8;

/// Spans of items for each thread that a call of few tokens should have, likewise.
inline constexpr index_t enough_units = 4;

[[nodiscard]] inline simd_codec_ops const& ops_of(storage_ref const& s) noexcept {
    return *static_cast<simd_codec_ops const*>(s.ops);
}

/// The unit of the tile class: the one all keys and values of a problem are kept for, else f32. A problem whose
/// storages were not bound takes f32.
template <class Isa>
[[nodiscard]] tile_unit const& unit_of(problem const& p) noexcept {
    auto const unit              = [](storage_ref const& s) { return s.ops != nullptr ? ops_of(s).tile : nullptr; };
    tile_unit const* const first = unit(p.pools[0].keys);
    for (int i = 0; i < p.pool_count; ++i)
        if (unit(p.pools[i].keys) != first || unit(p.pools[i].values) != first) return fma_unit<Isa>;
    return first != nullptr ? *first : fma_unit<Isa>;
}

/// Whether a unit reads the rows of a storage as they are: words of its own kind that nothing is added to.
[[nodiscard]] inline bool is_of_unit(tile_unit const& unit, storage_ref const& s) noexcept {
    return !s.mean && s.codec == (unit.pairs == 1 ? codec_id::raw_f32 : codec_id::raw_bf16);
}

/// Whether some rows of a problem are decoded and rounded to what its unit packs.
[[nodiscard]] inline bool has_rounded_rows(problem const& p, tile_unit const& unit) noexcept {
    if (unit.pairs == 1) return false; // decoded to where they are packed
    for (int i = 0; i < p.pool_count; ++i)
        if (!is_of_unit(unit, p.pools[i].keys) || !is_of_unit(unit, p.pools[i].values)) return true;
    return false;
}

/// Rows an item of the tile class aims at: whole strips, as many as a unit likes where that leaves enough items, and
/// 128 or 144 at least. How rows are grouped changes no bit.
[[nodiscard]] inline int item_rows(tile_unit const& unit, index_t all_rows, int threads) noexcept {
    int rows = unit.rows;
    while (rows % (2 * unit.strip) == 0 && rows > 192 && all_rows < rows * enough_items * threads) rows /= 2;
    return rows;
}

/// How one problem is cut into row tiles and head chunks.
struct cut {
    bool stream;        // kernel class
    bool spanned;       // keys are walked in spans
    bool by_spans;      // threads may share the spans of an item
    int chunk;          // query heads of an item, all of one kv head
    int tokens;         // most query tokens of an item
    index_t alignment;  // no item straddles a multiple of it, in positions
    index_t chunks;     // head chunks
    index_t tiles;      // row tiles
    index_t per_block;  // of aligned tiles: tiles of a block
    index_t first_tile; // of aligned tiles: number of the first one, counted from position 0
    index_t call;       // tokens that the call has

    [[nodiscard]] index_t items() const noexcept { return chunks * tiles; }

    /// Most tokens of an item of this call: tiles are as large in a short one, so that their borders do not move.
    [[nodiscard]] int item_tokens() const noexcept {
        return static_cast<int>(std::clamp<index_t>(call, 1, std::max(tokens, 1)));
    }

    /// Most rows of what goes through the stream class: an item, or a token of one.
    [[nodiscard]] int streamed() const noexcept {
        return stream ? item_tokens() * chunk : std::min(chunk, stream_rows);
    }
};

/// The rows of one item. Row r is query token first + r / heads, query head head + r % heads.
struct item {
    index_t first;
    int tokens;
    index_t head;
    int heads;
    index_t kv_head;

    [[nodiscard]] int rows() const noexcept { return tokens * heads; }
};

/// Positions of an aligned cut: tiles are counted from position 0, so that they do not move with the call. Those of a
/// block are of one size, but that all are whole strips but the last, where they may be.
inline void cut_aligned(problem const& p, cut& c, int strip) noexcept {
    index_t const from  = std::max<index_t>(p.options.q_position, 0);
    index_t const most  = std::min<index_t>(c.tokens, c.alignment);
    index_t const equal = detail::ceil_div(c.alignment, detail::ceil_div(c.alignment, most));
    index_t const whole = detail::round_up(equal, index_t{strip / std::gcd(strip, c.chunk)});
    c.tokens            = static_cast<int>(whole <= most ? whole : equal);
    c.per_block         = detail::ceil_div(c.alignment, c.tokens);
    auto const tile_of  = [&](index_t position) {
        return position / c.alignment * c.per_block + position % c.alignment / c.tokens;
    };
    c.first_tile = tile_of(from);
    c.tiles      = p.tokens() == 0 ? 0 : tile_of(from + p.tokens() - 1) - c.first_tile + 1;
}

/// Cuts into items of up to `rows` rows, which a kernel takes in strips.
inline void cut_rows(problem const& p, cut& c, index_t group, bool strewn, int rows, int strip) noexcept {
    c.chunk  = static_cast<int>(std::min<index_t>(group, rows));
    c.tokens = std::clamp(rows / c.chunk, 1, tile_tokens);
    c.chunks = p.heads() / group * detail::ceil_div(group, c.chunk);
    if (c.alignment != no_alignment && !strewn) return cut_aligned(p, c, strip);
    if (strewn) c.tokens = 1;
    c.tiles = detail::ceil_div(p.tokens(), c.tokens);
}

/// Most items of a problem wherever its queries stand.
[[nodiscard]] inline index_t most_items(problem const& p, cut const& c) noexcept {
    if (c.per_block == 0) return c.items();
    index_t const steps = std::max<index_t>(p.tokens() - 1, 0);
    return c.chunks *
           std::min(p.tokens(), detail::ceil_div(steps, c.tokens) + 1 + detail::ceil_div(steps, c.alignment));
}

/// Cuts a call of few tokens, `most` of them at once, whose spans threads may share. All rows of a kv head are one
/// item, so that they read each key once; where they are more than the unit takes, or spans too few for the threads,
/// they are equal parts, none smaller than unit.rows.
inline void cut_spanned_rows(
    problem const& p, cut& c, index_t group, bool strewn, index_t most, tile_unit const& unit, int threads) noexcept {
    index_t const all    = most * group;
    index_t const spans  = p.heads() / group * most_spans(p);
    index_t const enough = threads > 1 ? enough_units * threads : 1;
    index_t parts        = detail::ceil_div(all, index_t{unit.most});
    while (spans * parts < enough && all > parts * unit.rows) ++parts;
    index_t const rows = detail::round_up(detail::ceil_div(all, parts), index_t{unit.strip});
    index_t const room = parts == 1 ? tile_tokens * group : std::max<index_t>(rows, unit.rows); // one: no borders
    cut_rows(p, c, group, strewn, static_cast<int>(room), unit.strip);
}

/// Most rows of an item of the tile class, by whatever threads a call is shared.
[[nodiscard]] inline index_t most_rows(problem const& p, cut const& c, tile_unit const& unit) noexcept {
    return c.spanned ? std::max<index_t>(unit.rows, std::min<index_t>(unit.most, p.tokens() * p.group())) : unit.rows;
}

/// `threads`: what will share the items; `may_share_spans`: whether it may share the spans of one. Of them only the
/// rows of an item of the tile class depend.
template <class Isa>
[[nodiscard]] cut cut_problem(problem const& p, int threads = 1, bool may_share_spans = true) noexcept {
    cut c{};
    c.alignment     = no_alignment;
    bool rows_apart = false; // each query head has rows of its own
    bool one_by_one = false; // rows may be walked one by one
    for (int i = 0; i < p.pool_count; ++i) {
        visibility_ref const& v = p.pools[i].visibility;
        if (v.row_alignment != no_alignment)
            c.alignment = c.alignment == no_alignment ? v.row_alignment : std::gcd(c.alignment, v.row_alignment);
        rows_apart |= v.row_heads > p.kv_heads;
        one_by_one |= v.shares != nullptr;
    }
    index_t const group = rows_apart ? 1 : p.group();
    bool const strewn   = c.alignment != no_alignment && p.options.q_positions; // no two rows are known to be aligned
    index_t const most  = strewn ? 1 : std::min(p.tokens(), c.alignment);
    c.call              = p.tokens();
    c.stream            = are_few(most, group) || (most == 1 && one_by_one);
    c.spanned           = c.stream || (most <= few_tokens && !one_by_one);
    c.by_spans          = c.spanned && may_share_spans && are_spans_many(p);
    if (c.stream) {
        cut_rows(p, c, group, strewn, stream_rows, 1);
        return c;
    }
    tile_unit const& unit = unit_of<Isa>(p);
    if (c.by_spans) {
        cut_spanned_rows(p, c, group, strewn, most, unit, threads);
        index_t const part = tile_part::bytes(unit, c.item_tokens() * c.chunk, p.out.shape.head_dim);
        c.by_spans         = most_items(p, c) * most_spans(p) * part <= most_part_bytes;
    }
    if (!c.by_spans) cut_rows(p, c, group, strewn, item_rows(unit, p.heads() * p.tokens(), threads), unit.strip);
    return c;
}

/// Item `index` of a problem, the latest rows first: they have most keys.
[[nodiscard]] inline item item_at(problem const& p, cut const& c, index_t index) noexcept {
    index_t const tile = c.tiles - 1 - index / c.chunks;
    index_t const part = index % c.chunks;
    index_t const per  = detail::ceil_div(p.group(), c.chunk); // chunks of a kv head
    item i{};
    i.kv_head           = part / per;
    index_t const inner = part % per * c.chunk;
    i.head              = i.kv_head * p.group() + inner;
    i.heads             = static_cast<int>(std::min<index_t>(c.chunk, p.group() - inner));
    index_t begin       = tile * c.tokens; // tokens of the call
    index_t end         = begin + c.tokens;
    if (c.per_block != 0) {
        index_t const from  = std::max<index_t>(p.options.q_position, 0);
        index_t const at    = c.first_tile + tile;
        index_t const block = at / c.per_block * c.alignment;
        index_t const first = block + at % c.per_block * c.tokens;
        begin               = std::max<index_t>(first - from, 0);
        end                 = std::min(first + c.tokens, block + c.alignment) - from;
    }
    i.first  = begin;
    i.tokens = static_cast<int>(std::min(end, p.tokens()) - begin);
    return i;
}

/// The rows an item asks a pool's visibility for.
[[nodiscard]] inline row_tile
rows_of(problem const& p, pool_ref const& pool, item const& i, bool together = false) noexcept {
    return {.first = i.first, .tokens = i.tokens, .head = host::row_head(p, pool, i.head), .together = together};
}

/// Whether the rows of an item see enough of the same keys to be worked on together.
[[nodiscard]] inline bool rows_share(problem const& p, item const& i) noexcept {
    for (int k = 0; k < p.pool_count; ++k) {
        visibility_ref const& v = p.pools[k].visibility;
        if (v.shares != nullptr && !v.shares(v.state, p, k, rows_of(p, p.pools[k], i))) return false;
    }
    return true;
}

/// What an item may see of a pool, in slots or list offsets.
[[nodiscard]] inline key_span extent_of(problem const& p, pool_ref const& pool, int number, item const& i) noexcept {
    return pool.visibility.extent(pool.visibility.state, p, number, rows_of(p, pool, i));
}

/// The spans that an extent touches, in units of span_slots.
[[nodiscard]] inline key_span spans_of(key_span const& extent) noexcept {
    if (extent.first >= extent.end) return {0, 0};
    return {extent.first / span_slots, detail::ceil_div(extent.end, span_slots)};
}

/// The spans a pool has for an item.
[[nodiscard]] inline key_span spans_of(problem const& p, int pool, item const& i) noexcept {
    return spans_of(extent_of(p, p.pools[pool], pool, i));
}

/// Attention of an item by all pools and spans in order, in this thread. `part`: memory for what a span leaves.
template <class Attention>
void run_spans(problem const& p, item const& i, Attention& attention, std::byte* part) noexcept {
    attention.clear_total();
    for (int k = 0; k < p.pool_count; ++k) {
        key_span const all = spans_of(p, k, i);
        for (index_t s = all.first; s < all.end; ++s) {
            attention.run_span(k, s, part);
            attention.fold(part);
        }
    }
    attention.finish();
}

/// Bytes of a row to fetch: rows of other heads may stand between those of one.
[[nodiscard]] inline index_t row_bytes(storage_ref const& s, index_t head_dim) noexcept {
    return std::min(std::abs(s.slot_stride), head_dim * (s.codec == codec_id::raw_f32 ? 4 : 2));
}

/// Addresses of the rows of a key tile in one storage.
inline void gather_rows(storage_ref const& s, index_t kv_head, key_tile const& tile, std::byte const** rows) noexcept {
    if (tile.slots != nullptr || !host::is_run(s)) {
        for (int j = 0; j < tile.count; ++j) rows[j] = host::row_address(s, kv_head, tile.slot(j));
        return;
    }
    std::byte const* const base = host::row_address(s, kv_head, 0);
    index_t at                  = s.ring != 0 ? tile.first % s.ring : tile.first;
    if (s.ring == 0 || at + tile.count <= s.ring) {
        for (int j = 0; j < tile.count; ++j) rows[j] = base + (at + j) * s.slot_stride;
        return;
    }
    for (int j = 0; j < tile.count; ++j) {
        rows[j] = base + at * s.slot_stride;
        if (++at == s.ring) at = 0;
    }
}

/// The mask of one (query head, query token) over a tile, times its head's slope: [tile.count].
template <class Isa>
void load_mask(problem const& p, index_t head, index_t token, key_tile const& tile, float* out) noexcept {
    additive_mask const& mask = p.options.mask;
    auto const* const slopes  = host_pointer<float const>(mask.slopes);
    if (tile.slots != nullptr) {
        for (int j = 0; j < tile.count; ++j) out[j] = host::mask_at(p, head, token, tile.slot(j));
        return;
    }
    index_t const at = (mask.heads == 1 ? 0 : head * mask.head_stride) + token * mask.token_stride + tile.first;
    auto const copy  = [&](auto const* row) {
        int j = 0;
        for (; j + lanes<Isa> <= tile.count; j += lanes<Isa>) load_as<Isa>(row + j).store_unaligned(out + j);
        for (; j < tile.count; ++j) out[j] = static_cast<float>(row[j]);
    };
    if (mask.type == element_type::f32)
        copy(host_pointer<float const>(mask.data) + at);
    else
        copy(host_pointer<float16 const>(mask.data) + at);
    if (slopes == nullptr) return;
    for (int j = 0; j < tile.count; ++j) out[j] = std::isinf(out[j]) ? out[j] : slopes[head] * out[j]; // as mask_at
}

/// Every bit that some row of the item sees.
[[nodiscard]] inline std::uint64_t visible_keys(key_tile const& tile, int tokens) noexcept {
    if (tile.bits == nullptr) return detail::bit_range(0, tile.count);
    std::uint64_t any = 0;
    for (int i = 0; i < tokens; ++i) any |= tile.bits[i];
    return any;
}

/// Keys that a log-weight of -inf hides from every row: what they hold is never felt.
[[nodiscard]] inline std::uint64_t weightless_keys(pool_ref const& pool, key_tile const& tile) noexcept {
    std::uint64_t none = 0;
    if (!pool.log_weights && tile.bias == nullptr) return none;
    for (int j = 0; j < tile.count; ++j)
        if (host::key_bias(pool, tile, j) == minus_infinity) none |= std::uint64_t{1} << j;
    return none;
}

/// Whether logits of this problem need more than scale and per-key bias.
[[nodiscard]] inline bool has_row_bias(problem const& p) noexcept {
    return static_cast<bool>(p.options.alibi_slopes) || static_cast<bool>(p.options.mask.data);
}

/// Whether a bias over the scale is a number, as are sums with it, whatever the scale of a problem that is not
/// adjusted.
[[nodiscard]] inline bool is_small_bias(float bias) noexcept {
    return bias == minus_infinity || std::abs(bias) <= 1e15F;
}

/// Whether logits are more than scaled products and small biases of edges.
[[nodiscard]] inline bool is_adjusted(problem const& p) noexcept {
    bool const range = p.options.scale > 1e-20F && p.options.scale < 1e20F;
    bool adjusted    = p.options.soft_cap > 0.0F || has_row_bias(p) || !range ||
                    !std::ranges::all_of(p.options.edge_bias, is_small_bias);
    for (int k = 0; k < p.pool_count; ++k) {
        bool const any = p.pools[k].visibility.description.kind == visibility_kind::custom; // may bias keys as it likes
        adjusted |= any || static_cast<bool>(p.pools[k].log_weights);
    }
    return adjusted;
}

} // namespace BUTTERFLY_ISA_NAMESPACE
} // namespace butterfly::backend::vec
