// SPDX-License-Identifier: MIT
#pragma once

// From rules to an explicit graph. Memory is 5 * heads * nodes * degree bytes: attention itself asks rules for rows on
// the fly (topology/row_source.hpp), and an explicit graph is for interchange and inspection.

#include <butterfly/graph/graph.hpp>
#include <butterfly/topology/row.hpp>

namespace butterfly::topology {

/// Collects one row at a time: the first mention of a node fixes its slot, later ones only upgrade its code by
/// precedence. Nodes outside [0, nodes) are dropped.
class row_builder {
public:
    /// Memory is 4 bytes per node.
    explicit row_builder(index_t nodes) : slot_of_(static_cast<std::size_t>(nodes), none) {}

    void add(index_t node, edge_code code) {
        ++mentions_;
        if (node < 0 || node >= limit()) return;
        std::int32_t& slot = slot_of_[static_cast<std::size_t>(node)];
        if (slot == none) {
            slot = static_cast<std::int32_t>(nodes_.size());
            nodes_.push_back(static_cast<std::int32_t>(node));
            codes_.push_back(code);
        } else if (edge_code& held = codes_[static_cast<std::size_t>(slot)]; precedence(code) > precedence(held)) {
            held = code;
        }
    }

    [[nodiscard]] static constexpr index_t from() noexcept { return 0; }
    [[nodiscard]] index_t limit() const noexcept { return static_cast<index_t>(slot_of_.size()); }

    /// Keeps the first `degree` >= 1 slots; where the cut would lose `self`, it takes the last of them.
    void cut(index_t degree, index_t self) {
        auto const width = static_cast<std::size_t>(degree);
        if (nodes_.size() <= width) return;
        std::int32_t& self_slot = slot_of_[static_cast<std::size_t>(self)];
        if (auto const slot = static_cast<std::size_t>(self_slot); self_slot != none && slot >= width) {
            std::swap(nodes_[width - 1], nodes_[slot]);
            std::swap(codes_[width - 1], codes_[slot]);
        }
        for (std::size_t i = width; i < nodes_.size(); ++i) slot_of_[static_cast<std::size_t>(nodes_[i])] = none;
        nodes_.resize(width);
        codes_.resize(width);
    }

    void clear() noexcept {
        for (std::int32_t const node : nodes_) slot_of_[static_cast<std::size_t>(node)] = none;
        nodes_.clear();
        codes_.clear();
        mentions_ = 0;
    }

    [[nodiscard]] std::span<std::int32_t const> nodes() const noexcept { return nodes_; }
    [[nodiscard]] std::span<edge_code const> codes() const noexcept { return codes_; }

    /// How often rules called add for this row: the fan-in before overlaps are removed.
    [[nodiscard]] index_t mentions() const noexcept { return mentions_; }

private:
    static constexpr std::int32_t none = -1;

    std::vector<std::int32_t> slot_of_; // [nodes], slot of a node in this row
    std::vector<std::int32_t> nodes_;
    std::vector<edge_code> codes_;
    index_t mentions_ = 0;
};

/// What to build. `heads` and `nodes` are required.
struct build_options {
    index_t heads      = 0;
    index_t nodes      = 0;
    index_t max_degree = 0; ///< rows longer than this are cut in the order written, and `self` stays; 0: no cut
    index_t degree     = 0; ///< width of a row of the graph; 0: the longest row
};

/// The graph whose rows are `rules` in the order written. Two passes over the rules, or one where `degree` is given.
/// Throws shape_error where an extent or a parameter of a rule does not fit, capacity_error where a row is longer than
/// `degree`.
template <composable... Rules>
[[nodiscard]] graph build(build_options o, Rules const&... rules) {
    topology_shape const shape{.heads = o.heads, .nodes = o.nodes};
    if (o.max_degree < 0 || o.degree < 0)
        detail::fail<shape_error>("build: max_degree " + std::to_string(o.max_degree) + " and degree " +
                                  std::to_string(o.degree) + " must not be negative");
    auto const composed = prepare(row(rules...), shape);

    row_builder builder(shape.nodes);
    auto const emit = [&](node_ref at) {
        builder.clear();
        composed.emit(shape, at, builder);
        if (o.max_degree > 0) builder.cut(o.max_degree, at.node);
    };

    index_t degree = o.degree;
    if (degree == 0) {
        degree = 1;
        for (index_t head = 0; head < shape.heads; ++head)
            for (index_t node = 0; node < shape.nodes; ++node) {
                emit({head, node});
                degree = std::max(degree, static_cast<index_t>(builder.nodes().size()));
            }
    }

    graph out(graph_shape{.heads = shape.heads, .nodes = shape.nodes, .degree = degree});
    std::int32_t* neighbors = out.neigh_idx().data();
    std::uint8_t* types     = out.edge_type().data();
    for (index_t head = 0; head < shape.heads; ++head) {
        for (index_t node = 0; node < shape.nodes; ++node, neighbors += degree, types += degree) {
            emit({head, node});
            auto const length = static_cast<index_t>(builder.nodes().size());
            if (length > degree)
                detail::fail<capacity_error>("build: the row of head " + std::to_string(head) + " node " +
                                             std::to_string(node) + " has " + std::to_string(length) +
                                             " neighbours, degree is " + std::to_string(degree));
            std::copy_n(builder.nodes().data(), length, neighbors);
            std::transform(builder.codes().begin(), builder.codes().end(), types,
                           [](edge_code c) { return static_cast<std::uint8_t>(c); });
        }
    }
    return out;
}

/// The most mentions in any row: the fan-in of the rules before overlaps are removed, out-of-range mentions included.
/// Throws as build does.
template <composable... Rules>
[[nodiscard]] index_t candidate_degree(topology_shape shape, Rules const&... rules) {
    auto const composed = prepare(row(rules...), shape);
    row_builder builder(shape.nodes);
    index_t most = 0;
    for (index_t head = 0; head < shape.heads; ++head)
        for (index_t node = 0; node < shape.nodes; ++node) {
            builder.clear();
            composed.emit(shape, {head, node}, builder);
            most = std::max(most, builder.mentions());
        }
    return most;
}

} // namespace butterfly::topology
