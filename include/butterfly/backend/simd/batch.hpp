// SPDX-License-Identifier: MIT
#pragma once

// The one file that knows xsimd's version and the raw intrinsics it lacks: fma, reductions, exp, tanh, conversions.
//
// xsimd 8.1 has no reduce_add (hadd instead), no bfloat16, and on AVX-512 its fma is x * y + z.

#include <butterfly/backend/simd/isa.hpp>
#include <butterfly/core/half.hpp>
#include <butterfly/core/index.hpp>

#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

namespace butterfly::backend {
namespace on_host {}
namespace vec {
namespace host = on_host; // backend/host/, by the name the kernels use
}
} // namespace butterfly::backend

namespace butterfly::backend::vec {

/// Fetches bytes that stand `skip` after an address, which may be beyond what is there, into the first cache (3) or the
/// second (2). Inlined, because GCC drops calls of functions that do nothing but fetch.
template <int Level = 3>
[[gnu::always_inline]] inline void fetch(void const* from, index_t skip, index_t bytes) noexcept {
    auto const at = reinterpret_cast<std::uintptr_t>(from) + static_cast<std::uintptr_t>(skip);
    for (index_t b = 0; b < bytes; b += 64)
        __builtin_prefetch(reinterpret_cast<void const*>(at + static_cast<std::uintptr_t>(b)), 0, Level);
}

inline namespace BUTTERFLY_ISA_NAMESPACE {

template <class Isa>
using f32 = xsimd::batch<float, typename Isa::arch>;

template <class Isa>
inline constexpr int lanes = static_cast<int>(f32<Isa>::size);

/// Query rows of one strip of the tile class.
template <class Isa>
inline constexpr int strip_rows = Isa::strip_vectors* lanes<Isa>;

inline constexpr float minus_infinity = -std::numeric_limits<float>::infinity();

template <class Arch>
[[nodiscard]] inline xsimd::batch<float, Arch> load(float const* p) noexcept {
    return xsimd::batch<float, Arch>::load_unaligned(p);
}

/// a * b + c, rounded once where the machine can.
template <class Arch>
[[nodiscard]] inline xsimd::batch<float, Arch> fma(xsimd::batch<float, Arch> const& a,
                                                   xsimd::batch<float, Arch> const& b,
                                                   xsimd::batch<float, Arch> const& c) noexcept {
    [[maybe_unused]] constexpr auto size = xsimd::batch<float, Arch>::size;
#if defined(__AVX512F__)
    if constexpr (size == 16) return _mm512_fmadd_ps(a, b, c);
#endif
#if defined(__FMA__)
    if constexpr (size == 8) return _mm256_fmadd_ps(a, b, c);
    if constexpr (size == 4) return _mm_fmadd_ps(a, b, c);
#endif
#if defined(__aarch64__)
    if constexpr (size == 4) return vfmaq_f32(c, a, b);
#endif
    if constexpr (size > 0) return a * b + c;
}

/// Keeps a vector that was loaded in its register: GCC would rather read it again for each product that takes it, and a
/// read that is split over two lines costs two.
template <class Arch>
[[gnu::always_inline]] inline void keep(xsimd::batch<float, Arch>& x) noexcept {
#if defined(__AVX512F__)
    if constexpr (xsimd::batch<float, Arch>::size == 16) __asm__("" : "+v"(x.data));
#endif
    static_cast<void>(x);
}

/// Sum of the lanes, in an order that depends on nothing but their number.
template <class Arch>
[[nodiscard]] inline float horizontal_sum(xsimd::batch<float, Arch> const& x) noexcept {
    [[maybe_unused]] constexpr auto size = xsimd::batch<float, Arch>::size;
#if defined(__AVX512F__)
    if constexpr (size == 16) {
        __m256 const half = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
        __m128 s          = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
        s                 = _mm_add_ps(s, _mm_movehl_ps(s, s));
        return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
    }
#endif
#if XSIMD_VERSION_MAJOR >= 9
    return xsimd::reduce_add(x);
#else
    return xsimd::hadd(x);
#endif
}

/// Lane i is the sum of the lanes of x[i], each by the same tree of additions.
template <class Arch>
[[nodiscard, gnu::always_inline]] inline xsimd::batch<float, Arch>
horizontal_sums(xsimd::batch<float, Arch> const* x) noexcept {
    using batch = xsimd::batch<float, Arch>;
#if defined(__AVX512F__)
    if constexpr (batch::size == 16) {
        __m512 quarter[4], half[2];
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) { // lane j of each 128 bits: a quarter of the sum of x[4 i + j]
            __m512 const a =
                _mm512_add_ps(_mm512_unpacklo_ps(x[4 * i], x[4 * i + 1]), _mm512_unpackhi_ps(x[4 * i], x[4 * i + 1]));
            __m512 const b = _mm512_add_ps(_mm512_unpacklo_ps(x[4 * i + 2], x[4 * i + 3]),
                                           _mm512_unpackhi_ps(x[4 * i + 2], x[4 * i + 3]));
            quarter[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b))),
                                       _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b))));
        }
#pragma GCC unroll 2
        for (int i = 0; i < 2; ++i)
            half[i] = _mm512_add_ps(_mm512_shuffle_f32x4(quarter[2 * i], quarter[2 * i + 1], 0x88),
                                    _mm512_shuffle_f32x4(quarter[2 * i], quarter[2 * i + 1], 0xdd));
        return _mm512_add_ps(_mm512_shuffle_f32x4(half[0], half[1], 0x88),
                             _mm512_shuffle_f32x4(half[0], half[1], 0xdd));
    }
#endif
    if constexpr (batch::size < 16) return xsimd::haddp(x);
    alignas(64) float sums[batch::size];
    for (std::size_t i = 0; i < batch::size; ++i) sums[i] = horizontal_sum(x[i]);
    return batch::load_aligned(sums);
}

/// Largest lane.
template <class Arch>
[[nodiscard]] inline float horizontal_max(xsimd::batch<float, Arch> const& x) noexcept {
    [[maybe_unused]] constexpr auto size = xsimd::batch<float, Arch>::size;
#if defined(__AVX512F__)
    if constexpr (size == 16) {
        __m256 const half = _mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
        __m128 top        = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
        top               = _mm_max_ps(top, _mm_movehl_ps(top, top));
        return _mm_cvtss_f32(_mm_max_ss(top, _mm_movehdup_ps(top)));
    }
#endif
    alignas(64) float lane[size];
    x.store_aligned(lane);
    float top = lane[0];
    for (std::size_t i = 1; i < size; ++i) top = lane[i] > top ? lane[i] : top;
    return top;
}

namespace block {

/// e^r for |r| <= ln(2) / 2: degree 6, relative error 2e-7 (Cephes expf).
template <class B>
[[nodiscard]] inline B exp_reduced(B const& r) noexcept {
    B p = B(1.9875691500e-4F);
    p   = fma(p, r, B(1.3981999507e-3F));
    p   = fma(p, r, B(8.3334519073e-3F));
    p   = fma(p, r, B(4.1665795894e-2F));
    p   = fma(p, r, B(1.6666665459e-1F));
    p   = fma(p, r, B(5.0000001201e-1F));
    return fma(p, r * r, r + B(1.0F));
}

} // namespace block

/// e^x for x <= 88: exactly 0 from -inf up to about -104 (-87 without AVX-512), exactly 1 at 0, NaN of NaN.
template <class Arch>
[[nodiscard]] inline xsimd::batch<float, Arch> exp(xsimd::batch<float, Arch> const& x) noexcept {
    using batch = xsimd::batch<float, Arch>;
    batch const log2e(1.44269504088896341F), ln2_high(-0.693359375F), ln2_low(2.12194440e-4F);
#if defined(__AVX512F__)
    if constexpr (batch::size == 16) {
        batch const y = _mm512_max_ps(_mm512_set1_ps(-105.0F), x); // the second operand where one is NaN
        batch const n = _mm512_roundscale_ps(y * log2e, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        return _mm512_scalef_ps(block::exp_reduced(fma(n, ln2_low, fma(n, ln2_high, y))), n);
    }
#endif
    using ints = xsimd::batch<std::int32_t, Arch>;
    batch const magic(12582912.0F); // 1.5 * 2^23: the sum's low bits are the nearest integer
    batch const shifted = fma(x, log2e, magic);
    batch const n       = shifted - magic;
    ints const bits     = xsimd::bitwise_cast<ints>(shifted);
    batch const scale   = xsimd::bitwise_cast<batch>((bits + ints(127)) << 23);
    batch const value   = block::exp_reduced(fma(n, ln2_low, fma(n, ln2_high, x))) * scale;
    return xsimd::select(x < batch(-87.0F), batch(0.0F), value);
}

/// tanh(x), relative error 3e-7, NaN of NaN. A soft cap multiplies it by the cap, so the error near 0 must be relative:
/// there an odd polynomial (coefficients of Cephes' tanhf), elsewhere 1 - 2 / (e^2x + 1).
template <class Arch>
[[nodiscard]] inline xsimd::batch<float, Arch> tanh(xsimd::batch<float, Arch> const& x) noexcept {
    using batch      = xsimd::batch<float, Arch>;
    batch const z    = x * x;
    batch p          = fma(batch(-5.70498872745e-3F), z, batch(2.06390887954e-2F));
    p                = fma(p, z, batch(-5.37397155531e-2F));
    p                = fma(p, z, batch(1.33314422036e-1F));
    p                = fma(p, z, batch(-3.33332819422e-1F));
    batch const near = fma(p * z, x, x);
    batch const low  = xsimd::select(x < batch(-10.0F), batch(-10.0F), x);
    batch const both = xsimd::select(low > batch(10.0F), batch(10.0F), low);
    batch const far  = batch(1.0F) - batch(2.0F) / (exp(both + both) + batch(1.0F));
    return xsimd::select(z < batch(0.390625F), near, far); // |x| < 0.625
}

/// One element, which may stand at any byte.
template <class T>
[[nodiscard]] inline float element_at(T const* p) noexcept {
    T x;
    std::memcpy(&x, p, sizeof x);
    return static_cast<float>(x);
}

/// Loads one vector of elements as floats. They may stand at any byte.
template <class Isa>
[[nodiscard]] inline f32<Isa> load_as(float const* p) noexcept {
    return f32<Isa>::load_unaligned(p);
}

template <class Isa>
[[nodiscard]] inline f32<Isa> load_as(bfloat16 const* p) noexcept {
    [[maybe_unused]] auto const* const words = reinterpret_cast<void const*>(p);
#if defined(__AVX512F__)
    if constexpr (lanes<Isa> == 16) {
        __m512i const wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<__m256i const*>(words)));
        return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
    }
#endif
#if defined(__AVX2__)
    if constexpr (lanes<Isa> == 8) {
        __m256i const wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<__m128i const*>(words)));
        return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
    }
#endif
#if defined(__aarch64__)
    if constexpr (lanes<Isa> == 4)
        return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(static_cast<std::uint16_t const*>(words)), 16));
#endif
    alignas(64) float values[static_cast<std::size_t>(lanes<Isa>)];
    for (int i = 0; i < lanes<Isa>; ++i) values[i] = element_at(p + i);
    return f32<Isa>::load_aligned(values);
}

template <class Isa>
[[nodiscard]] inline f32<Isa> load_as(float16 const* p) noexcept {
    [[maybe_unused]] auto const* const words = reinterpret_cast<void const*>(p);
#if defined(__AVX512F__)
    if constexpr (lanes<Isa> == 16) return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<__m256i const*>(words)));
#endif
#if defined(__F16C__)
    if constexpr (lanes<Isa> == 8) return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<__m128i const*>(words)));
#endif
#if defined(__aarch64__)
    if constexpr (lanes<Isa> == 4)
        return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(static_cast<std::uint16_t const*>(words))));
#endif
    alignas(64) float values[static_cast<std::size_t>(lanes<Isa>)];
    for (int i = 0; i < lanes<Isa>; ++i) values[i] = element_at(p + i);
    return f32<Isa>::load_aligned(values);
}

/// Loads the first `count` elements as floats, zeros after them; reads nothing past them.
template <class Isa, class T>
[[nodiscard]] inline f32<Isa> load_part(T const* p, index_t count) noexcept {
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
    if constexpr (lanes<Isa> == 16) { // lanes that a mask leaves out are not touched
        auto const mask = static_cast<__mmask16>((1U << count) - 1U);
        if constexpr (sizeof(T) == 4) return _mm512_maskz_loadu_ps(mask, p);
        if constexpr (sizeof(T) == 2) {
            __m256i const words = _mm256_maskz_loadu_epi16(mask, p);
            if constexpr (std::is_same_v<T, float16>) return _mm512_cvtph_ps(words);
            return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(words), 16));
        }
    }
#endif
    alignas(64) float values[static_cast<std::size_t>(lanes<Isa>)] = {};
    for (index_t i = 0; i < count; ++i) values[i] = element_at(p + i);
    return f32<Isa>::load_aligned(values);
}

} // namespace BUTTERFLY_ISA_NAMESPACE
} // namespace butterfly::backend::vec
