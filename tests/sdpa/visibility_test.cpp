// SPDX-License-Identifier: MIT
#include <butterfly/backend/scalar.hpp>
#include <butterfly/sdpa/graph_rows.hpp>
#include <butterfly/testing/laws/law.hpp>
#include <butterfly/testing/sees.hpp>
#include <butterfly/topology/build.hpp>
#include <butterfly/topology/landmark.hpp>
#include <butterfly/topology/window.hpp>

#include "support/catch.hpp"

#include <map>

namespace bf = butterfly;

namespace {

using bf::index_t;

/// What else a walk keeps to.
struct manner {
    bool ascending = true; // slots, and spans of them; false: lists in their own order
    bool extent    = true; // nothing outside of it
    bool together  = false;
};

/// Which (query, slot) pairs a walk delivers within the spans cut at `cuts`, and how often.
std::map<std::pair<index_t, index_t>, int>
walk(bf::problem const& p, bf::row_tile const& rows, std::vector<index_t> const& cuts, bool ascending) {
    std::map<std::pair<index_t, index_t>, int> seen;
    bf::visibility_ref const& v = p.pools[0].visibility;
    for (std::size_t i = 0; i + 1 < cuts.size(); ++i) {
        bf::key_span const span{cuts[i], cuts[i + 1]};
        bf::tile_cursor cursor;
        cursor.next = span.first;
        bf::key_tile tile;
        index_t last = -1;
        while (v.next(v.state, p, 0, rows, span, cursor, tile)) {
            REQUIRE(tile.count > 0);
            REQUIRE(tile.count <= bf::tile_slots);
            bool any = false;
            for (int j = 0; j < tile.count; ++j) {
                index_t const slot = tile.slot(j);
                REQUIRE(slot >= 0);
                REQUIRE(slot < p.pools[0].slots);
                if (ascending) {
                    REQUIRE(slot > last); // ascending, nothing twice
                    REQUIRE(slot < span.end);
                    last = slot;
                }
                for (int t = 0; t < rows.tokens; ++t)
                    if (tile.bits == nullptr || (tile.bits[t] >> j & 1U) != 0U) {
                        ++seen[{rows.first + t, slot}];
                        any = true;
                    }
            }
            for (int t = 0; tile.bits != nullptr && t < rows.tokens; ++t)
                if (tile.count < 64) REQUIRE(tile.bits[t] >> tile.count == 0); // no key past the tile
            REQUIRE(any);
        }
    }
    return seen;
}

/// Walks row tiles of several sizes over spans at random and compares each pair with the definition.
void check_walk(bf::problem const& p, bf::testing::random& draws, manner const& m = {}) {
    bf::pool_ref const& pool = p.pools[0];
    index_t const aligned    = pool.visibility.row_alignment;
    for (int const most : {1, 5, bf::tile_tokens}) {
        for (index_t first = 0; first < p.tokens();) {
            int count = static_cast<int>(std::min<index_t>(most, p.tokens() - first));
            // No row tile straddles a routing block.
            auto const block = [&](int t) { return bf::testing::query_position(p, first + t) / aligned; };
            for (int t = 1; t < count; ++t)
                if (block(t) != block(0)) count = t;
            for (index_t head = 0; head < pool.visibility.row_heads; ++head) {
                bf::row_tile const rows{.first = first, .tokens = count, .head = head, .together = m.together};
                std::vector<index_t> cuts{0};
                if (m.extent)
                    for (int i = 0; i < 3; ++i)
                        cuts.push_back(std::min(cuts.back() + bf::tile_slots * draws.below(3), pool.slots));
                cuts.push_back(pool.slots + 7);
                auto const seen = walk(p, rows, cuts, m.ascending);

                bf::key_span const extent = pool.visibility.extent(pool.visibility.state, p, 0, rows);
                for (int t = 0; t < count; ++t) {
                    index_t const position = bf::testing::query_position(p, first + t);
                    for (index_t slot = 0; slot < pool.slots; ++slot) {
                        bool const wanted = bf::testing::sees(p, pool, head, position, slot).has_value();
                        auto const found  = seen.find({first + t, slot});
                        int const times   = found == seen.end() ? 0 : found->second;
                        if (times != (wanted ? 1 : 0)) {
                            CAPTURE(first, count, head, t, position, slot, times);
                            REQUIRE(times == (wanted ? 1 : 0));
                        }
                        if (wanted && m.extent) {
                            bool const inside = slot >= extent.first && slot < extent.end;
                            if (!inside) REQUIRE(inside);
                        }
                    }
                }
            }
            first += count;
        }
    }
}

template <class Visibility>
struct walked {
    bf::testing::seeded_problem<> p;
    bf::pool<bf::heads_view<float const>, bf::heads_view<float const>, Visibility> pool;
    bf::bound_problem<1> bound;

    walked(index_t tokens, index_t keys, bf::attend_options const& o, Visibility sees, bf::memory_ref positions = {})
        : p(bf::testing::make_problem({.heads = 2, .tokens = tokens, .keys = keys, .head_dim = 1, .no_keys = true})),
          pool(std::as_const(p.k).view(), std::as_const(p.v).view(), sees, {}, positions),
          bound(bf::make_problem(bf::backend::scalar{}, p.q.view(), p.out.view(), o, pool)) {}
};

} // namespace

TEST_CASE("an interval shows what its definition says", "[sdpa]") {
    bf::testing::random draws(1);
    for (int i = 0; i < 60; ++i) {
        index_t const tokens = draws.one_of({1, 3, 70, 140}), keys = draws.between(0, 300);
        bf::attend_options o;
        o.causal     = draws.below(4) != 0;
        o.q_position = draws.between(0, 200);
        std::vector<std::int32_t> queries, slots;
        for (index_t t = 0; t < tokens; ++t) queries.push_back(static_cast<std::int32_t>(draws.between(-1, keys + 9)));
        for (index_t j = 0; j < keys; ++j) slots.push_back(static_cast<std::int32_t>(draws.between(-1, keys)));
        if (draws.below(3) == 0) o.q_positions = queries.data();
        bf::visible::interval const sees{.window = draws.below(4) == 0 ? 0 : draws.between(1, keys + 1),
                                         .align  = draws.one_of({1, 7, 16, 64, 128}),
                                         .before = draws.below(3) == 0 ? draws.between(1, 40) : 0,
                                         .after  = draws.below(2) == 0 ? draws.between(0, 50) : 0};
        bool const placed = draws.below(3) == 0 && keys > 0;
        CAPTURE(i, tokens, keys, sees.window, sees.align, sees.before, sees.after, placed, o.causal, o.q_position);
        walked const w(tokens, keys, o, sees, placed ? bf::memory_ref(slots.data()) : bf::memory_ref());
        check_walk(w.bound.problem(), draws);
    }
}

TEST_CASE("routed blocks show what their definition says", "[sdpa]") {
    bf::testing::random draws(2);
    for (int i = 0; i < 40; ++i) {
        index_t const tokens = draws.one_of({1, 3, 70, 140}), keys = draws.between(0, 300);
        index_t const size = draws.one_of({1, 5, 16, 64, 100, 128, 200});
        bf::attend_options o;
        o.causal     = draws.below(4) != 0;
        o.q_position = draws.between(0, 200);
        bf::testing::detail::scattered_rule const few;
        bf::testing::detail::everything_rule const all;
        bf::topology::topology_shape const shape{.heads = draws.between(1, 2),
                                                 .nodes = draws.between(1, 400 / size + 2)};
        bf::visible::routed_blocks const sees{draws.below(2) == 0 ? bf::topology::make_row_source(few, shape)
                                                                  : bf::topology::make_row_source(all, shape),
                                              size};
        std::vector<std::int32_t> queries; // of one block, from before the first to past the last
        auto const block = static_cast<std::int32_t>(size * draws.between(-2, shape.nodes + 1));
        for (index_t t = 0; t < tokens; ++t)
            queries.push_back(block + static_cast<std::int32_t>(draws.between(-3, size)));
        if (draws.below(3) == 0) o.q_positions = queries.data();
        CAPTURE(i, tokens, keys, size, shape.nodes, o.causal, o.q_position);
        walked const w(tokens, keys, o, sees);
        check_walk(w.bound.problem(), draws);
    }
}

TEST_CASE("routed summaries show what their definition says", "[sdpa]") {
    bf::testing::random draws(3);
    for (int i = 0; i < 40; ++i) {
        index_t const tokens = draws.one_of({1, 3, 70, 140}), slots = draws.between(0, 200);
        index_t const size = draws.one_of({1, 4, 16, 100});
        bf::attend_options o;
        o.q_position = draws.between(0, size * (slots + 2));
        bf::testing::detail::scattered_rule const few;
        bf::testing::detail::everything_rule const all;
        bf::topology::topology_shape const shape{.heads = draws.between(1, 2), .nodes = draws.between(1, slots + 50)};
        bf::visible::routed_summaries const sees{.rows       = draws.below(2) == 0
                                                                   ? bf::topology::make_row_source(few, shape)
                                                                   : bf::topology::make_row_source(all, shape),
                                                 .block_size = size,
                                                 .window     = draws.between(1, 90),
                                                 .first_slot = draws.between(0, 3)};
        std::vector<std::int32_t> queries; // of one block, from before the first to past the last
        auto const block = static_cast<std::int32_t>(size * draws.between(-2, shape.nodes + 1));
        for (index_t t = 0; t < tokens; ++t)
            queries.push_back(block + static_cast<std::int32_t>(draws.between(-3, size)));
        if (draws.below(3) == 0) o.q_positions = queries.data();
        CAPTURE(i, tokens, slots, size, shape.nodes, sees.window, sees.first_slot, o.q_position);
        walked const w(tokens, slots, o, sees);
        check_walk(w.bound.problem(), draws);
    }
}

TEST_CASE("graph rows show what their definition says", "[sdpa]") {
    bf::testing::random draws(4);
    for (int i = 0; i < 30; ++i) {
        index_t const tokens = draws.one_of({1, 9, 40}), nodes = draws.between(1, 200), keys = draws.between(1, 200);
        bf::graph g = bf::testing::detail::random_graph(draws, draws.between(1, 2), nodes, draws.between(1, 150));
        if (i % 2 != 0) // holes, so that tiles end and go on within them
            for (std::size_t d = 0; d < g.neigh_idx().size(); ++d)
                if (g.neigh_idx()[d] % 3 == 0) {
                    g.neigh_idx()[d] = bf::no_neighbor;
                    g.edge_type()[d] = 0;
                }
        bf::attend_options o;
        o.causal     = draws.below(4) != 0;
        o.q_position = draws.between(0, nodes + 9);
        CAPTURE(i, tokens, nodes, keys, g.shape().degree, o.causal, o.q_position);
        walked const in_order(tokens, keys, o, bf::visible::graph_rows{g.view()});
        check_walk(in_order.bound.problem(), draws, {.ascending = false, .extent = false});
        check_walk(in_order.bound.problem(), draws, {.extent = false, .together = true});
        o.edge_bias = {1.0F, 2.0F, 3.0F, 4.0F};
        walked const biased(tokens, keys, o, bf::visible::graph_rows{g.view()});
        check_walk(biased.bound.problem(), draws, {.ascending = false, .extent = false, .together = true});
        std::vector<std::int32_t> queries; // beyond the graph, and before it
        for (index_t t = 0; t < tokens; ++t) queries.push_back(static_cast<std::int32_t>(draws.between(-1, nodes + 9)));
        o.q_positions = queries.data();
        walked const strewn(tokens, keys, o, bf::visible::graph_rows{g.view()});
        check_walk(strewn.bound.problem(), draws, {.ascending = false, .extent = false});
    }
}

TEST_CASE("rows of a graph that are walked together share tiles", "[sdpa]") {
    // In the order of the rules, not ascending.
    auto const g = bf::topology::build({.heads = 1, .nodes = 5000}, bf::topology::window{.predecessors = 100},
                                       bf::topology::landmark{.stride = 100}, bf::topology::self{});
    walked const w(64, 5000, {.q_position = 4480}, bf::visible::graph_rows{g.view()});
    auto const p                = w.bound.problem();
    bf::visibility_ref const& v = p.pools[0].visibility;
    bf::row_tile const rows{.first = 0, .tokens = 64, .together = true};
    REQUIRE(v.shares(v.state, p, 0, rows));
    bf::tile_cursor cursor;
    bf::key_tile tile;
    std::vector<index_t> keys;
    bool run = false;
    while (v.next(v.state, p, 0, rows, {0, bf::no_alignment}, cursor, tile)) {
        run |= tile.slots == nullptr && tile.count == bf::tile_slots;
        for (int j = 0; j < tile.count; ++j) keys.push_back(tile.slot(j));
    }
    std::vector<index_t> wanted;
    for (index_t j = 0; j < 4544; ++j)
        if (j % 100 == 0 || j >= 4380) wanted.push_back(j);
    REQUIRE(keys == wanted); // each once for all rows
    REQUIRE(run);            // neighbours side by side are read where they stand

    bf::graph const strangers = bf::testing::detail::random_graph(bf::testing::random(5), 1, 5000, 20);
    walked const few(64, 5000, {.q_position = 4480}, bf::visible::graph_rows{strangers.view()});
    auto other                  = few.bound.problem();
    other.q.shape.head_dim      = 128;
    bf::visibility_ref const& s = other.pools[0].visibility;
    REQUIRE(!s.shares(s.state, other, 0, rows));
}

TEST_CASE("where a key stands in its tile does not depend on who asks", "[sdpa]") {
    // The same tiles for one row and for many, whatever comes after the rows.
    auto const firsts = [](auto const& w, bf::row_tile const& rows) {
        auto const p = w.bound.problem();
        std::vector<index_t> out;
        bf::tile_cursor cursor;
        bf::key_tile tile;
        while (p.pools[0].visibility.next(p.pools[0].visibility.state, p, 0, rows, {0, bf::no_alignment}, cursor, tile))
            out.push_back(tile.first);
        return out;
    };
    walked const causal(128, 300, {}, bf::visible::exact_window(77));
    for (index_t const first : firsts(causal, {.first = 0, .tokens = 128})) REQUIRE(first % bf::tile_slots == 0);
    for (index_t const first : firsts(causal, {.first = 101, .tokens = 1})) REQUIRE(first % bf::tile_slots == 0);

    bf::testing::detail::everything_rule const all;
    bf::visible::routed_blocks const blocks{bf::topology::make_row_source(all, {.heads = 1, .nodes = 4}), 100};
    walked const routed(300, 300, {}, blocks);
    for (index_t const first : firsts(routed, {.first = 200, .tokens = 100}))
        REQUIRE(first % 100 % bf::tile_slots == 0);
    REQUIRE(firsts(routed, {.first = 299, .tokens = 1}) == std::vector<index_t>{0, 64, 100, 164, 200, 264});
}

TEST_CASE("a routed tile tells where the next one begins, of the nodes read ahead", "[sdpa]") {
    bf::testing::detail::scattered_rule const few;
    bf::testing::detail::everything_rule const all;
    auto const check = [&](auto const& rule, index_t nodes, index_t size, index_t most_untold) {
        bf::visible::routed_blocks const blocks{bf::topology::make_row_source(rule, {.heads = 1, .nodes = nodes}),
                                                size};
        CAPTURE(nodes, size);
        walked const w(size / 2, nodes * size, {.q_position = nodes * size - size}, blocks); // the last tile is clipped
        bf::problem const p = w.bound.problem();
        auto const& v       = p.pools[0].visibility;
        int const tokens    = static_cast<int>(size / 2);
        bf::tile_cursor cursor;
        bf::key_tile tile;
        index_t told = -1, untold = 0, jumps = 0;
        while (v.next(v.state, p, 0, {.first = 0, .tokens = tokens}, {0, bf::no_alignment}, cursor, tile)) {
            REQUIRE((told < 0 || tile.first == told));
            bool const tells = tile.after != tile.first;
            told             = tells ? tile.after : -1;
            untold += tells ? 0 : 1;
            jumps += tells && tile.after > tile.first + tile.count ? 1 : 0;
        }
        REQUIRE(told < 0); // the last one does not
        REQUIRE(untold <= most_untold);
        return jumps;
    };
    REQUIRE(check(few, 40, 100, 1) > 0);
    REQUIRE(check(all, 40, 100, 1) == 0);
    REQUIRE(check(all, 150, 40, 3) == 0); // 64 nodes are read at once
}
