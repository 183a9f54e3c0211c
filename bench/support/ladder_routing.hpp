// SPDX-License-Identifier: MIT
#pragma once

// Which blocks a block sees besides its own, by the words of the command line.
//
//   gap_free    partners, the block before                     (compressed keeps the first tokens as sinks)
//   published   partners, the block before, block 0            stage of a layer: absolute index modulo the stages of
//   the
//                                                              current length
//
// Raw block-sparse attention has no sink pool: with gap_free it sees block 0 where there are sinks.

#include <butterfly/topology/ablation.hpp>
#include <butterfly/topology/landmark.hpp>
#include <butterfly/topology/window.hpp>

#include "ladder_settings.hpp"

namespace bench {

namespace topology = butterfly::topology;

/// One of the partner rules, chosen at run time.
struct partner_rule {
    enum class kind { causal_shift, xor_partner, bit_reversal, benes, fixed_stride, random, none };

    kind which = kind::none;
    topology::stage_list stages{}; // stages, phases or draws; of fixed_stride their number counts

    /// f(rule) with the rule chosen; nothing for none.
    template <class F>
    constexpr void visit(F const& f) const {
        switch (which) {
        case kind::causal_shift:
            return f(topology::causal_shift{stages});
        case kind::xor_partner:
            return f(topology::xor_partner{stages});
        case kind::bit_reversal:
            return f(topology::bit_reversal{stages});
        case kind::benes:
            return f(topology::benes{stages});
        case kind::fixed_stride:
            return f(topology::fixed_stride{.stride = 2, .count = stages.size()});
        case kind::random:
            return f(topology::random_predecessor{stages});
        case kind::none:
            return;
        }
    }

    void check(topology::topology_shape shape) const {
        visit([&](auto const& rule) { topology::check(rule, shape); });
    }

    template <class Sink>
    constexpr void emit(topology::topology_shape shape, topology::node_ref at, Sink& sink) const noexcept {
        visit([&](auto const& rule) { rule.emit(shape, at, sink); });
    }
};

/// Rows over summaries and over blocks of raw tokens.
using summary_row = topology::row<partner_rule, topology::window, topology::landmark>;
using block_row   = topology::row<topology::self, partner_rule, topology::window, topology::landmark>;

/// The rows of every attention layer at one context.
class ladder_routing {
public:
    ladder_routing(ladder_settings const& s, index_t context);

    /// Rows of layer `ordinal` when `length` tokens are there.
    [[nodiscard]] summary_row over_summaries(index_t ordinal, index_t length) const;
    [[nodiscard]] block_row over_blocks(index_t ordinal, index_t length) const;

    /// Partners of layer `ordinal` at the full context, for the report.
    [[nodiscard]] partner_rule partners(index_t ordinal, index_t length) const;

private:
    partner_rule::kind which_;
    bool published_;
    index_t block_size_;
    index_t blocks_;
    int count_  = 0; // partners per layer
    int phases_ = 1; // stages, or phases of benes, that the layers go round
    model_geometry model_;
    index_t sink_blocks_;
};

} // namespace bench
