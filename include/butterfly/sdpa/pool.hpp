// SPDX-License-Identifier: MIT
#pragma once

// A pool: where keys live and which of them a query sees.

#include <butterfly/sdpa/storage.hpp>
#include <butterfly/sdpa/visibility.hpp>

#include <type_traits>
#include <utility>

namespace butterfly {

/// Keys, values and visibility of one pool, as the front door takes them.
///
///   pool{k, v, visible::causal_prefix()}
///   pool{k_old, v_old, routed, log_weights}
///
/// `key_positions` are for visibilities that go by positions (`takes_positions`: interval, exact_window,
/// causal_prefix). Routed visibilities and graphs go by slots, and refuse them.
template <kv_storage K, kv_storage V, visibility Visibility>
struct pool {
    K keys;   // [kv_heads, slots, head_dim]
    V values; // [kv_heads, slots, value head_dim]
    Visibility sees;
    memory_ref log_weights{};   // float [slots], added to the logits; null: zero
    memory_ref key_positions{}; // int32 [slots], -1: empty slot; null: slot = position

    pool(K k, V v, Visibility visibility, memory_ref weights = {}, memory_ref positions = {})
        : keys(std::move(k)), values(std::move(v)), sees(std::move(visibility)), log_weights(weights),
          key_positions(positions) {}
};

} // namespace butterfly
