// SPDX-License-Identifier: MIT
#pragma once

// The published codebooks: levels of 2 to 5 bits, ascending, symmetric about zero.
//
// Of 2, 3 and 4 bits they are the Lloyd-Max levels of N(0, 1). Defect: the one of 5 bits, given out as such, is not.
// Its outermost level is 1.9956 where 32 levels of N(0, 1) reach to 3.26; scaled to the largest coordinate, as it is
// used, it works as a grid that is slightly denser in the middle.

#include <butterfly/core/config.hpp>

#include <cmath>

namespace butterfly::quant::published::detail {

/// The positive levels, ascending: 0 <= i < 2^(Bits - 1).
template <int Bits>
[[nodiscard]] BUTTERFLY_HOST_DEVICE constexpr float positive_level(int i) noexcept {
    static_assert(Bits >= 2 && Bits <= 5);
    if constexpr (Bits == 2) {
        constexpr float levels[] = {0.4528F, 1.5104F};
        return levels[i];
    } else if constexpr (Bits == 3) {
        constexpr float levels[] = {0.2451F, 0.7560F, 1.3440F, 2.1520F};
        return levels[i];
    } else if constexpr (Bits == 4) {
        constexpr float levels[] = {0.1284F, 0.3881F, 0.6568F, 0.9423F, 1.2562F, 1.6180F, 2.0690F, 2.7326F};
        return levels[i];
    } else {
        constexpr float levels[] = {0.0506F, 0.1520F, 0.2543F, 0.3576F, 0.4626F, 0.5697F, 0.6795F, 0.7928F,
                                    0.9104F, 1.0334F, 1.1631F, 1.3010F, 1.4493F, 1.6107F, 1.7900F, 1.9956F};
        return levels[i];
    }
}

/// What a code stands for: 0 <= code < 2^Bits.
template <int Bits>
[[nodiscard]] BUTTERFLY_HOST_DEVICE constexpr float level(int code) noexcept {
    constexpr int half = 1 << (Bits - 1);
    return code < half ? -positive_level<Bits>(half - 1 - code) : positive_level<Bits>(code - half);
}

/// The outermost level.
template <int Bits>
inline constexpr float top_level = positive_level<Bits>((1 << (Bits - 1)) - 1);

/// The code whose level is nearest to x, the lower of equals; 0 for NaN.
template <int Bits>
[[nodiscard]] BUTTERFLY_HOST_DEVICE inline int nearest_code(float x) noexcept {
    int code   = 0;
    float best = std::fabs(x - level<Bits>(0));
    for (int c = 1; c < 1 << Bits; ++c) {
        float const distance = std::fabs(x - level<Bits>(c));
        if (distance < best) {
            best = distance;
            code = c;
        }
    }
    return code;
}

} // namespace butterfly::quant::published::detail
