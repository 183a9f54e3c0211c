// SPDX-License-Identifier: MIT
#pragma once

#include <butterfly/topology/row.hpp>

namespace mine {

/// The node itself and those 1, 2, 3, 5, 8, ... before it.
struct fibonacci {
    template <class Sink>
    void emit(butterfly::topology::topology_shape, butterfly::topology::node_ref at, Sink& sink) const noexcept {
        sink.add(at.node, butterfly::edge_code::window);
        for (butterfly::index_t a = 1, b = 2; a <= at.node; b += a, a = b - a)
            sink.add(at.node - a, butterfly::edge_code::rewire);
    }
};

static_assert(butterfly::topology::rule<fibonacci>);

} // namespace mine
