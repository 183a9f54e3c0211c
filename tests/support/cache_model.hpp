// SPDX-License-Identifier: MIT
#pragma once

// The model of a compressed cache for cache_program.hpp. A query at t sees a past token j
//
//   exactly      if its block is not wholly before the window of t (or, without whole_blocks, j is in the window), or
//                j is a sink
//   in a summary if its block is wholly before the window and the row of t's block names it
//   not at all   otherwise

#include <butterfly/cache/attend.hpp>
#include <butterfly/topology/causal_shift.hpp>
#include <butterfly/topology/landmark.hpp>
#include <butterfly/topology/window.hpp>

#include "support/cache_program.hpp"

namespace butterfly::testing {

/// A different codec for every pool.
struct one_codec_each {
    quant::raw<bfloat16> tail_k{};
    quant::raw<float16> tail_v{};
    byte_codec summary_k{};
    quant::raw<bfloat16> summary_v{};
};

/// A packed tail beside sinks that stay exact.
struct packed_tail {
    byte_codec tail{};
    quant::raw<float> sink{};
    quant::raw<float16> summary_k{};
    byte_codec summary_v{};
};

/// Which blocks a row names, said twice: as a rule of the library and as a predicate.
struct test_row {
    enum kind { all, shift_and_window, with_landmark, none } which = all;
    int stage                                                      = 0;

    [[nodiscard]] bool names(index_t block, index_t n) const noexcept {
        if (n < 0 || n >= block || which == none) return false;
        if (which == all || n == block - 1 || n == block - (index_t{1} << stage)) return true;
        return which == with_landmark && n == 0;
    }

    template <class F>
    void with_rule(index_t nodes, F const& f) const {
        topology::causal_shift const shift{{stage}};
        topology::window const before{.predecessors = 1};
        if (which == all) f(topology::window{.predecessors = nodes});
        if (which == none) f(topology::window{.predecessors = 0});
        if (which == shift_and_window) f(topology::row(shift, before));
        if (which == with_landmark) f(topology::row(topology::landmark{.stride = 1, .count = 1}, before, shift));
    }
};

/// Every token of a sequence and what it means to attend to it.
template <class Mix, class Pooling>
struct cache_model : kept_tokens {
    using cache_type = compressed_kv_cache<Mix, Pooling>;

    cache_config config;
    test_row row;

    [[nodiscard]] index_t sinks() const { return config.sinks(); }
    void changed(index_t) {}
    void shifting(bool) {}

    template <class Policy, class Q, class O>
    void
    attend(Policy const& policy, Q const& q, cache_type const& cache, O const& out, attend_options const& o) const {
        row.with_rule(cache.max_blocks(), [&](auto const& rule) { butterfly::attend(policy, q, cache, rule, out, o); });
    }

    [[nodiscard]] std::string defect(cache_type const& cache) const {
        bool const early = cache.summaries() == tokens() / config.block_size;
        return config.rules.late || early ? "" : "a full block has no summary";
    }

    [[nodiscard]] std::vector<key> seen(Mix const& mix, index_t t, index_t head) const {
        index_t const bs = config.block_size;
        index_t const lo = std::max<index_t>(0, t - config.exact_window + 1);
        std::vector<key> keys;
        for (index_t j = 0; j <= t; ++j) {
            bool const old   = (j / bs + 1) * bs <= lo; // its block is wholly before the window
            bool const exact = config.rules.whole_blocks ? !old : j >= lo;
            bool const sink  = j < config.sinks() && (config.rules.whole_blocks ? old : j < lo);
            if (sink)
                keys.push_back({part(sink_k[static_cast<std::size_t>(j)], head, config.head_dim),
                                part(sink_v[static_cast<std::size_t>(j)], head, config.value_dim()), 0.0});
            else if (exact)
                keys.push_back({part(k[static_cast<std::size_t>(j)], head, config.head_dim),
                                part(v[static_cast<std::size_t>(j)], head, config.value_dim()), 0.0});
            else if (old && j % bs == bs - 1 && row.names(t / bs, j / bs))
                summarise(mix, j / bs, head, keys);
        }
        return keys;
    }

    void summarise(Mix const& mix, index_t block, index_t head, std::vector<key>& keys) const {
        key mean{std::vector<float>(static_cast<std::size_t>(config.head_dim)),
                 std::vector<float>(static_cast<std::size_t>(config.value_dim())), 0.0};
        float total = 0.0F;
        for (index_t j = std::max(block * config.block_size, config.sinks()); j < (block + 1) * config.block_size;
             ++j) {
            auto const at = static_cast<std::size_t>(j);
            float const w = Pooling::takes_weights ? weights[at] : 1.0F;
            total += w;
            auto const kj = part(k[at], head, config.head_dim);
            auto const vj = part(v[at], head, config.value_dim());
            for (std::size_t d = 0; d < kj.size(); ++d) mean.k[d] = std::fma(w, kj[d], mean.k[d]);
            for (std::size_t d = 0; d < vj.size(); ++d) mean.v[d] = std::fma(w, vj[d], mean.v[d]);
        }
        if (total == 0.0F) return;
        for (float& x : mean.k) x /= total;
        for (float& x : mean.v) x /= total;
        mean.k = kept(mix.summary_k, mean.k);
        mean.v = kept(mix.summary_v, mean.v);
        if (config.rules.counted || Pooling::takes_weights) mean.log_weight = std::log(static_cast<double>(total));
        keys.push_back(mean);
    }
};

/// Runs one program. `exact_bits`: the policy has one kernel class, so that a position has one answer. Returns what
/// went wrong, or nothing.
template <class Policy>
std::string run_cache_program(Policy const& policy, bool exact_bits, std::span<std::uint8_t const> bytes) {
    program_reader in(bytes);
    cache_config c;
    index_t const mix     = in.below(4);
    index_t const sizes[] = {1, 2, 3, 4, 5, 8, 16, 64};
    c.block_size          = sizes[in.below(8)];
    c.exact_window        = in.between(1, 20);
    c.exact_sinks         = in.below(10);
    c.max_append          = in.between(1, 40);
    c.max_tokens          = in.between(1, 256);
    c.max_rollback        = std::max<index_t>(0, in.between(-10, 20));
    c.kv_heads            = in.between(1, 2);
    c.head_dim            = in.between(1, 3);
    c.value_head_dim      = in.below(3);
    if (in.below(2) == 0) { // the largest append for the same ring: no slack hides a lost row
        index_t const most = c.exact_window + c.block_size - 2 + c.max_rollback + c.max_append;
        c.max_append += butterfly::detail::round_up(most, tile_slots) - most;
    }
    index_t const rules = in.below(20); // mostly the presets
    c.rules =
        rules < 14 ? cache_rules::gap_free
        : rules < 17
            ? cache_rules::published
            : cache_rules{.whole_blocks = rules == 17, .counted = rules == 18, .sinks = true, .late = rules != 19};
    test_row const row{static_cast<test_row::kind>(in.below(4)), static_cast<int>(in.below(4))};
    int const group    = static_cast<int>(in.between(1, 2));
    index_t const skew = in.below(9);

    auto const run = [&]<class M, class P>(M const&, P const&) {
        cache_model<M, P> const model{{}, c, row};
        return cache_machine<Policy, cache_model<M, P>>(policy, exact_bits, close_in_f32, model, skew).run(in, group);
    };
    if (mix == 0) return run(one_codec_each{}, mean_pooling{});
    if (mix == 1) return run(raw_mix<float>{}, weighted_mean_pooling{});
    if (mix == 2) return run(packed_tail{}, mean_pooling{});
    return run(raw_mix<float>{}, mean_pooling{});
}

} // namespace butterfly::testing
