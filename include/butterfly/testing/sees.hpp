// SPDX-License-Identifier: MIT
#pragma once

// Which keys a query sees, decided one pair at a time from what a visibility says of itself: the definition that its
// walk over tiles (`next`) must agree with, and shares no code with.

#include <butterfly/graph/abi.hpp>
#include <butterfly/sdpa/visibility.hpp>

#include <algorithm>
#include <cmath>
#include <optional>

namespace butterfly::testing {

/// Position of a query token of the call.
[[nodiscard]] inline index_t query_position(problem const& p, index_t token) {
    auto const* const given = host_pointer<std::int32_t const>(p.options.q_positions);
    return given != nullptr ? given[token] : p.options.q_position + token;
}

/// Whether the row of `node` names `wanted`, asked for that node alone. Nodes that do not exist have no row.
[[nodiscard]] inline bool row_names(topology::row_source const& rows, index_t head, index_t node, index_t wanted) {
    if (node < 0 || node >= rows.shape.nodes || wanted < 0 || wanted >= rows.shape.nodes) return false;
    std::int32_t found = 0;
    return rows({.head = head, .node = node}, wanted, wanted + 1, &found, 1) == 1;
}

/// The edge bias with which a query at `position` sees a slot of a pool, by the definition of each kind; empty: hidden.
[[nodiscard]] inline std::optional<double>
sees(problem const& p, pool_ref const& pool, index_t row_head, index_t position, index_t slot) {
    visibility_description const& d = pool.visibility.description;
    auto const* const placed        = host_pointer<std::int32_t const>(pool.key_positions);
    index_t const lower             = d.window > 0 ? std::max<index_t>(0, position - d.window + 1) : 0;
    switch (d.kind) {
    case visibility_kind::interval: {
        index_t const at   = placed != nullptr ? placed[slot] : slot;
        index_t const from = lower / d.align * d.align;
        if (at < 0) return {};
        if (d.before > 0) return at >= d.after && at < d.before && at < from ? std::optional(0.0) : std::nullopt;
        return at >= from && (!p.options.causal || at <= position) ? std::optional(0.0) : std::nullopt;
    }
    case visibility_kind::routed_blocks: {
        auto const& rows = *static_cast<topology::row_source const*>(d.rows);
        if (position < 0) return {};
        if (p.options.causal && slot > position) return {};
        if (!row_names(rows, row_head, position / d.block_size, slot / d.block_size)) return {};
        return 0.0;
    }
    case visibility_kind::routed_summaries: {
        auto const& rows = *static_cast<topology::row_source const*>(d.rows);
        if (slot < d.first_slot || (slot + 1) * d.block_size > lower) return {};
        if (!row_names(rows, row_head, position / d.block_size, slot)) return {};
        return 0.0;
    }
    case visibility_kind::graph: {
        auto const& g = *static_cast<graph_view const*>(d.rows);
        if (position < 0 || position >= g.nodes() || (p.options.causal && slot > position)) return {};
        for (index_t i = 0; i < g.degree(); ++i) {
            auto const edge = static_cast<std::size_t>(g.row_begin(row_head, position) + i);
            if (g.neigh_idx[edge] != slot) continue;
            int const type = g.edge_type[edge];
            return type >= 1 && type <= 4 ? p.options.edge_bias[static_cast<std::size_t>(type - 1)] : 0.0;
        }
        return {};
    }
    case visibility_kind::custom:
        break;
    }
    return {};
}

/// The additive mask of one (query head, token, slot) with its slope; -inf hides whatever the slope.
[[nodiscard]] inline double mask_of(problem const& p, index_t head, index_t token, index_t slot) {
    additive_mask const& m = p.options.mask;
    if (!m.data) return 0.0;
    index_t const at   = (m.heads == 1 ? 0 : head) * m.head_stride + token * m.token_stride + slot;
    float const value  = m.type == element_type::f32 ? host_pointer<float const>(m.data)[at]
                                                     : static_cast<float>(host_pointer<float16 const>(m.data)[at]);
    auto const* slopes = host_pointer<float const>(m.slopes);
    if (slopes == nullptr || std::isinf(value)) return value;
    return static_cast<double>(slopes[head]) * value;
}

/// Slots past it can be seen by no query of the call: what keeps a ring without end finite.
[[nodiscard]] inline index_t last_slot(problem const& p, pool_ref const& pool) {
    if (pool.key_positions || !p.options.causal) return pool.slots;
    index_t last = 0;
    for (index_t t = 0; t < p.tokens(); ++t) last = std::max(last, query_position(p, t) + 1);
    return std::min(last, pool.slots);
}

} // namespace butterfly::testing
