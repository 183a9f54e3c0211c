// SPDX-License-Identifier: MIT
#pragma once

// Two-byte floating point: IEEE binary16 and bfloat16, as storage types. Arithmetic is done in float.
// Conversions round to nearest, ties to even; NaN stays NaN (quiet); float16 overflows to infinity.

#include <butterfly/core/config.hpp>

#include <bit>
#include <cstdint>

namespace butterfly {
namespace detail {

/// Bits of the binary16 nearest to `x`.
[[nodiscard]] BUTTERFLY_HOST_DEVICE constexpr std::uint16_t to_float16_bits(float x) noexcept {
    auto const u            = std::bit_cast<std::uint32_t>(x);
    auto const sign         = static_cast<std::uint32_t>((u >> 16) & 0x8000U);
    std::uint32_t const mag = u & 0x7fffffffU;
    if (mag > 0x7f800000U) return static_cast<std::uint16_t>(sign | 0x7e00U | ((mag >> 13) & 0x3ffU)); // NaN
    if (mag >= 0x477ff000U) return static_cast<std::uint16_t>(sign | 0x7c00U);                         // rounds to inf
    if (mag < 0x38800000U) {                                                                           // subnormal
        if (mag < 0x33000000U) return static_cast<std::uint16_t>(sign);
        std::uint32_t const shift    = 126U - (mag >> 23);
        std::uint32_t const mantissa = (mag & 0x7fffffU) | 0x800000U;
        std::uint32_t const floor    = mantissa >> shift;
        std::uint32_t const rest     = mantissa & ((1U << shift) - 1U);
        std::uint32_t const half     = 1U << (shift - 1U);
        std::uint32_t const up       = rest > half || (rest == half && (floor & 1U) != 0U) ? 1U : 0U;
        return static_cast<std::uint16_t>(sign | (floor + up));
    }
    std::uint32_t const rounded = mag + 0xfffU + ((mag >> 13) & 1U);
    return static_cast<std::uint16_t>(sign | ((rounded - 0x38000000U) >> 13));
}

[[nodiscard]] BUTTERFLY_HOST_DEVICE constexpr float from_float16_bits(std::uint16_t h) noexcept {
    std::uint32_t const sign     = static_cast<std::uint32_t>(h & 0x8000U) << 16;
    std::uint32_t const exponent = (h >> 10) & 0x1fU;
    std::uint32_t const mantissa = h & 0x3ffU;
    if (exponent == 0x1fU) return std::bit_cast<float>(sign | 0x7f800000U | (mantissa << 13));
    if (exponent == 0U) { // subnormal: mantissa * 2^-24, exact in float
        float const magnitude = static_cast<float>(mantissa) * 0x1p-24F;
        return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(magnitude));
    }
    return std::bit_cast<float>(sign | ((exponent + 112U) << 23) | (mantissa << 13));
}

[[nodiscard]] BUTTERFLY_HOST_DEVICE constexpr std::uint16_t to_bfloat16_bits(float x) noexcept {
    auto const u                = std::bit_cast<std::uint32_t>(x);
    std::uint32_t const quiet   = (u >> 16) | 0x40U;
    std::uint32_t const rounded = (u + 0x7fffU + ((u >> 16) & 1U)) >> 16;
    return static_cast<std::uint16_t>((u & 0x7fffffffU) > 0x7f800000U ? quiet : rounded); // no branch: loops vectorise
}

[[nodiscard]] BUTTERFLY_HOST_DEVICE constexpr float from_bfloat16_bits(std::uint16_t h) noexcept {
    return std::bit_cast<float>(static_cast<std::uint32_t>(h) << 16);
}

} // namespace detail

/// IEEE binary16: 11 bits of precision, largest 65504.
struct float16 {
    std::uint16_t bits = 0;

    constexpr float16() noexcept = default;
    BUTTERFLY_HOST_DEVICE constexpr explicit float16(float x) noexcept : bits(detail::to_float16_bits(x)) {}
    BUTTERFLY_HOST_DEVICE constexpr operator float() const noexcept { return detail::from_float16_bits(bits); }
};

/// bfloat16: the upper half of a float, 8 bits of precision.
struct bfloat16 {
    std::uint16_t bits = 0;

    constexpr bfloat16() noexcept = default;
    BUTTERFLY_HOST_DEVICE constexpr explicit bfloat16(float x) noexcept : bits(detail::to_bfloat16_bits(x)) {}
    BUTTERFLY_HOST_DEVICE constexpr operator float() const noexcept { return detail::from_bfloat16_bits(bits); }
};

static_assert(sizeof(float16) == 2 && sizeof(bfloat16) == 2);

/// How an element of a tensor is stored.
enum class element_type : std::uint8_t { f32, f16, bf16 };

/// The element_type of a C++ type, and its size.
template <class T>
inline constexpr bool is_element = false;
template <>
inline constexpr bool is_element<float> = true;
template <>
inline constexpr bool is_element<float16> = true;
template <>
inline constexpr bool is_element<bfloat16> = true;

/// A type tensors may hold: float, float16 or bfloat16.
template <class T>
concept element = is_element<T>;

template <element T>
inline constexpr element_type element_type_of = element_type::f32;
template <>
inline constexpr element_type element_type_of<float16> = element_type::f16;
template <>
inline constexpr element_type element_type_of<bfloat16> = element_type::bf16;

[[nodiscard]] BUTTERFLY_HOST_DEVICE constexpr int size_of(element_type t) noexcept {
    return t == element_type::f32 ? 4 : 2;
}

[[nodiscard]] constexpr char const* name_of(element_type t) noexcept {
    return t == element_type::f32 ? "f32" : t == element_type::f16 ? "f16" : "bf16";
}

} // namespace butterfly
