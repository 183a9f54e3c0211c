// SPDX-License-Identifier: MIT
#pragma once

// What the program fidelity reads and writes.

#include "fidelity_judge.hpp"
#include "fidelity_systems.hpp"

#include <string>
#include <vector>

namespace bench {

/// Tensors layerL.q [heads, tokens, head_dim], layerL.k and layerL.v [kv_heads, tokens, head_dim] of a safetensors
/// file, float16, bfloat16 or float32. Throws usage_error where they are not there, are not finite or do not
/// fit each other.
[[nodiscard]] qkv load_qkv(std::string const& path, index_t layer);

/// Outputs as safetensors, float32: one tensor [heads, queries, value_dim] per name, and the int32 [queries]
/// `positions` of the queries.
void write_outputs(std::string const& path,
                   std::vector<index_t> const& positions,
                   std::vector<std::pair<std::string, bf::heads_buffer<float> const*>> const& outputs);

/// Which tokens each query saw, as .npz: `neigh_idx` int32 and `weight` float32, both [heads, queries, degree], pads -1
/// and 0, and `position` int32 [queries]. A row lists tokens in the order the pools show them; the weight of a summary
/// is divided evenly among the tokens it stands for. Weights of a row add up to 1.
void write_certificate(std::string const& path, std::vector<index_t> const& positions, sightings const& seen);

} // namespace bench
