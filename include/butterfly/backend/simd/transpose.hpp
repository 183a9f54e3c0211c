// SPDX-License-Identifier: MIT
#pragma once

// Transposes 32-bit words: rows of queries into lanes, lanes of outputs into rows.

#include <butterfly/backend/simd/batch.hpp>

#include <cstdint>

namespace butterfly::backend::vec {
inline namespace BUTTERFLY_ISA_NAMESPACE {

#if defined(__AVX512F__)
/// 16 x 16 words, in registers: pairs of rows, of pairs, of quarters, of halves.
[[gnu::always_inline]] inline void transpose_16(__m512i (&a)[16]) noexcept {
    __m512i b[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        b[i]     = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        a[i]     = _mm512_unpacklo_epi64(b[i], b[i + 2]);
        a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
        a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
        a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) { // column i of every quarter, rows 0-7 and 8-15
        b[i]      = _mm512_shuffle_i32x4(a[i], a[i + 4], 0x88);
        b[i + 4]  = _mm512_shuffle_i32x4(a[i], a[i + 4], 0xdd);
        b[i + 8]  = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0x88);
        b[i + 12] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0xdd);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        a[i]      = _mm512_shuffle_i32x4(b[i], b[i + 8], 0x88);
        a[i + 4]  = _mm512_shuffle_i32x4(b[i + 4], b[i + 12], 0x88);
        a[i + 8]  = _mm512_shuffle_i32x4(b[i], b[i + 8], 0xdd);
        a[i + 12] = _mm512_shuffle_i32x4(b[i + 4], b[i + 12], 0xdd);
    }
}
#endif

/// out[c][r] = in[r][c], words of any kind.
template <class T>
void transpose(T const* in, index_t in_stride, index_t rows, index_t columns, T* out, index_t out_stride) noexcept {
    static_assert(sizeof(T) == 4);
    constexpr index_t step = 16;
    for (index_t r = 0; r < rows; r += step)
        for (index_t c = 0; c < columns; c += step) {
#if defined(__AVX512F__)
            if (rows - r >= step && columns - c >= step) {
                __m512i block[16];
#pragma GCC unroll 16
                for (index_t i = 0; i < 16; ++i) block[i] = _mm512_loadu_si512(in + (r + i) * in_stride + c);
                transpose_16(block);
#pragma GCC unroll 16
                for (index_t i = 0; i < 16; ++i) _mm512_storeu_si512(out + (c + i) * out_stride + r, block[i]);
                continue;
            }
#endif
            index_t const last_row = rows - r < step ? rows : r + step, last = columns - c < step ? columns : c + step;
            for (index_t i = r; i < last_row; ++i)
                for (index_t j = c; j < last; ++j) out[j * out_stride + i] = in[i * in_stride + j];
        }
}

} // namespace BUTTERFLY_ISA_NAMESPACE
} // namespace butterfly::backend::vec
