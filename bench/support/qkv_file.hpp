// SPDX-License-Identifier: MIT
#pragma once

// One layer of real tensors from a safetensors file, as every program takes it.

#include <butterfly/core/heads.hpp>
#include <butterfly/interop/safetensors.hpp>

#include "usage.hpp"

#include <string_view>

namespace bench {

struct qkv_tensors {
    butterfly::heads_buffer<float> q; // [heads, tokens, head_dim]
    butterfly::heads_buffer<float> k; // [kv_heads, tokens, head_dim]
    butterfly::heads_buffer<float> v; // [kv_heads, tokens, head_dim]
};

/// Tensors layerL.q, layerL.k and layerL.v: float32, or float16 and bfloat16 widened. Throws usage_error beginning with
/// `where`, naming what disagrees or the first element that is NaN or infinite, which would spread through every
/// figure; format_error where a tensor is not there or of another kind.
[[nodiscard]] qkv_tensors
read_layer(butterfly::safetensors::contents const& file, index_t layer, std::string_view where);

} // namespace bench
