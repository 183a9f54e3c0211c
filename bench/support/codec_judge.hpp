// SPDX-License-Identifier: MIT
#pragma once

// How far attention over packed keys and values is from attention, in double: for a query at position t, over the keys
// j <= t,
//
//   s_j = <q, k_j> / sqrt(head_dim)      p = softmax(s)      out = sum_j p_j v_j        s', p', out' with packed rows
//   KL = sum_j p_j log(p_j / p'_j) = sum_j p_j (s_j - s'_j) + lse(s') - lse(s)          nats
//
// Packed rows are those that a codec's own text decodes: what a codec loses, without what a kernel rounds.

#include <butterfly/core/executor.hpp>

#include "fidelity_judge.hpp"

#include <memory>
#include <span>
#include <vector>

namespace bench {

/// Keys and values that a mixed-precision cache keeps as they are, by the rule of mixed_kv_cache: with
/// L(t) = block_size * floor(max(0, t - window + 1) / block_size), those of [0, sinks) and of [L(t), t]. None where
/// the window is 0.
struct exact_rows {
    index_t window     = 0;
    index_t block_size = 64;
    index_t sinks      = 0;
    bool values        = true; // false: of such tokens only keys are exact

    /// Of the t + 1 keys that a query at t sees, how many are exact.
    [[nodiscard]] index_t count(index_t t) const noexcept;
    /// L(t); t + 1 where nothing is exact.
    [[nodiscard]] index_t first_recent(index_t t) const noexcept;
};

/// Mean share of exact keys among those that queries at [0, tokens) see: what a test that judges every position of a
/// text is told about a cache.
[[nodiscard]] double mean_exact_share(exact_rows const& exact, index_t tokens) noexcept;

/// Means over the judged queries of all heads.
struct codec_verdict {
    double kl    = 0; // nats
    double top1  = 0; // share of queries whose heaviest key is the same one
    double error = 0; // |out' - out| / |out|, L2 over all queries and heads
};

/// Attention of chosen queries of one layer, kept to compare with. `in` must outlive it.
class codec_judge {
public:
    codec_judge(qkv const& in, std::vector<index_t> positions, bf::executor const& threads);

    /// With keys and values [kv_heads, tokens, ...] in the place of the input's; null: the input's.
    [[nodiscard]] codec_verdict
    compare(bf::heads_buffer<float> const* keys, bf::heads_buffer<float> const* values, exact_rows const& exact) const;

    /// |out - attention| / |attention| of an output [heads, positions, value_dim].
    [[nodiscard]] double error_of(bf::heads_buffer<float> const& out) const;

    /// Mean weight of a head's latest `tokens` keys, the query's own included.
    [[nodiscard]] double mass_on_last(index_t head, index_t tokens) const;

    [[nodiscard]] std::vector<index_t> const& positions() const noexcept { return positions_; }

private:
    /// Scores of one query over keys [0, t], their log-sum-exp, and the output.
    struct truth {
        std::vector<double> scores{};
        double lse    = 0;
        index_t first = 0; // heaviest key
        std::vector<double> out{};
    };

    qkv const& in_;
    std::vector<index_t> positions_;
    bf::executor threads_;
    std::vector<truth> truths_; // [heads, positions]
};

} // namespace bench
