// SPDX-License-Identifier: MIT
#pragma once

// 2^x for weights of a softmax whose logits are already in units of log2(e): one multiply-add less per weight than e^x,
// and no reduction by ln 2.

#include <butterfly/backend/simd/batch.hpp>

#include <cstdint>

namespace butterfly::backend::vec {
inline namespace BUTTERFLY_ISA_NAMESPACE {

namespace block {

/// 2^f for f in [0, 1], exactly 1 at 0; largest relative error 1.4e-7 (degree 5) and 8.6e-5 (degree 3: an eighth of a
/// digit of bf16). Coefficients minimise the largest relative error.
template <int Degree, class B>
[[nodiscard]] inline B exp2_fraction(B const& f) noexcept {
    static_assert(Degree == 3 || Degree == 5);
    if constexpr (Degree == 3) {
        B p = fma(B(0.0770670548F), f, B(0.2276449800F));
        p   = fma(p, f, B(0.6951168180F));
        return fma(p, f, B(1.0F));
    } else {
        B p = fma(B(0.00186713028F), f, B(0.00901702978F));
        p   = fma(p, f, B(0.0557999127F));
        p   = fma(p, f, B(0.2401644439F));
        p   = fma(p, f, B(0.6931512952F));
        return fma(p, f, B(1.0F));
    }
}

} // namespace block

/// 2^x for x <= 126: exactly 0 from -inf up to about -150 (-126 without AVX-512), exactly 1 at 0, NaN of NaN.
template <int Degree, class Arch>
[[nodiscard]] inline xsimd::batch<float, Arch> exp2(xsimd::batch<float, Arch> const& x) noexcept {
    using batch = xsimd::batch<float, Arch>;
#if defined(__AVX512F__) && defined(__AVX512DQ__)
    if constexpr (batch::size == 16) {
        batch const fraction = _mm512_reduce_ps(x, 0x09);                   // x - floor(x), 0 of an infinity
        return _mm512_scalef_ps(block::exp2_fraction<Degree>(fraction), x); // takes the floor of x itself
    }
#endif
    using ints = xsimd::batch<std::int32_t, Arch>;
    batch const magic(12582912.0F); // 1.5 * 2^23: the sum's low bits are the nearest integer
    batch const shifted = (x - batch(0.5F)) + magic;
    batch const whole   = shifted - magic; // x - whole in [0, 1]
    batch const scale   = xsimd::bitwise_cast<batch>((xsimd::bitwise_cast<ints>(shifted) + ints(127)) << 23);
    batch const value   = block::exp2_fraction<Degree>(x - whole) * scale;
    return xsimd::select(x < batch(-126.0F), batch(0.0F), value);
}

/// The bf16 nearest to `low` and to `high` in the lower and the upper half of each word. Neither is negative; ties
/// round up.
template <class Arch>
[[nodiscard]] inline xsimd::batch<std::uint32_t, Arch> bf16_pair(xsimd::batch<float, Arch> const& low,
                                                                 xsimd::batch<float, Arch> const& high) noexcept {
    using words        = xsimd::batch<std::uint32_t, Arch>;
    auto const rounded = [](xsimd::batch<float, Arch> const& x) { // NaN of either sign is above infinity: kept quiet
        return xsimd::min(xsimd::bitwise_cast<words>(x), words(0x7fc00000U)) + words(0x8000U);
    };
    return (rounded(low) >> 16) | (rounded(high) & words(0xffff0000U));
}

} // namespace BUTTERFLY_ISA_NAMESPACE
} // namespace butterfly::backend::vec
