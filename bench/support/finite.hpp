// SPDX-License-Identifier: MIT
#pragma once

// Tensors from outside must be finite: a NaN would spread through every figure.

#include <butterfly/core/heads.hpp>

#include "usage.hpp"

#include <algorithm>
#include <cmath>

namespace bench {

/// Throws usage_error naming the file, the tensor and its first element that is NaN or infinite.
inline void check_finite(std::string_view file, std::string_view tensor, butterfly::heads_buffer<float> const& rows) {
    auto const values = rows.values();
    auto const bad    = std::ranges::find_if(values, [](float x) { return !std::isfinite(x); });
    if (bad == values.end()) return;
    butterfly::heads_shape const shape = rows.shape();
    index_t const at                   = bad - values.begin();
    throw usage_error("{}: {} is {} at head {}, token {}, column {}", file, tensor, *bad,
                      at / shape.head_dim / shape.tokens, at / shape.head_dim % shape.tokens, at % shape.head_dim);
}

} // namespace bench
