// SPDX-License-Identifier: MIT
#pragma once

// Real queries, keys and values from a safetensors file: layerL.q [heads, tokens, head_dim], layerL.k and layerL.v
// [kv_heads, tokens, head_dim], as elements f32, f16 or bf16.

#include <butterfly/core/heads.hpp>

#include "ladder_settings.hpp"

#include <vector>

namespace bench {

/// The geometry of a file: its layers are the attention layers.
struct qkv_geometry {
    model_geometry model;
    index_t tokens = 0;
};

/// Throws usage_error naming the file where it cannot be read or its tensors do not fit together or are not
/// finite.
[[nodiscard]] qkv_geometry read_qkv_geometry(std::string const& path);

/// One layer of a file, widened to f32.
struct qkv_layer {
    index_t number = 0; // the L of layerL
    butterfly::heads_buffer<float> q, k, v;
};

/// All layers. Throws as above.
[[nodiscard]] std::vector<qkv_layer> read_qkv(std::string const& path);

} // namespace bench
