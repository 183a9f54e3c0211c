// SPDX-License-Identifier: MIT
#pragma once

// The two calls on a mixed-precision cache: append (append.hpp), then attend. A query at position t sees
//
//   sinks [0, min(S, L(t)))     packed tokens [S, L(t))     exact tokens [L(t), t]     (mixed_kv_cache.hpp)

#include <butterfly/cache/append.hpp>
#include <butterfly/cache/linked_problem.hpp>
#include <butterfly/cache/mixed_kv_cache.hpp>

namespace butterfly {

/// The attention problem of a mixed-precision cache: sinks, packed tokens, tail.
using mixed_cache_problem = linked_problem<visible::interval, visible::interval, visible::interval>;

/// The problem a call of `attend` with these arguments solves: for supports, explain, workspace_bytes, and for many
/// sequences in one launch. The cache must outlive it and must not change. Throws as `attend` does.
template <class Policy, tensor_view Q, mixed_mix Mix, tensor_view O>
[[nodiscard]] mixed_cache_problem make_problem(Policy const& policy,
                                               Q const& q, // [heads, tokens, head_dim]
                                               mixed_kv_cache<Mix> const& cache,
                                               O const& out, // [heads, tokens, value head_dim]
                                               attend_options options = {}) {
    mixed_cache_config const& c = cache.config();
    mixed_pools const p         = cache.pools(policy);
    visible::interval const tail{.window = c.exact_window, .align = c.block_size};
    visible::interval sinks = tail, middle = tail;
    sinks.before       = c.exact_sinks;
    middle.before      = c.max_tokens; // no query's exact range begins later
    middle.after       = c.exact_sinks;
    options.q_position = detail::query_position(cache.counters(), q.describe().shape.tokens, options);
    return {q.describe(),
            out.describe(),
            options,
            {detail::pool_of(p.sink_k, p.sink_v), detail::pool_of(p.middle_k, p.middle_v),
             detail::pool_of(p.tail_k, p.tail_v)},
            {sinks, middle, tail},
            // Without codes no exact range has left a token, a sink or another.
            cache.packed() == 0 ? std::size_t{2}
            : c.exact_sinks > 0 ? std::size_t{0}
                                : std::size_t{1}};
}

/// Attention of queries over every token up to each; see the top of this file. q holds the latest tokens, its row 0
/// standing at position tokens() - q.tokens(), unless options.q_position is given. Throws shape_error, capacity_error
/// where the tail no longer has the keys of an earlier position, or backend_error where the policy declines.
template <class Policy, tensor_view Q, mixed_mix Mix, tensor_view O>
void attend(Policy const& policy,
            Q const& q, // [heads, tokens, head_dim]
            mixed_kv_cache<Mix> const& cache,
            O const& out, // [heads, tokens, value head_dim], written
            attend_options const& options = {}) {
    mixed_cache_problem const bound = make_problem(policy, q, cache, out, options);
    problem const p                 = bound.problem();
    attend(policy, std::span<problem const>(&p, 1));
}

} // namespace butterfly
