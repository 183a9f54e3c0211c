// SPDX-License-Identifier: MIT
#pragma once

// The leaf of packed rows (quant/row_format.hpp): scores and sums from codes, by products of bytes.
//
//   prepare      q' = R q (where rows are rotated), in bytes with one scale:  q' ~ unit * (128 h + l),  l = 0 where one
//                byte is fine enough
//   score        s_k = scale * sum_g (scale_kg * unit * <b, level_k>_g + lift_kg * sum(q')_g)        g: groups
//   accumulate   of a tile and group: a_k = w_k * scale_kg in whole numbers u_k of one unit a row;
//                out += unit * sum_k u_k * level_k, in int32, + sum_k w_k * lift_kg                  lift: scale * zero
//   settle       out = R^T out (where rows are rotated), once for a span
//
// equals score_raw and accumulate_raw (raw_codec.hpp) of the decoded rows, up to the roundings of
//
//   a query      to 1/254 of its largest channel, after the rotation; to 1/32512 where codes have eight bits, and where
//                that channel is more than 8 times a common one: keys may be small in it, and then the others count as
//                much, which its steps would swallow; to zeros where 1/32512 of it is subnormal
//   a weight     to 1/(2 top) of the largest a_k of its tile: top is 255, or 127 where bytes are multiplied signed by
//                signed or pairs of products are 16 bits; that times 257 or 129, in two bytes, where codes have eight
//                bits, and where one byte would shift the sum of a row's weights by more than 1/128 of it: many that
//                one byte rounds to nothing beside a heavy one
//
// Sums of bytes are exact, so that no grouping of keys or rows changes a bit. A query that is not finite gets scores
// that are NaN, and so do keys whose scale is NaN; an infinite one gives infinities or NaN. A scale that is NaN,
// infinite or negative makes its sums NaN.
//
// Why this shape: a row of 4 bits and 128 values is 66 bytes, which memory brings in a few cycles; four query heads
// take 32 products of floats each way, and 8 of bytes. Levels come by a byte shuffle. Values of four keys are
// interleaved, so that a product sums over keys, once for all query rows.

#include <butterfly/backend/simd/bytes.hpp>
#include <butterfly/backend/simd/raw_codec.hpp>
#include <butterfly/backend/simd/rotate.hpp>

#include <array>
#include <bit>
#include <cmath>
#include <utility>

#if defined(__AVX2__) || defined(__aarch64__)

namespace butterfly::backend::vec {
inline namespace BUTTERFLY_ISA_NAMESPACE {
namespace packed {

using quant::packing;
using quant::row_format;

/// Values of a chunk.
inline constexpr index_t chunk = 64;

[[nodiscard]] inline row_format const& format_of(void const* codec) noexcept {
    return *static_cast<row_format const*>(codec);
}

/// Values of a group of rows of n.
[[nodiscard]] inline index_t group_of(row_format const& f, index_t n) noexcept {
    return f.group == 0 ? n : std::min(f.group, n);
}

/// The least group whose values are scored and summed here: half a chunk.
inline constexpr index_t half = chunk / 2;

/// Whether rows are scored and summed here.
[[nodiscard]] inline bool is_served(row_format const& f) noexcept {
    return f.group % chunk == 0 || f.group == half;
}

/// Whether the two halves of a chunk are of two groups, each of one.
[[nodiscard]] inline bool is_halved(row_format const& f) noexcept {
    return f.group == half;
}

/// Bytes of the codes of `count` values.
template <packing Codes>
[[nodiscard]] constexpr index_t bytes_of(index_t count) noexcept {
    return quant::detail::code_bytes(Codes, count);
}

/// Calls f(first, count) for the chunks of values [begin, end): of 64, then of 32 and 16. `begin` is a multiple of 64.
template <class F>
[[gnu::always_inline]] inline void by_chunks(index_t begin, index_t end, F const& f) noexcept {
    for (; end - begin >= chunk; begin += chunk) f(begin, chunk);
    if (end - begin >= 32) {
        f(begin, index_t{32});
        begin += 32;
    }
    if (begin < end) f(begin, index_t{16});
}

/// What the first byte of a value of a query is worth: 128 times the second.
inline constexpr int query_digit = 128;

/// A query whose largest channel is more than so many times what its channels are is taken in two bytes. Of N(0, 1) it
/// is four times at 128 channels, and of queries of a language model, after RoPE, at most nine.
inline constexpr float one_byte_spread = 8.0F;

/// Where the parts of a prepared query stand, in bytes: | unit f32 | bytes f32 | two sums f32 of each group | n bytes |
/// n lower bytes |. One sum is of the bytes, for levels that a bias lifts; the other of the values themselves, in
/// units, for zeros: these may be large against the levels, and what rounding does to a sum of values with them.
struct query_layout {
    index_t bytes_at;

    query_layout(row_format const& f, index_t n) noexcept
        : bytes_at(butterfly::detail::round_up(4 * (2 + 2 * f.groups(n)), chunk)) {}

    static constexpr index_t unit  = 0; // numbers of floats; of the lower byte
    static constexpr index_t bytes = 1; // of a value, that count: one, or two
    [[nodiscard]] static constexpr index_t sum_of_bytes(index_t group) noexcept { return 2 + 2 * group; }
    [[nodiscard]] static constexpr index_t sum_of_values(index_t group) noexcept { return 3 + 2 * group; }
};

/// Calls f(integral_constant<int, i>) for i in [0, Count), unrolled.
template <int Count, class F>
[[gnu::always_inline]] inline void unrolled(F const& f) noexcept {
    [&]<int... I>(std::integer_sequence<int, I...>) __attribute__((always_inline)) {
        (f(std::integral_constant<int, I>{}), ...);
    }
    (std::make_integer_sequence<int, Count>{});
}

/// A float of a prepared query's header.
[[nodiscard]] inline float header_at(std::byte const* query, index_t number) noexcept {
    return element_at(reinterpret_cast<float const*>(query) + number);
}
inline void set_header(std::byte* query, index_t number, float value) noexcept {
    std::memcpy(query + 4 * number, &value, sizeof value);
}

/// What the channels of a query are: the square of the mean of their roots, which few large ones hardly move.
template <class Isa>
[[nodiscard]] float common_size(float const* row, index_t n) noexcept {
    f32<Isa> roots(0.0F);
    for (index_t d = 0; d < n; d += lanes<Isa>) roots = roots + xsimd::sqrt(xsimd::abs(load_as<Isa>(row + d)));
    float const mean = horizontal_sum(roots) / static_cast<float>(n);
    return mean * mean;
}

/// Queries for rows of a format, their values in at least so many bytes.
template <class Isa>
void prepare_rows(
    row_format const& f, int least_bytes, stream_queries const& q, index_t n, std::byte* packed) noexcept {
    constexpr int top = 127 * query_digit;
    query_layout const layout(f, n);
    for (int r = 0; r < q.rows; ++r) {
        float const* row   = q.data + r * q.stride;
        float const common = common_size<Isa>(row, n);
        float rotated[quant::longest_row]; // rows that are rotated are no longer
        if (f.rotated) {
            std::copy_n(row, n, rotated);
            quant::rotation{f.seed}.forward(rotated, n);
            row = rotated;
        }
        float largest = 0.0F;
        bool finite   = true;
        for (index_t d = 0; d < n; ++d) {
            float const size = std::fabs(row[d]);
            largest          = size > largest ? size : largest;
            finite           = finite && size <= std::numeric_limits<float>::max(); // which NaN is not
        }
        float unit = finite ? largest / static_cast<float>(top) : std::numeric_limits<float>::quiet_NaN();
        if (unit < std::numeric_limits<float>::min()) unit = 0.0F; // which is rounded itself
        bool const fine  = least_bytes == 2 || largest > one_byte_spread * common;
        float const step = fine ? unit : unit * query_digit;

        std::byte* const to    = packed + r * 4 * q.stride;
        std::byte* const bytes = to + layout.bytes_at;
        index_t const group    = group_of(f, n);
        set_header(to, query_layout::unit, unit);
        set_header(to, query_layout::bytes, fine ? 2.0F : 1.0F);
        for (index_t begin = 0, g = 0; begin < n; begin += group, ++g) {
            int sum      = 0;
            double exact = 0.0;
            for (index_t i = begin; i < std::min(begin + group, n); ++i) {
                float const x  = finite && unit > 0.0F ? row[i] / step : 0.0F;
                int const near = static_cast<int>(x + (x < 0.0F ? -0.5F : 0.5F)) * (fine ? 1 : query_digit);
                int const high = (near + (near < 0 ? -64 : 64)) / query_digit;
                bytes[i]       = static_cast<std::byte>(high);
                bytes[n + i]   = static_cast<std::byte>(near - high * query_digit);
                sum += near;
                exact += static_cast<double>(x);
            }
            set_header(to, query_layout::sum_of_bytes(g), static_cast<float>(sum));
            set_header(to, query_layout::sum_of_values(g), static_cast<float>(fine ? exact : exact * query_digit));
        }
    }
}

template <class Isa, packing Codes>
void prepare(void const* codec, stream_queries const& q, index_t n, std::byte* packed) noexcept {
    prepare_rows<Isa>(format_of(codec), Codes == packing::bits8 ? 2 : 1, q, n, packed);
}

/// Bytes of a value that products of these prepared queries need.
[[nodiscard]] inline int bytes_of_all(std::byte const* queries, index_t stride, int rows) noexcept {
    float most = 1.0F;
    for (int r = 0; r < rows; ++r) most = std::max(most, header_at(queries + r * stride, query_layout::bytes));
    return static_cast<int>(most);
}

/// f(block, first, real) for blocks of as many rows as have registers, and single ones; where `pad`, the last block may
/// have fewer rows than it says.
template <class Isa, class F>
void by_rows(int rows, bool pad, F const& f) noexcept {
    constexpr int most = block::stream_sums<Isa> / 4;
    int r              = 0;
    for (; rows - r >= (pad ? 2 : most); r += most) f(std::integral_constant<int, most>{}, r, std::min(most, rows - r));
    for (; r < rows; ++r) f(std::integral_constant<int, 1>{}, r, 1);
}

/// The rows of a tile, listed or the first ones, and the last of them over and over up to tile_slots.
struct whole_tile {
    std::byte const* const* at;
    std::byte const* copied[tile_slots];

    whole_tile(std::byte const* const* rows, int const* keys, int count) noexcept : at(rows) {
        if (count == tile_slots) return;
        for (int k = 0; k < count; ++k) copied[k] = rows[keys != nullptr ? keys[k] : k];
        std::fill(copied + count, copied + tile_slots, copied[count - 1]);
        at = copied;
    }
    whole_tile(whole_tile const&) = delete;
};

/// Rows ahead in turns: all at once they would keep the products waiting (docs/kernels.md).
struct rows_in_turns {
    rows_ahead ahead{};
    int at_once = 0;
    int done    = 0;

    /// `turns`: how often fetch_some will be called.
    rows_in_turns(rows_ahead const& rows, index_t turns) noexcept
        : ahead(rows), at_once(static_cast<int>(butterfly::detail::ceil_div(rows.count, std::max<index_t>(turns, 1)))) {
    }

    [[gnu::always_inline]] void fetch_some() noexcept {
        for (int i = 0; i < at_once && done < ahead.count; ++i) ahead.fetch(done++);
    }
};

/// Scales of one group of the rows of a tile, and what lifts its values: scale * zero. Zeros behind the rows.
struct tile_scales {
    alignas(64) float scale[tile_slots];
    alignas(64) float lift[tile_slots];
};

/// Groups whose scales are read at once: with zeros, 16 bytes of a row.
inline constexpr int groups_at_once = 4;

/// Reads those of groups [g, g + some), and writes zeros behind the rows: weights that stand there count for nothing.
using scale_reader = void (*)(
    row_format const& f, std::byte const* const* rows, int count, index_t g, int some, tile_scales* to) noexcept;

/// both[i]: words 4 (g + i) bytes from the rows on, zeros behind them.
template <class B>
void load_words(
    std::byte const* const* rows, int count, index_t g, int some, std::uint32_t (*both)[tile_slots]) noexcept {
    if (some == groups_at_once) {
        for (int k = 0; k < count; k += B::keys) {
            std::byte const* block[B::keys]; // the last row again behind the rows
            for (int i = 0; i < B::keys; ++i) block[i] = rows[std::min(k + i, count - 1)];
            typename B::type words[groups_at_once];
            B::load_keys(block, 4 * g, words);
            for (int i = 0; i < groups_at_once; ++i) B::store(words[i], both[i] + k);
        }
    } else {
        for (int i = 0; i < some; ++i)
#pragma GCC unroll 8
            for (int k = 0; k < count; ++k) both[i][k] = load_integer<std::uint32_t>(rows[k] + 4 * (g + i), 4);
    }
    for (int i = 0; i < some; ++i) std::fill(both[i] + count, both[i] + tile_slots, 0U);
}

/// Scales and zeros from pairs of a bfloat16 and a float16: whole vectors, all aligned.
template <class Isa>
void split_pairs(std::uint32_t const* both, index_t count, float* scale, float* zero) noexcept {
    for (index_t first = 0; first < count; first += quant::row_step) {
        alignas(64) std::uint16_t zeros[quant::row_step];
        for (index_t i = 0; i < quant::row_step; ++i) {
            scale[first + i] = std::bit_cast<float>(both[first + i] << 16);
            zeros[i]         = static_cast<std::uint16_t>(both[first + i] >> 16);
        }
        for (index_t i = 0; i < quant::row_step; i += lanes<Isa>)
            load_as<Isa>(reinterpret_cast<float16 const*>(zeros) + i).store_aligned(zero + first + i);
    }
}

/// Scales as rows of a format have them, in pairs with zeros or alone.
template <class Isa, class B>
void read_scales(
    row_format const& f, std::byte const* const* rows, int count, index_t g, int some, tile_scales* to) noexcept {
    if (!f.zeros) {
        for (int i = 0; i < some; ++i) {
#pragma GCC unroll 8
            for (int k = 0; k < count; ++k) to[i].scale[k] = quant::detail::load_half<bfloat16>(rows[k] + 2 * (g + i));
            std::fill(to[i].scale + count, to[i].scale + tile_slots, 0.0F);
            std::fill(to[i].lift, to[i].lift + tile_slots, 0.0F);
        }
        return;
    }
    alignas(64) std::uint32_t both[groups_at_once][tile_slots];
    load_words<B>(rows, count, g, some, both);
    for (int i = 0; i < some; ++i) {
        split_pairs<Isa>(both[i], tile_slots, to[i].scale, to[i].lift);
        for (int k = 0; k < tile_slots; k += lanes<Isa>)
            (f32<Isa>::load_aligned(to[i].lift + k) * f32<Isa>::load_aligned(to[i].scale + k))
                .store_aligned(to[i].lift + k);
    }
}

/// The rows of a tile as products of bytes read them: how they are grouped, their scales, and their codes, codes_at
/// bytes from codes[k] on. Of rows and codes there are as many as keys; those to be summed have tile_slots codes.
struct coded_rows {
    row_format const& format;
    scale_reader read_scales;
    std::byte const* const* rows;
    std::byte const* const* codes;
    index_t codes_at;
};

/// Scales of the groups of a tile, read some at a time.
class scales_in_turns {
public:
    scales_in_turns(coded_rows const& rows, int count, index_t n) noexcept
        : rows_(rows), count_(count), groups_(rows.format.groups(n)) {}
    scales_in_turns(scales_in_turns const&) = delete;

    /// Those of group g, until those of another groups_at_once are asked for.
    [[nodiscard]] tile_scales const& of(index_t g) noexcept {
        if (g < first_ || g >= first_ + some_) {
            first_ = g - g % groups_at_once;
            some_  = static_cast<int>(std::min<index_t>(groups_at_once, groups_ - first_));
            rows_.read_scales(rows_.format, rows_.rows, count_, first_, some_, read_);
        }
        return read_[g - first_];
    }

private:
    coded_rows const& rows_;
    int count_;
    index_t groups_;
    index_t first_ = 0;
    int some_      = 0;
    tile_scales read_[groups_at_once];
};

template <class Isa>
void settle_rows(row_format const& f, float* out, int query_rows, index_t n, index_t stride) noexcept {
    if (!f.rotated) return;
    inverse_rotation const back(f.seed, n);
    for (int r = 0; r < query_rows; ++r) back.apply<Isa>(out + r * stride);
}

template <class Isa>
void settle(void const* codec, float* out, int query_rows, index_t n, index_t stride) noexcept {
    settle_rows<Isa>(format_of(codec), out, query_rows, n, stride);
}

} // namespace packed
} // namespace BUTTERFLY_ISA_NAMESPACE
} // namespace butterfly::backend::vec

#endif
