// SPDX-License-Identifier: MIT
#pragma once

// What a stack of layers can carry to a node when layer l attends along rows of rule l.

#include <butterfly/topology/causal_shift.hpp>

#include <algorithm>
#include <span>
#include <vector>

namespace butterfly::topology {

/// Marks the nodes before a limit that a row names.
class marking_sink {
public:
    marking_sink(std::vector<bool>& marks, index_t limit) noexcept : marks_(marks), limit_(limit) {}

    void add(index_t node, edge_code) noexcept {
        if (node >= 0 && node < limit_) marks_[static_cast<std::size_t>(node)] = true;
    }
    [[nodiscard]] static constexpr index_t from() noexcept { return 0; }
    [[nodiscard]] index_t limit() const noexcept { return limit_; }

private:
    std::vector<bool>& marks_;
    index_t limit_;
};

/// How many nodes, the node itself included, have a path to `target` that takes one edge of each layer in turn; every
/// node also keeps what it has (self edges), and edges to later nodes do not count. `layers` in the order of the model.
/// O(layers * nodes) rows, one bit per node. Throws shape_error where a rule or `target` does not fit the shape.
template <rule R>
[[nodiscard]] index_t reachable(std::span<R const> layers, topology_shape shape, node_ref target) {
    for (R const& layer : layers) check(layer, shape);
    check(shape);
    if (target.node < 0 || target.node >= shape.nodes || target.head < 0 || target.head >= shape.heads)
        detail::fail<shape_error>("reachable: node " + std::to_string(target.node) + " of head " +
                                  std::to_string(target.head) + " is outside " + std::to_string(shape.heads) +
                                  " heads of " + std::to_string(shape.nodes) + " nodes");
    std::vector<bool> reached(static_cast<std::size_t>(target.node + 1));
    reached.back() = true;
    for (auto layer = layers.rbegin(); layer != layers.rend(); ++layer) {
        for (index_t node = 0; node <= target.node; ++node) { // ascending: marks go to nodes already passed
            if (!reached[static_cast<std::size_t>(node)]) continue;
            marking_sink sink(reached, node);
            layer->emit(shape, {target.head, node}, sink);
        }
    }
    return static_cast<index_t>(std::count(reached.begin(), reached.end(), true));
}

/// Reach of `node` through every layer of a schedule: row(causal_shift{stages of the layer}, local...). Throws as
/// above.
template <rule... Local>
[[nodiscard]] index_t
reachable(stage_schedule const& schedule, topology_shape shape, node_ref target, Local const&... local) {
    std::vector<row<causal_shift, Local...>> layers;
    for (index_t ordinal = 0; ordinal < schedule.layers(); ++ordinal)
        layers.emplace_back(causal_shift{schedule[ordinal]}, local...);
    return reachable(std::span<row<causal_shift, Local...> const>(layers), shape, target);
}

} // namespace butterfly::topology
