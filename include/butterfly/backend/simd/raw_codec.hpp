// SPDX-License-Identifier: MIT
#pragma once

// What the SIMD kernels know of a codec, and the raw codecs' leaf.
//
//   decode       rows -> floats in scratch                      every codec; all the tile class needs
//   score        dot products with packed rows, in place        null: decode to scratch, then f32 rows
//   accumulate   weighted sums of packed rows, in place         null: likewise
//   prepare      packs the queries for `score`                  null: it reads floats
//   settle       brings sums to the order and basis of rows     null: they are
//   tile         the unit of the tile class                     null: decode, then f32
//
// A codec with `decode` alone works. A user's codec may bring more through its own `simd_ops(Isa, codec)`, found by
// argument-dependent lookup.

#include <butterfly/backend/host/codec_ops.hpp>
#include <butterfly/backend/simd/batch.hpp>
#include <butterfly/backend/simd/tile_unit.hpp>
#include <butterfly/sdpa/problem.hpp>

#include <algorithm>
#include <cstdint>
#include <type_traits>

namespace butterfly::backend::vec {

// Plain data, the same in objects of every instruction set: it stands outside the inline namespace.

/// Query rows of the stream class: [rows][stride] floats, zeros from head_dim to stride, a multiple of query_padding.
/// Memory of rows up to a multiple of four may be read; what stands there means nothing.
struct stream_queries {
    float const* data;
    index_t stride;
    int rows;
    float scale             = 1.0F;
    std::byte const* packed = nullptr; // what `prepare` made of them, 4 * stride bytes for each row
};

/// Floats that rows of queries and outputs are padded to: the longest run of columns that a leaf works on.
inline constexpr index_t query_padding = 64;

/// Rows that will be read next: fetched while the present ones are worked on, row k beside present row k.
struct rows_ahead {
    std::byte const* const* rows = nullptr;
    int count                    = 0;
    index_t bytes                = 0;    // of one row
    index_t skip                 = 0;    // bytes from rows[k] to where row k stands
    index_t lead                 = 0;    // how far ahead of a page's turn its first lines are fetched; 0: they are not
    bool in_order                = true; // pieces_ahead takes them as they stand in memory

    static constexpr std::uintptr_t page = 4096;

    /// `size` bytes from `from` bytes after an address on, and the first lines of the page `lead` bytes after one that
    /// begins among them. Inlined, as vec::fetch.
    [[gnu::always_inline]] static void fetch(std::byte const* row, index_t from, index_t size, index_t lead) noexcept {
        auto const at = reinterpret_cast<std::uintptr_t>(row) + static_cast<std::uintptr_t>(from);
        if (auto const start = static_cast<index_t>(-at % page); lead != 0 && start < size)
            vec::fetch(row, from + start + lead, 192);
        vec::fetch(row, from, size);
    }
    [[gnu::always_inline]] void fetch(int k) const noexcept {
        if (k < count) fetch(rows[k], skip, bytes, lead);
    }
};

/// Packed key rows of a tile, those a row sees: [count].
struct key_rows {
    std::byte const* const* rows;
    int count;
    index_t head_dim;
    rows_ahead ahead{};
    void const* codec = nullptr; // storage_ref::codec_state
};

/// Packed value rows of a tile, and which of them to sum: rows[keys[k]] for k in [0, count), keys ascending.
struct value_rows {
    std::byte const* const* rows;
    int const* keys;
    int count;
    index_t head_dim;
    rows_ahead ahead{};
    void const* codec = nullptr; // storage_ref::codec_state
};

/// Rows ahead piece by piece, for `accumulate` to fetch one piece beside each key while it makes its passes over the
/// keys of a tile, a block of columns each. In the order in which they stand in memory, or else in each pass the
/// columns' share of all rows: prefetchers like the one or the other (read_probe.hpp).
class pieces_ahead {
public:
    /// A piece begins so many bytes from what rows_ahead::rows says of its row; null: there are no more in this pass.
    struct piece {
        std::byte const* row;
        index_t from;
    };

    pieces_ahead(rows_ahead const& ahead, index_t passes) noexcept
        : first_(ahead.rows), row_(ahead.rows), last_(ahead.rows + ahead.count), begin_(ahead.skip),
          end_(ahead.skip + ahead.bytes),
          size_(detail::round_up(detail::ceil_div(ahead.bytes, std::max<index_t>(passes, 1)), index_t{64})),
          step_(ahead.in_order ? size_ : ahead.bytes), lead_(ahead.lead), at_(ahead.skip) {}

    [[nodiscard]] piece take() noexcept {
        if (row_ == last_) return {nullptr, 0};
        piece const taken{*row_, at_};
        at_ += step_;
        if (at_ >= end_) {
            at_ = begin_;
            ++row_;
        }
        return taken;
    }
    [[gnu::always_inline]] void fetch_next() noexcept {
        if (piece const next = take(); next.row != nullptr) rows_ahead::fetch(next.row, next.from, size_, lead_);
    }
    void end_pass() noexcept {
        if (step_ == size_) return; // in order, or one pass
        at_  = begin_ += size_;
        row_ = begin_ < end_ ? first_ : last_;
    }

    /// Bytes of a piece, whole lines.
    [[nodiscard]] index_t size() const noexcept { return size_; }

private:
    std::byte const* const* first_;
    std::byte const* const* row_;
    std::byte const* const* last_;
    index_t begin_, end_; // of what is taken of each row
    index_t size_;
    index_t step_; // from one piece to the next
    index_t lead_;
    index_t at_;
};

/// The functions of one codec for one instruction set. `base` comes first, so that host code may read it as codec_ops.
/// Sums of a row depend on the row, its keys and where these stand in their tile, and on nothing beside them.
struct simd_codec_ops {
    host::codec_ops base;
    /// scores[r * tile_slots + k] = scale * <query r, row k> for k in [0, count).
    void (*score)(key_rows const&, stream_queries, float* scores) noexcept;
    /// out[r * stride + d] += sum over listed keys j of weights[r * tile_slots + j] * row_j[d]. Weights of keys that
    /// are not listed are zero.
    void (*accumulate)(value_rows const&, float const* weights, int query_rows, float* out, index_t stride) noexcept;
    /// Packs the rows of q for `score`, once for an item and its keys of this codec; null: it reads floats.
    void (*prepare)(void const* codec, stream_queries const& q, index_t head_dim, std::byte* packed) noexcept = nullptr;
    /// Brings sums that `accumulate` keeps in an order or a basis of its own to that of rows, once for a span; null:
    /// they are.
    void (*settle)(void const* codec, float* out, int query_rows, index_t head_dim, index_t stride) noexcept = nullptr;
    /// What multiplies rows in the tile class, decoded and rounded to its type where they are others; null: f32.
    tile_unit const* tile = nullptr;
    /// What multiplies in `score` and `accumulate`, for people.
    char const* unit = "f32";
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
        for (; d < head_dim; ++d) to[d] = element_at(row + d);
    }
}

namespace block {

/// Accumulators of a block of the stream class: four query rows of stream_keys each, or fewer rows of more.
template <class Isa>
inline constexpr int stream_sums = 4 * Isa::stream_keys;

/// sums[r * Keys + k] = scale * dot product of query r with row k. Each dot product has an accumulator of its own and
/// all are reduced by one tree, so how rows and keys are grouped changes no bit. The rows after the first `done` ones
/// are fetched between the products, one at a time: all at once they keep the products waiting (docs/kernels.md).
template <class Isa, class T, int Rows, int Keys, bool Ahead>
[[gnu::always_inline]] inline void dot_block(std::byte const* const* rows,
                                             index_t head_dim,
                                             float const* queries,
                                             index_t stride,
                                             f32<Isa> const& scale,
                                             rows_ahead const& ahead,
                                             int done,
                                             float* sums) noexcept {
    constexpr int all = Rows * Keys;
    f32<Isa> sum[all];
#pragma GCC unroll 16
    for (int i = 0; i < all; ++i) sum[i] = f32<Isa>(0.0F);
    index_t const whole = head_dim - head_dim % lanes<Isa>;
    int const end       = done + Keys;
    for (index_t d = 0; d < whole; d += lanes<Isa>) {
        if (Ahead && done < end && d % (2 * lanes<Isa>) == 0) ahead.fetch(done++);
        f32<Isa> key[Keys];
#pragma GCC unroll 16
        for (int k = 0; k < Keys; ++k) {
            f32<Isa> one = load_as<Isa>(reinterpret_cast<T const*>(rows[k]) + d);
            keep(one);
            key[k] = one;
        }
#pragma GCC unroll 16
        for (int r = 0; r < Rows; ++r) {
            f32<Isa> query = load_as<Isa>(queries + r * stride + d);
            keep(query);
#pragma GCC unroll 16
            for (int k = 0; k < Keys; ++k) sum[r * Keys + k] = fma(query, key[k], sum[r * Keys + k]);
        }
    }
    while (Ahead && done < end) ahead.fetch(done++);
    if (whole < head_dim) {
        f32<Isa> key[Keys];
#pragma GCC unroll 16
        for (int k = 0; k < Keys; ++k)
            key[k] = load_part<Isa>(reinterpret_cast<T const*>(rows[k]) + whole, head_dim - whole);
#pragma GCC unroll 16
        for (int r = 0; r < Rows; ++r) {
            f32<Isa> const query = load_as<Isa>(queries + r * stride + whole);
#pragma GCC unroll 16
            for (int k = 0; k < Keys; ++k) sum[r * Keys + k] = fma(query, key[k], sum[r * Keys + k]);
        }
    }
#pragma GCC unroll 16
    for (int g = 0; g < all; g += lanes<Isa>) (horizontal_sums(sum + g) * scale).store_aligned(sums + g);
}

/// scores[r * tile_slots + k] = scale * dot products of Rows queries with all rows. The last block repeats its last
/// row. Queries from `real` on are not stored.
template <class Isa, class T, int Rows, bool Ahead>
void score_rows(
    key_rows const& k, float const* queries, index_t stride, float scale, int real, float* scores) noexcept {
    constexpr int keys           = stream_sums<Isa> / Rows;
    std::byte const* const* rows = k.rows;
    index_t const head_dim       = k.head_dim;
    int const whole              = k.count - k.count % keys;
    rows_ahead const ahead       = k.ahead;
    f32<Isa> const factor(scale);
    alignas(64) float sums[Rows * keys];
    int j = 0;
    if (real == Rows) // a loop of its own, short enough for a block's sums to overlap with the next one's products
        for (; j < whole; j += keys) {
            dot_block<Isa, T, Rows, keys, Ahead>(rows + j, head_dim, queries, stride, factor, ahead, j, sums);
#pragma GCC unroll 16
            for (int r = 0; r < Rows; ++r)
                __builtin_memcpy(scores + r * tile_slots + j, sums + r * keys, keys * sizeof(float));
        }
    for (; j < k.count; j += keys) {
        int const count = std::min(keys, k.count - j);
        std::byte const* last[keys];
        for (int i = 0; i < keys; ++i) last[i] = rows[j + std::min(i, count - 1)];
        dot_block<Isa, T, Rows, keys, Ahead>(last, head_dim, queries, stride, factor, ahead, j, sums);
        for (int r = 0; r < real; ++r) std::copy_n(sums + r * keys, count, scores + r * tile_slots + j);
    }
}

/// Passes over columns, `wide` of them at a time and the last ones `narrow` at a time.
[[nodiscard]] constexpr index_t passes_over(index_t columns, index_t wide, index_t narrow) noexcept {
    return columns / wide + detail::ceil_div(columns % wide, narrow);
}

/// out += the weighted sum of the listed keys, in their order, over Rows rows and Vectors vectors of columns from
/// column d on. Sums stay in registers from the first key to the last. A column past the row's end is not read.
template <class Isa, class T, int Rows, int Vectors, bool Part, bool Ahead>
void sum_block(
    value_rows const& v, pieces_ahead& ahead, index_t d, float const* weights, float* out, index_t stride) noexcept {
    f32<Isa> sum[Rows * Vectors];
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 16
        for (int i = 0; i < Vectors; ++i) sum[r * Vectors + i] = load_as<Isa>(out + r * stride + d + i * lanes<Isa>);
    pieces_ahead next = ahead; // in registers
    for (int k = 0; k < v.count; ++k) {
        if constexpr (Ahead) next.fetch_next();
        auto const* const row = reinterpret_cast<T const*>(v.rows[v.keys[k]]) + d;
        f32<Isa> value[Vectors];
#pragma GCC unroll 16
        for (int i = 0; i < Vectors; ++i) {
            f32<Isa> one = Part ? load_part<Isa>(row, v.head_dim - d) : load_as<Isa>(row + i * lanes<Isa>);
            keep(one);
            value[i] = one;
        }
#pragma GCC unroll 16
        for (int r = 0; r < Rows; ++r) {
            f32<Isa> const weight(weights[r * tile_slots + v.keys[k]]);
#pragma GCC unroll 16
            for (int i = 0; i < Vectors; ++i) sum[r * Vectors + i] = fma(weight, value[i], sum[r * Vectors + i]);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 16
        for (int i = 0; i < Vectors; ++i) sum[r * Vectors + i].store_unaligned(out + r * stride + d + i * lanes<Isa>);
    if constexpr (Ahead) {
        next.end_pass();
        ahead = next;
    }
}

/// All columns of Rows rows.
template <class Isa, class T, int Rows, bool Ahead>
void sum_rows(value_rows const& v, float const* weights, float* out, index_t stride) noexcept {
    constexpr index_t wide = stream_sums<Isa> / Rows * lanes<Isa>;
    pieces_ahead ahead(v.ahead, passes_over(v.head_dim, wide, lanes<Isa>));
    index_t d = 0;
    for (; d + wide <= v.head_dim; d += wide)
        sum_block<Isa, T, Rows, stream_sums<Isa> / Rows, false, Ahead>(v, ahead, d, weights, out, stride);
    for (; d + lanes<Isa> <= v.head_dim; d += lanes<Isa>)
        sum_block<Isa, T, Rows, 1, false, Ahead>(v, ahead, d, weights, out, stride);
    if (d < v.head_dim) sum_block<Isa, T, Rows, 1, true, Ahead>(v, ahead, d, weights, out, stride);
}

/// f(block, first, real) for blocks of 4, 2 and 1 rows; where `Pad`, three rows are a block of four.
template <bool Pad, class F>
void by_rows(int rows, F const& f) noexcept {
    int r = 0;
    for (; rows - r >= (Pad ? 3 : 4); r += 4) f(std::integral_constant<int, 4>{}, r, std::min(4, rows - r));
    if (rows - r >= 2) {
        f(std::integral_constant<int, 2>{}, r, 2);
        r += 2;
    }
    if (rows - r == 1) f(std::integral_constant<int, 1>{}, r, 1);
}

} // namespace block

/// score, in place.
template <class Isa, class T>
void score_raw(key_rows const& k, stream_queries q, float* scores) noexcept {
    block::by_rows<true>(q.rows, [&](auto rows, int first, int real) {
        float const* const queries = q.data + first * q.stride;
        float* const to            = scores + first * tile_slots;
        if (first == 0 && k.ahead.count > 0)
            return block::score_rows<Isa, T, rows(), true>(k, queries, q.stride, q.scale, real, to);
        block::score_rows<Isa, T, rows(), false>(k, queries, q.stride, q.scale, real, to);
    });
}

/// accumulate, in place.
template <class Isa, class T>
void accumulate_raw(value_rows const& v, float const* weights, int query_rows, float* out, index_t stride) noexcept {
    block::by_rows<false>(query_rows, [&](auto rows, int first, int) {
        if (first == 0 && v.ahead.count > 0) return block::sum_rows<Isa, T, rows(), true>(v, weights, out, stride);
        block::sum_rows<Isa, T, rows(), false>(v, weights + first * tile_slots, out + first * stride, stride);
    });
}

template <class Isa, class T>
inline constexpr simd_codec_ops raw_ops{{&decode_raw<Isa, T>}, &score_raw<Isa, T>, &accumulate_raw<Isa, T>};

template <class Isa, quant::decoder Codec>
inline constexpr simd_codec_ops foreign_ops{{&host::decode_rows<Codec>}, nullptr, nullptr};

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
