// SPDX-License-Identifier: MIT
#pragma once

// The nodes just before a node, and the node itself.

#include <butterfly/topology/row.hpp>

namespace butterfly::topology {

/// node - predecessors ... node - 1, oldest first; type window. The node itself is `self`.
struct window {
    index_t predecessors = 0;

    void check(topology_shape) const {
        if (predecessors < 0)
            detail::fail<shape_error>("window: predecessors is " + std::to_string(predecessors) +
                                      ", must not be negative");
    }

    template <class Sink>
    BUTTERFLY_HOST_DEVICE constexpr void emit(topology_shape, node_ref at, Sink& sink) const noexcept {
        index_t j = at.node < predecessors ? 0 : at.node - predecessors;
        if (j < sink.from()) j = sink.from();
        for (; j < at.node && j < sink.limit(); ++j) sink.add(j, edge_code::window);
    }
};

/// The node itself; type window.
struct self {
    template <class Sink>
    BUTTERFLY_HOST_DEVICE constexpr void emit(topology_shape, node_ref at, Sink& sink) const noexcept {
        sink.add(at.node, edge_code::window);
    }
};

} // namespace butterfly::topology
