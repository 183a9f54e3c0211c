// SPDX-License-Identifier: MIT
#pragma once

// The tile unit of AVX512-BF16: pairs of bf16, summed in f32 by vdpbf16ps, at twice the rate of f32 on AMD's cores.
//
//   keys     [key][pairs of channels]      rows as they are stored, copied to an aligned stride
//   values   [pair of keys][column]        two rows interleaved
//
// Register block 8 x 3 vectors, as in fma_unit.hpp: 11 loads for 24 dots; 1.7 times the f32 unit for the same prefill
// (Zen 5, head_dim 128). Values are interleaved once for all strips: pairs made in registers would cost a shuffle for
// each of the three vectors. Functions are compiled for the instruction
// whatever the translation unit's flags; bf16_unit.hpp says whether it may be called. Sums run in ascending k.

#include <butterfly/backend/simd/tile_unit.hpp>

#include <cstring>

#if defined(__x86_64__)

#define BUTTERFLY_DOT __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")))

namespace butterfly::backend::vec {
inline namespace BUTTERFLY_ISA_NAMESPACE {
namespace dot {

inline constexpr int lanes = 16, height = 8, vectors = 3, strip = vectors * lanes;

/// Words from one key to the next, from one pair of values to the next.
[[nodiscard]] inline index_t key_stride(index_t head_dim) noexcept {
    return butterfly::detail::round_up(head_dim, operand_step) / 2 + 16;
}
[[nodiscard]] inline index_t value_stride(index_t head_dim) noexcept {
    return operand_stride(head_dim);
}

/// One register block; see fma_unit.hpp.
template <int Vectors, bool AlongK>
BUTTERFLY_DOT inline void multiply(std::uint32_t const* a,
                                   index_t stride,
                                   std::uint32_t const* b, // [count][strip]
                                   index_t count,
                                   bool fresh,
                                   float const* factor,
                                   float* c) noexcept { // [height][strip]
    __m512 sum[height][Vectors];
#pragma GCC unroll 8
    for (int i = 0; i < height; ++i)
#pragma GCC unroll 3
        for (int v = 0; v < Vectors; ++v)
            sum[i][v] = fresh ? _mm512_setzero_ps() : _mm512_loadu_ps(c + i * strip + v * lanes);
    if (!fresh && factor != nullptr)
#pragma GCC unroll 8
        for (int i = 0; i < height; ++i)
#pragma GCC unroll 3
            for (int v = 0; v < Vectors; ++v) sum[i][v] = _mm512_mul_ps(sum[i][v], _mm512_loadu_ps(factor + v * lanes));
    for (index_t k = 0; k < count; ++k) {
        __m512i row[Vectors];
#pragma GCC unroll 3
        for (int v = 0; v < Vectors; ++v) row[v] = _mm512_loadu_si512(b + k * strip + v * lanes);
#pragma GCC unroll 8
        for (int i = 0; i < height; ++i) {
            int word = 0; // keys in place are bf16, two of them a word
            std::memcpy(&word, AlongK ? a + i * stride + k : a + k * stride + i, sizeof word);
            __m512i const one = _mm512_set1_epi32(word);
#pragma GCC unroll 3
            for (int v = 0; v < Vectors; ++v) sum[i][v] = _mm512_dpbf16_ps(sum[i][v], (__m512bh)one, (__m512bh)row[v]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < height; ++i)
#pragma GCC unroll 3
        for (int v = 0; v < Vectors; ++v) _mm512_storeu_ps(c + i * strip + v * lanes, sum[i][v]);
}

inline void
pack_keys(std::byte const* const* rows, int first, int end, index_t head_dim, std::uint32_t* keys) noexcept {
    index_t const stride = key_stride(head_dim);
    for (int j = first; j < end; ++j) {
        std::uint32_t* const to = keys + j * stride;
        if (head_dim % 2 != 0) to[head_dim / 2] = 0;
        std::memcpy(to, rows[j], static_cast<std::size_t>(head_dim) * 2);
    }
}

/// 32 columns of a row, of which `count` are there; zeros where the row is not.
BUTTERFLY_DOT inline __m512i load_columns(std::byte const* row, index_t column, index_t count) noexcept {
    if (row == nullptr) return _mm512_setzero_si512();
    auto const here = static_cast<__mmask32>(count >= 2 * lanes ? ~0U : (1U << count) - 1U);
    return _mm512_maskz_loadu_epi16(here, row + column * 2);
}

/// Two rows, column by column.
BUTTERFLY_DOT inline void
interleave(std::byte const* even, std::byte const* odd, index_t head_dim, std::uint32_t* to) noexcept {
    __m512i const columns = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    __m512i const first   = _mm512_add_epi32(_mm512_mullo_epi32(columns, _mm512_set1_epi32(0x10001)),
                                             _mm512_set1_epi32(32 << 16)); // even 0, odd 0, even 1, ...
    __m512i const second  = _mm512_add_epi32(first, _mm512_set1_epi32(0x100010));
    for (index_t c = 0; c < head_dim; c += 2 * lanes) {
        __m512i const low = load_columns(even, c, head_dim - c), high = load_columns(odd, c, head_dim - c);
        _mm512_storeu_si512(to + c, _mm512_permutex2var_epi16(low, first, high));
        _mm512_storeu_si512(to + c + lanes, _mm512_permutex2var_epi16(low, second, high));
    }
}

inline void
pack_values(std::byte const* const* rows, int first, int end, index_t head_dim, std::uint32_t* values) noexcept {
    for (int j = first - first % 2; j < end; j += 2)
        interleave(j >= first ? rows[j] : nullptr, j + 1 < end ? rows[j + 1] : nullptr, head_dim,
                   values + j / 2 * value_stride(head_dim));
}

template <int Vectors>
BUTTERFLY_DOT void score_vectors(std::uint32_t const* keys,
                                 index_t stride,
                                 int first,
                                 int end,
                                 index_t head_dim,
                                 std::uint32_t const* queries,
                                 fetch_queue& ahead,
                                 float* scores) noexcept {
    for (int j = first - first % height; j < end; j += height) {
        ahead.fetch_some();
        multiply<Vectors, true>(keys + j * stride, stride, queries, (head_dim + 1) / 2, true, nullptr,
                                scores + j * strip);
    }
}

template <int Vectors>
BUTTERFLY_DOT void accumulate_vectors(std::uint32_t const* values,
                                      index_t stride,
                                      int first,
                                      int end,
                                      index_t head_dim,
                                      std::uint32_t const* weights,
                                      bool fresh,
                                      fetch_queue& ahead,
                                      float const* factor,
                                      float* out) noexcept {
    int const from = first / 2, count = (end + 1) / 2 - from;
    for (index_t c = 0; c < head_dim; c += height) {
        ahead.fetch_some();
        multiply<Vectors, false>(values + from * stride + c, stride, weights + from * strip, count, fresh, factor,
                                 out + c * strip);
    }
}

inline void score(std::uint32_t const* keys,
                  index_t stride,
                  int first,
                  int end,
                  index_t head_dim,
                  std::uint32_t const* queries,
                  int rows,
                  fetch_queue& ahead,
                  float* scores) noexcept {
    if (rows <= lanes) return score_vectors<1>(keys, stride, first, end, head_dim, queries, ahead, scores);
    if (rows <= 2 * lanes) return score_vectors<2>(keys, stride, first, end, head_dim, queries, ahead, scores);
    score_vectors<3>(keys, stride, first, end, head_dim, queries, ahead, scores);
}

inline void accumulate(std::uint32_t const* values,
                       index_t stride,
                       int first,
                       int end,
                       index_t head_dim,
                       std::uint32_t const* weights,
                       int rows,
                       bool fresh,
                       fetch_queue& ahead,
                       float const* factor,
                       float* out) noexcept {
    if (rows <= lanes)
        return accumulate_vectors<1>(values, stride, first, end, head_dim, weights, fresh, ahead, factor, out);
    if (rows <= 2 * lanes)
        return accumulate_vectors<2>(values, stride, first, end, head_dim, weights, fresh, ahead, factor, out);
    accumulate_vectors<3>(values, stride, first, end, head_dim, weights, fresh, ahead, factor, out);
}

} // namespace dot

inline constexpr tile_unit dot_unit{.name         = "bf16 dot",
                                    .strip        = dot::strip,
                                    .high         = dot::height,
                                    .rows         = 288,
                                    .most         = 1056,
                                    .pairs        = 2,
                                    .key_step     = 2,
                                    .key_stride   = &dot::key_stride,
                                    .value_stride = &dot::value_stride,
                                    .start        = nullptr,
                                    .stop         = nullptr,
                                    .pack_keys    = &dot::pack_keys,
                                    .pack_values  = &dot::pack_values,
                                    .score        = &dot::score,
                                    .accumulate   = &dot::accumulate};

} // namespace BUTTERFLY_ISA_NAMESPACE
} // namespace butterfly::backend::vec

#undef BUTTERFLY_DOT
#endif
