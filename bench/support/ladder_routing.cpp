// SPDX-License-Identifier: MIT
#include "ladder_routing.hpp"

#include <algorithm>
#include <utility>

namespace bench {
namespace {

partner_rule::kind kind_of(std::string const& name) {
    using enum partner_rule::kind;
    std::pair<char const*, partner_rule::kind> const names[] = {{"causal_shift", causal_shift},
                                                                {"xor", xor_partner},
                                                                {"bit_reversal", bit_reversal},
                                                                {"benes", benes},
                                                                {"random", random},
                                                                {"fixed_stride", fixed_stride}};
    for (auto const& [text, kind] : names)
        if (name == text) return kind;
    return none;
}

} // namespace

ladder_routing::ladder_routing(ladder_settings const& s, index_t context)
    : which_(kind_of(s.partner)), published_(s.preset == "published"), block_size_(s.block_size),
      blocks_(butterfly::detail::ceil_div(context, s.block_size)), model_(s.model),
      sink_blocks_(butterfly::detail::ceil_div(s.exact_sinks, s.block_size)) {
    int const stages = topology::stage_count(blocks_);
    phases_          = which_ == partner_rule::kind::benes ? topology::benes_phase_count(blocks_) : stages;
    auto const few   = static_cast<int>(butterfly::detail::ceil_div(phases_, s.model.layers));
    count_           = s.partners > 0 ? static_cast<int>(s.partners) : published_ ? 1 : few;
    if (count_ > phases_) throw usage_error("--partners {}: {} blocks have only {} stages", count_, blocks_, phases_);
}

partner_rule ladder_routing::partners(index_t ordinal, index_t length) const {
    partner_rule rule{.which = which_};
    index_t first = ordinal % phases_ * count_;
    int phases    = phases_;
    if (published_) {
        index_t const blocks = butterfly::detail::ceil_div(length, block_size_);
        phases =
            which_ == partner_rule::kind::benes ? topology::benes_phase_count(blocks) : topology::stage_count(blocks);
        first = model_.numbers[static_cast<std::size_t>(ordinal)] % phases;
    }
    for (int i = 0; i < std::min(count_, phases); ++i) rule.stages.push_back(static_cast<int>((first + i) % phases));
    return rule;
}

summary_row ladder_routing::over_summaries(index_t ordinal, index_t length) const {
    return summary_row(partners(ordinal, length), topology::window{.predecessors = 1},
                       topology::landmark{.stride = 1, .count = published_ ? 1 : 0});
}

block_row ladder_routing::over_blocks(index_t ordinal, index_t length) const {
    return block_row(topology::self{}, partners(ordinal, length), topology::window{.predecessors = 1},
                     topology::landmark{.stride = 1, .count = published_ ? 1 : sink_blocks_});
}

} // namespace bench
