// SPDX-License-Identifier: MIT
#pragma once

// Scores from codes: the first product of packed.hpp. Keys stand in lanes: four bytes of each of 8 to 32 rows are
// brought into vectors, unpacked there, and multiplied by four bytes of a query, the same for all keys, so that no sum
// goes across lanes. Rejected: keys row by row and a sum over the lanes of each product, 1.1 times the time of a decode
// step at 2 bits; four blocks of keys at once, whose sums do not stay in registers, up to 1.1 times at 4 (Zen 5,
// head_dim 128, 4 query heads, one thread).

#include <butterfly/backend/simd/codec/packed.hpp>

#if defined(__AVX2__) || defined(__aarch64__)

namespace butterfly::backend::vec {
inline namespace BUTTERFLY_ISA_NAMESPACE {
namespace packed {

/// Query rows as the products read them.
struct query_rows {
    std::byte const* bytes;
    index_t stride; // from row to row
    index_t lower;  // from a byte to the lower one of its value

    [[nodiscard]] query_rows at(index_t value) const noexcept { return {bytes + value, stride, lower}; }
};

/// products[r * tile_slots + key] += products of Rows queries, of Bytes bytes, with blocks of keys.
template <class Isa, class B, int Rows, int Bytes, int Blocks>
struct key_sums {
    typename B::type sum[Rows * Bytes][Blocks];
    rows_in_turns& next;

    explicit key_sums(rows_in_turns& ahead) noexcept : next(ahead) { clear(); }

    [[gnu::always_inline]] void clear() noexcept {
#pragma GCC unroll 8
        for (int r = 0; r < Rows * Bytes; ++r)
#pragma GCC unroll 2
            for (int i = 0; i < Blocks; ++i) sum[r][i] = B::zero();
    }
    /// Four values of every key times those of the queries.
    [[gnu::always_inline]] void add(typename B::type const* levels, query_rows const& q) noexcept {
        next.fetch_some();
#pragma GCC unroll 8
        for (int r = 0; r < Rows * Bytes; ++r) {
            std::byte const* const at    = q.bytes + r / Bytes * q.stride + r % Bytes * q.lower;
            typename B::type const query = B::four_weights(load_integer<std::uint32_t>(at, 4));
#pragma GCC unroll 2
            for (int i = 0; i < Blocks; ++i) sum[r][i] = B::dot(sum[r][i], levels[i], query);
        }
    }
    [[gnu::always_inline]] void store(float* products) const noexcept {
#pragma GCC unroll 4
        for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 2
            for (int i = 0; i < Blocks; ++i) {
                f32<Isa> whole = B::template to_float<Isa>(sum[r * Bytes][i]);
                if constexpr (Bytes == 2)
                    whole = fma(whole, f32<Isa>(static_cast<float>(query_digit)),
                                B::template to_float<Isa>(sum[r * Bytes + 1][i]));
                whole.store_unaligned(products + r * tile_slots + i * B::keys);
            }
    }
};

/// Adds the products of a whole chunk, whose codes begin `at` bytes from the rows. Values four by four: those that
/// stand in the same bytes come from one load. Where Halves, those of one half after those of the other, and
/// at_half(i) is called after each.
template <class Isa, class B, packing Codes, bool Halves, int Rows, int Bytes, int Blocks, class F>
[[gnu::always_inline]] inline void add_chunk(std::byte const* const* rows,
                                             index_t at,
                                             typename B::table const& table,
                                             query_rows const& queries,
                                             key_sums<Isa, B, Rows, Bytes, Blocks>& sums,
                                             F const& at_half) noexcept {
    using vector             = typename B::type;
    constexpr auto bits      = quant::detail::bits_of(Codes);
    constexpr int planes     = 8 / bits.plane;
    constexpr int plane      = static_cast<int>(chunk) / planes; // bytes
    constexpr int blocks     = plane / 16;
    constexpr bool by_planes = Halves && planes == 2; // whose halves are planes
    constexpr int kept       = by_planes ? blocks : 1;
    [[maybe_unused]] vector tops[Blocks][2];
    if constexpr (bits.top != 0)
#pragma GCC unroll 2
        for (int i = 0; i < Blocks; ++i) B::load_keys_of_8(rows + i * B::keys, at + plane, tops[i]);
    vector codes[kept][Blocks][4];
    unrolled<static_cast<int>(chunk) / 4>([&](auto step) __attribute__((always_inline)) {
        constexpr int w     = step() % 4; // four bytes of a block
        constexpr int p     = by_planes ? step() / 4 / blocks : step() / 4 % planes;
        constexpr int block = by_planes ? step() / 4 % blocks : step() / 4 / planes;
        constexpr int value = p * plane + 16 * block + 4 * w; // the first of the four
        constexpr int mask  = (1 << bits.plane) - 1;
        if constexpr (p == 0 && w == 0)
#pragma GCC unroll 2
            for (int i = 0; i < Blocks; ++i) B::load_keys(rows + i * B::keys, at + 16 * block, codes[block % kept][i]);
        vector levels[Blocks];
#pragma GCC unroll 2
        for (int i = 0; i < Blocks; ++i) {
            vector const four = codes[block % kept][i][w];
            if constexpr (Codes == packing::bits8) {
                levels[i] = B::biased(four, B::bias);
            } else {
                vector const code = B::both(B::template down<p * bits.plane>(four), mask);
                if constexpr (bits.top == 0) {
                    levels[i] = B::look_up(table, code);
                } else { // bit value / 8 of the byte value % 8
                    vector const top = B::both(B::template down<value / 8>(tops[i][w % 2]), 1);
                    levels[i] =
                        bits.plane == 4 ? B::look_up(table, code, top) : B::look_up(table, B::with_top(code, top));
                }
            }
        }
        sums.add(levels, queries.at(value));
        if constexpr (Halves && value % half == half - 4) at_half(value / half);
    });
}

/// Adds the products of the 16 or 32 values that end a row, unpacked row by row.
template <class Isa, class B, packing Codes, int Rows, int Bytes, int Blocks>
void add_rest(std::byte const* const* rows,
              index_t at,
              index_t count,
              typename B::table const& table,
              query_rows const& queries,
              key_sums<Isa, B, Rows, Bytes, Blocks>& sums) noexcept {
    alignas(64) std::byte unpacked[Blocks * B::keys][chunk];
    std::byte const* bytes[Blocks * B::keys];
    for (int k = 0; k < Blocks * B::keys; ++k) {
        typename B::type levels[B::vectors];
        B::template unpack<Codes>(rows[k] + at, count, table, B::bias, levels);
        for (int v = 0; v < B::vectors; ++v) B::store(levels[v], unpacked[k] + v * B::size);
        bytes[k] = unpacked[k];
    }
    for (index_t block = 0; block < count; block += 16) {
        typename B::type levels[Blocks][4];
        for (int i = 0; i < Blocks; ++i) B::load_keys(bytes + i * B::keys, block, levels[i]);
        for (int w = 0; w < 4; ++w) {
            typename B::type four[Blocks];
            for (int i = 0; i < Blocks; ++i) four[i] = levels[i][w];
            sums.add(four, queries.at(block + 4 * w));
        }
    }
}

/// A tile of keys as the products of one group read it, or those of the two groups of a chunk: rows up to a multiple
/// of two blocks, the last one repeated.
template <class B>
struct score_tile {
    std::byte const* const* rows;
    int count;
    typename B::table const& table;
    index_t codes_at;   // from a row's start
    index_t begin, end; // values
};

/// products[r * tile_slots + k] of Rows queries with all rows; where Halves, behind them those of the second group.
template <class Isa, class B, packing Codes, int Bytes, bool Halves, int Rows>
void dot_rows(score_tile<B> const& t, query_rows const& queries, rows_in_turns& next, float* products) noexcept {
    constexpr int blocks = 2;
    for (int k = 0; k < t.count; k += blocks * B::keys) {
        key_sums<Isa, B, Rows, Bytes, blocks> sums(next);
        auto const at_half = [&](index_t i) __attribute__((always_inline)) {
            sums.store(products + i * Rows * tile_slots + k);
            sums.clear();
        };
        index_t first = t.begin;
        for (; t.end - first >= chunk; first += chunk)
            add_chunk<Isa, B, Codes, Halves>(t.rows + k, t.codes_at + bytes_of<Codes>(first), t.table,
                                             queries.at(first), sums, at_half);
        if (first < t.end)
            by_chunks(first, t.end, [&](index_t at, index_t count) {
                add_rest<Isa, B, Codes>(t.rows + k, t.codes_at + bytes_of<Codes>(at), count, t.table, queries.at(at),
                                        sums);
                if constexpr (Halves) at_half((at - t.begin) / half);
            });
        if constexpr (!Halves) sums.store(products + k);
    }
}

/// score. LeastBytes: of a value, of all queries.
template <class Isa, class B, packing Codes, int LeastBytes, bool Halves>
void score_groups(coded_rows const& coded, key_rows const& k, stream_queries const& q, float* scores) noexcept {
    row_format const& f = coded.format;
    constexpr int most  = Halves ? 2 : 1; // groups at once
    query_layout const layout(f, k.head_dim);
    index_t const stride = 4 * q.stride, group = group_of(f, k.head_dim), groups = f.groups(k.head_dim);
    auto const table = B::table_of(f, B::bias);
    whole_tile const rows(coded.codes, nullptr, k.count);
    rows_in_turns next(k.ahead, (k.count + 2 * B::keys - 1) / (2 * B::keys) * (k.head_dim / 4));
    scales_in_turns scales(coded, k.count, k.head_dim);
    for (index_t g = 0; g < groups; g += most) {
        int const some = static_cast<int>(std::min<index_t>(most, groups - g));
        score_tile<B> const tile{rows.at,        k.count,   table,
                                 coded.codes_at, g * group, std::min((g + some) * group, k.head_dim)};
        by_rows<Isa>(q.rows, true, [&](auto rows_at_once, int first, int real) {
            alignas(64) float products[most * rows_at_once() * tile_slots];
            std::byte const* const queries = q.packed + first * stride;
            query_rows const bytes{queries + layout.bytes_at, stride, k.head_dim};
            bool const lower = LeastBytes == 2 || bytes_of_all(queries, stride, real) == 2;
            if (lower)
                dot_rows<Isa, B, Codes, 2, Halves, rows_at_once()>(tile, bytes, next, products);
            else if constexpr (LeastBytes == 1)
                dot_rows<Isa, B, Codes, 1, Halves, rows_at_once()>(tile, bytes, next, products);
            f32<Isa> const digit(lower ? 1.0F : static_cast<float>(query_digit));
            for (int r = 0; r < real; ++r) {
                std::byte const* const header = queries + r * stride;
                f32<Isa> const unit(q.scale * header_at(header, query_layout::unit));
                float* const to = scores + (first + r) * tile_slots;
                for (int i = 0; i < some; ++i) {
                    tile_scales const& s       = scales.of(g + i);
                    float const* const product = products + (i * rows_at_once() + r) * tile_slots;
                    f32<Isa> const bias(-B::bias * header_at(header, query_layout::sum_of_bytes(g + i)));
                    f32<Isa> const sum(header_at(header, query_layout::sum_of_values(g + i)));
                    for (int j = 0; j < k.count; j += lanes<Isa>) {
                        f32<Isa> const level  = fma(f32<Isa>::load_aligned(product + j), digit, bias);
                        f32<Isa> const scale  = f32<Isa>::load_aligned(s.scale + j) * unit; // first: both may be large
                        f32<Isa> const lifted = f32<Isa>::load_aligned(s.lift + j) * unit * sum;
                        f32<Isa> const dot    = fma(level, scale, lifted);
                        (g + i == 0 ? dot : dot + load_as<Isa>(to + j)).store_unaligned(to + j);
                    }
                }
            }
        });
    }
}

/// The same, whatever the groups.
template <class Isa, class B, packing Codes, int LeastBytes>
void score_rows(coded_rows const& coded, key_rows const& k, stream_queries const& q, float* scores) noexcept {
    if (is_halved(coded.format))
        score_groups<Isa, B, Codes, LeastBytes, true>(coded, k, q, scores);
    else
        score_groups<Isa, B, Codes, LeastBytes, false>(coded, k, q, scores);
}

/// score, from codes.
template <class Isa, class B, packing Codes>
void score(key_rows const& k, stream_queries q, float* scores) noexcept {
    row_format const& f       = format_of(k.codec);
    constexpr int least_bytes = Codes == packing::bits8 ? 2 : 1;
    score_rows<Isa, B, Codes, least_bytes>({f, &read_scales<Isa, B>, k.rows, k.rows, f.header_bytes(k.head_dim)}, k, q,
                                           scores);
}

} // namespace packed
} // namespace BUTTERFLY_ISA_NAMESPACE
} // namespace butterfly::backend::vec

#endif
