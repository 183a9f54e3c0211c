// SPDX-License-Identifier: MIT
#include <butterfly/graph/validate.hpp>
#include <butterfly/topology/ablation.hpp>
#include <butterfly/topology/build.hpp>
#include <butterfly/topology/cycle.hpp>
#include <butterfly/topology/landmark.hpp>
#include <butterfly/topology/rewire.hpp>
#include <butterfly/topology/window.hpp>

#include "graph/golden.hpp"
#include "support/catch.hpp"

#include <limits>
#include <random>
#include <set>

namespace bf       = butterfly;
namespace topology = butterfly::topology;
using bf::edge_code;
using bf::index_t;
using Catch::Matchers::Contains;

namespace {

/// Names what it is told to, in order: out of range, twice, with any code.
struct script {
    std::vector<std::pair<index_t, edge_code>> mentions;

    template <class Sink>
    void emit(topology::topology_shape, topology::node_ref, Sink& sink) const noexcept {
        for (auto const& [node, code] : mentions) sink.add(node, code);
    }
};

std::vector<std::int32_t> row_of(bf::graph const& g, index_t head, index_t node) {
    std::vector<std::int32_t> out;
    for (std::int32_t const j : g.view().neighbors(head, node))
        if (j >= 0) out.push_back(j);
    return out;
}

/// All nodes of a source in [from, limit), asked for `capacity` at a time.
std::vector<std::int32_t>
routed(topology::row_source source, topology::node_ref at, index_t from, index_t limit, int capacity) {
    std::vector<std::int32_t> all, part(static_cast<std::size_t>(capacity) + 1, -7);
    for (;;) {
        int const n = source(at, from, limit, part.data(), capacity);
        REQUIRE(n >= 0);
        REQUIRE(n <= capacity);
        REQUIRE(part.back() == -7); // never past its capacity
        all.insert(all.end(), part.begin(), part.begin() + n);
        if (n < capacity) return all;
        from = part[static_cast<std::size_t>(n - 1)] + 1;
    }
}

template <class Rule>
void require_routing_equals_rows(Rule const& rule, topology::topology_shape shape) {
    bf::graph const g = topology::build({.heads = shape.heads, .nodes = shape.nodes}, rule);
    auto const ready  = topology::prepare(rule, shape);
    auto const source = topology::make_row_source(ready, shape);
    for (index_t head = 0; head < shape.heads; ++head)
        for (index_t node = 0; node < shape.nodes; ++node) {
            auto const row = row_of(g, head, node);
            std::set<std::int32_t> const sorted(row.begin(), row.end());
            REQUIRE(sorted.size() == row.size());
            for (index_t const limit : {index_t{0}, index_t{1}, node, node + 1, shape.nodes, shape.nodes + 9})
                for (index_t const from : {index_t{-3}, index_t{0}, node / 2}) {
                    std::vector<std::int32_t> want;
                    for (std::int32_t const j : sorted)
                        if (j >= from && j < limit) want.push_back(j);
                    for (int const capacity : {1, 2, 3, 7, 64}) {
                        CAPTURE(head, node, from, limit, capacity);
                        REQUIRE(routed(source, {head, node}, from, limit, capacity) == want);
                    }
                }
        }
}

} // namespace

TEST_CASE("the first mention fixes the slot, later ones only upgrade the code", "[topology]") {
    script const mentions{{{5, edge_code::window},
                           {2, edge_code::landmark},
                           {5, edge_code::landmark},
                           {2, edge_code::window},
                           {1, edge_code::cycle},
                           {2, edge_code::rewire},
                           {1, edge_code::rewire},
                           {5, edge_code::window},
                           {-1, edge_code::cycle},
                           {8, edge_code::cycle},
                           {std::numeric_limits<index_t>::max(), edge_code::cycle},
                           {std::numeric_limits<index_t>::min(), edge_code::cycle}}};
    bf::graph const g = topology::build({.heads = 1, .nodes = 8}, mentions);
    REQUIRE(row_of(g, 0, 3) == std::vector<std::int32_t>{5, 2, 1});
    REQUIRE(g.view().types(0, 3)[0] == 3);
    REQUIRE(g.view().types(0, 3)[1] == 4);
    REQUIRE(g.view().types(0, 3)[2] == 1);
    REQUIRE(topology::candidate_degree({.heads = 1, .nodes = 8}, mentions) == 12);
}

TEST_CASE("rows are in the order written", "[topology]") {
    auto const one = topology::build({.heads = 1, .nodes = 10}, topology::self{}, topology::window{.predecessors = 2},
                                     topology::landmark{.stride = 4});
    REQUIRE(row_of(one, 0, 9) == std::vector<std::int32_t>{9, 7, 8, 0, 4});
    auto const other = topology::build({.heads = 1, .nodes = 10}, topology::landmark{.stride = 4},
                                       topology::window{.predecessors = 2}, topology::self{});
    REQUIRE(row_of(other, 0, 9) == std::vector<std::int32_t>{0, 4, 8, 7, 9});
    REQUIRE(other.view().types(0, 9)[2] == static_cast<int>(edge_code::landmark)); // 8 is both
}

TEST_CASE("rows nest", "[topology]") {
    auto const flat = topology::row(topology::cycle{.seed = 3}, topology::window{.predecessors = 3}, topology::self{});
    auto const nested =
        topology::row(topology::row(topology::cycle{.seed = 3}),
                      topology::row(topology::window{.predecessors = 3}, topology::row(topology::self{})));
    STATIC_REQUIRE_FALSE(topology::rule<decltype(flat)>);
    STATIC_REQUIRE(topology::preparable<decltype(flat)>);
    STATIC_REQUIRE(topology::rule<decltype(topology::prepare(flat, {1, 8}))>);
    STATIC_REQUIRE(topology::rule<topology::row<topology::window, topology::self>>);
    STATIC_REQUIRE_FALSE(topology::preparable<topology::row<topology::window, topology::self>>);
    REQUIRE(topology::build({.heads = 2, .nodes = 17}, flat) == topology::build({.heads = 2, .nodes = 17}, nested));
    REQUIRE(topology::build({.heads = 2, .nodes = 17}, flat) ==
            topology::build({.heads = 2, .nodes = 17}, topology::cycle{.seed = 3}, topology::window{.predecessors = 3},
                            topology::self{}));
    REQUIRE(topology::build({.heads = 1, .nodes = 3}).shape().degree == 1); // no rules: all pads
}

TEST_CASE("landmarks are before the node, from the first one on, as many as asked for", "[topology]") {
    auto const row = [](topology::landmark l, index_t node) {
        return row_of(topology::build({.heads = 1, .nodes = 40}, l), 0, node);
    };
    REQUIRE(row({.stride = 5}, 0).empty());
    REQUIRE(row({.stride = 5}, 1) == std::vector<std::int32_t>{0});
    REQUIRE(row({.stride = 5}, 10) == std::vector<std::int32_t>{0, 5});
    REQUIRE(row({.stride = 5}, 11) == std::vector<std::int32_t>{0, 5, 10});
    REQUIRE(row({.stride = 5, .count = 2}, 39) == std::vector<std::int32_t>{0, 5});
    REQUIRE(row({.stride = 1, .count = 3}, 39) == std::vector<std::int32_t>{0, 1, 2});
    REQUIRE(row({.stride = std::numeric_limits<index_t>::max()}, 39) == std::vector<std::int32_t>{0});
    REQUIRE(row({.stride = 1, .count = 0}, 39).empty());
}

TEST_CASE("windows end before the node and start at the first", "[topology]") {
    auto const row = [](topology::window w, index_t node) {
        return row_of(topology::build({.heads = 1, .nodes = 9}, w), 0, node);
    };
    REQUIRE(row({.predecessors = 0}, 5).empty());
    REQUIRE(row({.predecessors = 3}, 0).empty());
    REQUIRE(row({.predecessors = 3}, 2) == std::vector<std::int32_t>{0, 1});
    REQUIRE(row({.predecessors = 3}, 8) == std::vector<std::int32_t>{5, 6, 7});
    REQUIRE(row({.predecessors = std::numeric_limits<index_t>::max()}, 2) == std::vector<std::int32_t>{0, 1});
}

TEST_CASE("edges of the caller keep their order, per node or per head and node", "[topology]") {
    std::vector<index_t> const offsets{0, 2, 2, 5};
    std::vector<std::int32_t> const neighbors{2, 1, 0, -1, 2};
    bf::graph const g = topology::build({.heads = 2, .nodes = 3}, topology::rewire{offsets, neighbors});
    for (index_t head : {0, 1}) {
        REQUIRE(row_of(g, head, 0) == std::vector<std::int32_t>{2, 1});
        REQUIRE(row_of(g, head, 1).empty());
        REQUIRE(row_of(g, head, 2) == std::vector<std::int32_t>{0, 2});
    }
    REQUIRE(g.view().types(0, 0)[0] == static_cast<int>(edge_code::rewire));
    std::vector<index_t> const both{0, 2, 2, 3, 3, 4, 5};
    bf::graph const h = topology::build({.heads = 2, .nodes = 3}, topology::rewire{both, neighbors, edge_code::cycle});
    REQUIRE(row_of(h, 0, 2) == std::vector<std::int32_t>{0});
    REQUIRE(row_of(h, 1, 2) == std::vector<std::int32_t>{2});
    REQUIRE(h.view().types(1, 2)[0] == static_cast<int>(edge_code::cycle));

    auto const refused = [&](std::vector<index_t> const& o, std::vector<std::int32_t> const& n,
                             edge_code c = edge_code::rewire) {
        REQUIRE_THROWS_AS(topology::build({.heads = 2, .nodes = 3}, topology::rewire{o, n, c}), bf::shape_error);
    };
    refused({}, {});
    refused({0}, {});
    refused({0, 1, 2}, {0, 1});
    refused({0, 1, 2, 3, 3}, {0, 1, 2});
    refused({1, 1, 2, 3}, {0, 1, 2});
    refused({0, 1, 2, 4}, {0, 1, 2});
    refused({0, 3, 2, 3}, {0, 1, 2});
    refused({0, 1, 2, 3}, {0, 1, 3});
    refused({0, 1, 2, 3}, {0, 1, -2});
    refused({0, 1, 2, 3}, {0, 1, 2}, edge_code::pad);
}

TEST_CASE("a cut keeps the order written, and self", "[topology]") {
    auto const cut = [](index_t max_degree) {
        return topology::build({.heads = 1, .nodes = 12, .max_degree = max_degree}, topology::window{.predecessors = 4},
                               topology::landmark{.stride = 5}, topology::self{});
    };
    REQUIRE(row_of(cut(0), 0, 11) == std::vector<std::int32_t>{7, 8, 9, 10, 0, 5, 11});
    REQUIRE(row_of(cut(7), 0, 11) == std::vector<std::int32_t>{7, 8, 9, 10, 0, 5, 11});
    REQUIRE(row_of(cut(6), 0, 11) == std::vector<std::int32_t>{7, 8, 9, 10, 0, 11});
    REQUIRE(row_of(cut(3), 0, 11) == std::vector<std::int32_t>{7, 8, 11});
    REQUIRE(row_of(cut(1), 0, 11) == std::vector<std::int32_t>{11});
    bf::graph const three = cut(3);
    REQUIRE(three.view().types(0, 11)[1] == static_cast<int>(edge_code::window));
    REQUIRE(three.view().types(0, 11)[2] == static_cast<int>(edge_code::window));
    REQUIRE(three.shape().degree == 3);
    REQUIRE_FALSE(bf::find_defect(three.view()));

    // Without self among the rules nothing is added; with self first nothing moves.
    auto const no_self = topology::build({.heads = 1, .nodes = 12, .max_degree = 2},
                                         topology::window{.predecessors = 4}, topology::landmark{.stride = 5});
    REQUIRE(row_of(no_self, 0, 11) == std::vector<std::int32_t>{7, 8});
    auto const first = topology::build({.heads = 1, .nodes = 12, .max_degree = 2}, topology::self{},
                                       topology::window{.predecessors = 4});
    REQUIRE(row_of(first, 0, 11) == std::vector<std::int32_t>{11, 7});
    // The code of self is the strongest of its mentions.
    script const mentions{
        {{0, edge_code::window}, {1, edge_code::window}, {3, edge_code::window}, {3, edge_code::cycle}}};
    auto const typed = topology::build({.heads = 1, .nodes = 4, .max_degree = 2}, mentions);
    REQUIRE(row_of(typed, 0, 3) == std::vector<std::int32_t>{0, 3});
    REQUIRE(typed.view().types(0, 3)[1] == static_cast<int>(edge_code::cycle));
}

TEST_CASE("a row that does not fit the width asked for is an error, not a cut", "[topology]") {
    topology::window const three{.predecessors = 3};
    REQUIRE_THROWS_AS(topology::build({.heads = 1, .nodes = 9, .degree = 2}, three), bf::capacity_error);
    REQUIRE_THROWS_WITH(topology::build({.heads = 1, .nodes = 9, .degree = 2}, three),
                        Contains("head 0 node 3 has 3 neighbours, degree is 2"));
    REQUIRE(topology::build({.heads = 1, .nodes = 9, .degree = 5}, three).shape().degree == 5);
    REQUIRE(topology::build({.heads = 1, .nodes = 9, .max_degree = 2, .degree = 2}, three).shape().degree == 2);
}

TEST_CASE("parameters are checked at entry and both sides are named", "[topology]") {
    auto const refused = [](auto const& rule, std::string const& text) {
        REQUIRE_THROWS_AS(topology::build({.heads = 1, .nodes = 8}, rule), bf::shape_error);
        REQUIRE_THROWS_WITH(topology::build({.heads = 1, .nodes = 8}, topology::self{}, topology::row(rule)),
                            Contains(text));
        REQUIRE_THROWS_AS(topology::prepare(rule, {.heads = 1, .nodes = 8}), bf::shape_error);
        if constexpr (topology::rule<std::decay_t<decltype(rule)>>)
            REQUIRE_THROWS_AS(topology::make_row_source(rule, {.heads = 1, .nodes = 8}), bf::shape_error);
    };
    refused(topology::window{.predecessors = -1}, "predecessors is -1");
    refused(topology::landmark{.stride = 0}, "stride is 0");
    refused(topology::landmark{.stride = -4}, "stride is -4");
    refused(topology::landmark{.stride = 1, .count = -1}, "count is -1");
    refused(topology::fixed_stride{.stride = 0}, "stride 0");
    refused(topology::fixed_stride{.stride = 1, .count = -1}, "count -1");
    refused(topology::xor_partner{{3}}, "stage 3 is outside [0, 3)");
    refused(topology::bit_reversal{{0, 3}}, "stage 3 is outside [0, 3)");
    refused(topology::benes{{4}}, "stage 4 is outside [0, 4)");
    refused(topology::cycle{.cycles = 0}, "cycles 0");
    refused(topology::cycle{.draw = topology::cycle_draw::regular_partition, .clusters = 0}, "clusters 0");

    topology::self const self;
    REQUIRE_THROWS_AS(topology::build({.heads = 0, .nodes = 8}, self), bf::shape_error);
    REQUIRE_THROWS_AS(topology::build({.heads = 1, .nodes = 0}, self), bf::shape_error);
    REQUIRE_THROWS_AS(topology::build({.heads = 1, .nodes = index_t{1} << 31}, self), bf::shape_error);
    REQUIRE_THROWS_AS(topology::build({.heads = 1, .nodes = 8, .max_degree = -1}, self), bf::shape_error);
    REQUIRE_THROWS_AS(topology::build({.heads = 1, .nodes = 8, .degree = -1}, self), bf::shape_error);
    REQUIRE_THROWS_AS(topology::make_row_source(self, {.heads = 0, .nodes = 8}), bf::shape_error);
}

TEST_CASE("a row source gives the sorted unique row below a limit, whatever its capacity", "[topology]") {
    topology::topology_shape const shape{.heads = 2, .nodes = 41};
    require_routing_equals_rows(topology::window{.predecessors = 9}, shape);
    require_routing_equals_rows(topology::landmark{.stride = 3, .count = 7}, shape);
    require_routing_equals_rows(topology::row(topology::cycle{.seed = 5, .cycles = 2},
                                              topology::window{.predecessors = 6}, topology::landmark{.stride = 4},
                                              topology::self{}),
                                shape);
    require_routing_equals_rows(topology::row(topology::self{}, topology::xor_partner{{0, 1, 2, 3, 4, 5}},
                                              topology::fixed_stride{.stride = 3, .count = 4},
                                              topology::random_predecessor{{0, 1, 2}},
                                              topology::causal_shift{{5, 0, 2}}),
                                shape);
}

TEST_CASE("a row source agrees with rows for rules that name anything in any order", "[topology]") {
    std::mt19937 random(11);
    for (int round = 0; round < 60; ++round) {
        script mentions;
        for (std::uint32_t i = random() % 30; i > 0; --i)
            mentions.mentions.emplace_back(static_cast<index_t>(random() % 16) - 2,
                                           static_cast<edge_code>(1 + random() % 4));
        require_routing_equals_rows(topology::row(mentions, topology::window{.predecessors = 2}),
                                    {.heads = 1, .nodes = 12});
    }
}

TEST_CASE("a routing sink of no capacity keeps nothing, and a full one stops asking", "[topology]") {
    topology::routing_sink none(0, 10, nullptr, 0);
    none.add(3, edge_code::window);
    REQUIRE(none.count() == 0);
    std::int32_t out[2];
    topology::routing_sink two(1, 10, out, 2);
    for (int const j : {9, 0, 4, 4, 7, 2}) two.add(j, edge_code::window);
    REQUIRE(two.count() == 2);
    REQUIRE(out[0] == 2);
    REQUIRE(out[1] == 4);
    REQUIRE(two.from() == 1);
    REQUIRE(two.limit() == 4);
}

TEST_CASE("only a rule with a name has a row source", "[topology]") {
    auto const has = [](auto&& rule) {
        return requires {
            topology::make_row_source(std::forward<decltype(rule)>(rule), topology::topology_shape{});
        };
    };
    topology::self const self;
    REQUIRE(has(self));
    REQUIRE_FALSE(has(topology::self{}));
}

TEST_CASE("candidate fan-in at 4096 nodes: 130 instead of 4095", "[topology]") {
    topology::topology_shape const shape{.heads = 1, .nodes = 4096};
    index_t const fan_in = topology::candidate_degree(
        shape, topology::cycle{.seed = 7}, topology::window{.predecessors = 64}, topology::landmark{.stride = 64});
    REQUIRE(fan_in == 130);
    REQUIRE(4095 / fan_in == 31);
}

TEST_CASE("edges of the caller without offsets are refused, whatever the shape", "[topology]") {
    topology::rewire const none;
    REQUIRE_THROWS_AS(topology::make_row_source(none, {.heads = 1, .nodes = 4}), bf::shape_error);
    // heads * nodes does not fit index_t.
    REQUIRE_THROWS_AS(topology::make_row_source(none, {.heads = bf::index_t{1} << 40, .nodes = bf::index_t{1} << 30}),
                      bf::shape_error);
}
