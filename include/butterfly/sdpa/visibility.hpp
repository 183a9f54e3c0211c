// SPDX-License-Identifier: MIT
#pragma once

// Which keys of a pool a query row may see.
//
//   interval           the latest keys up to the query, or the first ones before them     (dense, exact window, sinks)
//   routed_blocks      all tokens of the blocks a topology row names                      (raw block-sparse)
//   routed_summaries   the summaries a topology row names, of blocks older than the window (compressed)
//   graph_rows         the neighbours an explicit graph lists, in graph_rows.hpp           (any graph)
//
// A visibility walks key tiles for host kernels (`next`) and says what it is as plain data for devices (`describe`).
// A walk depends on the rows' positions alone, never on threads, chunks or batch. With p the position of a query,
// W = window, bs = block_size:
//
//   lower(p) = W == 0 ? 0 : max(0, p - W + 1), rounded down to a multiple of `align`

#include <butterfly/sdpa/problem.hpp>
#include <butterfly/topology/row_source.hpp>

#include <algorithm>
#include <concepts>

namespace butterfly {

/// A visibility: five questions, all noexcept, none of them changes it.
///
///   next(problem, pool, rows, span, cursor, tile)   the next tile with a visible key in the span; false: no more
///   extent(problem, pool, rows)                     a span outside of which `next` finds nothing
///   row_alignment()                                 no row tile may straddle a multiple of it (in positions)
///   row_heads()                                     1, or the number of heads that have rows of their own
///   describe()                                      itself as plain data
///
/// One that honours `key_positions` says so with a static constexpr bool takes_positions = true; for others they are
/// refused. One whose rows may have too few keys in common to be worked on together has one more:
///
///   shares(problem, pool, rows)                     whether they have enough; the same for all rows of an aligned tile
template <class V>
concept visibility =
    requires(V const& v, problem const& p, index_t pool, row_tile const& r, key_span s, tile_cursor& c, key_tile& t) {
    { v.next(p, pool, r, s, c, t) }
    noexcept->std::same_as<bool>;
    { v.extent(p, pool, r) }
    noexcept->std::same_as<key_span>;
    { v.row_alignment() }
    noexcept->std::same_as<index_t>;
    { v.row_heads() }
    noexcept->std::same_as<index_t>;
    { v.describe() }
    noexcept->std::same_as<visibility_description>;
};

namespace detail {

/// Whether a visibility says that it honours `key_positions`.
template <class V>
[[nodiscard]] constexpr bool takes_positions_of() noexcept {
    if constexpr (requires { V::takes_positions; }) return V::takes_positions;
    return false;
}

/// The function that asks a visibility whether rows share keys; null where they always do.
template <class V>
[[nodiscard]] constexpr auto shares_of() noexcept {
    using function = bool (*)(void const*, problem const&, index_t, row_tile const&) noexcept;
    if constexpr (requires(V const& v, problem const& p, row_tile const& r) { v.shares(p, index_t{}, r); })
        return function([](void const* s, problem const& p, index_t pool, row_tile const& r) noexcept {
            return static_cast<V const*>(s)->shares(p, pool, r);
        });
    else
        return function(nullptr);
}

} // namespace detail

/// Erases the type of a visibility, which must outlive the reference.
template <visibility V>
[[nodiscard]] visibility_ref erase(V const& v) noexcept {
    return {.state = &v,
            .next  = [](void const* s, problem const& p, index_t pool, row_tile const& r, key_span span, tile_cursor& c,
                       key_tile& t) noexcept { return static_cast<V const*>(s)->next(p, pool, r, span, c, t); },
            .extent          = [](void const* s, problem const& p, index_t pool,
                         row_tile const& r) noexcept { return static_cast<V const*>(s)->extent(p, pool, r); },
            .shares          = detail::shares_of<V>(),
            .row_alignment   = v.row_alignment(),
            .row_heads       = v.row_heads(),
            .takes_positions = detail::takes_positions_of<V>(),
            .description     = v.describe()};
}

namespace detail {

/// Position of a query token of the call.
[[nodiscard]] inline index_t position_of(problem const& p, index_t token) noexcept {
    auto const* const given = host_pointer<std::int32_t const>(p.options.q_positions);
    return given != nullptr ? given[token] : p.options.q_position + token;
}

/// The routing block of rows that share one; -1 where all of them stand before position 0, in no block.
[[nodiscard]] inline index_t block_of(problem const& p, row_tile const& r, index_t block_size) noexcept {
    for (int i = 0; i < r.tokens; ++i)
        if (index_t const at = position_of(p, r.first + i); at >= 0) return at / block_size;
    return -1;
}

/// Bits [first, end) of a word, clipped to [0, 64).
[[nodiscard]] constexpr std::uint64_t bit_range(index_t first, index_t end) noexcept {
    first = std::max<index_t>(first, 0);
    end   = std::min<index_t>(end, tile_slots);
    if (first >= end) return 0;
    std::uint64_t const upto = end == tile_slots ? ~std::uint64_t{0} : (std::uint64_t{1} << end) - 1;
    return upto & ~((std::uint64_t{1} << first) - 1);
}

/// max(0, p - window + 1) rounded down to a multiple of `align`; 0 without a window.
[[nodiscard]] BUTTERFLY_HOST_DEVICE constexpr index_t lower_bound(index_t p, index_t window, index_t align) noexcept {
    index_t const lo = window == 0 || p < window ? 0 : p - window + 1;
    return lo - lo % align;
}

} // namespace detail

namespace visible {

/// Keys in [lower(p), p] (causal) or [lower(p), end of the pool), or, with before = S > 0, keys in [after, min(S,
/// lower(p))): the first S tokens but the first `after` of them, once the interval has left them. Honours
/// `key_positions`.
struct interval {
    static constexpr bool takes_positions = true;

    index_t window = 0; // 0: no lower bound
    index_t align  = 1;
    index_t before = 0;
    index_t after  = 0;

    /// The positions a query at position p sees, within [0, end).
    [[nodiscard]] BUTTERFLY_HOST_DEVICE constexpr key_span range(index_t p, index_t end, bool causal) const noexcept {
        index_t const lo = detail::lower_bound(p, window, align);
        if (before > 0) {
            index_t const least = lo < before ? lo : before;
            index_t const hi    = least < end ? least : end;
            return {after < hi ? after : hi, hi};
        }
        index_t const hi = causal && p + 1 < end ? p + 1 : end;
        return {lo < hi ? lo : hi, hi};
    }

    bool next(problem const& p, index_t pool, row_tile const& rows, key_span span, tile_cursor& cursor, key_tile& tile)
        const noexcept {
        bool const placed = static_cast<bool>(p.pools[pool].key_positions);
        bounds const b    = bounds_of(p, pool, rows);
        index_t const end = std::min(span.end, b.last_end);
        while (true) {
            index_t const from = std::max({cursor.next, span.first, b.first_begin});
            if (from >= end) return false;
            tile        = {};
            tile.first  = detail::round_down(from, tile_slots);
            tile.count  = static_cast<int>(std::min<index_t>(tile_slots, end - tile.first));
            cursor.next = tile.first + tile_slots;
            if (!placed && b.last_begin <= tile.first && b.first_end >= tile.first + tile.count) return true;

            std::uint64_t any = 0;
            for (int i = 0; i < rows.tokens; ++i) {
                cursor.bits[i] =
                    placed ? bits_by_position(p, pool, rows.first + i, tile) : bits(p, pool, rows.first + i, tile);
                any |= cursor.bits[i];
            }
            tile.bits = cursor.bits;
            if (any != 0) return true;
        }
    }

    [[nodiscard]] key_span extent(problem const& p, index_t pool, row_tile const& rows) const noexcept {
        bounds const b = bounds_of(p, pool, rows);
        return {b.first_begin, b.last_end};
    }

    [[nodiscard]] index_t row_alignment() const noexcept { return no_alignment; }
    [[nodiscard]] index_t row_heads() const noexcept { return 1; }
    [[nodiscard]] BUTTERFLY_HOST_DEVICE visibility_description describe() const noexcept {
        return {.kind = visibility_kind::interval, .window = window, .align = align, .before = before, .after = after};
    }

private:
    /// Extremes of the rows' ranges.
    struct bounds {
        index_t first_begin, last_begin, first_end, last_end;
    };

    bounds bounds_of(problem const& p, index_t pool, row_tile const& rows) const noexcept {
        index_t const slots = p.pools[pool].slots;
        if (p.pools[pool].key_positions) return {0, slots, 0, slots};
        index_t low  = detail::position_of(p, rows.first);
        index_t high = low;
        if (!p.options.q_positions) {
            high = low + rows.tokens - 1;
        } else {
            for (int i = 1; i < rows.tokens; ++i) {
                index_t const at = detail::position_of(p, rows.first + i);
                low              = std::min(low, at);
                high             = std::max(high, at);
            }
        }
        key_span const a = range(low, slots, p.options.causal); // both ends grow with the position
        key_span const z = range(high, slots, p.options.causal);
        return {a.first, z.first, a.end, z.end};
    }

    std::uint64_t bits(problem const& p, index_t pool, index_t token, key_tile const& tile) const noexcept {
        key_span const seen = range(detail::position_of(p, token), p.pools[pool].slots, p.options.causal);
        return detail::bit_range(seen.first - tile.first, std::min(seen.end, tile.first + tile.count) - tile.first);
    }

    std::uint64_t bits_by_position(problem const& p, index_t pool, index_t token, key_tile const& tile) const noexcept {
        auto const* const at = host_pointer<std::int32_t const>(p.pools[pool].key_positions);
        key_span const seen  = range(detail::position_of(p, token), no_alignment, p.options.causal);
        std::uint64_t result = 0;
        for (int j = 0; j < tile.count; ++j) {
            std::int32_t const where = at[tile.first + j];
            if (where >= 0 && where >= seen.first && where < seen.end) result |= std::uint64_t{1} << j;
        }
        return result;
    }
};

/// Every key up to the query: the dense baseline.
[[nodiscard]] constexpr interval causal_prefix() noexcept {
    return {};
}

/// At least the latest `tokens` keys, the query's own included; with align > 1 back to the start of the block the
/// oldest of them stands in.
[[nodiscard]] constexpr interval exact_window(index_t tokens, index_t align = 1) noexcept {
    return {.window = tokens, .align = align};
}

/// All tokens j <= p (causal) of the blocks that the row of block floor(p / block_size) names; none where `rows` have
/// no such block. Takes no `key_positions`.
struct routed_blocks {
    topology::row_source rows;
    index_t block_size = 128;

    bool next(problem const& p, index_t pool, row_tile const& r, key_span span, tile_cursor& cursor, key_tile& tile)
        const noexcept {
        index_t const slots = p.pools[pool].slots;
        index_t const end   = std::min({span.end, slots, last_end(p, r, slots)});
        index_t const block = detail::block_of(p, r, block_size);
        if (block < 0 || block >= rows.shape.nodes) return false;
        while (true) {
            index_t const from = std::max(cursor.next, span.first);
            if (from >= end) return false;
            index_t const node = next_node(block, r, cursor, from / block_size, detail::ceil_div(end, block_size));
            if (node < 0) return false;

            // Tiles of a block start at its first token, clipped to the span: blocks straddle spans.
            index_t const start  = node * block_size;
            index_t const within = std::max(from, start) - start;
            index_t const anchor = start + detail::round_down(within, tile_slots);
            tile                 = {};
            tile.first           = std::max(anchor, span.first);
            index_t const stop   = std::min({anchor + tile_slots, start + block_size, end});
            if (tile.first >= stop) return false;
            tile.count  = static_cast<int>(stop - tile.first);
            cursor.next = tile.first + tile.count;
            tile.after  = tile.first;
            if (stop < std::min(start + block_size, end))
                tile.after = stop;
            else if (stop < end && cursor.list_index + 1 < cursor.list_count)
                tile.after = cursor.list[cursor.list_index + 1] * block_size;
            index_t const lowest = first_end(p, r, slots);
            if (lowest >= stop) return true;

            std::uint64_t any = 0;
            for (int i = 0; i < r.tokens; ++i) {
                cursor.bits[i] = detail::bit_range(0, std::min(end_of(p, r.first + i, slots), stop) - tile.first);
                any |= cursor.bits[i];
            }
            tile.bits = cursor.bits;
            if (any != 0) return true;
        }
    }

    [[nodiscard]] key_span extent(problem const& p, index_t pool, row_tile const& r) const noexcept {
        return {0, last_end(p, r, p.pools[pool].slots)};
    }

    [[nodiscard]] index_t row_alignment() const noexcept { return block_size; }
    [[nodiscard]] index_t row_heads() const noexcept { return rows.shape.heads; }
    [[nodiscard]] BUTTERFLY_HOST_DEVICE visibility_description describe() const noexcept {
        return {.kind = visibility_kind::routed_blocks, .block_size = block_size, .rows = &rows};
    }

private:
    /// No key of this slot or a later one is seen by a token; a token before position 0 sees none.
    index_t end_of(problem const& p, index_t token, index_t slots) const noexcept {
        index_t const at = detail::position_of(p, token);
        if (at < 0) return 0;
        return p.options.causal ? std::min(at + 1, slots) : slots;
    }

    index_t last_end(problem const& p, row_tile const& r, index_t slots) const noexcept {
        index_t last = 0;
        for (int i = 0; i < r.tokens; ++i) last = std::max(last, end_of(p, r.first + i, slots));
        return last;
    }

    index_t first_end(problem const& p, row_tile const& r, index_t slots) const noexcept {
        index_t first = slots;
        for (int i = 0; i < r.tokens; ++i) first = std::min(first, end_of(p, r.first + i, slots));
        return first;
    }

    /// Smallest node >= from of the rows' block; -1: none. Reads the row a list at a time.
    index_t next_node(index_t block, row_tile const& r, tile_cursor& c, index_t from, index_t limit) const noexcept {
        limit = std::min(limit, rows.shape.nodes);
        while (true) {
            while (c.list_index < c.list_count && c.list[c.list_index] < from) ++c.list_index;
            if (c.list_index < c.list_count) return c.list[c.list_index];
            if (c.list_done || from >= limit) return -1;
            c.list_count = rows({.head = r.head, .node = block}, from, limit, c.list, tile_slots);
            c.list_index = 0;
            c.list_done  = c.list_count < tile_slots;
        }
    }
};

/// Slots are summaries of blocks. A query at position p sees the summaries n that the row of block floor(p /
/// block_size) names, first_slot <= n < floor(lower(p) / block_size): blocks wholly before its exact window; none where
/// `rows` have no such block. Takes no `key_positions`.
struct routed_summaries {
    topology::row_source rows;
    index_t block_size = 128;
    index_t window     = 0; // exact_window of the cache
    index_t first_slot = 0;

    /// Summaries before this slot are old enough for a query at position p.
    [[nodiscard]] BUTTERFLY_HOST_DEVICE constexpr index_t eligible(index_t p) const noexcept {
        return detail::lower_bound(p, window, 1) / block_size;
    }

    bool next(problem const& p, index_t pool, row_tile const& r, key_span span, tile_cursor& cursor, key_tile& tile)
        const noexcept {
        index_t const limit = std::min({span.end, p.pools[pool].slots, rows.shape.nodes, last_eligible(p, r)});
        index_t const from  = std::max({cursor.next, span.first, first_slot});
        if (cursor.list_done || from >= limit) return false;
        index_t const block = detail::block_of(p, r, block_size);
        if (block < 0 || block >= rows.shape.nodes) return false;

        tile             = {};
        tile.count       = rows({.head = r.head, .node = block}, from, limit, cursor.slots, tile_slots);
        tile.slots       = cursor.slots;
        cursor.list_done = tile.count < tile_slots;
        if (tile.count == 0) return false;
        cursor.next = cursor.slots[tile.count - 1] + 1;

        bool full = true;
        for (int i = 0; i < r.tokens; ++i) {
            index_t const seen = eligible(detail::position_of(p, r.first + i));
            int count          = tile.count;
            while (count > 0 && cursor.slots[count - 1] >= seen) --count;
            cursor.bits[i] = detail::bit_range(0, count);
            full &= count == tile.count;
        }
        if (!full) tile.bits = cursor.bits;
        return true;
    }

    [[nodiscard]] key_span extent(problem const& p, index_t pool, row_tile const& r) const noexcept {
        return {first_slot, std::min(last_eligible(p, r), p.pools[pool].slots)};
    }

    [[nodiscard]] index_t row_alignment() const noexcept { return block_size; }
    [[nodiscard]] index_t row_heads() const noexcept { return rows.shape.heads; }
    [[nodiscard]] BUTTERFLY_HOST_DEVICE visibility_description describe() const noexcept {
        return {.kind       = visibility_kind::routed_summaries,
                .window     = window,
                .block_size = block_size,
                .first_slot = first_slot,
                .rows       = &rows};
    }

private:
    index_t last_eligible(problem const& p, row_tile const& r) const noexcept {
        index_t last = 0;
        for (int i = 0; i < r.tokens; ++i) last = std::max(last, eligible(detail::position_of(p, r.first + i)));
        return last;
    }
};

} // namespace visible

static_assert(visibility<visible::interval> && visibility<visible::routed_blocks> &&
              visibility<visible::routed_summaries>);

} // namespace butterfly
