// SPDX-License-Identifier: MIT
#pragma once

// What an append is, for every cache of sinks, tail and blocks that are condensed: the parts of its cache_update.

#include <butterfly/cache/counters.hpp>
#include <butterfly/cache/update.hpp>

#include <algorithm>

namespace butterfly::detail {

/// The first tokens of a tensor.
[[nodiscard]] inline tensor_ref first_tokens(tensor_ref t, index_t count) noexcept {
    t.shape.tokens = count;
    return t;
}

/// Adds what the next `k` and `v` do to a cache that has seen `tokens`: the first `most_sinks` tokens of a sequence
/// join the sinks, and all of them the tail.
template <class Pools>
void add_tokens(
    cache_update& u, Pools const& p, tensor_ref const& k, tensor_ref const& v, index_t tokens, index_t most_sinks) {
    if (index_t const sinks = std::min(most_sinks - tokens, k.shape.tokens); sinks > 0) {
        u.add(row_store{first_tokens(k, sinks), p.sink_k, tokens});
        u.add(row_store{first_tokens(v, sinks), p.sink_v, tokens});
    }
    u.add(row_store{k, p.tail_k, tokens});
    u.add(row_store{v, p.tail_v, tokens});
}

/// Blocks that become due before and after the rows of an append of `step` tokens are stored.
inline void add_due_blocks(cache_update& u, cache_counters at, index_t step) noexcept {
    index_t const first = at.summaries();
    at.make_room();
    index_t const middle = at.summaries();
    at.add(step);
    u.before = {first, middle};
    u.after  = {middle, at.summaries()};
}

} // namespace butterfly::detail
