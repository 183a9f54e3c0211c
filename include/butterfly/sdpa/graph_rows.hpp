// SPDX-License-Identifier: MIT
#pragma once

// The visibility of an explicit graph: a query sees the neighbours that the row of its node lists.
//
// Rows are walked in one of two ways, as the kernel asks:
//
//   apart      the lists of the tokens one after another, each in its own order, cut into tiles of keys from its start
//   together   the union of the lists of an aligned block of nodes, ascending: neighbours that many rows share are read
//              once, consecutive ones where they stand (a run), scattered ones gathered. Which keys stand in a tile
//              depends on the block's lists alone, so no bit depends on which of its rows are asked for
//
// `shares` says where the second is worth it: hidden products are as dear as visible ones.

#include <butterfly/graph/abi.hpp>
#include <butterfly/sdpa/visibility.hpp>

#include <algorithm>
#include <array>
#include <bit>

namespace butterfly::visible {

/// The neighbours that the row of node p of an explicit graph lists, those > p left out where causal; none where the
/// graph has no node p. Edge types pick `edge_bias`. All keys belong to span 0: cursors do not count slots. Takes no
/// `key_positions`.
struct graph_rows {
    graph_view graph;

    bool next(problem const& p, index_t pool, row_tile const& r, key_span, tile_cursor& cursor, key_tile& tile)
        const noexcept {
        // The rows of a block follow each other; those with positions of their own need not.
        bool const together = r.together && !p.options.q_positions;
        return together ? next_together(p, pool, r, cursor, tile) : next_apart(p, pool, r, cursor, tile);
    }

    /// Whether the rows of the block list few enough different nodes, near enough to each other, to be walked together.
    /// Asks a quarter of the rows, at triangular numbers: no stride goes along with these. Costs are nanoseconds of one
    /// core of Zen 5, of which only ratios matter: a product of a row and a key by tiles, an edge row by row, an entry
    /// of a list that is looked at. Pads do not count, since they must not change a bit.
    [[nodiscard]] bool shares(problem const& p, index_t pool, row_tile const& r) const noexcept {
        constexpr index_t width = 32768; // nodes that are looked at at once
        constexpr int asked     = mark_rows / 4;
        std::array<std::uint64_t, width / 64> listed;
        block b       = block_of(p, pool, r);
        index_t edges = 0, keys = 0, scans = 1, rows = 0;
        if (b.causal) b.slots = no_alignment; // the answer must not change as a sequence grows
        for (index_t first = 0; first < std::min(b.last_end(), graph.nodes()); first += width) {
            listed.fill(0);
            rows = 0;
            for (int i = 0; i < asked; ++i)
                if (int const row = i * (i + 1) / 2 % mark_rows; row < b.rows) {
                    edges += collect(b.list(*this, row), first, std::min(b.end(row), first + width), listed.data());
                    ++rows;
                }
            for (std::size_t w = 0; w < listed.size(); w += mark_words) {
                index_t const before = keys;
                for (std::size_t i = w; i < w + mark_words; ++i) keys += std::popcount(listed[i]);
                scans += keys != before ? 1 : 0;
            }
        }
        auto const of         = [](index_t n) { return static_cast<double>(n); };
        double const channels = of(p.q.shape.head_dim * (graph.heads() > p.kv_heads ? 1 : p.group()));
        double const together = of(keys * rows) * 0.022 * channels + 2.0 * of(scans * edges);
        return together <= of(edges) * (15.0 + 0.05 * channels);
    }

    [[nodiscard]] key_span extent(problem const&, index_t, row_tile const&) const noexcept { return {0, 1}; }
    [[nodiscard]] index_t row_alignment() const noexcept { return mark_rows; }
    [[nodiscard]] index_t row_heads() const noexcept { return graph.heads(); }
    [[nodiscard]] BUTTERFLY_HOST_DEVICE visibility_description describe() const noexcept {
        return {.kind = visibility_kind::graph, .rows = &graph};
    }

private:
    /// The nodes of the aligned block that a row tile is of, those the graph has.
    struct block {
        index_t row;   // list of the first one
        index_t node;  // the first one
        int rows;      // nodes
        index_t slots; // of the pool
        bool causal;

        /// Nodes that row i sees are before it.
        [[nodiscard]] index_t end(int i) const noexcept { return causal ? std::min(node + i + 1, slots) : slots; }
        [[nodiscard]] index_t last_end() const noexcept { return rows == 0 ? 0 : end(rows - 1); }
        [[nodiscard]] std::int32_t const* list(graph_rows const& g, int i) const noexcept {
            return g.graph.neigh_idx + row + i * g.graph.degree();
        }
    };

    [[nodiscard]] block block_of(problem const& p, index_t pool, row_tile const& r) const noexcept {
        index_t const at   = detail::position_of(p, r.first);
        index_t const node = at < 0 ? 0 : detail::round_down(at, mark_rows);
        index_t const rows = at < 0 ? 0 : std::clamp<index_t>(graph.nodes() - node, 0, mark_rows);
        return {rows == 0 ? 0 : graph.row_begin(r.head, node), node, static_cast<int>(rows), p.pools[pool].slots,
                p.options.causal};
    }

    /// Sets the bits of the nodes in [first, end) that a list names, counted from `first`, and returns how many it
    /// names. Most stand beside the one before: their word stays in a register.
    index_t collect(std::int32_t const* list, index_t first, index_t end, std::uint64_t* bits) const noexcept {
        index_t count = 0, at = 0;
        std::uint64_t word = 0;
        for (index_t d = 0; d < graph.degree(); ++d) {
            index_t const j = list[d];
            if (j < first || j >= end) continue;
            ++count;
            if ((j - first) / 64 != at) {
                bits[at] |= word;
                word = 0;
                at   = (j - first) / 64;
            }
            word |= std::uint64_t{1} << (j - first) % 64;
        }
        bits[at] |= word;
        return count;
    }

    [[nodiscard]] static bool is_biased(problem const& p) noexcept {
        return std::ranges::any_of(p.options.edge_bias, [](float b) { return b != 0; });
    }

    /// cursor.next: row * degree + offset in its list.
    bool
    next_apart(problem const& p, index_t pool, row_tile const& r, tile_cursor& cursor, key_tile& tile) const noexcept {
        bool const biased = is_biased(p);
        tile              = {};
        for (; cursor.next < r.tokens * graph.degree() && tile.count == 0;) {
            auto const i       = static_cast<int>(cursor.next / graph.degree());
            index_t const at   = detail::position_of(p, r.first + i);
            index_t const stop = (i + 1) * graph.degree();
            if (at < 0 || at >= graph.nodes()) {
                cursor.next = stop;
                continue;
            }
            index_t const slots = p.pools[pool].slots;
            index_t const end   = p.options.causal ? std::min(at + 1, slots) : slots;
            index_t const row   = graph.row_begin(r.head, at) - i * graph.degree();
            for (; cursor.next < stop && tile.count < tile_slots; ++cursor.next) {
                std::int32_t const j = graph.neigh_idx[row + cursor.next];
                if (j < 0 || j >= end) continue;
                cursor.slots[tile.count] = j;
                cursor.bias[tile.count]  = bias_of(p, graph.edge_type[row + cursor.next]);
                ++tile.count;
            }
            if (r.tokens == 1) continue;
            std::fill_n(cursor.bits, r.tokens, 0);
            cursor.bits[i] = detail::bit_range(0, tile.count);
            tile.bits      = cursor.bits;
        }
        tile.slots = cursor.slots;
        tile.bias  = biased ? cursor.bias : nullptr;
        return tile.count > 0;
    }

    [[nodiscard]] static float bias_of(problem const& p, std::uint8_t type) noexcept {
        return type >= 1 && type <= 4 ? p.options.edge_bias[type - 1U] : 0.0F;
    }

    // Where edges are biased their types are walked one after another, because a tile has one bias for all its rows.
    bool next_together(
        problem const& p, index_t pool, row_tile const& r, tile_cursor& cursor, key_tile& tile) const noexcept {
        bool const biased = is_biased(p);
        block const b     = block_of(p, pool, r);
        for (; cursor.pass < (biased ? edge_codes : 1);
             ++cursor.pass, cursor.next = cursor.marked_end = cursor.marked_next = 0)
            while (cursor.next < cursor.marked_end || mark(b, biased ? cursor.pass : -1, cursor))
                if (take(p, b, r, cursor, tile)) {
                    if (biased) {
                        std::fill_n(cursor.bias, tile.count, bias_of(p, static_cast<std::uint8_t>(cursor.pass)));
                        tile.bias = cursor.bias;
                    }
                    return true;
                }
        return false;
    }

    /// Marks which rows list which of the next 64 * mark_words nodes, and finds the first one after them that is
    /// listed; false where there are no more. A `type` of -1 is every type; an edge of an unknown one goes with the
    /// pads, which no bias has.
    bool mark(block const& b, int type, tile_cursor& c) const noexcept {
        if (c.marked_next == no_alignment) return false;
        index_t const first = c.marked_next;
        c.next = c.marked = first;
        c.marked_end      = first + 64 * mark_words;
        c.marked_next     = no_alignment;
        std::fill_n(c.any, mark_words, 0);
        for (int i = 0; i < b.rows; ++i) {
            std::fill_n(c.marks[i], mark_words, 0);
            std::int32_t const* const list  = b.list(*this, i);
            std::uint8_t const* const types = graph.edge_type + b.row + i * graph.degree();
            index_t const end               = b.end(i);
            for (index_t d = 0; d < graph.degree(); ++d) {
                index_t const j = list[d];
                if (j < first || j >= end || (type >= 0 && (types[d] < edge_codes ? types[d] : 0) != type)) continue;
                if (j < c.marked_end)
                    c.marks[i][(j - first) / 64] |= std::uint64_t{1} << (j - first) % 64;
                else
                    c.marked_next = std::min(c.marked_next, j);
            }
            for (int w = 0; w < mark_words; ++w) c.any[w] |= c.marks[i][w];
        }
        return true;
    }

    /// The next tile_slots marked nodes; false where no row of r sees any of them.
    bool take(problem const& p, block const& b, row_tile const& r, tile_cursor& c, key_tile& tile) const noexcept {
        tile = {};
        std::fill_n(c.bits, r.tokens, 0);
        auto const skip = static_cast<int>(detail::position_of(p, r.first) - b.node);
        auto word       = static_cast<int>((c.next - c.marked) / 64);
        for (; word < mark_words && tile.count < tile_slots; ++word) {
            std::uint64_t left        = c.any[word] & detail::bit_range(c.next - c.marked - 64 * word, 64);
            std::uint64_t const taken = lowest(left, tile_slots - tile.count);
            for (left = taken; left != 0; left &= left - 1, ++tile.count)
                c.slots[tile.count] = static_cast<std::int32_t>(c.marked + 64 * word + std::countr_zero(left));
            int const offset = tile.count - std::popcount(taken);
            for (int i = 0; i < std::min(r.tokens, b.rows - skip); ++i)
                c.bits[i] |= packed(c.marks[skip + i][word], taken) << offset;
            c.next = c.marked + 64 * (word + 1);
        }
        if (tile.count == 0) return false;
        if (tile.count == tile_slots) c.next = c.slots[tile_slots - 1] + 1;
        std::uint64_t some = 0, all = detail::bit_range(0, tile.count);
        for (int i = 0; i < r.tokens; ++i) {
            some |= c.bits[i];
            all &= c.bits[i];
        }
        if (all != detail::bit_range(0, tile.count)) tile.bits = c.bits;
        tile.first = c.slots[0];
        if (c.slots[tile.count - 1] - c.slots[0] != tile.count - 1) tile.slots = c.slots;
        return some != 0;
    }

    /// The lowest `count` bits that are set.
    [[nodiscard]] static std::uint64_t lowest(std::uint64_t bits, int count) noexcept {
        if (std::popcount(bits) <= count) return bits;
        std::uint64_t rest = bits;
        for (int i = 0; i < count; ++i) rest &= rest - 1;
        return bits & ~rest;
    }

    /// The bits of x where `mask` has one, side by side from bit 0 on.
    [[nodiscard]] static std::uint64_t packed(std::uint64_t x, std::uint64_t mask) noexcept {
        x &= mask;
        if (x == 0) return 0;
        int const from = std::countr_zero(mask);
        if (int const end = 64 - std::countl_zero(mask); end - from == std::popcount(mask)) return x >> from;
        std::uint64_t out = 0;
        for (; x != 0; x &= x - 1)
            out |= std::uint64_t{1} << std::popcount(mask & ((std::uint64_t{1} << std::countr_zero(x)) - 1));
        return out;
    }
};

static_assert(visibility<graph_rows>);

} // namespace butterfly::visible
