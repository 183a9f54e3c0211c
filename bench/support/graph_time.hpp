// SPDX-License-Identifier: MIT
#pragma once

// Time of attention along the rows of a graph whose nodes are tokens.

#include <butterfly/graph/abi.hpp>

#include "machine.hpp"

namespace bench {

/// Bytes of q, k, v and the output.
[[nodiscard]] inline double attention_bytes(bf::graph_shape const& s, index_t head_dim) {
    return 4.0 * sizeof(float) * static_cast<double>(s.heads) * static_cast<double>(s.nodes) *
           static_cast<double>(head_dim);
}

/// Seconds of one causal sparse_sdpa in f32, the median of five after one that is not timed. Every head of the graph
/// has keys of its own; operands are uniform in (-1, 1).
[[nodiscard]] double time_attention(machine const& m, bf::graph_view const& g, index_t head_dim);

} // namespace bench
