// SPDX-License-Identifier: MIT
#pragma once

// A random rotation that costs additions only: random signs, then a Walsh-Hadamard transform.
//
//   y = R x,   R = H D / sqrt(m)        D = diag(+-1) from a seed, H the Hadamard matrix of order m
//
// Outlier channels and constants are spread over all coordinates, which are then nearly Gaussian of variance |x|^2 / n,
// and <R q, R k> = <q, k>. For a length n that is no power of two, with m the largest one below: one transform of the
// first m coordinates, then one of the last m; each is orthogonal, so their product is. There, what stands in the last
// n - m alone is spread over m coordinates, not n. Signs are bits of splitmix64, not of a linear function of the index:
// with alternating signs a constant vector would become one coordinate.
//
// Arithmetic is additions and one product per coordinate and pass, in a fixed order: the same bits on every machine.

#include <butterfly/core/index.hpp>
#include <butterfly/core/splitmix64.hpp>

#include <cmath>
#include <cstdint>

namespace butterfly::quant {
/// A rotation of vectors of any length n >= 1. Exact up to rounding: inverse(forward(x)) = x to a few ulps of max |x|.
struct rotation {
    std::uint64_t seed = 0;

    /// Coordinates of one transform: the largest power of two up to n.
    [[nodiscard]] BUTTERFLY_HOST_DEVICE static constexpr index_t order(index_t n) noexcept {
        index_t m = 1;
        while (2 * m <= n) m *= 2;
        return m;
    }

    /// Signs of coordinates first to first + 63, a multiple of 64, in the first transform (pass 0) or the second (pass
    /// 1): a bit that is set is minus.
    [[nodiscard]] BUTTERFLY_HOST_DEVICE constexpr std::uint64_t signs(int pass, index_t first) const noexcept {
        return butterfly::detail::splitmix64(seed, static_cast<std::uint64_t>(first / 64) * 2 +
                                                       static_cast<std::uint64_t>(pass));
    }

    /// Sign of coordinate i: true is minus.
    [[nodiscard]] BUTTERFLY_HOST_DEVICE constexpr bool minus(int pass, index_t i) const noexcept {
        return (signs(pass, i) >> (i % 64) & 1U) != 0U;
    }

    /// x = R x, in place.
    BUTTERFLY_HOST_DEVICE void forward(float* x, index_t n) const noexcept {
        index_t const m = order(n);
        flip(0, x, m);
        transform(x, m);
        if (m == n) return;
        flip(1, x + (n - m), m);
        transform(x + (n - m), m);
    }

    /// x = R^T x, in place.
    BUTTERFLY_HOST_DEVICE void inverse(float* x, index_t n) const noexcept {
        index_t const m = order(n);
        if (m != n) {
            transform(x + (n - m), m);
            flip(1, x + (n - m), m);
        }
        transform(x, m);
        flip(0, x, m);
    }

    /// 1 / sqrt(m), what a transform is scaled by.
    [[nodiscard]] BUTTERFLY_HOST_DEVICE static float unit_of(index_t m) noexcept {
        return static_cast<float>(1.0 / std::sqrt(static_cast<double>(m)));
    }

private:
    BUTTERFLY_HOST_DEVICE void flip(int pass, float* x, index_t m) const noexcept {
        for (index_t first = 0; first < m; first += 64) {
            std::uint64_t const bits = signs(pass, first);
            for (index_t i = first; i < m && i < first + 64; ++i)
                x[i] = (bits >> (i - first) & 1U) != 0U ? -x[i] : x[i];
        }
    }

    /// Walsh-Hadamard, strides from the largest down, so that long ones are whole vectors, then times 1 / sqrt(m).
    BUTTERFLY_HOST_DEVICE static void transform(float* x, index_t m) noexcept {
        for (index_t half = m / 2; half > 0; half /= 2)
            for (index_t first = 0; first < m; first += 2 * half)
                for (index_t i = first; i < first + half; ++i) {
                    float const a = x[i], b = x[i + half];
                    x[i]        = a + b;
                    x[i + half] = a - b;
                }
        float const unit = unit_of(m);
        for (index_t i = 0; i < m; ++i) x[i] *= unit;
    }
};

} // namespace butterfly::quant
