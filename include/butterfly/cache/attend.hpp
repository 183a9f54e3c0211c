// SPDX-License-Identifier: MIT
#pragma once

// The two calls on a compressed cache: append, then attend.
//
//   pool        shows a query at position t                                weight of a key
//   sinks       tokens [0, min(S, L))                                      1
//   summaries   n < floor(lo / bs), named by the row of block floor(t/bs)  tokens the summary stands for (or 1)
//   tail        tokens [L, t]                                              1
//
// lo = max(0, t - W + 1); L = bs * floor(lo / bs) (or lo where the rules do not ask for whole blocks). What a query
// sees depends on its position alone: neither chunking nor the tokens after it change a bit.

#include <butterfly/cache/compressed_kv_cache.hpp>
#include <butterfly/topology/row.hpp>

namespace butterfly {

/// Options of one append.
struct append_options {
    memory_ref token_weights{};       // float [step], 0 to 2^64, for poolings that take weights; null: one each
    std::span<std::byte> workspace{}; // scratch of append_workspace_bytes(...); empty: one allocation at entry
};

namespace detail {

/// Throws where `k` and `v` are not what the cache takes, or do not fit.
inline void check_append(cache_config const& c, index_t tokens, tensor_ref const& k, tensor_ref const& v) {
    check_tensor(k, "append: k");
    check_tensor(v, "append: v");
    check_same(k.shape.heads, c.kv_heads, "append: k has heads", "the cache has");
    check_same(v.shape.heads, c.kv_heads, "append: v has heads", "the cache has");
    check_same(k.shape.head_dim, c.head_dim, "append: k has head_dim", "the cache has");
    check_same(v.shape.head_dim, c.value_dim(), "append: v has head_dim", "the cache has");
    check_same(v.shape.tokens, k.shape.tokens, "append: v has tokens", "k has");
    if (k.shape.tokens > c.max_append)
        fail<capacity_error>("append: " + std::to_string(k.shape.tokens) + " tokens, max_append is " +
                             std::to_string(c.max_append));
    if (k.shape.tokens > c.max_tokens - tokens)
        fail<capacity_error>("append: " + std::to_string(tokens) + " + " + std::to_string(k.shape.tokens) +
                             " tokens, max_tokens is " + std::to_string(c.max_tokens));
}

/// Position of row 0 of `tokens` queries. Throws where the cache cannot serve them.
inline index_t query_position(cache_counters const& at, index_t tokens, attend_options const& options) {
    if (options.q_positions) fail<shape_error>("attend: a cache takes q_position, not q_positions");
    if (!options.causal) fail<shape_error>("attend: a cache is causal");
    if (options.alibi_slopes) fail<shape_error>("attend: a cache takes no alibi_slopes: a summary has no position");
    index_t const first = options.q_position == -1 ? at.tokens() - tokens : options.q_position;
    if (first < 0 || tokens > at.tokens() - first)
        fail<shape_error>("attend: q has tokens " + std::to_string(tokens) + " from position " + std::to_string(first) +
                          ", the cache has tokens " + std::to_string(at.tokens()));
    if (tokens > 0 && first < at.first_query())
        fail<capacity_error>("attend: q starts at position " + std::to_string(first) +
                             ", the tail serves queries from position " + std::to_string(at.first_query()));
    return first;
}

} // namespace detail

/// Appends `step` tokens: rows join the tail (the first ones the sinks), blocks that have become full are summarised.
/// Appending nothing changes nothing. Throws shape_error, capacity_error, or backend_error without scratch memory;
/// then the cache is as it was.
template <class Policy, cache_mix Mix, pooling Pooling, tensor_view K, tensor_view V>
void append(Policy const& policy,
            compressed_kv_cache<Mix, Pooling>& cache,
            K const& k, // [kv_heads, step, head_dim]
            V const& v, // [kv_heads, step, value head_dim]
            append_options const& options = {}) {
    tensor_ref const keys   = k.describe();
    tensor_ref const values = v.describe();
    detail::check_append(cache.config(), cache.tokens(), keys, values);
    if (!Pooling::takes_weights && options.token_weights)
        detail::fail<shape_error>("append: token_weights are given, the cache's pooling takes none");
    if (keys.shape.tokens == 0) return;
    update_cache(policy, cache.plan(policy, keys, values, options.token_weights), options.workspace,
                 [&]() noexcept { cache.commit(keys.shape.tokens); });
}

/// Scratch bytes of any append.
template <class Policy, cache_mix Mix, pooling Pooling>
[[nodiscard]] index_t append_workspace_bytes(Policy const& policy, compressed_kv_cache<Mix, Pooling> const& cache) {
    cache_pools const p = cache.pools(policy);
    return workspace_bytes(policy, cache_update{.rows = {p.tail_k, p.tail_v}});
}

/// The attention problem of a cache with what its pools point to. Copyable; `problem()` is valid while it lives.
class cache_problem {
public:
    cache_problem(cache_problem const& other) noexcept { *this = other; }
    cache_problem& operator=(cache_problem const& other) noexcept {
        problem_   = other.problem_;
        sinks_     = other.sinks_;
        summaries_ = other.summaries_;
        tail_      = other.tail_;
        pools_     = other.pools_;
        link();
        return *this;
    }
    ~cache_problem() = default;

    [[nodiscard]] butterfly::problem problem() const& noexcept {
        butterfly::problem p = problem_;
        p.pools              = pools_.data() + (sinks_.before > 0 ? 0 : 1);
        p.pool_count         = sinks_.before > 0 ? 3 : 2;
        return p;
    }
    butterfly::problem problem() && = delete;

    cache_problem(cache_config const& c,
                  cache_counters const& at,
                  cache_pools const& p,
                  topology::row_source const& rows,
                  tensor_ref const& q,
                  tensor_ref const& out,
                  attend_options options)
        : sinks_{.window = c.exact_window, .align = align_of(c), .before = c.sinks()},
          summaries_{rows, c.block_size, c.exact_window, c.sinks() / c.block_size}, tail_{.window = c.exact_window,
                                                                                          .align  = align_of(c)},
          pools_{pool_of(p.sink_k, p.sink_v, {}), pool_of(p.summary_k, p.summary_v, p.log_weights),
                 pool_of(p.tail_k, p.tail_v, {})} {
        options.q_position = detail::query_position(at, q.shape.tokens, options);
        link();
        problem_ = sinks_.before > 0 ? checked(q, out, options, pools_)
                                     : checked(q, out, options, std::array<pool_ref, 2>{pools_[1], pools_[2]});
    }

private:
    static index_t align_of(cache_config const& c) noexcept { return c.rules.whole_blocks ? c.block_size : 1; }

    static pool_ref pool_of(storage_ref const& k, storage_ref const& v, memory_ref log_weights) noexcept {
        return {.keys = k, .values = v, .slots = k.shape.tokens, .log_weights = log_weights};
    }

    template <std::size_t N>
    static butterfly::problem checked(tensor_ref const& q,
                                      tensor_ref const& out,
                                      attend_options const& options,
                                      std::array<pool_ref, N> const& pools) {
        auto const bound = detail::assemble(q, out, options, pools, "attend");
        return bound.problem(); // without its pools, which go with `bound`
    }

    /// The pools see through this object's visibilities.
    void link() noexcept {
        pools_[0].visibility = erase(sinks_);
        pools_[1].visibility = erase(summaries_);
        pools_[2].visibility = erase(tail_);
    }

    butterfly::problem problem_{};
    visible::interval sinks_{};
    visible::routed_summaries summaries_{};
    visible::interval tail_{};
    std::array<pool_ref, 3> pools_{};
};

/// The problem a call of `attend` with these arguments solves: for supports, explain, workspace_bytes, and for many
/// sequences in one launch. Cache and row must outlive it, and the cache must not change. Throws as `attend` does.
template <class Policy, tensor_view Q, cache_mix Mix, pooling Pooling, topology::rule Row, tensor_view O>
[[nodiscard]] cache_problem make_problem(Policy const& policy,
                                         Q const& q, // [heads, tokens, head_dim]
                                         compressed_kv_cache<Mix, Pooling> const& cache,
                                         Row const& row, // over max_blocks() nodes
                                         O const& out,   // [heads, tokens, value head_dim]
                                         attend_options const& options = {}) {
    auto const rows = topology::make_row_source(row, {.heads = 1, .nodes = cache.max_blocks()});
    return {cache.config(), cache.counters(), cache.pools(policy), rows, q.describe(), out.describe(), options};
}
template <class Policy, tensor_view Q, cache_mix Mix, pooling Pooling, topology::rule Row, tensor_view O>
cache_problem make_problem(Policy const&,
                           Q const&,
                           compressed_kv_cache<Mix, Pooling> const&,
                           Row const&&,
                           O const&,
                           attend_options const& = {}) = delete;

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
