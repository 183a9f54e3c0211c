// SPDX-License-Identifier: MIT
#pragma once

// How the rows of a block become one summary.
//
//   summary = (sum_j w_j x_j) / sum_j w_j,   log_weight = ln(sum_j w_j)      w_j = 1, or given by the caller
//
// Sums are fp32, in token order, divided once, over the rows as the tail keeps them: every machine and every chunking
// stores the same bits. A block of total weight zero is a zero row of log_weight -inf.

#include <butterfly/core/index.hpp>

#include <cmath>
#include <concepts>

namespace butterfly {

/// Which side of a pool a row belongs to.
enum class kv_side : std::uint8_t { keys, values };

/// Poolings that a device knows without calling back.
enum class pooling_kind : std::uint8_t { mean, weighted_mean, custom };

/// The rows that one summary stands for: tokens [first, first + count) of total weight `weight`.
struct pooled_block {
    index_t first = 0; // absolute position
    index_t count = 0;
    float weight  = 0.0F;
};

/// A pooling: adds rows in token order, then finishes. Positions are absolute, so that a pooling may undo and redo a
/// rotary embedding. `takes_weights` says whether append accepts token weights (and the tail keeps them).
template <class P>
concept pooling = std::copyable<P> &&
    requires(P const& p, float const* row, index_t dim, index_t position, float w, float* sum, pooled_block b) {
    { P::takes_weights } -> std::convertible_to<bool>;
    { P::kind } -> std::convertible_to<pooling_kind>;
    { p.add(kv_side::keys, row, dim, position, w, sum) }
    noexcept;
    { p.finish(kv_side::keys, b, dim, sum) }
    noexcept;
};

/// The arithmetic mean.
struct mean_pooling {
    static constexpr bool takes_weights = false;
    static constexpr pooling_kind kind  = pooling_kind::mean;

    void add(kv_side, float const* row, index_t dim, index_t, float, float* sum) const noexcept {
        for (index_t d = 0; d < dim; ++d) sum[d] += row[d];
    }
    void finish(kv_side, pooled_block const& block, index_t dim, float* sum) const noexcept {
        for (index_t d = 0; d < dim; ++d) sum[d] /= block.weight;
    }
};

/// The largest weight of a token: sums of weighted rows stay finite as long as the rows are below 2^32.
inline constexpr float most_token_weight = 0x1p64F;

/// The mean with a weight in [0, most_token_weight] per token, given to append; tokens without one weigh 1.
struct weighted_mean_pooling {
    static constexpr bool takes_weights = true;
    static constexpr pooling_kind kind  = pooling_kind::weighted_mean;

    void add(kv_side, float const* row, index_t dim, index_t, float weight, float* sum) const noexcept {
        if (weight == 0.0F) return; // also where the row is not finite
        for (index_t d = 0; d < dim; ++d) sum[d] = std::fma(weight, row[d], sum[d]);
    }
    void finish(kv_side, pooled_block const& block, index_t dim, float* sum) const noexcept {
        for (index_t d = 0; d < dim; ++d) sum[d] /= block.weight;
    }
};

static_assert(pooling<mean_pooling> && pooling<weighted_mean_pooling>);

/// A pooling with its type erased. `state` must outlive the call.
struct pooling_ref {
    pooling_kind kind                = pooling_kind::custom;
    void const* state                = nullptr;
    void (*add)(void const* state,
                kv_side,
                float const* row,
                index_t dim,
                index_t position,
                float weight,
                float* sum) noexcept = nullptr;
    void (*finish)(void const* state, kv_side, pooled_block const&, index_t dim, float* sum) noexcept = nullptr;
};

/// Erases the type of a pooling, which must outlive the reference.
template <pooling P>
[[nodiscard]] pooling_ref erase(P const& p) noexcept {
    return {.kind   = P::kind,
            .state  = &p,
            .add    = [](void const* s, kv_side side, float const* row, index_t dim, index_t position, float w,
                      float* sum) noexcept { static_cast<P const*>(s)->add(side, row, dim, position, w, sum); },
            .finish = [](void const* s, kv_side side, pooled_block const& b, index_t dim,
                         float* sum) noexcept { static_cast<P const*>(s)->finish(side, b, dim, sum); }};
}

} // namespace butterfly
