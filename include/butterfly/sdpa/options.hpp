// SPDX-License-Identifier: MIT
#pragma once

// Options of one attention call. Single numbers travel by value, arrays as addresses in the policy's memory.

#include <butterfly/core/half.hpp>
#include <butterfly/core/index.hpp>
#include <butterfly/core/memory.hpp>

#include <array>
#include <cstddef>
#include <span>

namespace butterfly {

/// An additive mask [1 or heads, tokens, keys], added to the logits; -inf hides a key. Keys are slots of the one pool
/// the call has. Strides in elements.
struct additive_mask {
    memory_ref data{};                        // null: no mask
    element_type type    = element_type::f32; // f32 or f16
    index_t heads        = 1;                 // 1: one mask for all heads
    index_t head_stride  = 0;                 // 0: contiguous, tokens * token_stride
    index_t token_stride = 0;                 // 0: contiguous, as many as the pool has keys
    bool per_token       = true;              // false: [1 or heads, 1, keys], one row for all tokens
    memory_ref slopes{};                      // float [heads], multiplies the mask; null: one
};

/// Logits are formed in this order: scale * <q, k>; soft cap; log-weight + edge bias + ALiBi; mask.
struct attend_options {
    float scale        = 0.0F; // 0: 1 / sqrt(head_dim); required where key and value head_dim differ
    bool causal        = true; // a query at position p sees keys at positions <= p
    float soft_cap     = 0.0F; // 0: none; else s = cap * tanh(s / cap)
    index_t q_position = -1;   // position of query row 0; -1, not given: 0, or where a cache's latest tokens begin
    memory_ref q_positions{};  // int32 [tokens], instead of q_position; null: none
    memory_ref lse{};          // float [heads, tokens], written: natural log of the sum of exp(logit); null: not wanted
    memory_ref sink_logits{};  // float [heads], one more key of value zero in the softmax; `lse` excludes it
    memory_ref alibi_slopes{}; // float [heads], logit += slope * (key position - query position)
    std::array<float, 4> edge_bias{}; // added by edge type of an explicit graph: cycle, window, landmark, rewire
    additive_mask mask{};
    std::span<std::byte> workspace{}; // scratch of at least workspace_bytes(...); empty: one allocation at entry
};

} // namespace butterfly
