// SPDX-License-Identifier: MIT
#pragma once

// Numbers that describe a graph. The graph must be valid (graph/validate.hpp).

#include <butterfly/graph/abi.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdlib>
#include <vector>

namespace butterfly {

/// Counts are over all heads; pads count nowhere.
struct graph_metrics {
    graph_shape shape{};
    index_t edges        = 0;                      ///< slots that are no pad
    index_t causal_edges = 0;                      ///< edges that lead to the node itself or before it
    index_t degree_min   = 0;                      ///< edges of the shortest row
    index_t degree_max   = 0;                      ///< edges of the longest row
    double degree_mean   = 0.0;                    ///< edges per node and head
    double shortcut_rate = 0.0;                    ///< share of cycle and rewire edges that span more than one node
    double reachability  = 0.0;                    ///< nodes within `hops` hops of a node, itself included; the mean
    std::array<index_t, edge_codes> edge_counts{}; ///< by edge_code; entry 0 stays 0
};

/// Mean over heads and nodes of how many nodes lie within `hops` hops along the rows, the node itself included; edges
/// to later nodes are followed too. O(heads * edges * nodes / 64 * hops) word operations, 2 KiB per node.
[[nodiscard]] inline double reachability(graph_view g, int hops) {
    constexpr index_t words = 128; // of 64 targets: one pass over the rows finds who reaches 8192 nodes
    auto const word         = [](index_t node, index_t w) { return static_cast<std::size_t>(node * words + w); };
    std::vector<std::uint64_t> now(static_cast<std::size_t>(g.nodes() * words)), before;
    double total = 0.0;
    for (index_t head = 0; head < g.heads(); ++head) {
        for (index_t first = 0; first < g.nodes(); first += 64 * words) {
            index_t const last = std::min(g.nodes(), first + 64 * words);
            index_t const used = detail::ceil_div(last - first, 64);
            std::fill(now.begin(), now.end(), 0);
            for (index_t t = first; t < last; ++t)
                now[word(t, (t - first) / 64)] |= std::uint64_t{1} << ((t - first) % 64);
            for (int hop = 0; hop < hops; ++hop) {
                before = now;
                for (index_t node = 0; node < g.nodes(); ++node)
                    for (std::int32_t const j : g.neighbors(head, node))
                        if (j != no_neighbor)
                            for (index_t w = 0; w < used; ++w) now[word(node, w)] |= before[word(j, w)];
            }
            for (std::uint64_t const bits : now) total += std::popcount(bits);
        }
    }
    return total / static_cast<double>(g.heads() * g.nodes());
}

/// All metrics. With hops 0 reachability is 1 and costs nothing.
[[nodiscard]] inline graph_metrics measure(graph_view g, int hops = 4) {
    graph_metrics m;
    m.shape           = g.shape;
    m.degree_min      = g.degree();
    index_t shortcuts = 0;
    for (index_t head = 0; head < g.heads(); ++head) {
        for (index_t node = 0; node < g.nodes(); ++node) {
            auto const neighbors = g.neighbors(head, node);
            auto const types     = g.types(head, node);
            index_t degree       = 0;
            for (std::size_t slot = 0; slot < neighbors.size(); ++slot) {
                std::int32_t const j = neighbors[slot];
                if (j == no_neighbor) continue;
                auto const code = static_cast<edge_code>(types[slot]);
                ++degree;
                if (types[slot] < m.edge_counts.size()) ++m.edge_counts[types[slot]];
                m.causal_edges += j <= node;
                shortcuts += (code == edge_code::cycle || code == edge_code::rewire) && std::abs(j - node) > 1;
            }
            m.edges += degree;
            m.degree_min = std::min(m.degree_min, degree);
            m.degree_max = std::max(m.degree_max, degree);
        }
    }
    index_t const long_range = m.edge_counts[static_cast<std::size_t>(edge_code::cycle)] +
                               m.edge_counts[static_cast<std::size_t>(edge_code::rewire)];
    m.degree_mean   = static_cast<double>(m.edges) / static_cast<double>(g.heads() * g.nodes());
    m.shortcut_rate = static_cast<double>(shortcuts) / static_cast<double>(std::max<index_t>(1, long_range));
    m.reachability  = hops > 0 ? reachability(g, hops) : 1.0;
    return m;
}

} // namespace butterfly
