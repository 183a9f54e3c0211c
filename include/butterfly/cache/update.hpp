// SPDX-License-Identifier: MIT
#pragma once

// What a policy is given when a cache changes: plain data, and nothing of which cache it is. A policy brings three
// functions, found by argument-dependent lookup:
//
//   update_cache(policy, update, workspace, commit)   summarise `before`, store, summarise `after`, in this order; then
//                                                     calls commit() once, on one of the participants of the call
//   workspace_bytes(policy, update)                   scratch it needs
//   copy_bytes(policy, from, to, bytes)               copies memory of the policy

#include <butterfly/cache/pooling.hpp>
#include <butterfly/sdpa/problem.hpp>

#include <array>
#include <cstddef>

namespace butterfly {

/// Rows to be packed: token i of `from` goes to slot first_slot + i of `to`, for every head.
struct row_store {
    tensor_ref from{}; // [kv_heads, tokens, head_dim]; null memory: every element is one
    storage_ref to{};
    index_t first_slot = 0;
};

/// Blocks to be summarised: tokens [n * block_size, (n + 1) * block_size), those before `skip` left out, go to slot n,
/// for n in [first, end).
struct block_range {
    index_t first = 0;
    index_t end   = 0;
};

/// One change of a cache.
struct cache_update {
    std::array<row_store, 5> stores{}; // with token_weights, the last one is theirs
    std::size_t store_count = 0;

    block_range before{};       // blocks to be summarised before rows are stored
    block_range after{};        // and after
    storage_ref rows[2]{};      // keys, values: slots are absolute positions
    storage_ref summaries[2]{}; // keys, values: slots are blocks
    index_t block_size = 1;     //
    index_t skip       = 0;     // tokens that enter no summary
    memory_ref token_weights{}; // float [rows' ring]; null: one
    memory_ref log_weights{};   // float [blocks], written; null: not kept
    pooling_ref pool{};

    void add(row_store const& store) noexcept { stores[store_count++] = store; }
};

} // namespace butterfly
