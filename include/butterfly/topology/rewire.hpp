// SPDX-License-Identifier: MIT
#pragma once

// Edges of the caller.

#include <butterfly/topology/row.hpp>

#include <span>

namespace butterfly::topology {

/// Neighbours of each node in the order given, as compressed rows: row i is neighbors[offsets[i]] up to
/// neighbors[offsets[i + 1]]. Refers to memory of the caller. They may lie after the node; -1 is skipped.
struct rewire {
    std::span<index_t const> offsets{};        // [rows + 1], rows = nodes (all heads alike) or heads * nodes
    std::span<std::int32_t const> neighbors{}; // [offsets.back()]
    edge_code type = edge_code::rewire;        // what the edges count as

    void check(topology_shape shape) const {
        if (offsets.empty()) detail::fail<shape_error>("rewire: offsets are empty, their first is 0");
        auto const rows = static_cast<index_t>(offsets.size()) - 1;
        auto const size = static_cast<index_t>(neighbors.size());
        if (rows != shape.nodes && rows != detail::try_multiply(shape.heads, shape.nodes))
            detail::fail<shape_error>("rewire: offsets have " + std::to_string(rows) + " rows, the shape " +
                                      std::to_string(shape.heads) + " heads of " + std::to_string(shape.nodes) +
                                      " nodes");
        if (offsets.front() != 0 || offsets.back() != size)
            detail::fail<shape_error>("rewire: offsets run from " + std::to_string(offsets.front()) + " to " +
                                      std::to_string(offsets.back()) + ", neighbors from 0 to " + std::to_string(size));
        for (std::size_t i = 1; i < offsets.size(); ++i)
            if (offsets[i] < offsets[i - 1])
                detail::fail<shape_error>("rewire: offsets fall at row " + std::to_string(i - 1));
        for (std::int32_t const j : neighbors)
            if (j < no_neighbor || j >= shape.nodes)
                detail::fail<shape_error>("rewire: neighbour " + std::to_string(j) + " is outside [0, " +
                                          std::to_string(shape.nodes) + ")");
        if (type == edge_code::pad) detail::fail<shape_error>("rewire: edges cannot count as pads");
    }

    template <class Sink>
    BUTTERFLY_HOST_DEVICE constexpr void emit(topology_shape shape, node_ref at, Sink& sink) const noexcept {
        bool const alike = static_cast<index_t>(offsets.size()) == shape.nodes + 1;
        auto const row   = static_cast<std::size_t>(alike ? at.node : at.head * shape.nodes + at.node);
        for (index_t i = offsets[row]; i < offsets[row + 1]; ++i)
            if (std::int32_t const j = neighbors[static_cast<std::size_t>(i)]; j != no_neighbor) sink.add(j, type);
    }
};

} // namespace butterfly::topology
