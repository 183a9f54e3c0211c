// SPDX-License-Identifier: MIT
#pragma once

// The leaf of affine_channels (quant/affine_channels.hpp): decode alone, by vectors of bytes.
//
//   out[t][d] = scale[d] * (level[t][d] + zero[d])     equals affine_channels::decode to the bit
//
// Why this shape: kernels ask for the rows of a tile of keys at once, most of them of one tile of tokens. Its scales
// and zeros are more bytes than a row's codes, and are made floats once for all rows next to each other in the list
// that are of that tile, for a chunk of channels at a time.

#include <butterfly/backend/simd/codec/packed_decode.hpp>
#include <butterfly/backend/simd/raw_codec.hpp>
#include <butterfly/quant/affine_channels.hpp>

#include <cstring>
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

/// Scales and zeros of a chunk of channels.
template <class Isa>
struct channel_grids {
    alignas(64) float scale[chunk];
    alignas(64) float zero[chunk];

    /// From pairs of scale and zero.
    void load(std::byte const* pairs, index_t count) noexcept {
        alignas(64) std::uint16_t scales[chunk], zeros[chunk];
        for (index_t i = 0; i < count; ++i) {
            std::uint32_t both = 0;
            std::memcpy(&both, pairs + 4 * i, sizeof both);
            scales[i] = static_cast<std::uint16_t>(both);
            zeros[i]  = static_cast<std::uint16_t>(both >> 16);
        }
        for (index_t i = 0; i < count; i += lanes<Isa>) {
            load_as<Isa>(reinterpret_cast<bfloat16 const*>(scales) + i).store_aligned(scale + i);
            load_as<Isa>(reinterpret_cast<float16 const*>(zeros) + i).store_aligned(zero + i);
        }
    }
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
        packed::by_chunks(0, n, [&](index_t first, index_t some) {
            channel_grids<Isa> grid;
            grid.load(tile + 4 * first, some);
            std::byte const* const at = tile + 4 * n + packed::bytes_of<codes>(first);
            for (int j = 0; j < same; ++j) {
                alignas(64) std::int8_t levels[chunk];
                packed::unpack_chunk<B, codes>(at + token_of(rows[j], tokens) * row_bytes, some, table, levels);
                float* const to = out + j * stride + first;
                for (index_t i = 0; i < some; i += lanes<Isa>)
                    (load_as<Isa>(grid.scale + i) * (B::template widen<Isa>(levels + i) + load_as<Isa>(grid.zero + i)))
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

} // namespace channels
#endif

template <class Isa, int Bits, int Tokens>
[[nodiscard]] constexpr simd_codec_ops channel_ops() noexcept {
    simd_codec_ops ops{{&host::decode_rows<quant::affine_channels<Bits, Tokens>>}, nullptr, nullptr};
#if defined(__AVX2__) || defined(__aarch64__)
    using bytes = byte_vectors<Isa>;
    if constexpr (!std::is_void_v<bytes>) ops.base.decode = &channels::decode<Isa, bytes, Bits, Tokens>;
#endif
    return ops;
}

template <class Isa, int Bits, int Tokens>
inline constexpr simd_codec_ops affine_channels_ops = channel_ops<Isa, Bits, Tokens>();

template <class Isa, int Bits, int Tokens>
[[nodiscard]] simd_codec_ops const& simd_ops(Isa, quant::affine_channels<Bits, Tokens> const&) noexcept {
    return affine_channels_ops<Isa, Bits, Tokens>;
}

} // namespace BUTTERFLY_ISA_NAMESPACE
} // namespace butterfly::backend::vec
