// SPDX-License-Identifier: MIT
#pragma once

// The index type and the few integer helpers every folder needs.

#include <butterfly/core/config.hpp>
#include <butterfly/core/error.hpp>

#include <cstddef>
#include <cstdint>
#include <limits>

namespace butterfly {

/// Counts, positions and strides in elements. Signed, so that differences are safe.
using index_t = std::ptrdiff_t;

/// Padding of a graph row, an empty slot of `key_positions`.
inline constexpr std::int32_t no_neighbor = -1;

namespace detail {

/// ceil(a / b) for a >= 0, b > 0.
[[nodiscard]] BUTTERFLY_HOST_DEVICE constexpr index_t ceil_div(index_t a, index_t b) noexcept {
    return a / b + (a % b != 0 ? 1 : 0);
}

/// Smallest multiple of b that is >= a, for a >= 0, b > 0.
[[nodiscard]] BUTTERFLY_HOST_DEVICE constexpr index_t round_up(index_t a, index_t b) noexcept {
    return ceil_div(a, b) * b;
}

/// Largest multiple of b that is <= a, for a >= 0, b > 0.
[[nodiscard]] BUTTERFLY_HOST_DEVICE constexpr index_t round_down(index_t a, index_t b) noexcept {
    return a - a % b;
}

/// a * b for a, b >= 0, or -1 where the product does not fit.
[[nodiscard]] constexpr index_t try_multiply(index_t a, index_t b) noexcept {
    if (a < 0 || b < 0) return -1;
    if (b != 0 && a > std::numeric_limits<index_t>::max() / b) return -1;
    return a * b;
}

/// |a|; the largest number where it does not fit.
[[nodiscard]] constexpr index_t magnitude(index_t a) noexcept {
    constexpr index_t most = std::numeric_limits<index_t>::max();
    return a >= 0 ? a : a < -most ? most : -a;
}

/// stride * count for a stride of either sign and count >= 0; throws shape_error naming `what` where it overflows.
[[nodiscard]] inline index_t scaled_stride(index_t stride, index_t count, char const* what) {
    index_t const size = try_multiply(magnitude(stride), count);
    if (size < 0)
        fail<shape_error>(std::string(what) + " " + std::to_string(stride) + " x " + std::to_string(count) +
                          " overflows");
    return stride < 0 ? -size : size;
}

/// a * b; throws shape_error naming `what` where a factor is negative or the product overflows.
[[nodiscard]] inline index_t checked_multiply(index_t a, index_t b, char const* what) {
    index_t const product = try_multiply(a, b);
    if (product < 0)
        fail<shape_error>(std::string(what) + ": " + std::to_string(a) + " x " + std::to_string(b) + " overflows");
    return product;
}

} // namespace detail
} // namespace butterfly
