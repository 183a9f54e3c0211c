// SPDX-License-Identifier: MIT
#pragma once

// Partners to hold causal_shift against, at the same number of edges. Each rule names at most one partner per entry of
// its list, in the order of the list, and only partners that exist and do not lie after the node: the exchange rules of
// a real butterfly network lose about half their edges that way. w = stage_count(nodes); type rewire throughout.

#include <butterfly/topology/causal_shift.hpp>

namespace butterfly::topology {

/// How many phases a Benes network of `nodes` has: up the stages and down again, max(1, 2w - 2).
[[nodiscard]] BUTTERFLY_HOST_DEVICE constexpr int benes_phase_count(index_t nodes) noexcept {
    int const w = stage_count(nodes);
    return w <= 1 ? 1 : 2 * w - 2;
}

/// The stage of a phase in [0, benes_phase_count(nodes)): 0, 1, ..., w - 1, w - 2, ..., 1.
[[nodiscard]] BUTTERFLY_HOST_DEVICE constexpr int benes_stage(int phase, index_t nodes) noexcept {
    int const w = stage_count(nodes);
    return w <= 1 ? 0 : phase < w ? phase : 2 * w - 2 - phase;
}

/// Throws shape_error where a stage is not in [0, limit).
inline void check_stages(char const* rule_name, stage_list const& stages, int limit, index_t nodes) {
    for (int const k : stages)
        if (k >= limit)
            detail::fail<shape_error>(std::string(rule_name) + ": stage " + std::to_string(k) + " is outside [0, " +
                                      std::to_string(limit) + "), the stages of " + std::to_string(nodes) + " nodes");
}

/// node XOR 2^k.
struct xor_partner {
    stage_list stages{};

    void check(topology_shape shape) const {
        check_stages("xor_partner", stages, stage_count(shape.nodes), shape.nodes);
    }

    template <class Sink>
    BUTTERFLY_HOST_DEVICE constexpr void emit(topology_shape, node_ref at, Sink& sink) const noexcept {
        for (int const k : stages)
            if (index_t const partner = at.node ^ (index_t{1} << k); partner < at.node)
                sink.add(partner, edge_code::rewire);
    }
};

/// Exchanges bit k of the bit-reversed number of the node, which is node XOR 2^(w - 1 - k): large distances first.
struct bit_reversal {
    stage_list stages{};

    void check(topology_shape shape) const {
        check_stages("bit_reversal", stages, stage_count(shape.nodes), shape.nodes);
    }

    template <class Sink>
    BUTTERFLY_HOST_DEVICE constexpr void emit(topology_shape shape, node_ref at, Sink& sink) const noexcept {
        int const w = stage_count(shape.nodes);
        for (int const k : stages)
            if (index_t const partner = at.node ^ (index_t{1} << (w - 1 - k)); partner < at.node)
                sink.add(partner, edge_code::rewire);
    }
};

/// node XOR 2^benes_stage(phase).
struct benes {
    stage_list phases{};

    void check(topology_shape shape) const {
        check_stages("benes", phases, benes_phase_count(shape.nodes), shape.nodes);
    }

    template <class Sink>
    BUTTERFLY_HOST_DEVICE constexpr void emit(topology_shape shape, node_ref at, Sink& sink) const noexcept {
        for (int const phase : phases)
            if (index_t const partner = at.node ^ (index_t{1} << benes_stage(phase, shape.nodes)); partner < at.node)
                sink.add(partner, edge_code::rewire);
    }
};

/// node - stride, node - 2 * stride, ..., `count` of them.
struct fixed_stride {
    index_t stride = 1;
    index_t count  = 1;

    void check(topology_shape) const {
        if (stride <= 0 || count < 0)
            detail::fail<shape_error>("fixed_stride: stride " + std::to_string(stride) + " must be positive, count " +
                                      std::to_string(count) + " not negative");
    }

    template <class Sink>
    BUTTERFLY_HOST_DEVICE constexpr void emit(topology_shape, node_ref at, Sink& sink) const noexcept {
        index_t partner = at.node;
        for (index_t i = 0; i < count && partner >= stride; ++i) sink.add(partner -= stride, edge_code::rewire);
    }
};

/// A predecessor by hashing: (node * 2654435761 + k * 374761393 mod 2^32) mod node for each draw k. Node 0 has none.
struct random_predecessor {
    stage_list draws{};

    template <class Sink>
    BUTTERFLY_HOST_DEVICE constexpr void emit(topology_shape, node_ref at, Sink& sink) const noexcept {
        if (at.node <= 0) return;
        for (int const k : draws) {
            auto const hash =
                static_cast<std::uint32_t>(at.node) * 2654435761U + static_cast<std::uint32_t>(k) * 374761393U;
            sink.add(static_cast<index_t>(hash) % at.node, edge_code::rewire);
        }
    }
};

} // namespace butterfly::topology
