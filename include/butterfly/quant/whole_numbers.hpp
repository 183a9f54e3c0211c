// SPDX-License-Identifier: MIT
#pragma once

// Rows as whole numbers, so that encoders choose codes with integer sums: the same bytes on every machine and under any
// flags, and loops that vectorise.
//
//   x_i ~ whole_i * 2^exponent,   |whole_i| <= 2^13,   rounded to nearest: -84 dB of the largest, far below any codec

#include <butterfly/core/index.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

namespace butterfly::quant::detail {

/// Rows whose largest magnitude is not below this are coded as if they were not finite. Sums that turn a row back reach
/// its length times what rounding made of it, a root of 1024 each, and stay below 2^128.
inline constexpr float largest_value = 0x1p116F;

/// Scales of rows that are not zeros are at least this: the least normal step of a level of 2^7.
inline constexpr float smallest_scale = 0x1p-133F;

/// Digits of the largest whole number.
inline constexpr int whole_digits = 13;

/// The largest magnitude of n values; NaN where one of them is, or is too large to be coded.
[[nodiscard]] BUTTERFLY_HOST_DEVICE inline float largest(float const* x, index_t n) noexcept {
    float top = 0.0F;
    for (index_t i = 0; i < n; ++i) {
        float const size = std::fabs(x[i]);
        if (!(size < largest_value)) return std::numeric_limits<float>::quiet_NaN();
        top = size <= top ? top : size;
    }
    return top;
}

/// The exponent e with |x| < 2^e for x = top >= 0, and 2^(e - 1) <= top where that is not zero.
[[nodiscard]] BUTTERFLY_HOST_DEVICE inline int exponent_of(float top) noexcept {
    int e = 0;
    static_cast<void>(std::frexp(top, &e));
    return e;
}

/// x * 2^e in float: exact unless the result is subnormal or too large.
[[nodiscard]] BUTTERFLY_HOST_DEVICE inline float times_power(float x, int e) noexcept {
    return static_cast<float>(static_cast<double>(x) * std::ldexp(1.0, e));
}

/// Rounds n values, all below 2^exponent in size, to whole numbers of 2^(exponent - whole_digits); returns that
/// exponent.
BUTTERFLY_HOST_DEVICE inline int to_whole(float const* x, index_t n, int exponent, std::int16_t* whole) noexcept {
    int const unit      = exponent - whole_digits;
    double const factor = std::ldexp(1.0, -unit); // products are exact
    for (index_t i = 0; i < n; ++i) {
        double const scaled = static_cast<double>(x[i]) * factor;
        whole[i]            = static_cast<std::int16_t>(scaled + (scaled < 0.0 ? -0.5 : 0.5));
    }
    return unit;
}

} // namespace butterfly::quant::detail
