// SPDX-License-Identifier: MIT
#pragma once

// A graph in a file: an .npz with `neigh_idx` (int32) and `edge_type` (uint8), both [heads, nodes, degree].

#include <butterfly/graph/graph.hpp>
#include <butterfly/graph/npz.hpp>
#include <butterfly/graph/validate.hpp>

#include <array>

namespace butterfly {
namespace detail {

/// The graph of an archive: both arrays, of one shape, valid. Throws format_error. Two-dimensional arrays are one head;
/// other arrays are nobody's business.
[[nodiscard]] inline graph to_graph(std::vector<npz::array> const& arrays) {
    npz::array const* neigh_idx = nullptr;
    npz::array const* edge_type = nullptr;
    for (npz::array const& a : arrays) {
        if (a.name == "neigh_idx") neigh_idx = &a;
        if (a.name == "edge_type") edge_type = &a;
    }
    if (neigh_idx == nullptr || edge_type == nullptr) fail<format_error>("load_npz: neigh_idx or edge_type is missing");
    auto const& dims = neigh_idx->shape;
    if (dims != edge_type->shape) fail<format_error>("load_npz: neigh_idx and edge_type differ in shape");
    if (dims.size() != 2 && dims.size() != 3)
        fail<format_error>("load_npz: neigh_idx has " + std::to_string(dims.size()) + " dimensions, expected 2 or 3");
    graph_shape const shape{
        .heads = dims.size() == 3 ? dims.front() : 1, .nodes = dims[dims.size() - 2], .degree = dims.back()};
    auto neighbors = neigh_idx->values<std::int32_t>();
    auto types     = edge_type->values<std::uint8_t>();
    if (auto const defect = find_defect({neighbors.data(), types.data(), shape}))
        fail<format_error>("load_npz: " + to_string(*defect));
    return {shape, std::move(neighbors), std::move(types)};
}

} // namespace detail

/// Writes a graph that numpy.load reads. An existing file is replaced as a whole or not at all. Throws graph_error
/// where the graph is not valid, capacity_error above 4 GiB, format_error with the system's words where the file cannot
/// be written.
inline void save_npz(graph_view g, std::string const& path) {
    require_valid(g);
    auto const slots = static_cast<std::size_t>(checked_size(g.shape));
    std::vector<index_t> const dims{g.heads(), g.nodes(), g.degree()};
    std::array const members{npz::make_member<std::int32_t>("neigh_idx", dims, {g.neigh_idx, slots}),
                             npz::make_member<std::uint8_t>("edge_type", dims, {g.edge_type, slots})};
    npz::write(path, members);
}

/// Reads a valid graph from a file in memory. Throws format_error.
[[nodiscard]] inline graph load_npz(std::span<std::byte const> bytes) {
    return detail::to_graph(npz::decode(bytes));
}

/// Reads a valid graph. Throws format_error.
[[nodiscard]] inline graph load_npz(std::string const& path) {
    return detail::to_graph(npz::read(path));
}

} // namespace butterfly
