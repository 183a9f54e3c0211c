// SPDX-License-Identifier: MIT
#include <butterfly/graph/metrics.hpp>

#include "graph/golden.hpp"
#include "support/catch.hpp"

#include <set>

namespace bf = butterfly;

namespace {

/// Nodes within `hops` hops by a walk over sets: the definition.
double reachability_by_sets(bf::graph_view g, int hops) {
    double total = 0.0;
    for (bf::index_t head = 0; head < g.heads(); ++head)
        for (bf::index_t source = 0; source < g.nodes(); ++source) {
            std::set<bf::index_t> reached{source};
            for (int hop = 0; hop < hops; ++hop) {
                std::set<bf::index_t> const open = reached;
                for (bf::index_t const node : open)
                    for (std::int32_t const j : g.neighbors(head, node))
                        if (j >= 0) reached.insert(j);
            }
            total += static_cast<double>(reached.size());
        }
    return total / static_cast<double>(g.heads() * g.nodes());
}

/// Node i sees i + 1, round the end.
bf::graph ring(bf::index_t nodes) {
    bf::graph g({.heads = 1, .nodes = nodes, .degree = 1});
    for (bf::index_t i = 0; i < nodes; ++i) {
        g.neigh_idx()[static_cast<std::size_t>(i)] = static_cast<std::int32_t>((i + 1) % nodes);
        g.edge_type()[static_cast<std::size_t>(i)] = 1;
    }
    return g;
}

} // namespace

TEST_CASE("metrics equal the published ones", "[graph]") {
    for (golden::json const& c : golden::cases("graph/abi.json")) {
        CAPTURE(c.at("name").get<std::string>());
        bf::graph const g         = golden::to_graph(c);
        bf::graph_metrics const m = bf::measure(g.view(), c.at("bfs_hops").get<int>());
        golden::json const& want  = c.at("metrics");
        REQUIRE(m.shape.heads == want.at("heads"));
        REQUIRE(m.shape.nodes == want.at("tokens"));
        REQUIRE(m.shape.degree == want.at("max_degree"));
        REQUIRE(m.degree_min == want.at("degree_min"));
        REQUIRE(m.degree_max == want.at("degree_max"));
        REQUIRE(m.degree_mean == want.at("degree_mean").get<double>());
        REQUIRE(m.shortcut_rate == want.at("shortcut_rate").get<double>());
        REQUIRE(m.reachability == want.at("reachability_proxy").get<double>());
        bf::index_t edges = 0;
        for (char const* name : {"cycle", "window", "landmark", "rewire"}) {
            for (int code = 1; code < bf::edge_codes; ++code)
                if (std::string(name) == name_of(static_cast<bf::edge_code>(code)))
                    REQUIRE(m.edge_counts[static_cast<std::size_t>(code)] == want.at("edge_type_counts").at(name));
            edges += want.at("edge_type_counts").at(name).get<bf::index_t>();
        }
        REQUIRE(m.edges == edges);
        REQUIRE(m.edge_counts[0] == 0);
    }
}

TEST_CASE("reachability equals a walk over sets, over several heads and hops", "[graph]") {
    bf::graph const a = golden::abi_graph("tb"), b = golden::abi_graph("tb_three_cycles");
    std::vector<bf::graph_view> const parts{a.view(), b.view()};
    bf::graph const g = bf::stack(parts);
    for (int hops = 0; hops < 5; ++hops)
        REQUIRE(bf::reachability(g.view(), hops) == reachability_by_sets(g.view(), hops));
    REQUIRE(bf::measure(g.view(), 0).reachability == 1.0);
}

TEST_CASE("reachability counts every target beyond the first 8192", "[graph]") {
    bf::graph const g = ring(8192 + 70);
    REQUIRE(bf::reachability(g.view(), 3) == 4.0);
}

TEST_CASE("causal edges are those at or before the node", "[graph]") {
    bf::graph const g         = ring(5); // only node 4 looks back
    bf::graph_metrics const m = bf::measure(g.view());
    REQUIRE(m.edges == 5);
    REQUIRE(m.causal_edges == 1);
    REQUIRE(m.shortcut_rate == 0.2);
}

TEST_CASE("an edge type that no code names is counted as an edge and nothing else", "[graph]") {
    std::int32_t const neighbors[] = {0, 0};
    std::uint8_t const types[]     = {200, 255};
    auto const m = bf::measure(bf::graph_view{.neigh_idx = neighbors, .edge_type = types, .shape = {1, 2, 1}}, 0);
    REQUIRE(m.edges == 2);
    for (bf::index_t const count : m.edge_counts) REQUIRE(count == 0);
}
