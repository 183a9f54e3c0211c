// SPDX-License-Identifier: MIT
#pragma once

// The leaf of affine_channels (quant/affine_channels.hpp), by vectors of bytes.
//
//   decode       out[t][d] = scale[d] * (level[t][d] + zero[d])        equals affine_channels::decode to the bit
//   score        of a tile of tokens: q'[d] = q[d] * scale[d], in two bytes of one unit;
//                s_t = scale * (<q', level_t> + sum_d q[d] * scale[d] * zero[d])
//   accumulate   out[d] += scale[d] * (sum_t w_t * level[t][d] + zero[d] * sum_t w_t), weights in bytes of one unit
//
// by the products of packed.hpp, and with its roundings, but that of a query: to 1/32512 of the largest q[d] *
// scale[d]; to 1/254, the lower byte left out, where codes have less than eight bits and that moves a logit by some
// 0.02 at most: a channel of large spread, which is what this format is for, would take the steps of all others. A
// scale that is NaN, or q[d] * scale[d] that is not finite, makes a row's scores of the tile NaN; a scale of values
// that is NaN the sums of its channel.
//
// Why this shape: kernels ask for the rows of a tile of keys at once, most of them of one tile of tokens. Its scales
// and zeros are more bytes than a row's codes, and are made floats once for all rows next to each other in the list
// that are of that tile. What the scales are to queries and sums is likewise done once for those rows, so that a row
// costs what its codes do.

#include <butterfly/backend/simd/codec/packed_decode.hpp>
#include <butterfly/backend/simd/codec/packed_score.hpp>
#include <butterfly/backend/simd/codec/packed_sum.hpp>
#include <butterfly/backend/simd/raw_codec.hpp>
#include <butterfly/quant/affine_channels.hpp>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

namespace butterfly::backend::vec {
inline namespace BUTTERFLY_ISA_NAMESPACE {

#if defined(__AVX2__) || defined(__aarch64__)
namespace channels {

using packed::chunk;
using quant::packing;

template <int Bits>
inline constexpr packing packing_of = Bits == 2   ? packing::bits2
                                      : Bits == 3 ? packing::bits3
                                      : Bits == 4 ? packing::bits4
                                                  : packing::bits8;

/// Levels as a format has them; those of 8 bits are codes.
template <int Bits>
[[nodiscard]] constexpr quant::row_format levels_of() noexcept {
    quant::row_format f;
    for (int c = 0; Bits < 8 && c < 1 << Bits; ++c)
        f.levels[static_cast<std::size_t>(c)] = static_cast<std::int8_t>(c - quant::detail::grid_fit<Bits>::lowest);
    return f;
}

/// Scales and zeros of all channels of a tile, from pairs.
template <class Isa>
struct tile_grids {
    alignas(64) float scale[quant::longest_row];
    alignas(64) float zero[quant::longest_row];

    tile_grids(std::byte const* pairs, index_t n) noexcept {
        alignas(64) std::uint32_t both[quant::longest_row];
        std::memcpy(both, pairs, static_cast<std::size_t>(4 * n));
        packed::split_pairs<Isa>(both, n, scale, zero);
    }
    tile_grids(tile_grids const&) = delete;
};

/// A row's number in its tile of `tokens`, a power of two: see quant::tile_row.
[[nodiscard]] inline index_t token_of(std::byte const* row, index_t tokens) noexcept {
    return static_cast<index_t>(reinterpret_cast<std::uintptr_t>(row) & static_cast<std::uintptr_t>(tokens - 1));
}

/// Rows from the first one on that are of its tile.
[[nodiscard]] inline int rows_of_tile(std::byte const* const* rows, int count, index_t tokens) noexcept {
    std::byte const* const tile = rows[0] - token_of(rows[0], tokens);
    int same                    = 1;
    while (same < count && rows[same] - token_of(rows[same], tokens) == tile) ++same;
    return same;
}

/// decode of tiles of any number of tokens, which are told at run time: the loops are the same.
template <class Isa, class B, int Bits>
[[gnu::noinline]] void
decode_tiles(std::byte const* const* rows, int count, index_t tokens, index_t n, float* out, index_t stride) noexcept {
    constexpr packing codes = packing_of<Bits>;
    auto const table        = B::table_of(levels_of<Bits>(), 0);
    index_t const row_bytes = packed::bytes_of<codes>(n);
    while (count > 0) {
        int const same              = rows_of_tile(rows, count, tokens);
        std::byte const* const tile = rows[0] - token_of(rows[0], tokens);
        tile_grids<Isa> const grids(tile, n);
        packed::by_chunks(0, n, [&](index_t first, index_t some) {
            std::byte const* const at = tile + 4 * n + packed::bytes_of<codes>(first);
            for (int j = 0; j < same; ++j) {
                alignas(64) std::int8_t levels[chunk];
                packed::unpack_chunk<B, codes>(at + token_of(rows[j], tokens) * row_bytes, some, table, levels);
                float* const to = out + j * stride + first;
                for (index_t i = 0; i < some; i += lanes<Isa>)
                    (f32<Isa>::load_aligned(grids.scale + first + i) *
                     (B::template widen<Isa>(levels + i) + f32<Isa>::load_aligned(grids.zero + first + i)))
                        .store_unaligned(to + i);
            }
        });
        rows += same;
        out += same * stride;
        count -= same;
    }
}

/// decode: equals affine_channels::decode.
template <class Isa, class B, int Bits, int Tokens>
void decode(void const*, std::byte const* const* rows, int count, index_t n, float* out, index_t stride) noexcept {
    decode_tiles<Isa, B, Bits>(rows, count, Tokens, n, out, stride);
}

/// Rows next to each other in a list that are of one tile: where their codes stand, the last ones again up to
/// tile_slots.
template <int Bits>
struct tile_run {
    std::byte const* tile;
    int count;
    std::byte const* codes[tile_slots];

    tile_run(std::byte const* const* rows, int left, index_t tokens, index_t n) noexcept
        : tile(rows[0] - token_of(rows[0], tokens)), count(rows_of_tile(rows, left, tokens)) {
        for (int k = 0; k < count; ++k)
            codes[k] = tile + 4 * n + token_of(rows[k], tokens) * packed::bytes_of<packing_of<Bits>>(n);
        std::fill(codes + count, codes + tile_slots, codes[count - 1]);
    }
};

/// Queries for the channels of a tile, two bytes a value; the lower ones are zeros where a row is not fine.
template <int Rows>
struct scaled_queries {
    static constexpr int parts = 2;
    std::byte bytes[Rows][parts][quant::longest_row];
    float unit[Rows];
    float sum[Rows];    // of the values in bytes
    float lifted[Rows]; // sum_d q[d] * scale[d] * zero[d]
    bool fine[Rows];

    [[nodiscard]] packed::query_rows rows() const noexcept {
        return {&bytes[0][0][0], parts * quant::longest_row, quant::longest_row};
    }
    /// Bytes of a value that products need.
    [[nodiscard]] int bytes_of_all() const noexcept {
        return std::find(fine, fine + Rows, true) != fine + Rows ? 2 : 1;
    }

    /// Makes row r. Where it is not finite its unit is NaN. `coarsest`: steps of one byte that are served, times the
    /// root of n, as their errors add up.
    template <class Isa>
    void make(int r, tile_grids<Isa> const& grids, float const* query, index_t n, float coarsest) noexcept {
        constexpr float digit = packed::query_digit, top = 127.0F * digit;
        alignas(64) float scaled[quant::longest_row];
        f32<Isa> most(0.0F), zeros(0.0F), lift(0.0F);
        for (index_t d = 0; d < n; d += lanes<Isa>) {
            f32<Isa> const x = load_as<Isa>(query + d) * f32<Isa>::load_aligned(grids.scale + d);
            x.store_aligned(scaled + d);
            most  = xsimd::max(most, xsimd::abs(x));
            zeros = fma(x, f32<Isa>(0.0F), zeros); // NaN where a value is not finite
            lift  = fma(x, f32<Isa>::load_aligned(grids.zero + d), lift);
        }
        float const step = horizontal_max(most) / top, none = horizontal_sum(zeros);
        bool const some = none == 0.0F && step >= std::numeric_limits<float>::min();
        unit[r]         = some ? step : none;
        lifted[r]       = horizontal_sum(lift);
        sum[r]          = 0.0F;
        fine[r]         = true;
        if (!some) {
            std::memset(bytes[r], 0, sizeof bytes[r]);
            return;
        }
        fine[r] = !(step * digit * std::sqrt(static_cast<float>(n)) <= coarsest);
        f32<Isa> const by(1.0F / (fine[r] ? step : step * digit));
        f32<Isa> all(0.0F);
        for (index_t d = 0; d < n; d += quant::row_step) {
            alignas(64) std::int32_t whole[quant::row_step];
            for (index_t i = 0; i < quant::row_step; i += lanes<Isa>) {
                f32<Isa> const near = xsimd::nearbyint(f32<Isa>::load_aligned(scaled + d + i) * by);
                xsimd::to_int(near).store_aligned(whole + i);
                all = all + near; // exact
            }
            if (fine[r]) {
                for (index_t i = 0; i < quant::row_step; ++i) {
                    std::int32_t const high = (whole[i] + packed::query_digit / 2) >> 7; // the lower from -64 to 63
                    bytes[r][0][d + i]      = static_cast<std::byte>(high);
                    bytes[r][1][d + i]      = static_cast<std::byte>(whole[i] - high * packed::query_digit);
                }
            } else {
                for (index_t i = 0; i < quant::row_step; ++i) bytes[r][0][d + i] = static_cast<std::byte>(whole[i]);
                std::memset(bytes[r][1] + d, 0, static_cast<std::size_t>(quant::row_step));
            }
        }
        sum[r] = horizontal_sum(all) * (fine[r] ? 1.0F : digit);
    }
};

/// score of tiles of any number of tokens.
template <class Isa, class B, int Bits>
[[gnu::noinline]] void score_tiles(key_rows const& k, index_t tokens, stream_queries const& q, float* scores) noexcept {
    constexpr packing codes = packing_of<Bits>;
    auto const table        = B::table_of(levels_of<Bits>(), B::bias);
    packed::rows_in_turns next(k.ahead, (k.count + 2 * B::keys - 1) / (2 * B::keys) * (k.head_dim / 4));
    // Errors of steps are 1/sqrt(12) of them, levels some 2^Bits / 4.
    float const coarsest = Bits == 8 ? 0.0F : 0.25F / (std::fabs(q.scale) * static_cast<float>(1 << Bits));
    for (int first = 0; first < k.count;) {
        tile_run<Bits> const run(k.rows + first, k.count - first, tokens, k.head_dim);
        tile_grids<Isa> const grids(run.tile, k.head_dim);
        packed::score_tile<B> const tile{run.codes, run.count, table, 0, 0, k.head_dim};
        packed::by_rows<Isa>(q.rows, true, [&](auto rows_at_once, int row, int real) {
            scaled_queries<rows_at_once()> queries;
            for (int r = 0; r < rows_at_once(); ++r) // the last one again
                queries.make(r, grids, q.data + (row + std::min(r, real - 1)) * q.stride, k.head_dim, coarsest);
            alignas(64) float products[rows_at_once() * tile_slots];
            int const bytes = queries.bytes_of_all();
            if (bytes == 2)
                packed::dot_rows<Isa, B, codes, 2, false, rows_at_once()>(tile, queries.rows(), next, products);
            else
                packed::dot_rows<Isa, B, codes, 1, false, rows_at_once()>(tile, queries.rows(), next, products);
            float const digit = bytes == 2 ? 1.0F : packed::query_digit; // of the bytes that were multiplied
            for (int r = 0; r < real; ++r) {
                f32<Isa> const unit(q.scale * queries.unit[r] * digit), lifted(q.scale * queries.lifted[r]);
                f32<Isa> const bias(-B::bias * queries.sum[r] / digit);
                float* const product = products + r * tile_slots;
                for (int j = 0; j < run.count; j += lanes<Isa>)
                    fma(f32<Isa>::load_aligned(product + j) + bias, unit, lifted).store_aligned(product + j);
                std::copy_n(product, run.count, scores + (row + r) * tile_slots + first);
            }
        });
        first += run.count;
    }
}

/// Scales of sums that are scaled by channels afterwards.
inline void read_ones(
    quant::row_format const&, std::byte const* const*, int count, index_t, int, packed::tile_scales* to) noexcept {
    std::fill_n(to->scale, count, 1.0F);
    std::fill(to->scale + count, to->scale + tile_slots, 0.0F);
    std::fill_n(to->lift, tile_slots, 0.0F);
}

/// The weights of listed keys.
[[nodiscard]] inline float sum_of(float const* weights, int const* keys, int count) noexcept {
    float part[4] = {};
    for (int k = 0; k < count; ++k) part[k % 4] += weights[keys[k]];
    return part[0] + part[1] + (part[2] + part[3]);
}

/// accumulate of tiles of any number of tokens.
template <class Isa, class B, int Bits>
[[gnu::noinline]] void accumulate_tiles(
    value_rows const& v, index_t tokens, float const* weights, int query_rows, float* out, index_t stride) noexcept {
    constexpr packing codes = packing_of<Bits>;
    constexpr int at_once   = packed::rows_of_weights;
    auto const format       = levels_of<Bits>();
    index_t const n         = v.head_dim;
    std::byte const* listed[tile_slots];
    for (int k = 0; k < v.count; ++k) listed[k] = v.rows[v.keys[k]];
    alignas(64) float sums[at_once * quant::longest_row];
    index_t const sums_stride = butterfly::detail::round_up(n, chunk);
    value_rows part           = v;
    for (int first = 0; first < v.count; first += part.count) {
        tile_run<Bits> const run(listed + first, v.count - first, tokens, n);
        part.keys  = v.keys + first;
        part.count = run.count;
        tile_grids<Isa> const grids(run.tile, n);
        packed::coded_rows const rows{format, &read_ones, run.codes, run.codes, 0};
        for (int row = 0; row < query_rows; row += at_once) {
            int const some          = std::min(at_once, query_rows - row);
            float const* const from = weights + row * tile_slots;
            std::fill_n(sums, some * sums_stride, 0.0F);
            packed::accumulate_rows<Isa, B, codes, packed::weight_bytes<codes>>(rows, part, from, some, sums,
                                                                                sums_stride);
            part.ahead = {}; // fetched
            for (int r = 0; r < some; ++r) {
                f32<Isa> const all(sum_of(from + r * tile_slots, part.keys, part.count));
                float* const to = out + (row + r) * stride;
                for (index_t d = 0; d < n; d += lanes<Isa>) {
                    f32<Isa> const levels = fma(f32<Isa>::load_aligned(grids.zero + d), all,
                                                f32<Isa>::load_aligned(sums + r * sums_stride + d));
                    fma(levels, f32<Isa>::load_aligned(grids.scale + d), load_as<Isa>(to + d)).store_unaligned(to + d);
                }
            }
        }
    }
}

template <class Isa, class B, int Bits, int Tokens>
void score(key_rows const& k, stream_queries q, float* scores) noexcept {
    score_tiles<Isa, B, Bits>(k, Tokens, q, scores);
}

template <class Isa, class B, int Bits, int Tokens>
void accumulate(value_rows const& v, float const* weights, int query_rows, float* out, index_t stride) noexcept {
    accumulate_tiles<Isa, B, Bits>(v, Tokens, weights, query_rows, out, stride);
}

} // namespace channels
#endif

template <class Isa, int Bits, int Tokens, bool FromCodes>
[[nodiscard]] constexpr simd_codec_ops channel_ops() noexcept {
    simd_codec_ops ops{{&host::decode_rows<quant::affine_channels<Bits, Tokens>>}, nullptr, nullptr};
#if defined(__AVX2__) || defined(__aarch64__)
    using bytes = byte_vectors<Isa>;
    if constexpr (!std::is_void_v<bytes>) {
        ops.base.decode = &channels::decode<Isa, bytes, Bits, Tokens>;
        if constexpr (FromCodes) {
            ops.score      = &channels::score<Isa, bytes, Bits, Tokens>;
            ops.accumulate = &channels::accumulate<Isa, bytes, Bits, Tokens>;
            ops.unit       = bytes::dot_name;
        }
    }
#endif
    return ops;
}

/// FromCodes: there are products of bytes.
template <class Isa, int Bits, int Tokens, bool FromCodes>
inline constexpr simd_codec_ops affine_channels_ops = channel_ops<Isa, Bits, Tokens, FromCodes>();

template <class Isa, int Bits, int Tokens>
[[nodiscard]] simd_codec_ops const& simd_ops(Isa, quant::affine_channels<Bits, Tokens> const&) noexcept {
    return has_byte_products<Isa>() ? affine_channels_ops<Isa, Bits, Tokens, true>
                                    : affine_channels_ops<Isa, Bits, Tokens, false>;
}

} // namespace BUTTERFLY_ISA_NAMESPACE
} // namespace butterfly::backend::vec
