// SPDX-License-Identifier: MIT
#pragma once

// How a kernel asks for the row of a node without knowing which rules make it: one function pointer, no allocation.

#include <butterfly/core/index.hpp>

namespace butterfly::topology {

/// What a topology connects: `nodes` are tokens or blocks, the same for each head.
struct topology_shape {
    index_t heads = 0;
    index_t nodes = 0;

    friend constexpr bool operator==(topology_shape const&, topology_shape const&) = default;
};

/// The node whose row is asked for.
struct node_ref {
    index_t head = 0;
    index_t node = 0;
};

/// Rows on the fly. `next` writes the ascending unique nodes in [from, limit) of the row of `node`, the smallest
/// `capacity` of them, to `out` and returns how many. A return of `capacity` means there may be more: ask again with
/// from = out[capacity - 1] + 1. Any number of threads may ask at the same time.
///
/// Made by make_row_source (topology/row.hpp) from a rule, which must outlive it.
struct row_source {
    void const* state                  = nullptr;
    int (*next)(void const* state,
                topology_shape,
                node_ref,
                index_t from,
                index_t limit,
                std::int32_t* out,
                int capacity) noexcept = nullptr;
    topology_shape shape{};

    [[nodiscard]] explicit operator bool() const noexcept { return next != nullptr; }

    [[nodiscard]] int
    operator()(node_ref node, index_t from, index_t limit, std::int32_t* out, int capacity) const noexcept {
        return next(state, shape, node, from, limit, out, capacity);
    }
};

} // namespace butterfly::topology
