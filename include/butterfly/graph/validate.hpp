// SPDX-License-Identifier: MIT
#pragma once

// Finds what is wrong with a graph from outside. Kernels do not look again.

#include <butterfly/graph/abi.hpp>

#include <optional>
#include <vector>

namespace butterfly {

/// The first thing wrong, and where: -1 where it is not about one head, node or slot.
struct graph_defect {
    std::string what;
    index_t head = -1;
    index_t node = -1;
    index_t slot = -1;
};

/// "graph: head 0 node 3 slot 2: ...".
[[nodiscard]] inline std::string to_string(graph_defect const& d) {
    std::string text = "graph:";
    if (d.head >= 0) text += " head " + std::to_string(d.head);
    if (d.node >= 0) text += " node " + std::to_string(d.node);
    if (d.slot >= 0) text += " slot " + std::to_string(d.slot);
    return text + (d.head >= 0 ? ": " : " ") + d.what;
}

/// What else to ask of a graph.
struct validate_options {
    index_t heads             = 0;     ///< expected heads; 0: any
    index_t nodes             = 0;     ///< expected nodes; 0: any
    bool hamiltonian_backbone = false; ///< degree and reach of the cycle edges, see find_backbone_defect
};

/// What a Hamiltonian cycle in every head implies and a search can afford to check: each node has two cycle edges (one
/// where nodes are 2, none needed for 1), and cycle edges lead from node 0 to every node. The first node that breaks
/// it, or nothing. Rows must be valid.
[[nodiscard]] inline std::optional<graph_defect> find_backbone_defect(graph_view g) {
    index_t const needed = g.nodes() >= 3 ? 2 : g.nodes() - 1;
    auto const is_cycle  = static_cast<std::uint8_t>(edge_code::cycle);
    for (index_t head = 0; head < g.heads(); ++head) {
        std::vector<bool> seen(static_cast<std::size_t>(g.nodes()));
        std::vector<index_t> open{0};
        index_t reached = 1;
        seen[0]         = true;
        for (index_t node = 0; node < g.nodes(); ++node) {
            index_t found = 0;
            for (std::uint8_t const type : g.types(head, node)) found += type == is_cycle;
            if (found < needed)
                return graph_defect{std::to_string(found) + " cycle edges, needs " + std::to_string(needed), head,
                                    node};
        }
        while (!open.empty()) {
            index_t const node = open.back();
            open.pop_back();
            for (index_t slot = 0; slot < g.degree(); ++slot) {
                if (g.types(head, node)[static_cast<std::size_t>(slot)] != is_cycle) continue;
                std::int32_t const next = g.neighbors(head, node)[static_cast<std::size_t>(slot)];
                if (seen[static_cast<std::size_t>(next)]) continue;
                seen[static_cast<std::size_t>(next)] = true;
                ++reached;
                open.push_back(next);
            }
        }
        if (reached < g.nodes())
            return graph_defect{"cycle edges lead from node 0 to " + std::to_string(reached) + " of " +
                                    std::to_string(g.nodes()) + " nodes",
                                head};
    }
    return std::nullopt;
}

/// The first defect of `g`, or nothing. O(slots) time, 8 bytes per node.
///
/// A graph is sound where it has data, heads and nodes as expected, and every slot is either a pad (-1, code pad) or a
/// node in [0, nodes) with another known code, no node twice in a row.
[[nodiscard]] inline std::optional<graph_defect> find_defect(graph_view g, validate_options o = {}) {
    if (g.heads() < 1 || g.nodes() < 1 || g.degree() < 1 || g.nodes() > std::numeric_limits<std::int32_t>::max())
        return graph_defect{"shape " + to_string(g.shape) + " has an extent below 1 or too many nodes for an int32"};
    if (index_t const slots = detail::try_multiply(detail::try_multiply(g.heads(), g.nodes()), g.degree());
        detail::try_multiply(slots, sizeof(std::int32_t)) < 0)
        return graph_defect{"shape " + to_string(g.shape) + " overflows"};
    if (g.neigh_idx == nullptr) return graph_defect{"neigh_idx is null"};
    if (g.edge_type == nullptr) return graph_defect{"edge_type is null"};
    if (o.heads != 0 && g.heads() != o.heads)
        return graph_defect{std::to_string(g.heads()) + " heads, expected " + std::to_string(o.heads)};
    if (o.nodes != 0 && g.nodes() != o.nodes)
        return graph_defect{std::to_string(g.nodes()) + " nodes, expected " + std::to_string(o.nodes)};

    std::vector<index_t> last_row(static_cast<std::size_t>(g.nodes()), -1); // the row that named this node last
    for (index_t head = 0; head < g.heads(); ++head) {
        for (index_t node = 0; node < g.nodes(); ++node) {
            auto const neighbors = g.neighbors(head, node);
            auto const types     = g.types(head, node);
            index_t const row    = head * g.nodes() + node;
            for (index_t slot = 0; slot < g.degree(); ++slot) {
                std::int32_t const j = neighbors[static_cast<std::size_t>(slot)];
                int const type       = types[static_cast<std::size_t>(slot)];
                auto const defect = [&](std::string what) { return graph_defect{std::move(what), head, node, slot}; };
                if (type >= edge_codes) return defect("edge code " + std::to_string(type) + " is unknown");
                if (j != no_neighbor && (j < 0 || j >= g.nodes()))
                    return defect("neighbour " + std::to_string(j) + " is outside [0, " + std::to_string(g.nodes()) +
                                  ")");
                if (j == no_neighbor && type != 0)
                    return defect("a pad has edge code " + std::to_string(type) + " (" +
                                  name_of(static_cast<edge_code>(type)) + ")");
                if (j == no_neighbor) continue;
                if (type == 0) return defect("neighbour " + std::to_string(j) + " has the edge code of a pad");
                if (last_row[static_cast<std::size_t>(j)] == row)
                    return defect("neighbour " + std::to_string(j) + " stands twice in the row");
                last_row[static_cast<std::size_t>(j)] = row;
            }
        }
    }
    return o.hamiltonian_backbone ? find_backbone_defect(g) : std::nullopt;
}

/// Throws graph_error with the text of the first defect.
inline void require_valid(graph_view g, validate_options o = {}) {
    if (auto const defect = find_defect(g, o)) detail::fail<graph_error>(to_string(*defect));
}

} // namespace butterfly
