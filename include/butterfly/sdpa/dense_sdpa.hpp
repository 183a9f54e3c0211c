// SPDX-License-Identifier: MIT
#pragma once

// Dense attention: one pool, every key up to the query. The baseline, with the same shape of call.

#include <butterfly/sdpa/attend.hpp>

namespace butterfly {

/// out = softmax(scale * q k^T) v, causal unless options say otherwise. Keys and values may be any storage: raw views,
/// paged views, packed rows. Throws shape_error, or backend_error where the policy declines.
template <class Policy, tensor_view Q, kv_storage K, kv_storage V, tensor_view O>
void dense_sdpa(Policy const& policy,
                Q const& q,   // [heads, tokens, head_dim]
                K const& k,   // [kv_heads, keys, head_dim]
                V const& v,   // [kv_heads, keys, value head_dim]
                O const& out, // [heads, tokens, value head_dim], written
                attend_options const& options = {}) {
    pool<K, V, visible::interval> const all(k, v, visible::causal_prefix());
    auto const bound = detail::assemble(q.describe(), out.describe(), options,
                                        std::array<pool_ref, 1>{detail::bind_pool(policy, all)}, "dense_sdpa");
    problem const p  = bound.problem();
    attend(policy, std::span<problem const>(&p, 1));
}

} // namespace butterfly
