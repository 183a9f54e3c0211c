// SPDX-License-Identifier: MIT
#pragma once

// Block rows of the published system (Butterfly, MIT, commit 51a3d97) in words of this library: self, the local blocks
// from the nearest, partners in the order of their bits, sinks. Two of its habits have no place among our rules and
// live here: local blocks go backwards, and sinks are listed even where they lie at or after the block.

#include <butterfly/topology/ablation.hpp>
#include <butterfly/topology/build.hpp>
#include <butterfly/topology/window.hpp>

#include <string_view>

namespace butterfly::testing {

/// block - 1, block - 2, ..., `count` of them; type window.
struct published_local {
    index_t count = 1;

    template <class Sink>
    void emit(topology::topology_shape, topology::node_ref at, Sink& sink) const noexcept {
        for (index_t i = 1; i <= count && i <= at.node; ++i) sink.add(at.node - i, edge_code::window);
    }
};

/// 0, 1, ..., min(count, nodes) - 1, whatever the block; type landmark.
struct published_sinks {
    index_t count = 1;

    template <class Sink>
    void emit(topology::topology_shape shape, topology::node_ref, Sink& sink) const noexcept {
        for (index_t j = 0; j < count && j < shape.nodes; ++j) sink.add(j, edge_code::landmark);
    }
};

struct published_rows_options {
    index_t blocks        = 0;
    index_t layer         = 0;              ///< absolute layer index
    std::string_view rule = "causal_shift"; ///< causal_shift, xor, bit_reversal, benes, fixed_stride, random
    index_t local         = 1;
    index_t sinks         = 1;
    index_t partners      = 1;
};

/// Stages a layer uses: partner o takes (layer + o) mod stages; benes counts phases instead of stages.
[[nodiscard]] inline topology::stage_list published_stages(published_rows_options const& o) {
    bool const benes = o.rule == "benes";
    index_t const n  = benes ? topology::benes_phase_count(o.blocks) : topology::stage_count(o.blocks);
    topology::stage_list out;
    for (index_t i = 0; i < o.partners; ++i) out.push_back(static_cast<int>((o.layer + i) % n));
    return out;
}

/// All rows of one layer, [1, blocks, degree]. Throws shape_error for counts below 0, no blocks or an unknown rule.
[[nodiscard]] inline graph published_rows(published_rows_options const& o) {
    if (o.local < 0 || o.sinks < 0 || o.partners < 0 || o.blocks < 1 || o.layer < 0)
        butterfly::detail::fail<shape_error>(
            "published_rows: blocks must be at least 1, layer, local, sinks and partners not negative");
    auto const stages = published_stages(o);
    auto const rows   = [&](auto const& partner) {
        return topology::build({.heads = 1, .nodes = o.blocks}, topology::self{}, published_local{o.local}, partner,
                                 published_sinks{o.sinks});
    };
    if (o.rule == "causal_shift") return rows(topology::causal_shift{stages});
    if (o.rule == "xor") return rows(topology::xor_partner{stages});
    if (o.rule == "bit_reversal") return rows(topology::bit_reversal{stages});
    if (o.rule == "benes") return rows(topology::benes{stages});
    if (o.rule == "fixed_stride") return rows(topology::fixed_stride{.stride = 1, .count = o.partners > 0 ? 1 : 0});
    if (o.rule == "random") return rows(topology::random_predecessor{stages});
    butterfly::detail::fail<shape_error>("published_rows: no partner rule '" + std::string(o.rule) + "'");
}

} // namespace butterfly::testing
