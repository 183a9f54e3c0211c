// SPDX-License-Identifier: MIT
#pragma once

// The scalar backend: the text every other kernel equals.
//
//   out = sum_j softmax(s)_j v_j,   s_j the logit of key j (backend/host/logits.hpp),   j over the visible keys of all
//   pools
//
// Shapes: q [heads, tokens, dk], keys [kv_heads, slots, dk], values [kv_heads, slots, dv], out [heads, tokens, dv].
// Numeric policy: rows are decoded to f32; dot products, softmax and sums are f32 in key order; one rounding on output.
// Why this shape: one row at a time, one pass, every key and value read once, in the order the visibility shows them.
// No result depends on another row, so chunking, batch and threads cannot change a bit.

#include <butterfly/backend/host/cache_ops.hpp>
#include <butterfly/backend/host/codec_ops.hpp>
#include <butterfly/backend/host/logits.hpp>
#include <butterfly/backend/host/merge_ops.hpp>
#include <butterfly/backend/host/rows.hpp>
#include <butterfly/backend/host/shift_ops.hpp>
#include <butterfly/backend/host/workspace.hpp>
#include <butterfly/backend/policy.hpp>
#include <butterfly/sdpa/softmax_state.hpp>

#include <algorithm>
#include <numeric>
#include <span>

namespace butterfly::backend {

/// Runs the plain loops. For reading, for checking other backends, for machines without any other.
struct scalar {
    butterfly::executor executor{};

    [[nodiscard]] static std::string name() { return "scalar"; }
    [[nodiscard]] static bool available() noexcept { return true; }
};

static_assert(host_policy<scalar>);

namespace on_host {

template <quant::decoder Codec>
inline constexpr codec_ops scalar_codec_ops{&decode_rows<Codec>};

/// One thread's row buffers.
struct scalar_scratch {
    float* query; // [dk]
    float* key;   // [dk]
    float* value; // [dv]
    float* out;   // [dv]

    [[nodiscard]] static index_t bytes(problem const& p) noexcept {
        return 2 * scratch_bytes<float>(p.q.shape.head_dim) + 2 * scratch_bytes<float>(p.out.shape.head_dim);
    }

    scalar_scratch(problem const& p, std::byte* memory) noexcept {
        carver c(memory);
        query = c.take<float>(p.q.shape.head_dim);
        key   = c.take<float>(p.q.shape.head_dim);
        value = c.take<float>(p.out.shape.head_dim);
        out   = c.take<float>(p.out.shape.head_dim);
    }
};

/// The row of one slot, decoded.
inline void decode_row(storage_ref const& s, index_t head, index_t slot, float* out) noexcept {
    std::byte const* const row = row_address(s, head, slot);
    load_rows(s, head, &row, 1, out, s.shape.head_dim);
}

/// Attention of one query row. A row with no visible key is zero with lse = -inf.
inline void attend_row(problem const& p, index_t head, index_t token, scalar_scratch const& at) noexcept {
    index_t const dk      = p.q.shape.head_dim;
    index_t const dv      = p.out.shape.head_dim;
    index_t const kv_head = head / p.group();

    softmax_state state;
    load_row(p.q, head, token, at.query);
    std::fill_n(at.out, dv, 0.0F);

    for (int i = 0; i < p.pool_count; ++i) {
        pool_ref const& pool = p.pools[i];
        row_tile const row{.first = token, .tokens = 1, .head = row_head(p, pool, head)};
        tile_cursor cursor;
        key_tile tile;
        while (pool.visibility.next(pool.visibility.state, p, i, row, {0, no_alignment}, cursor, tile)) {
            for (int j = 0; j < tile.count; ++j) {
                if (tile.bits != nullptr && (tile.bits[0] >> j & 1U) == 0U) continue;

                // A key hidden by what is added is not read: NaN + -inf would be NaN.
                float const bias = key_bias(pool, tile, j) + row_bias(p, pool, head, token, tile.slot(j));
                if (bias == -std::numeric_limits<float>::infinity()) continue;

                decode_row(pool.keys, kv_head, tile.slot(j), at.key);
                float const dot   = std::inner_product(at.query, at.query + dk, at.key, 0.0F);
                float const score = soft_capped(p.options.scale * dot, p.options.soft_cap) + bias;
                if (score == -std::numeric_limits<float>::infinity()) continue;

                float const rescale = state.push(score);
                float const weight  = state.weight(score);
                decode_row(pool.values, kv_head, tile.slot(j), at.value);
                for (index_t d = 0; d < dv; ++d) at.out[d] = at.out[d] * rescale + weight * at.value[d];
            }
        }
    }

    if (auto* const lse = host_pointer<float>(p.options.lse)) lse[head * p.tokens() + token] = state.lse();
    if (auto const* const sinks = host_pointer<float const>(p.options.sink_logits)) {
        float const rescale = state.push(sinks[head]);
        for (index_t d = 0; d < dv; ++d) at.out[d] *= rescale;
    }
    store_row(p.out, head, token, at.out, state.empty() ? 0.0F : 1.0F / state.sum);
}

} // namespace on_host

template <quant::decoder Codec>
[[nodiscard]] bound_codec bind_codec(scalar const&, Codec const&) noexcept {
    return {&on_host::scalar_codec_ops<Codec>, "scalar"};
}

[[nodiscard]] inline support supports(scalar const& policy, problem const& p) {
    std::string reason = on_host::decline(policy.executor, p, "scalar");
    return {reason.empty(), reason};
}

[[nodiscard]] inline std::string explain(scalar const& policy, problem const& p) {
    support const s = supports(policy, p);
    return s ? "scalar: one row at a time, one pass in key order, " + policy.executor.name() : "declined: " + s.reason;
}

/// Scratch bytes of a call with these problems; a span in options.workspace of problem 0 serves all of them.
[[nodiscard]] inline index_t workspace_bytes(scalar const& policy, std::span<problem const> problems) noexcept {
    index_t most = 0;
    for (problem const& p : problems) most = std::max(most, on_host::scalar_scratch::bytes(p));
    return most * policy.executor.threads() + on_host::scratch_alignment;
}

inline void run(scalar const& policy, std::span<problem const> problems) {
    if (problems.empty()) return;
    index_t const bytes = workspace_bytes(policy, problems);
    index_t const each  = (bytes - on_host::scratch_alignment) / policy.executor.threads();
    on_host::workspace const scratch(policy.executor, problems[0].options.workspace,
                                     bytes - on_host::scratch_alignment);

    for (problem const& p : problems) {
        policy.executor.each(p.heads() * p.tokens(), [&](index_t row, int thread) noexcept {
            on_host::attend_row(p, row / p.tokens(), row % p.tokens(),
                                on_host::scalar_scratch(p, scratch.data() + thread * each));
        });
    }
}

} // namespace butterfly::backend
