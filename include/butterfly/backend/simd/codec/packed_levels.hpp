// SPDX-License-Identifier: MIT
#pragma once

// Scores and sums of rows whose codes no vector reads in the order of keys: base 6, the windows of a trellis, blocks of
// ggml. Their levels, a byte each, are unpacked for a tile of keys, and then multiplied as those of packed.hpp:
//
//   score        levels of a tile: [keys][head_dim] bytes      then as rows of 8 bits, by queries of one byte or two
//   accumulate   the same                                      then as rows of 8 bits, by weights of one byte or two
//
// both of two where levels are of eight bits; with the same roundings. Levels of 128 values are 12 KB a tile and stay
// in the first cache; from 512 on they do not. They stand on the stack, 68 KB of some 100 that a call takes then.
//
// Why this shape: decoded to floats a row is four times as many bytes, is multiplied by a quarter as many values at a
// time, and, where rows are rotated, has to be rotated back. Rejected for base 6: digits taken apart with keys in
// lanes, as packed_score.hpp does with bits: planes of ceil(n / 3) bytes end within a load, and rows of up to 32 values
// are shorter than one.

#include <butterfly/backend/simd/codec/packed_decode.hpp>
#include <butterfly/backend/simd/codec/packed_score.hpp>
#include <butterfly/backend/simd/codec/packed_sum.hpp>

#include <algorithm>

#if defined(__AVX2__) || defined(__aarch64__)

namespace butterfly::backend::vec {
inline namespace BUTTERFLY_ISA_NAMESPACE {
namespace packed {

/// Levels of the rows of a tile, and room for what vectors store behind each.
struct tile_levels {
    index_t stride; // from row to row
    alignas(64) std::int8_t levels[tile_slots * (quant::longest_row + chunk)];
    std::byte const* row[tile_slots];

    /// For `count` rows of n values; after them the last one stands once more.
    tile_levels(index_t n, int count) noexcept : stride(butterfly::detail::round_up(n, chunk) + chunk) {
        for (int k = 0; k < tile_slots; ++k) row[k] = reinterpret_cast<std::byte const*>(at(std::min(k, count - 1)));
    }
    tile_levels(tile_levels const&) = delete;

    [[nodiscard]] std::int8_t* at(int k) noexcept { return levels + k * stride; }
};

/// Rows in base 6, as a format says.
struct base6_rows {
    static constexpr int bytes = 1; // of a value of a query, and of a weight, at least

    [[nodiscard]] static row_format const& format(void const* codec) noexcept { return format_of(codec); }

    template <class Isa, class B>
    static constexpr scale_reader scales = &read_scales<Isa, B>;

    template <class Isa, class B>
    static void
    unpack(void const* codec, std::byte const* const* rows, int count, index_t n, tile_levels& to) noexcept {
        row_format const& f = format_of(codec);
        auto const table    = B::table_of(f, 0);
        for (int k = 0; k < count; ++k) unpack_base6<Isa, B>(rows[k] + f.header_bytes(n), n, table, to.at(k));
    }
};

/// score. Rows, as base6_rows: the format of a row but for its codes, how its scales are read, and unpack.
template <class Isa, class B, class Rows>
void score_levels(key_rows const& k, stream_queries q, float* scores) noexcept {
    tile_levels levels(k.head_dim, k.count);
    Rows::template unpack<Isa, B>(k.codec, k.rows, k.count, k.head_dim, levels);
    score_rows<Isa, B, packing::bits8, Rows::bytes>(
        {Rows::format(k.codec), Rows::template scales<Isa, B>, k.rows, levels.row, 0}, k, q, scores);
}

/// accumulate.
template <class Isa, class B, class Rows>
void accumulate_levels(value_rows const& v, float const* weights, int query_rows, float* out, index_t stride) noexcept {
    std::byte const* listed[tile_slots];
    for (int k = 0; k < v.count; ++k) listed[k] = v.rows[v.keys[k]];
    tile_levels levels(v.head_dim, v.count);
    Rows::template unpack<Isa, B>(v.codec, listed, v.count, v.head_dim, levels);
    accumulate_rows<Isa, B, packing::bits8, Rows::bytes>(
        {Rows::format(v.codec), Rows::template scales<Isa, B>, listed, levels.row, 0}, v, weights, query_rows, out,
        stride);
}

template <class Isa, class Rows>
void prepare_levels(void const* codec, stream_queries const& q, index_t n, std::byte* packed) noexcept {
    prepare_rows<Isa>(Rows::format(codec), Rows::bytes, q, n, packed);
}

template <class Isa, class Rows>
void settle_levels(void const* codec, float* out, int query_rows, index_t n, index_t stride) noexcept {
    settle_rows<Isa>(Rows::format(codec), out, query_rows, n, stride);
}

/// Adds scores and sums from levels to functions that decode.
template <class Isa, class B, class Rows>
[[nodiscard]] constexpr simd_codec_ops level_ops(simd_codec_ops ops) noexcept {
    ops.score      = &score_levels<Isa, B, Rows>;
    ops.accumulate = &accumulate_levels<Isa, B, Rows>;
    ops.prepare    = &prepare_levels<Isa, Rows>;
    ops.settle     = &settle_levels<Isa, Rows>;
    ops.unit       = B::dot_name;
    return ops;
}

} // namespace packed
} // namespace BUTTERFLY_ISA_NAMESPACE
} // namespace butterfly::backend::vec

#endif
