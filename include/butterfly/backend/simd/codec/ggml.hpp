// SPDX-License-Identifier: MIT
#pragma once

// The leaf of ggml's blocks (quant/ggml.hpp), by vectors of bytes.
//
//   block of 32          | d f16 | m f16, of q4_1 alone | codes |        the nibbles of a block stand as a chunk of 32
//                                                                        values of row_format.hpp does
//   decode               out = d * level + m           equals the codec's own to the bit
//   score, accumulate    from levels, a byte each (packed_levels.hpp): a scale |d| for each block, and of q4_1, whose
//                        codes are taken about zero, a lift m + 8 d
//
// q4_0 has blocks of negative d: their levels are negated, so that scales of weights are not negative. q8_0 and q4_1
// have none that ggml wrote: a negative d is taken as what it says, but for a code of -128 under it, which is 127.
//
// Why this shape: products of bytes read rows in one piece, and blocks have their scales between codes; nibbles are
// spread once for all query rows.

#include <butterfly/backend/simd/codec/packed_decode.hpp>
#include <butterfly/backend/simd/codec/packed_levels.hpp>
#include <butterfly/backend/simd/raw_codec.hpp>
#include <butterfly/quant/ggml.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace butterfly::backend::vec {
inline namespace BUTTERFLY_ISA_NAMESPACE {

#if defined(__AVX2__) || defined(__aarch64__)
namespace blocks {

using packed::half;
using quant::packing;

/// A kind of block: bits of a code, what it is in steps of d where the code is 0, whether there is an m.
template <class Block>
struct kind;
template <>
struct kind<quant::detail::q8_0_block> {
    static constexpr int bits = 8, lowest = 0;
    static constexpr bool lifted = false;
};
template <>
struct kind<quant::detail::q4_0_block> {
    static constexpr int bits = 4, lowest = -8;
    static constexpr bool lifted = false;
};
template <>
struct kind<quant::detail::q4_1_block> {
    static constexpr int bits = 4, lowest = 0;
    static constexpr bool lifted = true;
};

/// The level of code 0 where codes of four bits are levels about zero: less for weights to round.
inline constexpr int middle = -8;

/// Levels of codes of four bits.
template <class B>
[[nodiscard]] typename B::table table_of(int lowest, int sign) noexcept {
    quant::row_format f;
    for (int c = 0; c < 16; ++c) f.levels[static_cast<std::size_t>(c)] = static_cast<std::int8_t>(sign * (c + lowest));
    return B::table_of(f, 0);
}

/// Stores levels of a block, up to 64 bytes: of eight bits as they are, of four looked up.
template <class B, class Block>
[[gnu::always_inline]] inline void
unpack(std::byte const* block, [[maybe_unused]] typename B::table const& table, std::int8_t* to) noexcept {
    std::byte const* const codes = block + (kind<Block>::lifted ? 4 : 2);
    if constexpr (kind<Block>::bits == 4)
        packed::unpack_chunk<B, packing::bits4>(codes, half, table, to);
    else
        std::memcpy(to, codes, static_cast<std::size_t>(half));
}

/// Whether d is negative.
[[nodiscard]] inline bool is_negative(std::byte const* block) noexcept {
    return (std::to_integer<unsigned>(block[1]) & 0x80U) != 0;
}

/// m of a block.
template <class Block>
[[nodiscard]] inline float lift_of([[maybe_unused]] std::byte const* block) noexcept {
    if constexpr (kind<Block>::lifted)
        return quant::detail::load_half<float16>(block + 2);
    else
        return 0.0F;
}

/// |d| of blocks of rows, and what lifts levels about zero.
template <class Isa, class Block>
void read_scales(quant::row_format const&,
                 std::byte const* const* rows,
                 int count,
                 index_t g,
                 int some,
                 packed::tile_scales* to) noexcept {
    alignas(64) std::uint16_t scales[packed::groups_at_once][tile_slots] = {};
    alignas(64) std::uint16_t lifts[packed::groups_at_once][tile_slots]  = {};
    for (int k = 0; k < count; ++k)
        for (int i = 0; i < some; ++i) {
            std::byte const* const block = rows[k] + (g + i) * Block::bytes;
            scales[i][k]                 = load_integer<std::uint16_t>(block, 2);
            if constexpr (kind<Block>::lifted) lifts[i][k] = load_integer<std::uint16_t>(block + 2, 2);
        }
    for (int i = 0; i < some; ++i)
        for (int k = 0; k < tile_slots; k += lanes<Isa>) {
            f32<Isa> const scale = load_as<Isa>(reinterpret_cast<float16 const*>(scales[i]) + k);
            f32<Isa> const lift  = load_as<Isa>(reinterpret_cast<float16 const*>(lifts[i]) + k);
            xsimd::abs(scale).store_aligned(to[i].scale + k);
            (kind<Block>::lifted ? fma(scale, f32<Isa>(static_cast<float>(-middle)), lift) : lift)
                .store_aligned(to[i].lift + k);
        }
}

/// Rows of blocks, for packed::score_levels.
template <class Block>
struct block_rows {
    static constexpr int bytes = kind<Block>::bits == 8 ? 2 : 1;
    template <class Isa, class B>
    static constexpr packed::scale_reader scales = &read_scales<Isa, Block>;

    [[nodiscard]] static quant::row_format format(void const*) noexcept {
        quant::row_format f;
        f.group = half;
        return f;
    }

    template <class Isa, class B>
    static void
    unpack(void const*, std::byte const* const* rows, int count, index_t n, packed::tile_levels& to) noexcept {
        typename B::table const tables[2] = {table_of<B>(middle, 1), table_of<B>(middle, -1)};
        for (int k = 0; k < count; ++k)
            for (index_t g = 0; g < n / half; ++g) {
                std::byte const* const block = rows[k] + g * Block::bytes;
                std::int8_t* const levels    = to.at(k) + g * half;
                bool const negative          = is_negative(block);
                blocks::unpack<B, Block>(block, tables[negative ? 1 : 0], levels);
                for (index_t i = 0; kind<Block>::bits == 8 && negative && i < half; ++i)
                    levels[i] = static_cast<std::int8_t>(-std::max<int>(levels[i], -127));
            }
    }
};

/// decode: equals the codec's own.
template <class Isa, class B, class Block>
void decode(void const*, std::byte const* const* rows, int count, index_t n, float* out, index_t stride) noexcept {
    typename B::table const table = table_of<B>(kind<Block>::lowest, 1);
    for (int j = 0; j < count; ++j)
        for (index_t g = 0; g < n / half; ++g) {
            std::byte const* const block = rows[j] + g * Block::bytes;
            alignas(64) std::int8_t levels[packed::chunk];
            unpack<B, Block>(block, table, levels);
            f32<Isa> const scale(quant::detail::load_half<float16>(block)), lift(lift_of<Block>(block));
            float* const to = out + j * stride + g * half;
            for (index_t i = 0; i < half; i += lanes<Isa>) {
                f32<Isa> const x = scale * B::template widen<Isa>(levels + i);
                (kind<Block>::lifted ? x + lift : x).store_unaligned(to + i);
            }
        }
}

} // namespace blocks
#endif

template <class Isa, class Codec, class Block, bool FromLevels>
[[nodiscard]] constexpr simd_codec_ops block_ops() noexcept {
    simd_codec_ops ops{{&host::decode_rows<Codec>}, nullptr, nullptr};
#if defined(__AVX2__) || defined(__aarch64__)
    using bytes = byte_vectors<Isa>;
    if constexpr (!std::is_void_v<bytes>) {
        ops.base.decode = &blocks::decode<Isa, bytes, Block>;
        if constexpr (FromLevels) ops = packed::level_ops<Isa, bytes, blocks::block_rows<Block>>(ops);
    }
#endif
    return ops;
}

/// FromLevels: there are products of bytes.
template <class Isa, class Codec, class Block, bool FromLevels>
inline constexpr simd_codec_ops ggml_ops = block_ops<Isa, Codec, Block, FromLevels>();

template <class Isa, class Codec, class Block>
[[nodiscard]] simd_codec_ops const& find_ggml_ops() noexcept {
    return has_byte_products<Isa>() ? ggml_ops<Isa, Codec, Block, true> : ggml_ops<Isa, Codec, Block, false>;
}

template <class Isa>
[[nodiscard]] simd_codec_ops const& simd_ops(Isa, quant::ggml_q8_0 const&) noexcept {
    return find_ggml_ops<Isa, quant::ggml_q8_0, quant::detail::q8_0_block>();
}
template <class Isa>
[[nodiscard]] simd_codec_ops const& simd_ops(Isa, quant::ggml_q4_0 const&) noexcept {
    return find_ggml_ops<Isa, quant::ggml_q4_0, quant::detail::q4_0_block>();
}
template <class Isa>
[[nodiscard]] simd_codec_ops const& simd_ops(Isa, quant::ggml_q4_1 const&) noexcept {
    return find_ggml_ops<Isa, quant::ggml_q4_1, quant::detail::q4_1_block>();
}

} // namespace BUTTERFLY_ISA_NAMESPACE
} // namespace butterfly::backend::vec
