// SPDX-License-Identifier: MIT
#pragma once

// The published rotation: signs, a Walsh-Hadamard transform of the first m coordinates, times 1 / sqrt(m), with m the
// largest power of two that is not greater than n. It is its own inverse in reverse order.
//
// Defects. The signs, meant as random, are the lowest bit of (seed xor i) times an odd number: they alternate, and of
// all seeds only two patterns come. So a constant vector, the very thing a rotation should spread, becomes one
// coordinate, whose size then sets the scale of all others. Coordinates from m on are not rotated, yet share that
// scale: at head_dim 80 or 96 the last 16 or 32.

#include <butterfly/quant/published/blocks.hpp>

namespace butterfly::quant::published::detail {

/// Where the published seed is stored it is this one. Its lowest bit is what matters: even i are negated.
inline constexpr std::uint32_t default_seed = 0x12345678U;

[[nodiscard]] BUTTERFLY_HOST_DEVICE constexpr int largest_power_of_two(int n) noexcept {
    int m = 1;
    while (2 * m <= n) m *= 2;
    return m;
}

BUTTERFLY_HOST_DEVICE inline void flip_signs(float* x, int m, std::uint32_t seed) noexcept {
    for (int i = 0; i < m; ++i)
        if (((seed ^ static_cast<std::uint32_t>(i)) & 1U) == 0U) x[i] = -x[i];
}

/// Strides 1, 2, 4, ...: the order decides the last bits.
BUTTERFLY_HOST_DEVICE inline void walsh_hadamard(float* x, int m) noexcept {
    for (int half = 1; half < m; half *= 2)
        for (int first = 0; first < m; first += 2 * half)
            for (int i = first; i < first + half; ++i) {
                float const a = x[i], b = x[i + half];
                x[i]        = a + b;
                x[i + half] = a - b;
            }
}

BUTTERFLY_HOST_DEVICE inline void divide_by_root(float* x, int m) noexcept {
    float const unit = 1.0F / std::sqrt(static_cast<float>(m));
    for (int i = 0; i < m; ++i) x[i] = product(x[i], unit);
}

/// Rotates n coordinates in place.
BUTTERFLY_HOST_DEVICE inline void rotate(float* x, int n, std::uint32_t seed = default_seed) noexcept {
    int const m = largest_power_of_two(n);
    flip_signs(x, m, seed);
    walsh_hadamard(x, m);
    divide_by_root(x, m);
}

/// And back.
BUTTERFLY_HOST_DEVICE inline void rotate_back(float* x, int n, std::uint32_t seed = default_seed) noexcept {
    int const m = largest_power_of_two(n);
    divide_by_root(x, m);
    walsh_hadamard(x, m);
    flip_signs(x, m, seed);
}

/// sqrt(sum x^2). Infinite from about 1.8e19 on; values below 2.6e-23 count as zeros: squares do not fit.
[[nodiscard]] BUTTERFLY_HOST_DEVICE inline float norm_of(float const* x, int n) noexcept {
    float sum = 0.0F;
    for (int i = 0; i < n; ++i) sum += product(x[i], x[i]);
    return std::sqrt(sum);
}

/// r = the rotation of x / norm; where inverse_norm is 0, of zeros.
BUTTERFLY_HOST_DEVICE inline void rotate_unit(float const* x, int n, float inverse_norm, float* r) noexcept {
    for (int i = 0; i < n; ++i) r[i] = product(x[i], inverse_norm);
    rotate(r, n);
}

} // namespace butterfly::quant::published::detail
