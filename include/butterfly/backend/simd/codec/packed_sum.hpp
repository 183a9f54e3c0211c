// SPDX-License-Identifier: MIT
#pragma once

// Sums from codes: the second product of packed.hpp. Rows of four keys are interleaved byte by byte, so that a product
// of bytes sums over keys, and unpacked once for all query rows; of codes whose bits stand in the same planes, the
// codes are interleaved and then unpacked, a quarter or half as many.

#include <butterfly/backend/simd/codec/packed.hpp>

#include <algorithm>
#include <array>

#if defined(__AVX2__) || defined(__aarch64__)

namespace butterfly::backend::vec {
inline namespace BUTTERFLY_ISA_NAMESPACE {
namespace packed {

/// Weights of a row over a tile in whole numbers of `Bytes` bytes, four keys next to each other in each.
template <int Bytes>
struct whole_weights {
    alignas(64) std::uint8_t bytes[Bytes][tile_slots]; // the lowest first
    float unit;                                        // of the lowest
    float lifted;                                      // sum_k w_k * lift_k
    bool fair;                                         // whether rounding kept the sum of a_k
};

template <class Isa, class B, int Bytes>
void weigh_row(tile_scales const& s, value_rows const& v, float const* weights, whole_weights<Bytes>& to) noexcept {
    constexpr int digit = B::weight_top + 1, top = Bytes == 1 ? B::weight_top : digit * digit - 1;
    constexpr int vectors = tile_slots / lanes<Isa>;
    alignas(64) float listed[tile_slots];
    if (v.keys[v.count - 1] != v.count - 1) { // not the first ones, behind which scales are zero
        for (int k = 0; k < v.count; ++k) listed[k] = weights[v.keys[k]];
        std::fill(listed + v.count, listed + tile_slots, 0.0F);
        weights = listed;
    }
    f32<Isa> a[vectors], most(0.0F), least(0.0F), all(0.0F), lifted(0.0F);
#pragma GCC unroll 16
    for (int i = 0; i < vectors; ++i) {
        f32<Isa> const w = load_as<Isa>(weights + i * lanes<Isa>);
        a[i]             = w * f32<Isa>::load_aligned(s.scale + i * lanes<Isa>);
        most             = xsimd::max(most, a[i]);
        least            = xsimd::min(least, a[i]);
        all              = all + a[i];
        lifted           = fma(w, f32<Isa>::load_aligned(s.lift + i * lanes<Isa>), lifted);
    }
    float const largest = horizontal_max(most), sum = horizontal_sum(all);
    to.lifted = horizontal_sum(lifted);
    to.fair   = true;
    if (!(sum <= std::numeric_limits<float>::max()) || xsimd::any(least < f32<Isa>(0.0F))) {
        std::memset(to.bytes, 0, sizeof to.bytes);
        to.lifted = to.unit = std::numeric_limits<float>::quiet_NaN();
        return;
    }
    float const lift = largest < 0x1p-60F ? 0x1p80F : 1.0F; // so that a quotient of small weights does not overflow
    float const by   = largest > 0.0F ? static_cast<float>(top) / (largest * lift) : 0.0F;
    to.unit          = largest * (1.0F / static_cast<float>(top));
    alignas(64) float whole[tile_slots];
#pragma GCC unroll 16
    for (int i = 0; i < vectors; ++i)
        xsimd::min(fma(a[i] * f32<Isa>(lift), f32<Isa>(by), f32<Isa>(0.5F)), f32<Isa>(static_cast<float>(top)))
            .store_aligned(whole + i * lanes<Isa>);
    std::int32_t kept = 0;
    for (int k = 0; k < tile_slots; ++k) {
        auto const x   = static_cast<std::int32_t>(whole[k]);
        to.bytes[0][k] = static_cast<std::uint8_t>(Bytes == 1 ? x : x % digit);
        if constexpr (Bytes == 2) to.bytes[1][k] = static_cast<std::uint8_t>(x / digit);
        kept += x;
    }
    to.fair = std::fabs(static_cast<float>(kept) - sum * lift * by) <= static_cast<float>(kept) * 0x1p-7F;
}

/// Levels of some columns of a tile, four keys interleaved: [keys / 4][columns][4].
struct value_block {
    static constexpr index_t most_columns = 256;
    index_t columns;
    alignas(64) std::byte bytes[tile_slots * most_columns];

    [[nodiscard]] std::byte* at(int key, index_t column) noexcept { return bytes + (key / 4 * columns + column) * 4; }
    [[nodiscard]] std::byte const* at(int key, index_t column) const noexcept {
        return bytes + (key / 4 * columns + column) * 4;
    }
};

/// Columns that are unpacked at once: those of a vector of codes, or of a chunk where that is more.
template <class B, packing Codes>
inline constexpr index_t columns_at_once = std::max<index_t>(B::size * 8 / quant::detail::bits_of(Codes).plane, chunk);

/// Values of whole chunks whose codes are `bytes` bytes from `at` on: interleaved as they are packed, then unpacked.
template <class B, packing Codes>
void interleave_codes(std::byte const* const* rows,
                      int count,
                      index_t at,
                      index_t bytes,
                      typename B::table const& table,
                      rows_in_turns& next,
                      value_block& to) noexcept {
    constexpr int bits = quant::detail::bits_of(Codes).plane, planes = 8 / bits;
    constexpr index_t plane = chunk / planes, part = B::size / 4; // bytes
    for (int k = 0; k < count; k += 4) {
        next.fetch_some();
        for (index_t from = 0; from < bytes; from += B::size) {
            typename B::type row[4], four[4];
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) row[i] = B::spread(B::load_part(rows[k + i] + at + from, bytes - from));
            B::interleave(row, four);
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) {
                index_t const byte = from + i * part;
                if (byte >= bytes) break;
                unrolled<planes>([&](auto p) __attribute__((always_inline)) {
                    typename B::type levels = four[i];
                    if constexpr (Codes != packing::bits8)
                        levels = B::look_up(table, B::both(B::template down<p() * bits>(levels), (1 << bits) - 1));
                    B::store(levels, to.at(k, byte / plane * chunk + p() * plane + byte % plane));
                });
            }
        }
    }
}

/// Values of one chunk of any length, unpacked row by row.
template <class B, packing Codes>
void interleave_rows(std::byte const* const* rows,
                     int count,
                     index_t at,
                     index_t columns,
                     typename B::table const& table,
                     rows_in_turns& next,
                     value_block& to) noexcept {
    for (int k = 0; k < count; k += 4) {
        next.fetch_some();
        typename B::type row[4][B::vectors];
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) B::template unpack<Codes>(rows[k + i] + at, columns, table, 0, row[i]);
#pragma GCC unroll 4
        for (int v = 0; v < B::vectors; ++v) {
            typename B::type spread[4], four[4];
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) spread[i] = B::spread(row[i][v]);
            B::interleave(spread, four);
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) B::store(four[i], to.at(k, v * B::size + i * B::size / 4));
        }
    }
}

/// Weights of some rows for the one or two groups of the columns that are summed at once: of each group [rows].
template <int Bytes>
using group_weights = std::array<whole_weights<Bytes> const*, 2>;

/// out[r][column] += unit_r * sums of products of Rows rows of weights with columns [first, first + columns) of a
/// block, + what lifts them. Halves: each half of a chunk of columns has weights of its own.
template <class Isa, class B, int Bytes, bool Halves, int Rows>
void sum_block(value_block const& values,
               int count,
               index_t first,
               index_t columns,
               group_weights<Bytes> const& weights,
               float* out,
               index_t stride) noexcept {
    constexpr int wide          = 4 / Bytes; // vectors of columns in registers
    constexpr int digit         = B::weight_top + 1;
    constexpr index_t of_vector = B::size / 4;
    constexpr int vectors       = Halves ? std::min(wide, static_cast<int>(half / of_vector)) : wide; // of one group
    constexpr int groups        = wide / vectors;
    for (index_t c = 0; c < columns; c += wide * of_vector) {
        whole_weights<Bytes> const* row[groups];
        for (int g = 0; g < groups; ++g) row[g] = weights[static_cast<std::size_t>(Halves ? c / half + g : 0)];
        typename B::type sum[Rows * wide * Bytes];
#pragma GCC unroll 16
        for (int i = 0; i < Rows * wide * Bytes; ++i) sum[i] = B::zero();
        for (int k = 0; k < count; k += 4) {
            typename B::type value[wide];
#pragma GCC unroll 4
            for (int i = 0; i < wide; ++i) value[i] = B::load(values.at(k, first + c) + i * B::size);
#pragma GCC unroll 4
            for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 2
                for (int b = 0; b < Bytes; ++b)
#pragma GCC unroll 2
                    for (int g = 0; g < groups; ++g) {
                        typename B::type const four = B::four_weights(
                            load_integer<std::uint32_t>(reinterpret_cast<std::byte const*>(row[g][r].bytes[b] + k), 4));
#pragma GCC unroll 4
                        for (int i = g * vectors; i < (g + 1) * vectors; ++i) {
                            int const at = (r * wide + i) * Bytes + b;
                            sum[at]      = B::weigh(sum[at], four, value[i]);
                        }
                    }
        }
        for (int r = 0; r < Rows; ++r)
            for (int i = 0; i < wide && c + i * of_vector < columns; ++i) {
                whole_weights<Bytes> const& of = row[i / vectors][r];
                float* const to                = out + r * stride + c + i * of_vector;
                int const at                   = (r * wide + i) * Bytes;
                f32<Isa> whole                 = B::template to_float<Isa>(sum[at]);
                if constexpr (Bytes == 2)
                    whole = fma(B::template to_float<Isa>(sum[at + 1]), f32<Isa>(static_cast<float>(digit)), whole);
                (load_as<Isa>(to) + fma(whole, f32<Isa>(of.unit), f32<Isa>(of.lifted))).store_unaligned(to);
            }
    }
}

/// Query rows whose weights are made at once: for them values are unpacked once.
inline constexpr int rows_of_weights = 16;

/// Bytes of a weight: two where one would be coarser than the codes.
template <packing Codes>
inline constexpr int weight_bytes = Codes == packing::bits8 ? 2 : 1;

/// Weights of up to rows_of_weights rows, for one group or the two of a chunk.
template <int Bytes, bool Halves>
struct weights_of_rows {
    whole_weights<Bytes> whole[Halves ? 2 : 1][rows_of_weights];
    bool fair[rows_of_weights]; // of all groups

    /// Of groups [group, group + groups).
    template <class Isa, class B>
    void make(scales_in_turns& scales,
              value_rows const& v,
              float const* weights,
              int some,
              index_t group,
              int groups) noexcept {
        std::fill_n(fair, some, true);
        for (int g = 0; g < groups; ++g)
            for (int r = 0; r < some; ++r) {
                weigh_row<Isa, B>(scales.of(group + g), v, weights + r * tile_slots, whole[g][r]);
                fair[r] = fair[r] && whole[g][r].fair;
            }
    }
    [[nodiscard]] group_weights<Bytes> from(int r, int groups) const noexcept {
        return {whole[0] + r, whole[groups - 1] + r};
    }
};

/// Rows one by one, each by as many bytes as keep the sum of its weights.
template <class Isa, class B, bool Halves>
[[gnu::noinline]] void sum_apart(weights_of_rows<1, Halves> const& by,
                                 scales_in_turns& scales,
                                 value_rows const& v,
                                 float const* weights,
                                 int some,
                                 index_t group,
                                 int groups,
                                 value_block const& values,
                                 index_t first,
                                 index_t columns,
                                 float* out,
                                 index_t stride) noexcept {
    for (int r = 0; r < some; ++r) {
        float* const to = out + r * stride;
        if (by.fair[r]) {
            sum_block<Isa, B, 1, Halves, 1>(values, v.count, first, columns, by.from(r, groups), to, stride);
        } else {
            whole_weights<2> finer[2];
            for (int g = 0; g < groups; ++g)
                weigh_row<Isa, B>(scales.of(group + g), v, weights + r * tile_slots, finer[g]);
            sum_block<Isa, B, 2, Halves, 1>(values, v.count, first, columns, {finer, finer + groups - 1}, to, stride);
        }
    }
}

/// accumulate of rows by weights of Bytes bytes.
template <class Isa, class B, packing Codes, int Bytes, bool Halves>
void accumulate_groups(coded_rows const& rows,
                       value_rows const& v,
                       float const* weights,
                       int query_rows,
                       float* out,
                       index_t stride) noexcept {
    row_format const& f       = rows.format;
    constexpr bool by_codes   = quant::detail::bits_of(Codes).top == 0;
    constexpr index_t columns = by_codes ? columns_at_once<B, Codes> : chunk;
    index_t const n = v.head_dim, group = group_of(f, n);
    auto const table = B::table_of(f, 0);
    rows_in_turns next(v.ahead, (v.count + 3) / 4 * butterfly::detail::ceil_div(n, columns));
    scales_in_turns scales(rows, v.count, n);
    weights_of_rows<Bytes, Halves> by;
    value_block values;
    for (int first = 0; first < query_rows; first += rows_of_weights, weights += rows_of_weights * tile_slots) {
        int const some      = std::min(rows_of_weights, query_rows - first);
        index_t weighed     = -1;                              // the first of the groups that `by` is of
        auto const sum_some = [&](index_t at, index_t count) { // of columns that stand in `values`
            for (index_t c = 0, part = 0; c < count; c += part) {
                index_t const g  = (at + c) / group;
                part             = std::min(count - c, Halves ? chunk : (g + 1) * group - (at + c));
                int const groups = Halves && part > half ? 2 : 1;
                if (g != weighed) by.template make<Isa, B>(scales, v, weights, some, weighed = g, groups);
                float* const to = out + first * stride + at + c;
                if constexpr (Bytes == 1)
                    if (!std::all_of(by.fair, by.fair + some, [](bool fair) { return fair; })) {
                        sum_apart<Isa, B>(by, scales, v, weights, some, g, groups, values, c, part, to, stride);
                        continue;
                    }
                by_rows<Isa>(some, false, [&](auto rows_at_once, int r, int) {
                    sum_block<Isa, B, Bytes, Halves, rows_at_once()>(values, v.count, c, part, by.from(r, groups),
                                                                     to + r * stride, stride);
                });
            }
        };
        index_t column = 0;
        if constexpr (by_codes) {
            values.columns = columns;
            for (index_t count = 0; n - column >= chunk; column += count) {
                count = std::min(columns, butterfly::detail::round_down(n - column, chunk));
                interleave_codes<B, Codes>(rows.codes, v.count, rows.codes_at + bytes_of<Codes>(column),
                                           bytes_of<Codes>(count), table, next, values);
                sum_some(column, count);
            }
        }
        values.columns = chunk;
        by_chunks(column, n, [&](index_t at, index_t count) {
            interleave_rows<B, Codes>(rows.codes, v.count, rows.codes_at + bytes_of<Codes>(at), count, table, next,
                                      values);
            sum_some(at, count);
        });
    }
}

/// The same, whatever the groups.
template <class Isa, class B, packing Codes, int Bytes>
void accumulate_rows(coded_rows const& rows,
                     value_rows const& v,
                     float const* weights,
                     int query_rows,
                     float* out,
                     index_t stride) noexcept {
    if (is_halved(rows.format))
        accumulate_groups<Isa, B, Codes, Bytes, true>(rows, v, weights, query_rows, out, stride);
    else
        accumulate_groups<Isa, B, Codes, Bytes, false>(rows, v, weights, query_rows, out, stride);
}

/// accumulate, from codes.
template <class Isa, class B, packing Codes>
void accumulate(value_rows const& v, float const* weights, int query_rows, float* out, index_t stride) noexcept {
    row_format const& f = format_of(v.codec);
    whole_tile const rows(v.rows, v.keys, v.count);
    accumulate_rows<Isa, B, Codes, weight_bytes<Codes>>(
        {f, &read_scales<Isa, B>, rows.at, rows.at, f.header_bytes(v.head_dim)}, v, weights, query_rows, out, stride);
}

} // namespace packed
} // namespace BUTTERFLY_ISA_NAMESPACE
} // namespace butterfly::backend::vec

#endif
