// SPDX-License-Identifier: MIT
#pragma once

// Append, for every cache of one sequence and one layer, and what its queries must keep.

#include <butterfly/cache/counters.hpp>
#include <butterfly/cache/update.hpp>
#include <butterfly/sdpa/attend.hpp>

namespace butterfly {

/// Options of one append.
struct append_options {
    memory_ref token_weights{};       // float [step], 0 to 2^64, for poolings that take weights; null: one each
    std::span<std::byte> workspace{}; // scratch of append_workspace_bytes(...); empty: one allocation at entry
};

/// A cache that append can fill: sizes, counters, and `plan(policy, k, v, token_weights)`, the change that an append
/// is, which `commit` counts once it has been done.
template <class C>
concept kv_cache = requires(C& cache, C const& seen, index_t step) {
    { C::takes_weights } -> std::convertible_to<bool>;
    { seen.counters() } -> std::same_as<cache_counters const&>;
    { seen.config().value_dim() } -> std::same_as<index_t>;
    { cache.commit(step) }
    noexcept;
};

namespace detail {

/// Throws where `k` and `v` are not what a cache with this configuration takes, or do not fit.
template <class Config>
void check_append(Config const& c, index_t tokens, tensor_ref const& k, tensor_ref const& v) {
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
    if (options.mask.data) fail<shape_error>("attend: a cache takes no mask: its keys are in several pools");
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

/// Appends `step` tokens: rows join the tail (the first ones the sinks), and blocks of which it is time are summarised
/// or packed. Appending nothing changes nothing. Throws shape_error, capacity_error, or backend_error without scratch
/// memory; then the cache is as it was.
template <class Policy, kv_cache Cache, tensor_view K, tensor_view V>
void append(Policy const& policy,
            Cache& cache,
            K const& k, // [kv_heads, step, head_dim]
            V const& v, // [kv_heads, step, value head_dim]
            append_options const& options = {}) {
    tensor_ref const keys   = k.describe();
    tensor_ref const values = v.describe();
    detail::check_append(cache.config(), cache.counters().tokens(), keys, values);
    if (!Cache::takes_weights && options.token_weights)
        detail::fail<shape_error>("append: token_weights are given, the cache takes none");
    if (keys.shape.tokens == 0) return;
    update_cache(policy, cache.plan(policy, keys, values, options.token_weights), options.workspace,
                 [&]() noexcept { cache.commit(keys.shape.tokens); });
}

/// Scratch bytes of any append.
template <class Policy, kv_cache Cache>
[[nodiscard]] index_t append_workspace_bytes(Policy const& policy, Cache const& cache) {
    return workspace_bytes(policy, cache.nothing_to_do(policy));
}

} // namespace butterfly
