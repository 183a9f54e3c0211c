// SPDX-License-Identifier: MIT
#pragma once

// Sums from codes: the second product of packed.hpp. Rows of four keys are interleaved byte by byte, so that a product
// of bytes sums over keys, and unpacked once for all query rows; of codes whose bits stand in the same planes, the
// codes are interleaved and then unpacked, a quarter or half as many.

#include <butterfly/backend/simd/codec/packed.hpp>

#if defined(__AVX2__) || defined(__aarch64__)

namespace butterfly::backend::vec {
inline namespace BUTTERFLY_ISA_NAMESPACE {
namespace packed {

/// Weights of a row over a tile in whole numbers of `Bytes` bytes, four keys next to each other in each.
template <int Bytes>
struct whole_weights {
    alignas(64) std::uint8_t bytes[Bytes][tile_slots]; // the lowest first
    float unit;                                        // of the lowest
    float lifted;                                      // sum_k a_k * zero_k
    bool fair;                                         // whether rounding kept the sum of a_k
};

template <class Isa, class B, int Bytes>
void weigh_row(tile_scales const& s, value_rows const& v, float const* weights, whole_weights<Bytes>& to) noexcept {
    constexpr int digit = B::weight_top + 1, top = Bytes == 1 ? B::weight_top : digit * digit - 1;
    alignas(64) float a[tile_slots];
    bool const first_ones = v.keys[v.count - 1] == v.count - 1;
    for (int k = 0; k < v.count; ++k) a[k] = weights[first_ones ? k : v.keys[k]];
    std::fill(a + v.count, a + tile_slots, 0.0F);
    f32<Isa> most(0.0F), least(0.0F), all(0.0F), lifted(0.0F);
    for (int k = 0; k < tile_slots; k += lanes<Isa>) {
        f32<Isa> const x = f32<Isa>::load_aligned(a + k) * f32<Isa>::load_aligned(s.scale + k);
        x.store_aligned(a + k);
        most   = xsimd::max(most, x);
        least  = xsimd::min(least, x);
        all    = all + x;
        lifted = fma(x, f32<Isa>::load_aligned(s.zero + k), lifted);
    }
    float const largest = horizontal_max(most), sum = horizontal_sum(all);
    to.lifted = horizontal_sum(lifted);
    to.fair   = true;
    if (!(sum <= std::numeric_limits<float>::max()) || xsimd::any(least < f32<Isa>(0.0F))) {
        std::memset(to.bytes, 0, sizeof to.bytes);
        to.lifted = to.unit = std::numeric_limits<float>::quiet_NaN();
        return;
    }
    float const lift  = largest < 0x1p-60F ? 0x1p80F : 1.0F; // so that a quotient of small weights does not overflow
    float const by    = largest > 0.0F ? static_cast<float>(top) / (largest * lift) : 0.0F;
    to.unit           = largest / static_cast<float>(top);
    std::int32_t kept = 0;
    for (int k = 0; k < tile_slots; ++k) {
        float const x    = a[k] * lift * by + 0.5F;
        auto const whole = static_cast<std::int32_t>(x < static_cast<float>(top) ? x : static_cast<float>(top));
        to.bytes[0][k]   = static_cast<std::uint8_t>(Bytes == 1 ? whole : whole % digit);
        if constexpr (Bytes == 2) to.bytes[1][k] = static_cast<std::uint8_t>(whole / digit);
        kept += whole;
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

/// out[r][column] += unit_r * sums of products of Rows rows of weights with a block, + what zeros add.
template <class Isa, class B, int Bytes, int Rows>
void sum_block(value_block const& values,
               int count,
               index_t columns,
               whole_weights<Bytes> const* weights,
               float* out,
               index_t stride) noexcept {
    constexpr int wide          = 4 / Bytes; // vectors of columns in registers
    constexpr int digit         = B::weight_top + 1;
    constexpr index_t of_vector = B::size / 4;
    for (index_t c = 0; c < columns; c += wide * of_vector) {
        typename B::type sum[Rows * wide * Bytes];
#pragma GCC unroll 16
        for (int i = 0; i < Rows * wide * Bytes; ++i) sum[i] = B::zero();
        for (int k = 0; k < count; k += 4) {
            typename B::type value[wide];
#pragma GCC unroll 4
            for (int i = 0; i < wide; ++i) value[i] = B::load(values.at(k, c) + i * B::size);
#pragma GCC unroll 4
            for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 2
                for (int b = 0; b < Bytes; ++b) {
                    typename B::type const four = B::four_weights(
                        load_integer<std::uint32_t>(reinterpret_cast<std::byte const*>(weights[r].bytes[b] + k), 4));
#pragma GCC unroll 4
                    for (int i = 0; i < wide; ++i) {
                        int const at = (r * wide + i) * Bytes + b;
                        sum[at]      = B::weigh(sum[at], four, value[i]);
                    }
                }
        }
        for (int r = 0; r < Rows; ++r) {
            f32<Isa> const unit(weights[r].unit), lifted(weights[r].lifted);
            for (int i = 0; i < wide && c + i * of_vector < columns; ++i) {
                float* const to = out + r * stride + c + i * of_vector;
                int const at    = (r * wide + i) * Bytes;
                f32<Isa> whole  = B::template to_float<Isa>(sum[at]);
                if constexpr (Bytes == 2)
                    whole = fma(B::template to_float<Isa>(sum[at + 1]), f32<Isa>(static_cast<float>(digit)), whole);
                (load_as<Isa>(to) + fma(whole, unit, lifted)).store_unaligned(to);
            }
        }
    }
}

/// sum_block of single rows, each by as many bytes as keep the sum of its weights.
template <class Isa, class B>
[[gnu::noinline]] void sum_rows(tile_scales const& s,
                                value_rows const& v,
                                float const* weights,
                                value_block const& values,
                                index_t columns,
                                whole_weights<1> const* whole,
                                int first,
                                int some,
                                float* out,
                                index_t stride) noexcept {
    for (int r = 0; r < some; ++r) {
        float* const to = out + (first + r) * stride;
        if (whole[r].fair) {
            sum_block<Isa, B, 1, 1>(values, v.count, columns, whole + r, to, stride);
        } else {
            whole_weights<2> finer;
            weigh_row<Isa, B>(s, v, weights + (first + r) * tile_slots, finer);
            sum_block<Isa, B, 2, 1>(values, v.count, columns, &finer, to, stride);
        }
    }
}

/// Query rows whose weights are made at once: for them values are unpacked once.
inline constexpr int rows_of_weights = 16;

/// Bytes of a weight: two where one would be coarser than the codes.
template <packing Codes>
inline constexpr int weight_bytes = Codes == packing::bits8 ? 2 : 1;

/// The listed rows of a tile, and where their codes stand: `codes_at` bytes from `codes`, up to tile_slots of them.
struct summed_rows {
    std::byte const* const* at;
    std::byte const* const* codes;
    index_t codes_at;
};

/// accumulate of rows of a format, by weights of Bytes bytes.
template <class Isa, class B, packing Codes, int Bytes>
void accumulate_rows(row_format const& f,
                     value_rows const& v,
                     summed_rows const& rows,
                     float const* weights,
                     int query_rows,
                     float* out,
                     index_t stride) noexcept {
    constexpr index_t columns = quant::detail::bits_of(Codes).top == 0 ? columns_at_once<B, Codes> : chunk;
    index_t const group       = group_of(f, v.head_dim);
    auto const table          = B::table_of(f, 0);
    rows_in_turns next(v.ahead, (v.count + 3) / 4 * butterfly::detail::ceil_div(v.head_dim, columns));
    tile_scales s;
    value_block values;
    for (index_t g = 0; g < f.groups(v.head_dim); ++g) {
        s.load<Isa>(f, rows.at, v.count, g);
        for (int first = 0; first < query_rows; first += rows_of_weights) {
            int const some = std::min(rows_of_weights, query_rows - first);
            whole_weights<Bytes> whole[rows_of_weights];
            bool fair = true;
            for (int r = 0; r < some; ++r) {
                weigh_row<Isa, B>(s, v, weights + (first + r) * tile_slots, whole[r]);
                fair = fair && (Bytes == 2 || whole[r].fair);
            }
            auto const sum_columns = [&](index_t column, index_t count) {
                if constexpr (Bytes == 1)
                    if (!fair)
                        return sum_rows<Isa, B>(s, v, weights, values, count, whole, first, some, out + column, stride);
                by_rows<Isa>(some, false, [&](auto rows_at_once, int r, int) {
                    sum_block<Isa, B, Bytes, rows_at_once()>(values, v.count, count, whole + r,
                                                             out + (first + r) * stride + column, stride);
                });
            };
            index_t column    = g * group;
            index_t const end = std::min(column + group, v.head_dim);
            if constexpr (quant::detail::bits_of(Codes).top == 0) {
                values.columns = columns;
                for (index_t count = 0; end - column >= chunk; column += count) {
                    count = std::min(values.columns, butterfly::detail::round_down(end - column, chunk));
                    interleave_codes<B, Codes>(rows.codes, v.count, rows.codes_at + bytes_of<Codes>(column),
                                               bytes_of<Codes>(count), table, next, values);
                    sum_columns(column, count);
                }
            }
            values.columns = chunk;
            by_chunks(column, end, [&](index_t at, index_t count) {
                interleave_rows<B, Codes>(rows.codes, v.count, rows.codes_at + bytes_of<Codes>(at), count, table, next,
                                          values);
                sum_columns(at, count);
            });
        }
    }
}

/// accumulate, from codes.
template <class Isa, class B, packing Codes>
void accumulate(value_rows const& v, float const* weights, int query_rows, float* out, index_t stride) noexcept {
    row_format const& f = format_of(v.codec);
    whole_tile const rows(v.rows, v.keys, v.count);
    accumulate_rows<Isa, B, Codes, weight_bytes<Codes>>(f, v, {rows.at, rows.at, f.header_bytes(v.head_dim)}, weights,
                                                        query_rows, out, stride);
}

} // namespace packed
} // namespace BUTTERFLY_ISA_NAMESPACE
} // namespace butterfly::backend::vec

#endif
