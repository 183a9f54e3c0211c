// SPDX-License-Identifier: MIT
#pragma once

// From a dot product to a logit:
//
//   s = scale * dot;  s = cap * tanh(s / cap);  s += log_weight + edge_bias + ALiBi;  s += mask_slope * mask

#include <butterfly/sdpa/visibility.hpp>

#include <cmath>

namespace butterfly::backend::on_host {

/// The mask value of a query token and a slot, times its head's slope; zero without a mask.
[[nodiscard]] inline float mask_at(problem const& p, index_t head, index_t token, index_t slot) noexcept {
    additive_mask const& mask = p.options.mask;
    if (!mask.data) return 0.0F;
    index_t const at         = (mask.heads == 1 ? 0 : head * mask.head_stride) + token * mask.token_stride + slot;
    float const value        = mask.type == element_type::f32 ? host_pointer<float const>(mask.data)[at]
                                                              : static_cast<float>(host_pointer<float16 const>(mask.data)[at]);
    auto const* const slopes = host_pointer<float const>(mask.slopes);
    if (slopes == nullptr || std::isinf(value)) return value; // 0 * -inf would be NaN: -inf hides whatever the slope
    return slopes[head] * value;
}

/// Position of a slot: its own number, or what key_positions says.
[[nodiscard]] inline index_t key_position(pool_ref const& pool, index_t slot) noexcept {
    auto const* const given = host_pointer<std::int32_t const>(pool.key_positions);
    return given != nullptr ? given[slot] : slot;
}

/// What is added to the logit of key j of a tile for every row: log-weight and edge bias.
[[nodiscard]] inline float key_bias(pool_ref const& pool, key_tile const& tile, int j) noexcept {
    auto const* const weights = host_pointer<float const>(pool.log_weights);
    return (weights != nullptr ? weights[tile.slot(j)] : 0.0F) + (tile.bias != nullptr ? tile.bias[j] : 0.0F);
}

/// ALiBi and mask of one (query head, query token, slot).
[[nodiscard]] inline float
row_bias(problem const& p, pool_ref const& pool, index_t head, index_t token, index_t slot) noexcept {
    float bias               = 0.0F;
    auto const* const slopes = host_pointer<float const>(p.options.alibi_slopes);
    if (slopes != nullptr)
        bias = slopes[head] * static_cast<float>(key_position(pool, slot) - detail::position_of(p, token));
    return bias + mask_at(p, head, token, slot);
}

/// cap * tanh(s / cap); s without a cap.
[[nodiscard]] inline float soft_capped(float s, float cap) noexcept {
    return cap > 0.0F ? cap * std::tanh(s / cap) : s;
}

} // namespace butterfly::backend::on_host
