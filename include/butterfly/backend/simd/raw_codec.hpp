// SPDX-License-Identifier: MIT
#pragma once

// What the SIMD kernels know of a codec, and the raw codecs' leaf.
//
//   decode       rows -> floats in scratch                      every codec; all the tile class needs
//   score        dot products with packed rows, in place        null: decode to scratch, then f32 rows
//   accumulate   weighted sums of packed rows, in place         null: likewise
//
// A codec with `decode` alone works. A user's codec may bring more through its own `simd_ops(Isa, codec)`, found by
// argument-dependent lookup.

#include <butterfly/backend/host/codec_ops.hpp>
#include <butterfly/backend/simd/amx_unit.hpp>
#include <butterfly/backend/simd/batch.hpp>
#include <butterfly/backend/simd/bf16_unit.hpp>
#include <butterfly/backend/simd/dot_unit.hpp>
#include <butterfly/backend/simd/tile_unit.hpp>
#include <butterfly/sdpa/problem.hpp>

#include <algorithm>

namespace butterfly::backend::vec {

// Plain data, the same in objects of every instruction set: it stands outside the inline namespace.

/// Query rows of the stream class, packed: [rows][stride] floats, zeros from head_dim to stride.
struct stream_queries {
    float const* data;
    index_t stride;
    int rows;
};

/// Rows that will be read next: fetched towards L2 while the present ones are worked on, row k beside present row k.
struct rows_ahead {
    std::byte const* const* rows = nullptr;
    int count                    = 0;
    index_t bytes                = 0; // of one row

    void fetch(int k) const noexcept {
        if (k >= count) return;
        for (index_t b = 0; b < bytes; b += 64) __builtin_prefetch(rows[k] + b, 0, 2);
    }
};

/// Packed key rows of a tile, those a row sees: [count].
struct key_rows {
    std::byte const* const* rows;
    int count;
    index_t head_dim;
    rows_ahead ahead{};
};

/// Packed value rows of a tile, and which of them to sum: rows[keys[k]] for k in [0, count).
struct value_rows {
    std::byte const* const* rows;
    int const* keys;
    int count;
    index_t head_dim;
    rows_ahead ahead{};
};

/// The functions of one codec for one instruction set. `base` comes first, so that host code may read it as codec_ops.
struct simd_codec_ops {
    host::codec_ops base;
    /// scores[r * tile_slots + k] = <query r, row k> for k in [0, count).
    void (*score)(key_rows const&, stream_queries, float* scores) noexcept;
    /// out[r * stride + d] += sum over listed keys j of weights[r * tile_slots + j] * row_j[d].
    void (*accumulate)(value_rows const&, float const* weights, int query_rows, float* out, index_t stride) noexcept;
    /// What multiplies packed rows in the tile class; null: they are decoded to f32.
    tile_unit const* tile = nullptr;
};

inline namespace BUTTERFLY_ISA_NAMESPACE {

/// decode: equals raw<T>::decode.
template <class Isa, class T>
void decode_raw(
    void const*, std::byte const* const* rows, int count, index_t head_dim, float* out, index_t stride) noexcept {
    index_t const whole = head_dim - head_dim % lanes<Isa>;
    for (int j = 0; j < count; ++j) {
        auto const* const row = reinterpret_cast<T const*>(rows[j]);
        float* const to       = out + j * stride;
        index_t d             = 0;
        for (; d < whole; d += lanes<Isa>) load_as<Isa>(row + d).store_unaligned(to + d);
        for (; d < head_dim; ++d) to[d] = static_cast<float>(row[d]);
    }
}

namespace block {

/// Dot products of Rows queries with Keys rows. Each dot has its own accumulator, so how rows and keys are grouped
/// never changes a bit.
template <class Isa, class T, int Rows, int Keys>
void score_block(T const* const* keys, index_t head_dim, float const* queries, index_t stride, float* scores) noexcept {
    f32<Isa> sum[Rows][Keys];
    for (auto& row : sum)
        for (auto& s : row) s = f32<Isa>(0.0F);
    index_t const whole = head_dim - head_dim % lanes<Isa>;
    auto const step     = [&](index_t d, auto const& load_key) {
        f32<Isa> key[Keys];
        for (int j = 0; j < Keys; ++j) key[j] = load_key(keys[j] + d);
        for (int r = 0; r < Rows; ++r) {
            f32<Isa> const query = load_as<Isa>(queries + r * stride + d);
            for (int j = 0; j < Keys; ++j) sum[r][j] = fma(query, key[j], sum[r][j]);
        }
    };
    for (index_t d = 0; d < whole; d += lanes<Isa>) step(d, [](T const* at) { return load_as<Isa>(at); });
    if (whole < head_dim) step(whole, [&](T const* at) { return load_part<Isa>(at, head_dim - whole); });
    for (int r = 0; r < Rows; ++r)
        for (int j = 0; j < Keys; ++j) scores[r * tile_slots + j] = horizontal_sum(sum[r][j]);
}

template <class Isa, class T, int Keys>
void score_rows(T const* const* keys, index_t head_dim, stream_queries const& q, float* scores) noexcept {
    int r         = 0;
    auto const at = [&](int row) { return q.data + row * q.stride; };
    for (; r + 4 <= q.rows; r += 4)
        score_block<Isa, T, 4, Keys>(keys, head_dim, at(r), q.stride, scores + r * tile_slots);
    for (; r + 2 <= q.rows; r += 2)
        score_block<Isa, T, 2, Keys>(keys, head_dim, at(r), q.stride, scores + r * tile_slots);
    for (; r < q.rows; ++r) score_block<Isa, T, 1, Keys>(keys, head_dim, at(r), q.stride, scores + r * tile_slots);
}

/// Rows x Keys of the weighted sum over all columns: out += sum over Keys listed rows, in the order listed. Value rows
/// are read from end to end, which is how memory likes to be read.
template <class Isa, class T, int Rows, int Keys>
void accumulate_block(value_rows const& v, int first, float const* weights, float* out, index_t stride) noexcept {
    T const* row[Keys];
    f32<Isa> weight[Rows][Keys];
    for (int k = 0; k < Keys; ++k) {
        row[k] = reinterpret_cast<T const*>(v.rows[v.keys[first + k]]);
        for (int r = 0; r < Rows; ++r) weight[r][k] = f32<Isa>(weights[r * tile_slots + v.keys[first + k]]);
    }
    auto const step = [&](index_t d, auto const& load_value) {
        f32<Isa> value[Keys];
        for (int k = 0; k < Keys; ++k) value[k] = load_value(row[k] + d);
        for (int r = 0; r < Rows; ++r) {
            f32<Isa> sum = load_as<Isa>(out + r * stride + d);
            for (int k = 0; k < Keys; ++k) sum = fma(weight[r][k], value[k], sum);
            sum.store_unaligned(out + r * stride + d);
        }
    };
    index_t const whole = v.head_dim - v.head_dim % lanes<Isa>;
    for (index_t d = 0; d < whole; d += lanes<Isa>) step(d, [](T const* at) { return load_as<Isa>(at); });
    if (whole < v.head_dim) step(whole, [&](T const* at) { return load_part<Isa>(at, v.head_dim - whole); });
}

/// All keys for Rows rows, fetching what comes next.
template <class Isa, class T, int Rows>
void accumulate_rows(
    value_rows const& v, rows_ahead const& ahead, float const* weights, float* out, index_t stride) noexcept {
    constexpr int keys = Isa::stream_keys;
    int k              = 0;
    for (; k + keys <= v.count; k += keys) {
        for (int i = k; i < k + keys; ++i) ahead.fetch(i);
        accumulate_block<Isa, T, Rows, keys>(v, k, weights, out, stride);
    }
    for (; k < v.count; ++k) accumulate_block<Isa, T, Rows, 1>(v, k, weights, out, stride);
}

} // namespace block

/// score, in place: four keys at a time, so that a loaded query vector serves four.
template <class Isa, class T>
void score_raw(key_rows const& k, stream_queries q, float* scores) noexcept {
    auto const* const keys = reinterpret_cast<T const* const*>(k.rows);
    int j                  = 0;
    for (; j + 4 <= k.count; j += 4) {
        for (int i = j; i < j + 4; ++i) k.ahead.fetch(i);
        block::score_rows<Isa, T, 4>(keys + j, k.head_dim, q, scores + j);
    }
    for (; j < k.count; ++j) block::score_rows<Isa, T, 1>(keys + j, k.head_dim, q, scores + j);
}

/// accumulate, in place.
template <class Isa, class T>
void accumulate_raw(value_rows const& v, float const* weights, int query_rows, float* out, index_t stride) noexcept {
    rows_ahead ahead = v.ahead;
    int r            = 0;
    for (; r + 4 <= query_rows; r += 4, ahead = {})
        block::accumulate_rows<Isa, T, 4>(v, ahead, weights + r * tile_slots, out + r * stride, stride);
    for (; r < query_rows; ++r, ahead = {})
        block::accumulate_rows<Isa, T, 1>(v, ahead, weights + r * tile_slots, out + r * stride, stride);
}

template <class Isa, class T>
inline constexpr simd_codec_ops raw_ops{
    {&decode_raw<Isa, T>, host::encode_function<quant::raw<T>>()}, &score_raw<Isa, T>, &accumulate_raw<Isa, T>};

/// Rows of bfloat16, multiplied by a unit of the tile class.
template <class Isa, tile_unit const& Unit>
inline constexpr simd_codec_ops bf16_ops_of{{&decode_raw<Isa, bfloat16>, host::encode_function<quant::raw<bfloat16>>()},
                                            &score_raw<Isa, bfloat16>,
                                            &accumulate_raw<Isa, bfloat16>,
                                            &Unit};

template <class Isa>
[[nodiscard]] simd_codec_ops const& bf16_ops(bf16_unit unit) noexcept {
    if (unit == bf16_unit::emulated) return bf16_ops_of<Isa, emulated_unit>;
#if defined(__x86_64__)
    if (unit == bf16_unit::dot) return bf16_ops_of<Isa, dot_unit>;
    if (unit == bf16_unit::tile) return bf16_ops_of<Isa, amx_unit>;
#endif
    return raw_ops<Isa, bfloat16>;
}

template <class Isa, quant::decoder Codec>
inline constexpr simd_codec_ops foreign_ops{
    {&host::decode_rows<Codec>, host::encode_function<Codec>()}, nullptr, nullptr};

/// The leaf of a codec: what the kernels of an instruction set call for it.
template <class Isa, class T>
[[nodiscard]] simd_codec_ops const& simd_ops(Isa, quant::raw<T> const&) noexcept {
    return raw_ops<Isa, T>;
}

template <class Isa, quant::decoder Codec>
[[nodiscard]] simd_codec_ops const& simd_ops(Isa, Codec const&) noexcept {
    return foreign_ops<Isa, Codec>;
}

} // namespace BUTTERFLY_ISA_NAMESPACE
} // namespace butterfly::backend::vec
