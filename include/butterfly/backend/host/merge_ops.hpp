// SPDX-License-Identifier: MIT
#pragma once

// merge (sdpa/merge.hpp) on host memory, for every policy with an executor. Bound by memory: three rows of head_dim
// elements for two exponentials, so one text serves all instruction sets.

#include <butterfly/backend/host/rows.hpp>
#include <butterfly/backend/policy.hpp>
#include <butterfly/sdpa/merge.hpp>
#include <butterfly/sdpa/softmax_state.hpp>

#include <algorithm>

namespace butterfly::backend {
namespace on_host {

/// Elements converted at a time.
inline constexpr index_t merge_run = 64;

/// The columns [first, first + count) of one row of a tensor.
[[nodiscard]] inline tensor_ref columns(tensor_ref t, index_t first, index_t count) noexcept {
    t.memory.offset += first * size_of(t.type);
    t.shape.head_dim = count;
    return t;
}

/// One row of a merge. A part that saw no key is not read; one whose weight only underflows
/// to zero is, so that its NaN is felt.
inline void merge_row(merge_problem const& m, index_t head, index_t token) noexcept {
    index_t const row        = head * m.out.shape.tokens + token;
    softmax_state const a    = state_of(host_pointer<float const>(m.a_lse)[row]);
    softmax_state const b    = state_of(host_pointer<float const>(m.b_lse)[row]);
    merge_factors const both = merge(a, b);
    auto const* const sinks  = host_pointer<float const>(m.options.sink_logits);
    merge_factors const end  = merge(both.merged, sinks != nullptr ? state_of(sinks[head]) : softmax_state{});
    float const norm         = end.merged.empty() ? 0.0F : end.a / end.merged.sum;
    float const weight_a     = both.a * norm; // zero where a is empty and b is not
    float const weight_b     = both.b * norm;

    for (index_t d = 0; d < m.out.shape.head_dim; d += merge_run) {
        index_t const count = std::min(merge_run, m.out.shape.head_dim - d);
        float left[merge_run]{};
        float right[merge_run]{};
        if (!a.empty()) load_row(columns(m.a, d, count), head, token, left);
        if (!b.empty()) load_row(columns(m.b, d, count), head, token, right);
        for (index_t i = 0; i < count; ++i) left[i] = weight_a * left[i] + weight_b * right[i];
        store_row(columns(m.out, d, count), head, token, left, 1.0F);
    }
    if (auto* const lse = host_pointer<float>(m.options.lse)) lse[row] = both.merged.lse();
}

} // namespace on_host

template <host_policy Policy>
void run(Policy const& policy, merge_problem const& m) noexcept {
    policy.executor.each(m.out.shape.heads * m.out.shape.tokens, [&](index_t row, int) noexcept {
        on_host::merge_row(m, row / m.out.shape.tokens, row % m.out.shape.tokens);
    });
}

} // namespace butterfly::backend
