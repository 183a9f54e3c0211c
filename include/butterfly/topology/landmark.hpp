// SPDX-License-Identifier: MIT
#pragma once

// Periodic nodes that all later nodes see.

#include <butterfly/topology/row.hpp>

namespace butterfly::topology {

/// 0, stride, 2 * stride, ... before the node, ascending, at most `count` of them; type landmark. The first blocks of a
/// sequence (stride 1, count S) are landmarks too.
struct landmark {
    static constexpr index_t unlimited = std::numeric_limits<index_t>::max();

    index_t stride = 64;
    index_t count  = unlimited;

    void check(topology_shape) const {
        if (stride <= 0)
            detail::fail<shape_error>("landmark: stride is " + std::to_string(stride) + ", must be positive");
        if (count < 0)
            detail::fail<shape_error>("landmark: count is " + std::to_string(count) + ", must not be negative");
    }

    template <class Sink>
    BUTTERFLY_HOST_DEVICE constexpr void emit(topology_shape, node_ref at, Sink& sink) const noexcept {
        index_t i       = sink.from() <= 0 ? 0 : (sink.from() - 1) / stride + 1; // first landmark at or after from()
        index_t const n = at.node <= 0 ? 0 : (at.node - 1) / stride + 1;         // landmarks before the node
        index_t const e = n < count ? n : count;
        for (; i < e && i * stride < sink.limit(); ++i) sink.add(i * stride, edge_code::landmark);
    }
};

} // namespace butterfly::topology
