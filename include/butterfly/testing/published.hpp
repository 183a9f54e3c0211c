// SPDX-License-Identifier: MIT
#pragma once

// Rules of the published system (Butterfly, MIT, commit 51a3d97) that depend on how a sequence is cut into calls, or
// that leave out what a query needs. They have no place in the library; tests compare with them, in plain double.
//
//   published_one_shot     a first chunk: summaries are eligible per block of queries, not per query
//   published_per_token    later chunks: what cache_rules::published does
//   published_tail_only    its decode: the tokens the tail happens to keep, and no summary
//   published_truncation   a graph row cut to max_degree drops what was written last: self first
//
// With b the block of query t and lo(t) = max(0, t - W + 1): one-shot shows summary n of the row where n < b and
// (n + 1) * bs <= lo(b * bs); per token where n < b and (n + 1) * bs <= lo(t).

#include <butterfly/core/heads.hpp>
#include <butterfly/graph/graph.hpp>

#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

namespace butterfly::testing {

/// What one query sees: tokens [first, end) and the means of some blocks, in the order of the row.
struct published_keys {
    index_t first = 0;
    index_t end   = 0;
    std::vector<index_t> summaries{};
};

/// Tokens of a block and exact keys of a query, the query's own included.
struct published_sizes {
    index_t block_size   = 128;
    index_t exact_window = 64;

    [[nodiscard]] index_t lower(index_t t) const noexcept { return std::max<index_t>(0, t - exact_window + 1); }
};

/// The window of query t, and the summaries of its block's row that lie wholly before `lower`.
[[nodiscard]] inline published_keys
published_keys_of(graph_view const& rows, index_t t, index_t lower, published_sizes s) {
    published_keys keys{.first = s.lower(t), .end = t + 1};
    index_t const block = t / s.block_size;
    for (std::int32_t const n : rows.neighbors(0, block))
        if (n >= 0 && n < block && (n + 1) * s.block_size <= lower) keys.summaries.push_back(n);
    return keys;
}

/// The rule of a first chunk: every query of a block shares the summaries its first query may see.
[[nodiscard]] inline published_keys published_one_shot(graph_view const& rows, index_t t, published_sizes s) {
    return published_keys_of(rows, t, s.lower(t / s.block_size * s.block_size), s);
}

/// The rule of later chunks.
[[nodiscard]] inline published_keys published_per_token(graph_view const& rows, index_t t, published_sizes s) {
    return published_keys_of(rows, t, s.lower(t), s);
}

/// The rule of decode: all of the tail, which starts at `tail_start`.
[[nodiscard]] inline published_keys published_tail_only(index_t tail_start, index_t t) {
    return {.first = tail_start, .end = t + 1};
}

/// Attention of one query over tokens and means of blocks, every key counting once, in double.
[[nodiscard]] inline std::vector<double> published_attend(std::span<float const> q,  // [head_dim]
                                                          heads_view<float const> k, // [kv_heads, tokens, head_dim]
                                                          heads_view<float const> v, // [kv_heads, tokens, value dim]
                                                          index_t kv_head,           //
                                                          published_keys const& keys,
                                                          index_t block_size,
                                                          double scale) {
    auto const mean = [&](heads_view<float const> x, index_t first, index_t count) {
        std::vector<double> sum(static_cast<std::size_t>(x.head_dim()));
        for (index_t j = first; j < first + count; ++j)
            for (std::size_t d = 0; d < sum.size(); ++d) sum[d] += x.row(kv_head, j)[d];
        for (double& value : sum) value /= static_cast<double>(count);
        return sum;
    };
    std::vector<std::vector<double>> values;
    std::vector<double> logits;
    auto const admit = [&](index_t first, index_t count) {
        auto const key = mean(k, first, count);
        double dot     = 0.0;
        for (std::size_t d = 0; d < key.size(); ++d) dot += q[d] * key[d];
        logits.push_back(scale * dot);
        values.push_back(mean(v, first, count));
    };
    for (index_t j = keys.first; j < keys.end; ++j) admit(j, 1);
    for (index_t const n : keys.summaries) admit(n * block_size, block_size);

    std::vector<double> out(static_cast<std::size_t>(v.head_dim()));
    if (logits.empty()) return out;
    double const top = *std::max_element(logits.begin(), logits.end());
    double sum       = 0.0;
    for (std::size_t i = 0; i < logits.size(); ++i) {
        double const weight = std::exp(logits[i] - top);
        sum += weight;
        for (std::size_t d = 0; d < out.size(); ++d) out[d] += weight * values[i][d];
    }
    for (double& x : out) x /= sum;
    return out;
}

/// The first max_degree slots of every row, whatever they hold. At least one column stays, of pads where max_degree is
/// 0. Throws shape_error for a negative max_degree.
[[nodiscard]] inline graph published_truncation(graph_view const& g, index_t max_degree) {
    if (max_degree < 0)
        butterfly::detail::fail<shape_error>("published_truncation: max_degree " + std::to_string(max_degree));
    graph cut({g.heads(), g.nodes(), std::max<index_t>(1, std::min(g.degree(), max_degree))});
    index_t const kept = std::min(cut.shape().degree, max_degree);
    for (index_t row = 0; row < g.heads() * g.nodes(); ++row)
        for (index_t slot = 0; slot < kept; ++slot) {
            auto const to       = static_cast<std::size_t>(row * cut.shape().degree + slot);
            cut.neigh_idx()[to] = g.neigh_idx[row * g.degree() + slot];
            cut.edge_type()[to] = g.edge_type[row * g.degree() + slot];
        }
    return cut;
}

} // namespace butterfly::testing
