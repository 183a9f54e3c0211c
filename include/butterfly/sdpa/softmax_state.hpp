// SPDX-License-Identifier: MIT
#pragma once

// The running softmax every kernel shares, and how two of them combine.
//
//   max = max_j s_j          sum = sum_j exp(s_j - max)          lse = max + ln(sum)
//
// Source: Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018).

#include <butterfly/core/config.hpp>

#include <cmath>
#include <limits>

#if defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__
#error "butterfly needs infinities and NaN: compile without -ffinite-math-only / -ffast-math"
#endif

namespace butterfly {

/// Running softmax over scores that arrive one at a time. An empty state has max = -inf and sum = 0; emptiness is asked
/// of `sum`, never computed from infinities: exp(-inf - -inf) is NaN.
struct softmax_state {
    float max = -std::numeric_limits<float>::infinity();
    float sum = 0.0F;

    [[nodiscard]] BUTTERFLY_HOST_DEVICE bool empty() const noexcept { return sum == 0.0F; }

    /// Admits the score of one visible key; -inf is a hidden key and changes nothing. Returns the factor that rescales
    /// what was accumulated before it. The key's own weight is then `weight(score)`.
    BUTTERFLY_HOST_DEVICE float push(float score) noexcept {
        if (score == -std::numeric_limits<float>::infinity()) return 1.0F;
        float const top     = score > max ? score : max; // a NaN score leaves max and poisons sum: its row is NaN
        float const rescale = empty() ? 0.0F : std::exp(max - top);
        sum                 = sum * rescale + std::exp(score - top);
        max                 = top;
        return rescale;
    }

    /// exp(score - max): the weight of a key pushed just now.
    [[nodiscard]] BUTTERFLY_HOST_DEVICE float weight(float score) const noexcept {
        return score == -std::numeric_limits<float>::infinity() ? 0.0F : std::exp(score - max);
    }

    /// ln(sum of exp(score)); -inf where empty.
    [[nodiscard]] BUTTERFLY_HOST_DEVICE float lse() const noexcept {
        return empty() ? -std::numeric_limits<float>::infinity() : max + std::log(sum);
    }
};

/// Factors that bring two unnormalised accumulators to the state of their union.
struct merge_factors {
    float a;
    float b;
    softmax_state merged;
};

/// The union of two states: accumulators combine as a * acc_a + b * acc_b. Empty is neutral; both empty is empty.
[[nodiscard]] BUTTERFLY_HOST_DEVICE inline merge_factors merge(softmax_state a, softmax_state b) noexcept {
    if (b.empty()) return {1.0F, 0.0F, a};
    if (a.empty()) return {0.0F, 1.0F, b};
    float const top = b.max > a.max ? b.max : a.max;
    float const wa  = std::exp(a.max - top);
    float const wb  = std::exp(b.max - top);
    return {wa, wb, {top, a.sum * wa + b.sum * wb}};
}

/// The state of keys whose `lse` is known: sum 1 at max = lse, or empty where lse = -inf.
[[nodiscard]] BUTTERFLY_HOST_DEVICE inline softmax_state state_of(float lse) noexcept {
    if (lse == -std::numeric_limits<float>::infinity()) return {};
    return {lse, 1.0F};
}

} // namespace butterfly
