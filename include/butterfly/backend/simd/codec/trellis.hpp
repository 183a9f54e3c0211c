// SPDX-License-Identifier: MIT
#pragma once

// The leaf of trellis (quant/trellis.hpp), by vectors of bytes.
//
//   eight windows of a word, halved three times         Bits = 2, bits of the stream
//
//     64 bits   | w0 ... w7               |             0 to 19
//     32 bits   | w0 ... w3  | w4 ... w7  |             0 to 11,            8 to 19
//     16 bits   | w0 w1 | ...             |             0 to 7, 4 to 11, ...
//      8 bits   | w0 | w1 | ...           |             0 to 5, 2 to 7, 4 to 9, ...
//
//   level[w] by a look-up in 64 bytes,   out = R^T (scale * level),   zeros where the scale is
//
// equals trellis::decode to the bit. Where there are products of bytes, rows are scored and summed from their levels
// (packed_levels.hpp), and not rotated back one by one.
//
// Why this shape: windows overlap, so that none of the ways to spread fields of bits serves; a shift and two masks take
// each half of the windows of every lane to its place. VBMI has an instruction for just this, bytes of a word at any
// bit, and one that looks up 64 bytes: where the CPU has them, half the time of a step. Words overlap by the 6 - Bits
// bits that the last window borrows, and are stored for eight rows before vectors of them are loaded: a load waits for
// parts that were just stored, and one row at a time took a sixth longer.

#include <butterfly/backend/simd/bytes.hpp>
#include <butterfly/backend/simd/codec/packed_decode.hpp>
#include <butterfly/backend/simd/codec/packed_levels.hpp>
#include <butterfly/backend/simd/load_integer.hpp>
#include <butterfly/backend/simd/raw_codec.hpp>
#include <butterfly/backend/simd/rotate.hpp>
#include <butterfly/quant/trellis.hpp>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace butterfly::backend::vec {
inline namespace BUTTERFLY_ISA_NAMESPACE {

#if defined(__AVX2__) || defined(__aarch64__)
namespace windows {

/// The lowest `bits` bits of each 2^64 / `every`: `every` has one bit in each field.
[[nodiscard]] constexpr std::uint64_t lowest(int bits, std::uint64_t every) noexcept {
    return ((std::uint64_t{1} << bits) - 1U) * every;
}

/// Eight windows of each word, one a byte.
template <int Bits, class Words>
[[nodiscard]] inline Words split(Words x) noexcept {
    constexpr std::uint64_t four = lowest(3 * Bits + 6, 1), two = lowest(Bits + 6, 0x0000000100000001U),
                            one = lowest(6, 0x0001000100010001U);
    x                           = (x & Words(four)) | ((x << (32 - 4 * Bits)) & Words(four << 32));
    x                           = (x & Words(two)) | ((x << (16 - 2 * Bits)) & Words(two << 16));
    return (x & Words(one)) | ((x << (8 - Bits)) & Words(one << 8));
}

/// Words of eight windows each of a row, filled up with zeros to whole vectors. The last ones have the first byte of
/// the stream once more behind its last.
template <class Isa, int Bits>
void load_words(std::byte const* stream, index_t n, std::uint64_t* to) noexcept {
    using words            = xsimd::batch<std::uint64_t, typename Isa::arch>;
    constexpr auto at_once = static_cast<index_t>(words::size);
    index_t const bytes = n * Bits / 8, count = n / 8;
    index_t g = 0;
    for (; g * Bits + 8 <= bytes; ++g) to[g] = load_integer<std::uint64_t>(stream + g * Bits, 8);
    std::uint64_t const last = bytes < 8 ? load_integer<std::uint64_t>(stream, bytes) << (8 * (8 - bytes))
                                         : load_integer<std::uint64_t>(stream + bytes - 8, 8);
    for (; g < count; ++g) {
        index_t const gone = 8 * (g * Bits + 8 - bytes); // bits of `last`
        to[g]              = last >> gone | std::to_integer<std::uint64_t>(stream[0]) << (64 - gone);
    }
    std::fill(to + count, to + butterfly::detail::round_up(count, at_once), std::uint64_t{0});
}

/// Levels of a row from its words.
template <class Isa, class B, int Bits, class Table>
void look_up(std::uint64_t const* word, index_t n, Table const& table, std::int8_t* levels) noexcept {
    using words            = xsimd::batch<std::uint64_t, typename Isa::arch>;
    constexpr auto at_once = static_cast<index_t>(words::size);
    for (index_t g = 0; g < n / 8; g += at_once) {
        auto const window = std::bit_cast<typename B::type>(split<Bits>(words::load_aligned(word + g)).data);
        B::store(B::look_up_64(table, window), levels + 8 * g);
    }
}

/// Calls f(j, levels of row j) for all rows; levels_at(j) says where they are put, with room for whole vectors.
template <class Isa, class B, int Bits, class Place, class F>
void for_each_row(quant::trellis<Bits> const& c,
                  std::byte const* const* rows,
                  int count,
                  index_t n,
                  Place const& levels_at,
                  F const& f) noexcept {
    if constexpr (requires { B::has_windows(); })
        if (B::has_windows()) {
            auto const table = B::template window_table_of<Bits>(c.levels().data());
            for (int j = 0; j < count; ++j) {
                std::byte const* const stream = rows[j] + 2;
                std::int8_t* const levels     = levels_at(j);
                for (index_t i = 0; i < n; i += B::size)
                    B::store(
                        B::template look_up_windows<Bits>(table, stream + i * Bits / 8, (n - i) * Bits / 8, stream[0]),
                        levels + i);
                f(j, levels);
            }
            return;
        }
    constexpr int block = 8;
    auto const table    = B::table_of_64(c.levels().data());
    alignas(64) std::uint64_t word[block][quant::longest_row / 8];
    for (int first = 0; first < count; first += block) {
        int const end = std::min(first + block, count);
        for (int j = first; j < end; ++j) load_words<Isa, Bits>(rows[j] + 2, n, word[j - first]);
        for (int j = first; j < end; ++j) {
            std::int8_t* const levels = levels_at(j);
            look_up<Isa, B, Bits>(word[j - first], n, table, levels);
            f(j, levels);
        }
    }
}

/// decode: equals trellis::decode.
template <class Isa, class B, int Bits>
void decode(
    void const* codec, std::byte const* const* rows, int count, index_t n, float* out, index_t stride) noexcept {
    auto const& c = *static_cast<quant::trellis<Bits> const*>(codec);
    inverse_rotation const back(c.seed(), n);
    packed::row_levels one;
    for_each_row<Isa, B>(
        c, rows, count, n, [&](int) { return one.at; },
        [&](int j, std::int8_t const* levels) {
            float* const to   = out + j * stride;
            float const scale = quant::detail::load_half<bfloat16>(rows[j]);
            if (scale == 0.0F) {
                std::fill_n(to, n, 0.0F);
            } else {
                packed::scale_levels<Isa, B>(levels, 0, n, {scale, 0.0F}, to);
                back.apply<Isa>(to);
            }
        });
}

/// Rows of a trellis, for packed::score_levels: one scale, rotated.
template <int Bits>
struct trellis_rows {
    static constexpr int bytes = 1;
    template <class Isa, class B>
    static constexpr packed::scale_reader scales = &packed::read_scales<Isa, B>;

    [[nodiscard]] static quant::trellis<Bits> const& codec_of(void const* codec) noexcept {
        return *static_cast<quant::trellis<Bits> const*>(codec);
    }
    [[nodiscard]] static quant::row_format format(void const* codec) noexcept {
        quant::row_format f;
        f.rotated = true;
        f.seed    = codec_of(codec).seed();
        return f;
    }

    template <class Isa, class B>
    static void
    unpack(void const* codec, std::byte const* const* rows, int count, index_t n, packed::tile_levels& to) noexcept {
        for_each_row<Isa, B>(
            codec_of(codec), rows, count, n, [&](int j) { return to.at(j); }, [](int, std::int8_t const*) {});
    }
};

} // namespace windows
#endif

template <class Isa, int Bits, bool FromLevels>
[[nodiscard]] constexpr simd_codec_ops window_ops() noexcept {
    simd_codec_ops ops{{&host::decode_rows<quant::trellis<Bits>>}, nullptr, nullptr};
#if defined(__AVX2__) || defined(__aarch64__)
    using bytes = byte_vectors<Isa>;
    if constexpr (!std::is_void_v<bytes>) {
        ops.base.decode = &windows::decode<Isa, bytes, Bits>;
        if constexpr (FromLevels) ops = packed::level_ops<Isa, bytes, windows::trellis_rows<Bits>>(ops);
    }
#endif
    return ops;
}

/// FromLevels: there are products of bytes.
template <class Isa, int Bits, bool FromLevels>
inline constexpr simd_codec_ops trellis_ops = window_ops<Isa, Bits, FromLevels>();

template <class Isa, int Bits>
[[nodiscard]] simd_codec_ops const& simd_ops(Isa, quant::trellis<Bits> const&) noexcept {
    return has_byte_products<Isa>() ? trellis_ops<Isa, Bits, true> : trellis_ops<Isa, Bits, false>;
}

} // namespace BUTTERFLY_ISA_NAMESPACE
} // namespace butterfly::backend::vec
