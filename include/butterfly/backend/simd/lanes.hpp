// SPDX-License-Identifier: MIT
#pragma once

// Rows of queries into lanes, and lanes of outputs into rows: what an item of the tile class does before its first key
// tile and after its last one.
//
//   load_lanes     out[c][i] = row i, column c                   f32, or pairs of bf16 along c
//   store_lanes    row i, column c = (in[c][i] + 0) * factor[i]  rounded to the tensor's type
//
// With AVX-512 sixteen rows go straight from the tensor to their lanes and back, 16 or 32 columns at a time: converted,
// transposed and scaled in registers. Elsewhere, for fewer rows, and back where columns are not whole sixteens, they
// pass through memory, with the same bits (a NaN's payload aside).
//
// Where rows have 200 keys (blocks of 128 at density 0.1, head_dim 128, bf16, Zen 5) both took 18 % of the time through
// memory, and take 8 % so, with their rows fetched during the products (tile_class.hpp). Rejected: bf16 by
// vcvtne2ps2bf16, which flushes subnormals and which not all of AVX-512 has.

#include <butterfly/backend/simd/rows.hpp>
#include <butterfly/backend/simd/transpose.hpp>

#include <algorithm>
#include <type_traits>

namespace butterfly::backend::vec {
inline namespace BUTTERFLY_ISA_NAMESPACE {

/// Most rows that are moved at once.
inline constexpr int rows_at_once = 16;

/// Which row of a tensor.
struct row_place {
    index_t head, token;
};

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
namespace block {

/// The nearest bf16, ties to even, in the upper half of each word.
[[gnu::always_inline]] inline __m512i bf16_rounded(__m512 x) noexcept {
    __m512i const bits  = _mm512_castps_si512(x);
    __m512i const odd   = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i const up    = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __mmask16 const nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return _mm512_mask_or_epi32(up, nan, bits, _mm512_set1_epi32(0x400000));
}

/// 32 floats to the nearest bf16, ties to even, as detail::to_bfloat16_bits does, as they follow each other.
[[gnu::always_inline]] inline __m512i bf16_words(__m512 low, __m512 high) noexcept {
    __m512i const upper = _mm512_set_epi16(63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33, 31, 29, 27,
                                           25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
    return _mm512_permutex2var_epi16(bf16_rounded(low), upper, bf16_rounded(high));
}

/// Sixteen elements as floats, zeros where they are not `here`, of which nothing is read.
[[gnu::always_inline]] inline __m512 load_16(float const* from, __mmask16 here) noexcept {
    return _mm512_maskz_loadu_ps(here, from);
}
[[gnu::always_inline]] inline __m512 load_16(float16 const* from, __mmask16 here) noexcept {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(here, from));
}
[[gnu::always_inline]] inline __m512 load_16(bfloat16 const* from, __mmask16 here) noexcept {
    __m512i const bits = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(here, from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
}

/// 32 elements as pairs of bf16, likewise.
template <class T>
[[gnu::always_inline]] inline __m512i load_pairs(T const* from, __mmask32 here) noexcept {
    if constexpr (std::is_same_v<T, bfloat16>)
        return _mm512_maskz_loadu_epi16(here, from);
    else {
        auto const low = static_cast<__mmask16>(here), high = static_cast<__mmask16>(here >> 16);
        return bf16_words(load_16(from, low), load_16(high != 0 ? from + 16 : from, high));
    }
}

/// Where sixteen rows of a tensor begin.
template <class T>
void place(tensor_ref const& t, T* elements, row_place const* rows, T** places) noexcept {
    for (int i = 0; i < 16; ++i) places[i] = elements + rows[i].head * t.strides.head + rows[i].token * t.strides.token;
}

/// out[c][i] = row i, column c (or columns 2c and 2c + 1) of sixteen rows.
template <int Pairs, class T>
void rows_to_lanes(T const* const* rows, index_t columns, std::uint32_t* out, index_t out_stride) noexcept {
    for (index_t c = 0; c < columns; c += 16 * Pairs) {
        index_t const left = std::min<index_t>(columns - c, 16 * Pairs);
        auto const here    = static_cast<__mmask32>((std::uint64_t{1} << left) - 1);
        __m512i block[16];
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) {
            if constexpr (Pairs == 1)
                block[i] = _mm512_castps_si512(load_16(rows[i] + c, static_cast<__mmask16>(here)));
            else
                block[i] = load_pairs(rows[i] + c, here);
        }
        transpose_16(block);
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) _mm512_storeu_si512(out + (c / Pairs + i) * out_stride, block[i]);
    }
}

[[gnu::always_inline]] inline void store_16(__m512 x, float* to) noexcept {
    _mm512_storeu_ps(to, x);
}
[[gnu::always_inline]] inline void store_16(__m512 x, float16* to) noexcept {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
[[gnu::always_inline]] inline void store_16(__m512 x, bfloat16* to) noexcept {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_castsi512_si256(bf16_words(x, x)));
}

/// Row i, column c = (in[c][i] + 0) * factor[i], for sixteen rows of whole sixteens of columns.
template <class T>
void lanes_to_rows(float const* in, index_t in_stride, index_t columns, float const* factor, T* const* rows) noexcept {
    __m512 const scale = _mm512_loadu_ps(factor);
    for (index_t c = 0; c < columns; c += 16) {
        __m512i block[16];
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i)
            block[i] = _mm512_castps_si512(
                _mm512_mul_ps(_mm512_add_ps(_mm512_loadu_ps(in + (c + i) * in_stride), _mm512_setzero_ps()), scale));
        transpose_16(block);
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) store_16(_mm512_castsi512_ps(block[i]), rows[i] + c);
    }
}

} // namespace block
#endif

/// Calls f with a pointer to the first element of a tensor, of its type.
template <class F>
void with_elements(tensor_ref const& t, F const& f) noexcept {
    if (t.type == element_type::f32) f(host_pointer<float>(t.memory));
    if (t.type == element_type::f16) f(host_pointer<float16>(t.memory));
    if (t.type == element_type::bf16) f(host_pointer<bfloat16>(t.memory));
}

/// Rows of a tensor into lanes: out[c][i] is element c of row i, or, in `pairs` of 2, elements 2c and 2c + 1 rounded to
/// bf16. `floats`: room for the rows; `words`: for their pairs and one more each. Rows of `out` up to a multiple of
/// operand_step may be written.
template <class Isa>
void load_lanes(tensor_ref const& t,
                row_place const* rows,
                int count,
                int pairs,
                float* floats,
                std::uint32_t* words,
                std::uint32_t* out,
                index_t out_stride) noexcept {
    index_t const columns = t.shape.head_dim;
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
    if constexpr (lanes<Isa> == 16)
        if (count == 16)
            return with_elements(t, [&]<class T>(T const* elements) noexcept {
                T const* places[16];
                block::place(t, elements, rows, places);
                pairs == 1 ? block::rows_to_lanes<1>(places, columns, out, out_stride)
                           : block::rows_to_lanes<2>(places, columns, out, out_stride);
            });
#endif
    for (int i = 0; i < count; ++i) load_row<Isa>(t, rows[i].head, rows[i].token, floats + i * columns);
    if (pairs == 1) return transpose(floats, columns, count, columns, reinterpret_cast<float*>(out), out_stride);
    index_t const whole = columns / 2;
    for (int i = 0; i < count; ++i) {
        float const* const row  = floats + i * columns;
        std::uint32_t* const to = words + i * (whole + 1);
        for (index_t d = 0; d < whole; ++d)
            to[d] = std::uint32_t{detail::to_bfloat16_bits(row[2 * d])} |
                    std::uint32_t{detail::to_bfloat16_bits(row[2 * d + 1])} << 16;
        to[whole] = columns % 2 != 0 ? detail::to_bfloat16_bits(row[columns - 1]) : 0U;
    }
    transpose(words, whole + 1, count, (columns + 1) / 2, out, out_stride);
}

/// Lanes into rows of a tensor: element c of row i is in[c][i] * factor[i], rounded to the tensor's type. `floats`:
/// room for the rows.
template <class Isa>
void store_lanes(tensor_ref const& t,
                 row_place const* rows,
                 int count,
                 float const* in,
                 index_t in_stride,
                 float const* factor,
                 float* floats) noexcept {
    index_t const columns = t.shape.head_dim;
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
    if constexpr (lanes<Isa> == 16)
        if (count == 16 && columns % 16 == 0)
            return with_elements(t, [&]<class T>(T* elements) noexcept {
                T* places[16];
                block::place(t, elements, rows, places);
                block::lanes_to_rows(in, in_stride, columns, factor, places);
            });
#endif
    transpose(in, in_stride, columns, count, floats, columns);
    for (index_t n = 0; n < count * columns; ++n) floats[n] += 0.0F;
    for (int i = 0; i < count; ++i) store_row<Isa>(t, rows[i].head, rows[i].token, floats + i * columns, factor[i]);
}

} // namespace BUTTERFLY_ISA_NAMESPACE
} // namespace butterfly::backend::vec
