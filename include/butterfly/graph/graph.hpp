// SPDX-License-Identifier: MIT
#pragma once

// A graph that owns its arrays.

#include <butterfly/graph/abi.hpp>

#include <algorithm>
#include <utility>
#include <vector>

namespace butterfly {

/// Owns `neigh_idx` and `edge_type` of the graph ABI, both [heads, nodes, degree].
class graph {
public:
    /// No graph: every extent 0. Only good for assigning to.
    graph() = default;

    /// A graph of pads. Throws shape_error as checked_size does.
    explicit graph(graph_shape shape)
        : neigh_idx_(static_cast<std::size_t>(checked_size(shape)), no_neighbor), edge_type_(neigh_idx_.size(), 0),
          shape_(shape) {}

    /// Takes both arrays, C order. Throws shape_error where a size is not heads * nodes * degree. Contents are not
    /// validated.
    graph(graph_shape shape, std::vector<std::int32_t> neigh_idx, std::vector<std::uint8_t> edge_type)
        : neigh_idx_(std::move(neigh_idx)), edge_type_(std::move(edge_type)), shape_(shape) {
        auto const slots = static_cast<std::size_t>(checked_size(shape));
        if (neigh_idx_.size() != slots || edge_type_.size() != slots)
            detail::fail<shape_error>("graph: neigh_idx has " + std::to_string(neigh_idx_.size()) +
                                      " slots, edge_type " + std::to_string(edge_type_.size()) + ", shape " +
                                      to_string(shape) + " needs " + std::to_string(slots));
    }

    /// Copies the arrays of a view. Throws shape_error where the view has no data.
    explicit graph(graph_view view) : graph(view.shape) {
        if (view.neigh_idx == nullptr || view.edge_type == nullptr)
            detail::fail<shape_error>("graph: the view has no data");
        std::copy_n(view.neigh_idx, neigh_idx_.size(), neigh_idx_.begin());
        std::copy_n(view.edge_type, edge_type_.size(), edge_type_.begin());
    }

    [[nodiscard]] graph_shape shape() const noexcept { return shape_; }

    /// Lives as long as this graph: a temporary has no view.
    [[nodiscard]] graph_view view() const& noexcept { return {neigh_idx_.data(), edge_type_.data(), shape_}; }
    graph_view view() const&& = delete;

    /// All slots, for whoever fills a graph; [heads, nodes, degree].
    [[nodiscard]] std::span<std::int32_t> neigh_idx() & noexcept { return neigh_idx_; }
    [[nodiscard]] std::span<std::uint8_t> edge_type() & noexcept { return edge_type_; }

    friend bool operator==(graph const&, graph const&) = default;

private:
    std::vector<std::int32_t> neigh_idx_;
    std::vector<std::uint8_t> edge_type_;
    graph_shape shape_{};
};

/// Heads of `parts` one after another; the widest degree wins, narrower rows are padded on the right. Throws
/// shape_error where `parts` is empty, a part has no data, or nodes differ.
[[nodiscard]] inline graph stack(std::span<graph_view const> parts) {
    if (parts.empty()) detail::fail<shape_error>("stack: no graphs");
    graph_shape shape{.heads = 0, .nodes = parts[0].nodes(), .degree = 0};
    for (graph_view const& part : parts) {
        static_cast<void>(checked_size(part.shape));
        if (part.neigh_idx == nullptr || part.edge_type == nullptr)
            detail::fail<shape_error>("stack: a graph has no data");
        if (part.nodes() != shape.nodes)
            detail::fail<shape_error>("stack: graphs have " + std::to_string(shape.nodes) + " and " +
                                      std::to_string(part.nodes()) + " nodes");
        shape.heads += part.heads();
        shape.degree = std::max(shape.degree, part.degree());
    }

    graph out(shape);
    std::int32_t* neighbors = out.neigh_idx().data();
    std::uint8_t* types     = out.edge_type().data();
    for (graph_view const& part : parts) {
        for (index_t row = 0; row < part.heads() * part.nodes(); ++row) {
            std::copy_n(part.neigh_idx + row * part.degree(), part.degree(), neighbors);
            std::copy_n(part.edge_type + row * part.degree(), part.degree(), types);
            neighbors += shape.degree;
            types += shape.degree;
        }
    }
    return out;
}

} // namespace butterfly
