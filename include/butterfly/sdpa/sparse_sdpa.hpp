// SPDX-License-Identifier: MIT
#pragma once

// Sparse attention over raw keys: along the rows of an explicit graph, or along the blocks a topology rule routes to.

#include <butterfly/graph/graph.hpp>
#include <butterfly/sdpa/attend.hpp>
#include <butterfly/sdpa/graph_rows.hpp>
#include <butterfly/topology/row.hpp>

namespace butterfly {

/// Attention of query p over the neighbours that row p of the graph lists (those after p left out where causal). The
/// graph has 1, kv_heads or heads heads; it is not validated here (graph/validate.hpp). A query past the last node sees
/// nothing: that is a shape_error where positions follow q_position. Throws shape_error, or backend_error where the
/// policy declines.
template <class Policy, tensor_view Q, kv_storage K, kv_storage V, tensor_view O>
void sparse_sdpa(Policy const& policy,
                 Q const& q,              // [heads, tokens, head_dim]
                 K const& k,              // [kv_heads, keys, head_dim]
                 V const& v,              // [kv_heads, keys, value head_dim]
                 graph_view const& graph, // [1 | kv_heads | heads, nodes, degree]
                 O const& out,            // [heads, tokens, value head_dim], written
                 attend_options const& options = {}) {
    if (checked_size(graph.shape) > 0 && (graph.neigh_idx == nullptr || graph.edge_type == nullptr))
        detail::fail<shape_error>("sparse_sdpa: graph is null with shape " + to_string(graph.shape));
    pool<K, V, visible::graph_rows> const all(k, v, visible::graph_rows{graph});
    auto const bound  = detail::assemble(q.describe(), out.describe(), options,
                                         std::array<pool_ref, 1>{detail::bind_pool(policy, all)}, "sparse_sdpa");
    problem const p   = bound.problem();
    index_t const end = p.options.q_position + p.tokens(); // both checked above
    if (!p.options.q_positions && end > graph.nodes())
        detail::fail<shape_error>("sparse_sdpa: q ends at position " + std::to_string(end) + ", graph has nodes " +
                                  std::to_string(graph.nodes()));
    attend(policy, std::span<problem const>(&p, 1));
}

template <class Policy, tensor_view Q, kv_storage K, kv_storage V, tensor_view O>
void sparse_sdpa(Policy const& policy,
                 Q const& q,
                 K const& k,
                 V const& v,
                 graph const& g,
                 O const& out,
                 attend_options const& options = {}) {
    sparse_sdpa(policy, q, k, v, g.view(), out, options);
}

/// A rule over blocks of tokens: `nodes` of its shape are blocks. Rows of some rules change with `nodes`, so give the
/// number of blocks of the longest sequence and keep it while keys are added.
template <topology::rule Rule>
struct block_routing {
    Rule const& rule;         // must outlive the call
    index_t block_size = 128; // tokens of a block
    index_t nodes      = 0;   // blocks of the longest sequence; must be given
    index_t heads      = 1;   // 1, kv_heads or heads: how many heads have rows of their own
};

template <topology::rule Rule>
block_routing(Rule const&, index_t, index_t) -> block_routing<Rule>;
template <topology::rule Rule>
block_routing(Rule const&, index_t, index_t, index_t) -> block_routing<Rule>;

/// Block-sparse attention over raw keys: query p sees every token j <= p of the blocks that the row of its own block
/// names. A query past the last block sees nothing: that is a shape_error where positions follow q_position. Throws
/// shape_error, or backend_error where the policy declines.
template <class Policy, tensor_view Q, kv_storage K, kv_storage V, tensor_view O, topology::rule Rule>
void sparse_sdpa(Policy const& policy,
                 Q const& q,                         // [heads, tokens, head_dim]
                 K const& k,                         // [kv_heads, keys, head_dim]
                 V const& v,                         // [kv_heads, keys, value head_dim]
                 block_routing<Rule> const& routing, // [1 | kv_heads | heads] rows over blocks
                 O const& out,                       // [heads, tokens, value head_dim], written
                 attend_options const& options = {}) {
    detail::check_least(routing.block_size, 1, {"sparse_sdpa", "block_routing has block_size"});
    detail::check_least(routing.heads, 1, {"sparse_sdpa", "block_routing has heads"});
    if (routing.nodes < 1)
        detail::fail<shape_error>("sparse_sdpa: block_routing has nodes " + std::to_string(routing.nodes) +
                                  ", give the number of blocks of the longest sequence");
    topology::topology_shape const shape{.heads = routing.heads, .nodes = routing.nodes};
    visible::routed_blocks const sees{topology::make_row_source(routing.rule, shape), routing.block_size};
    pool<K, V, visible::routed_blocks> const all(k, v, sees);
    auto const bound    = detail::assemble(q.describe(), out.describe(), options,
                                           std::array<pool_ref, 1>{detail::bind_pool(policy, all)}, "sparse_sdpa");
    problem const p     = bound.problem();
    index_t const end   = p.options.q_position + p.tokens(); // both checked above
    index_t const nodes = detail::ceil_div(end, routing.block_size);
    if (!p.options.q_positions && nodes > routing.nodes)
        detail::fail<shape_error>("sparse_sdpa: q ends at position " + std::to_string(end) + ", " +
                                  std::to_string(routing.nodes) + " blocks of " + std::to_string(routing.block_size) +
                                  " tokens end before");
    attend(policy, std::span<problem const>(&p, 1));
}

} // namespace butterfly
