// SPDX-License-Identifier: MIT
#pragma once

// The graph ABI: a padded adjacency list with a type on each edge, the interchange form of a topology.
//
//   neigh_idx  int32 [heads, nodes, degree]    a node in [0, nodes), or -1 (pad); no node twice in a row
//   edge_type  uint8 [heads, nodes, degree]    an edge_code; 0 exactly where neigh_idx is -1
//
// Pads may stand anywhere in a row. Rows are not causal: an edge may lead to a later node, and attention hides it.
// The codes are frozen: files and other programs hold them.

#include <butterfly/core/index.hpp>

#include <cstdint>
#include <span>
#include <string>

namespace butterfly {

/// Why an edge exists.
enum class edge_code : std::uint8_t {
    pad      = 0, ///< no edge
    cycle    = 1, ///< neighbour on a Hamiltonian cycle
    window   = 2, ///< one of the latest predecessors, or the node itself
    landmark = 3, ///< periodic node that all later nodes see
    rewire   = 4, ///< anything else: log-step partners, edges of the caller
};

/// Number of codes, the pad included.
inline constexpr int edge_codes = 5;

/// Which code an edge keeps when several rules name the same neighbour: cycle > rewire > landmark > window.
[[nodiscard]] BUTTERFLY_HOST_DEVICE constexpr int precedence(edge_code c) noexcept {
    return c == edge_code::cycle      ? 4
           : c == edge_code::rewire   ? 3
           : c == edge_code::landmark ? 2
                                      : c == edge_code::window;
}

[[nodiscard]] constexpr char const* name_of(edge_code c) noexcept {
    switch (c) {
    case edge_code::pad:
        return "pad";
    case edge_code::cycle:
        return "cycle";
    case edge_code::window:
        return "window";
    case edge_code::landmark:
        return "landmark";
    case edge_code::rewire:
        return "rewire";
    }
    return "?";
}

/// Extents of a graph; `nodes` are tokens or blocks, `degree` is the width of a padded row.
struct graph_shape {
    index_t heads  = 0;
    index_t nodes  = 0;
    index_t degree = 0;

    friend constexpr bool operator==(graph_shape const&, graph_shape const&) = default;
};

[[nodiscard]] inline std::string to_string(graph_shape s) {
    return std::string("[") + std::to_string(s.heads) + ", " + std::to_string(s.nodes) + ", " +
           std::to_string(s.degree) + "]";
}

/// heads * nodes * degree. Throws shape_error where an extent is below 1, where nodes do not fit an int32, or where the
/// bytes of the neighbours overflow index_t.
[[nodiscard]] inline index_t checked_size(graph_shape s) {
    if (s.heads < 1 || s.nodes < 1 || s.degree < 1)
        detail::fail<shape_error>("graph: every extent of " + to_string(s) + " must be at least 1");
    if (s.nodes > std::numeric_limits<std::int32_t>::max())
        detail::fail<shape_error>("graph: " + std::to_string(s.nodes) + " nodes do not fit an int32 index");
    index_t const rows  = detail::checked_multiply(s.heads, s.nodes, "graph: heads x nodes");
    index_t const slots = detail::checked_multiply(rows, s.degree, "graph: rows x degree");
    static_cast<void>(detail::checked_multiply(slots, sizeof(std::int32_t), "graph: slots x bytes of a neighbour"));
    return slots;
}

/// A graph somebody else owns, both arrays contiguous. Not validated: see graph/validate.hpp for graphs from outside.
struct graph_view {
    std::int32_t const* neigh_idx = nullptr; // [heads, nodes, degree], -1 pads
    std::uint8_t const* edge_type = nullptr; // [heads, nodes, degree], an edge_code each
    graph_shape shape{};

    [[nodiscard]] BUTTERFLY_HOST_DEVICE constexpr index_t heads() const noexcept { return shape.heads; }
    [[nodiscard]] BUTTERFLY_HOST_DEVICE constexpr index_t nodes() const noexcept { return shape.nodes; }
    [[nodiscard]] BUTTERFLY_HOST_DEVICE constexpr index_t degree() const noexcept { return shape.degree; }

    /// First slot of a row.
    [[nodiscard]] BUTTERFLY_HOST_DEVICE constexpr index_t row_begin(index_t head, index_t node) const noexcept {
        return (head * shape.nodes + node) * shape.degree;
    }

    /// Neighbours of a row, [degree], -1 pads.
    [[nodiscard]] std::span<std::int32_t const> neighbors(index_t head, index_t node) const noexcept {
        return {neigh_idx + row_begin(head, node), static_cast<std::size_t>(shape.degree)};
    }

    /// Edge codes of a row, [degree].
    [[nodiscard]] std::span<std::uint8_t const> types(index_t head, index_t node) const noexcept {
        return {edge_type + row_begin(head, node), static_cast<std::size_t>(shape.degree)};
    }
};

} // namespace butterfly
