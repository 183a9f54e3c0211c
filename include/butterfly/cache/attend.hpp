// SPDX-License-Identifier: MIT
#pragma once

// The two calls on a compressed cache: append (append.hpp), then attend.
//
//   pool        shows a query at position t                                weight of a key
//   sinks       tokens [0, min(S, L))                                      1
//   summaries   n < floor(lo / bs), named by the row of block floor(t/bs)  tokens the summary stands for (or 1)
//   tail        tokens [L, t]                                              1
//
// lo = max(0, t - W + 1); L = bs * floor(lo / bs) (or lo where the rules do not ask for whole blocks). What a query
// sees depends on its position alone: neither chunking nor the tokens after it change a bit.

#include <butterfly/cache/append.hpp>
#include <butterfly/cache/compressed_kv_cache.hpp>
#include <butterfly/cache/linked_problem.hpp>
#include <butterfly/topology/row.hpp>

namespace butterfly {

/// The attention problem of a compressed cache: sinks, summaries, tail.
using cache_problem = linked_problem<visible::interval, visible::routed_summaries, visible::interval>;

/// The problem a call of `attend` with these arguments solves: for supports, explain, workspace_bytes, and for many
/// sequences in one launch. Cache and row must outlive it, and the cache must not change. Throws as `attend` does.
template <class Policy, tensor_view Q, cache_mix Mix, pooling Pooling, topology::rule Row, tensor_view O>
[[nodiscard]] cache_problem make_problem(Policy const& policy,
                                         Q const& q, // [heads, tokens, head_dim]
                                         compressed_kv_cache<Mix, Pooling> const& cache,
                                         Row const& row, // over max_blocks() nodes
                                         O const& out,   // [heads, tokens, value head_dim]
                                         attend_options options = {}) {
    cache_config const& c = cache.config();
    cache_pools const p   = cache.pools(policy);
    auto const rows       = topology::make_row_source(row, {.heads = 1, .nodes = cache.max_blocks()});
    index_t const align   = c.rules.whole_blocks ? c.block_size : 1;
    visible::interval const sinks{.window = c.exact_window, .align = align, .before = c.sinks()};
    visible::interval const tail{.window = c.exact_window, .align = align};
    if (options.alibi_slopes)
        detail::fail<shape_error>("attend: a cache takes no alibi_slopes: a summary has no position");
    options.q_position = detail::query_position(cache.counters(), q.describe().shape.tokens, options);
    return {q.describe(),
            out.describe(),
            options,
            {detail::pool_of(p.sink_k, p.sink_v), detail::pool_of(p.summary_k, p.summary_v, p.log_weights),
             detail::pool_of(p.tail_k, p.tail_v)},
            {sinks, visible::routed_summaries{rows, c.block_size, c.exact_window, c.sinks() / c.block_size}, tail},
            c.sinks() > 0 ? std::size_t{0} : std::size_t{1}};
}
template <class Policy, tensor_view Q, cache_mix Mix, pooling Pooling, topology::rule Row, tensor_view O>
cache_problem make_problem(Policy const&,
                           Q const&,
                           compressed_kv_cache<Mix, Pooling> const&,
                           Row const&&,
                           O const&,
                           attend_options = {}) = delete;

/// Attention of queries over what the cache shows them; see the top of this file. q holds the latest tokens, its row 0
/// standing at position tokens() - q.tokens(), unless options.q_position is given. Throws shape_error, capacity_error
/// where the tail no longer has the keys of an earlier position, or backend_error where the policy declines.
template <class Policy, tensor_view Q, cache_mix Mix, pooling Pooling, topology::rule Row, tensor_view O>
void attend(Policy const& policy,
            Q const& q, // [heads, tokens, head_dim]
            compressed_kv_cache<Mix, Pooling> const& cache,
            Row const& row, // over max_blocks() nodes
            O const& out,   // [heads, tokens, value head_dim], written
            attend_options const& options = {}) {
    cache_problem const bound = make_problem(policy, q, cache, row, out, options);
    problem const p           = bound.problem();
    attend(policy, std::span<problem const>(&p, 1));
}

} // namespace butterfly
