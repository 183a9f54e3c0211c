// SPDX-License-Identifier: MIT
#pragma once

// Rotary position embedding (Su et al. 2021), as far as a cache must know it: how a key that stands at position p comes
// to stand at p - n. With (x, y) the pair of channels number i and a = n * frequencies[i]:
//
//   x' = x cos(a) + y sin(a)
//   y' = y cos(a) - x sin(a)
//
//   halves     (i, i + dims / 2)   dims = 2 * frequencies; channels from dims on have no position
//   adjacent   (2i, 2i + 1)
//
// Cosines and sines are computed in double and rounded to float, so that libms agree. A product of two floats is exact
// in double, so that a pair is rounded twice whatever a compiler contracts: to double, and to float. A coefficient is
// off by 2^-25 at most: a pair of length r lands within 2^-24 r of where it belongs, before that last rounding.
//
// What an engine multiplies cosines and sines by (YaRN's attention factor) is in the key and stays there. Frequencies
// that change with the length of a sequence are not undone by this.

#include <butterfly/core/index.hpp>

#include <cmath>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace butterfly {

/// Which channels are turned together.
enum class rope_pairs : std::uint8_t { halves, adjacent };

/// A rotary embedding of keys. No frequencies: none.
struct rope {
    std::span<double const> frequencies{}; // radians per position, one a pair; on the host. Floats widen exactly
    rope_pairs pairs = rope_pairs::halves;

    /// Channels that are turned.
    [[nodiscard]] index_t dims() const noexcept { return 2 * static_cast<index_t>(frequencies.size()); }
};

/// frequencies[i] = base^(-2i / dims), the usual ones. Throws shape_error unless dims is even and base is
/// positive and finite.
[[nodiscard]] inline std::vector<double> rope_frequencies(double base, index_t dims) {
    if (dims < 2 || dims % 2 != 0)
        detail::fail<shape_error>("rope_frequencies: dims is " + std::to_string(dims) + ", must be even and positive");
    if (!(base > 0.0 && std::isfinite(base)))
        detail::fail<shape_error>("rope_frequencies: base is " + std::to_string(base) +
                                  ", must be positive and finite");
    std::vector<double> frequencies(static_cast<std::size_t>(dims / 2));
    for (std::size_t i = 0; i < frequencies.size(); ++i)
        frequencies[i] = std::pow(base, -2.0 * static_cast<double>(i) / static_cast<double>(dims));
    return frequencies;
}

namespace detail {

/// Turns the first 2 * count channels of a row back by the angles of which these are cosines and sines; see the top of
/// this file.
BUTTERFLY_HOST_DEVICE inline void turn_back(rope_pairs pairs,
                                            index_t count,
                                            float const* cosines, // [count]
                                            float const* sines,   // [count]
                                            float* row) noexcept {
    for (index_t i = 0; i < count; ++i) {
        float& at_x    = row[pairs == rope_pairs::halves ? i : 2 * i];
        float& at_y    = row[pairs == rope_pairs::halves ? i + count : 2 * i + 1];
        double const x = at_x, y = at_y, c = cosines[i], s = sines[i];
        at_x = static_cast<float>(x * c + y * s);
        at_y = static_cast<float>(y * c - x * s);
    }
}

} // namespace detail
} // namespace butterfly
