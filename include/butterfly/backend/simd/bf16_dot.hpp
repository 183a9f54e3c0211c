// SPDX-License-Identifier: MIT
#pragma once

// The stream class's leaf for bfloat16 by AVX512-BF16: vdpbf16ps adds two bf16 products to each f32 lane.
//
//   prepare      queries -> bfloat16
//   score        32 columns at a time; 16 dot products reduced together
//   accumulate   rows 2i and 2i + 1 of a tile interleaved, times a pair of weights in bfloat16; columns stay in the
//                order of vpunpck until
//   settle       puts them in order
//
// equals score_raw, accumulate_raw (raw_codec.hpp) of queries and weights rounded to bfloat16, up to the order of sums;
// subnormals are zero. Its functions carry their instruction set, so that they compile under any flags; they may be
// called where cpu::found().avx512_bf16.

#include <butterfly/backend/simd/raw_codec.hpp>

#if defined(__x86_64__)

#include <immintrin.h>

namespace butterfly::backend::vec {
inline namespace BUTTERFLY_ISA_NAMESPACE {
namespace bf16_dot {

inline constexpr int columns = 32; // of one vector

[[nodiscard]] [[gnu::target("avx512bw,avx512vl,avx512bf16")]] inline __m512bh as_pairs(__m512i words) noexcept {
    return (__m512bh)words;
}

/// The first `count` words of a row, zeros after them; reads nothing past them.
[[nodiscard]] [[gnu::target("avx512bw,avx512vl,avx512bf16")]] inline __m512i load(void const* row,
                                                                                  index_t count) noexcept {
    if (count >= columns) return _mm512_loadu_si512(row);
    return _mm512_maskz_loadu_epi16(static_cast<__mmask32>((std::uint32_t{1} << count) - 1U), row);
}

// GCC 12's unmasked shuffles read a variable it leaves undefined on purpose, and warn of it where they are inlined; the
// masked ones with every lane are the same instructions.
inline constexpr __mmask16 every16 = 0xffff;
inline constexpr __mmask8 every8   = 0xff;
inline constexpr __mmask32 every32 = 0xffffffffU;

/// Lane i is the sum of x[i], each by the same tree: horizontal_sums (batch.hpp) under any flags.
[[nodiscard]] [[gnu::target("avx512bw,avx512vl,avx512bf16"), gnu::always_inline]] inline __m512
sums_of(__m512 const* x) noexcept {
    __m512 pair[8], quarter[4], half[2];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i)
        pair[i] = _mm512_maskz_unpacklo_ps(every16, x[2 * i], x[2 * i + 1]) +
                  _mm512_maskz_unpackhi_ps(every16, x[2 * i], x[2 * i + 1]);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        __m512d const a = _mm512_castps_pd(pair[2 * i]), b = _mm512_castps_pd(pair[2 * i + 1]);
        quarter[i] = _mm512_castpd_ps(_mm512_maskz_unpacklo_pd(every8, a, b)) +
                     _mm512_castpd_ps(_mm512_maskz_unpackhi_pd(every8, a, b));
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i)
        half[i] = _mm512_maskz_shuffle_f32x4(every16, quarter[2 * i], quarter[2 * i + 1], 0x88) +
                  _mm512_maskz_shuffle_f32x4(every16, quarter[2 * i], quarter[2 * i + 1], 0xdd);
    return _mm512_maskz_shuffle_f32x4(every16, half[0], half[1], 0x88) +
           _mm512_maskz_shuffle_f32x4(every16, half[0], half[1], 0xdd);
}

/// sum[r * Keys + k] += Rows queries times Keys rows, 32 columns from column d on.
template <int Rows, int Keys, bool Part>
[[gnu::target("avx512bw,avx512vl,avx512bf16"), gnu::always_inline]] inline void
add_products(std::byte const* const* rows,
             index_t d,
             index_t left,
             std::byte const* queries,
             index_t stride,
             __m512* sum) noexcept {
    __m512bh key[Keys];
#pragma GCC unroll 16
    for (int k = 0; k < Keys; ++k) {
        __m512i words = Part ? load(rows[k] + 2 * d, left) : _mm512_loadu_si512(rows[k] + 2 * d);
        __asm__("" : "+v"(words)); // stays in its register: see keep (batch.hpp)
        key[k] = as_pairs(words);
    }
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
        __m512i words = _mm512_loadu_si512(queries + r * stride + 2 * d);
        __asm__("" : "+v"(words));
        __m512bh const query = as_pairs(words);
#pragma GCC unroll 16
        for (int k = 0; k < Keys; ++k) sum[r * Keys + k] = _mm512_dpbf16_ps(sum[r * Keys + k], query, key[k]);
    }
}

/// Dot products of Rows queries with 16 / Rows rows: lane r * keys + k. The rows after the first `done` ones are
/// fetched between the products, one at a time: all at once they keep the products waiting (docs/kernels.md).
template <int Rows, bool Ahead>
[[nodiscard]] [[gnu::target("avx512bw,avx512vl,avx512bf16"), gnu::always_inline]] inline __m512
dots_of(std::byte const* const* rows,
        index_t head_dim,
        std::byte const* queries,
        index_t stride,
        rows_ahead const& ahead,
        int done) noexcept {
    constexpr int keys  = 16 / Rows;
    index_t const whole = head_dim - head_dim % columns;
    __m512 sum[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) sum[i] = _mm512_setzero_ps();
    int const end = done + keys;
    for (index_t d = 0; d < whole; d += columns) {
        if (Ahead && done < end) ahead.fetch(done++);
        add_products<Rows, keys, false>(rows, d, 0, queries, stride, sum);
    }
    while (Ahead && done < end) ahead.fetch(done++);
    if (whole < head_dim) add_products<Rows, keys, true>(rows, whole, head_dim - whole, queries, stride, sum);
    return sums_of(sum);
}

/// scores[r * tile_slots + k] = scale * dot products of Rows queries with all rows, 16 products at a time. The last
/// block repeats its last row. Rows from `real` on are no queries, and what they score is dropped.
template <int Rows, bool Ahead>
[[gnu::target("avx512bw,avx512vl,avx512bf16")]] void score_rows(key_rows const& k,
                                                                std::byte const* queries,
                                                                index_t stride, // bytes between queries
                                                                float scale,
                                                                int real,
                                                                float* scores) noexcept {
    constexpr int keys           = 16 / Rows;
    __m512 const factor          = _mm512_set1_ps(scale);
    std::byte const* const* rows = k.rows;
    index_t const head_dim       = k.head_dim;
    int const whole              = k.count - k.count % keys;
    rows_ahead const ahead       = k.ahead;
    alignas(64) float sums[16];
    int j = 0;
    if (real == Rows)
        for (; j < whole; j += keys) {
            _mm512_store_ps(sums,
                            _mm512_mul_ps(dots_of<Rows, Ahead>(rows + j, head_dim, queries, stride, ahead, j), factor));
#pragma GCC unroll 16
            for (int r = 0; r < Rows; ++r)
                __builtin_memcpy(scores + r * tile_slots + j, sums + r * keys, keys * sizeof(float));
        }
    for (; j < k.count; j += keys) {
        int const count = std::min(keys, k.count - j);
        std::byte const* last[keys];
        for (int i = 0; i < keys; ++i) last[i] = rows[j + std::min(i, count - 1)];
        _mm512_store_ps(sums, _mm512_mul_ps(dots_of<Rows, Ahead>(last, head_dim, queries, stride, ahead, j), factor));
        for (int r = 0; r < real; ++r) std::copy_n(sums + r * keys, count, scores + r * tile_slots + j);
    }
}

inline void score(key_rows const& k, stream_queries q, float* scores) noexcept {
    block::by_rows<true>(q.rows, [&](auto rows, int first, int real) {
        std::byte const* const queries = q.packed + first * 4 * q.stride;
        float* const to                = scores + first * tile_slots;
        if (first == 0 && k.ahead.count > 0)
            return score_rows<rows(), true>(k, queries, 4 * q.stride, q.scale, real, to);
        score_rows<rows(), false>(k, queries, 4 * q.stride, q.scale, real, to);
    });
}

/// The listed keys of a tile in pairs: slots 2i and 2i + 1, null where one is not listed.
struct value_pairs {
    std::byte const* const* rows; // [2 * count]
    int const* pair;              // [count]: which pair of the tile; null: pair i is i, all keys are listed
    int count;
    value_rows const& all;
};

/// 32 columns of a row from column d on, zeros after its end; all zeros where there may be no row and is none.
template <bool Part, bool Always>
[[nodiscard]] [[gnu::target("avx512bw,avx512vl,avx512bf16"), gnu::always_inline]] inline __m512i
columns_of(std::byte const* row, index_t d, index_t head_dim) noexcept {
    if (!Always && row == nullptr) return _mm512_setzero_si512();
    return Part ? load(row + 2 * d, head_dim - d) : _mm512_loadu_si512(row + 2 * d);
}

/// Rows x (Vectors * 32) columns from column d on: sums stay in registers from the first pair to the last.
template <int Rows, int Vectors, bool Part, bool Ahead, bool Always>
[[gnu::target("avx512bw,avx512vl,avx512bf16")]] void sum_block(value_pairs const& v,
                                                               pieces_ahead& ahead,
                                                               index_t d,
                                                               std::uint32_t const (*weights)[tile_slots / 2],
                                                               float* out,
                                                               index_t stride) noexcept {
    __m512 sum[Rows * 2 * Vectors];
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 16
        for (int i = 0; i < 2 * Vectors; ++i) sum[r * 2 * Vectors + i] = _mm512_loadu_ps(out + r * stride + d + 16 * i);
    pieces_ahead next = ahead; // in registers
    for (int p = 0; p < v.count; ++p) {
        if constexpr (Ahead) {
            next.fetch_next();
            next.fetch_next();
        }
        int const pair           = Always ? p : v.pair[p];
        std::byte const* const a = v.rows[2 * p];
        std::byte const* const b = v.rows[2 * p + 1];
#pragma GCC unroll 16
        for (int i = 0; i < Vectors; ++i) {
            __m512i const x     = columns_of<Part, Always>(a, d + columns * i, v.all.head_dim);
            __m512i const y     = columns_of<Part, Always>(b, d + columns * i, v.all.head_dim);
            __m512bh const low  = as_pairs(_mm512_maskz_unpacklo_epi16(every32, x, y));
            __m512bh const high = as_pairs(_mm512_maskz_unpackhi_epi16(every32, x, y));
#pragma GCC unroll 16
            for (int r = 0; r < Rows; ++r) {
                __m512bh const w = as_pairs(_mm512_set1_epi32(static_cast<int>(weights[r][pair])));
                int const at     = (r * Vectors + i) * 2;
                sum[at]          = _mm512_dpbf16_ps(sum[at], w, low);
                sum[at + 1]      = _mm512_dpbf16_ps(sum[at + 1], w, high);
            }
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 16
        for (int i = 0; i < 2 * Vectors; ++i) _mm512_storeu_ps(out + r * stride + d + 16 * i, sum[r * 2 * Vectors + i]);
    if constexpr (Ahead) {
        next.end_pass();
        ahead = next;
    }
}

/// All columns of Rows rows.
template <int Rows, bool Ahead, bool Always>
void sum_rows(value_pairs const& v,
              std::uint32_t const (*weights)[tile_slots / 2],
              float* out,
              index_t stride) noexcept {
    constexpr int wide     = Rows == 4 ? 2 : 4;
    index_t const head_dim = v.all.head_dim;
    pieces_ahead ahead(v.all.ahead, block::passes_over(head_dim, wide * columns, columns));
    index_t d = 0;
    for (; d + wide * columns <= head_dim; d += wide * columns)
        sum_block<Rows, wide, false, Ahead, Always>(v, ahead, d, weights, out, stride);
    for (; d + columns <= head_dim; d += columns)
        sum_block<Rows, 1, false, Ahead, Always>(v, ahead, d, weights, out, stride);
    if (d < head_dim) sum_block<Rows, 1, true, Ahead, Always>(v, ahead, d, weights, out, stride);
}

/// Weights of a row as pairs of bfloat16.
[[gnu::target("avx512bw,avx512vl,avx512bf16")]] inline void pack_weights(float const* weights,
                                                                         std::uint32_t* pairs) noexcept {
    for (int j = 0; j < tile_slots; j += columns)
        _mm512_storeu_si512(pairs + j / 2, (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(weights + j + 16),
                                                                        _mm512_loadu_ps(weights + j)));
}

inline void accumulate(value_rows const& v, float const* weights, int query_rows, float* out, index_t stride) noexcept {
    std::byte const* rows[tile_slots];
    int pair[tile_slots / 2];
    value_pairs pairs{v.rows, nullptr, v.count / 2, v};
    if (v.count % 2 != 0 || v.keys[v.count - 1] != v.count - 1) { // not the first keys of the tile, two by two
        pairs.rows  = rows;
        pairs.pair  = pair;
        pairs.count = 0;
        for (int k = 0; k < v.count;) {
            int const key             = v.keys[k];
            bool const two            = key % 2 == 0 && k + 1 < v.count && v.keys[k + 1] == key + 1;
            rows[2 * pairs.count]     = two || key % 2 == 0 ? v.rows[key] : nullptr;
            rows[2 * pairs.count + 1] = two ? v.rows[key + 1] : key % 2 != 0 ? v.rows[key] : nullptr;
            pair[pairs.count++]       = key / 2;
            k += two ? 2 : 1;
        }
    }
    block::by_rows<false>(query_rows, [&](auto block, int first, int) {
        std::uint32_t packed[block()][tile_slots / 2];
        for (int r = 0; r < block(); ++r) pack_weights(weights + (first + r) * tile_slots, packed[r]);
        float* const to = out + first * stride;
        if (pairs.pair != nullptr) return sum_rows<block(), true, false>(pairs, packed, to, stride);
        if (first == 0 && v.ahead.count > 0) return sum_rows<block(), true, true>(pairs, packed, to, stride);
        sum_rows<block(), false, true>(pairs, packed, to, stride);
    });
}

[[gnu::target("avx512bw,avx512vl,avx512bf16")]] inline void
prepare(void const*, stream_queries const& q, index_t, std::byte* packed) noexcept {
    for (int r = 0; r < q.rows; ++r)
        for (index_t d = 0; d < q.stride; d += columns) {
            float const* const from = q.data + r * q.stride + d;
            _mm512_storeu_si512(packed + r * 4 * q.stride + 2 * d,
                                (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + 16), _mm512_loadu_ps(from)));
        }
}

/// From the order of vpunpck, lanes 0-3 of each 8 columns in the first vector and 4-7 in the second.
[[gnu::target("avx512bw,avx512vl,avx512bf16")]] inline void
settle(void const*, float* out, int query_rows, index_t, index_t stride) noexcept {
    __m512i const first  = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    __m512i const second = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
    for (index_t d = 0; d < query_rows * stride; d += columns) {
        __m512 const low = _mm512_loadu_ps(out + d), high = _mm512_loadu_ps(out + d + 16);
        _mm512_storeu_ps(out + d, _mm512_permutex2var_ps(low, first, high));
        _mm512_storeu_ps(out + d + 16, _mm512_permutex2var_ps(low, second, high));
    }
}

/// raw<bfloat16> by the dot.
template <class Isa>
inline constexpr simd_codec_ops ops{
    raw_ops<Isa, bfloat16>.base, &score, &accumulate, &prepare, &settle, nullptr, "bf16 dot"};

} // namespace bf16_dot
} // namespace BUTTERFLY_ISA_NAMESPACE
} // namespace butterfly::backend::vec

#endif
