// SPDX-License-Identifier: MIT
#pragma once

// What the kernels call for rows that are said by a format (quant/row_format.hpp), whatever codec wrote them.
//
//   stream class   from codes (packed.hpp; base 6 by packed_levels.hpp) where there are products of bytes (of AVX-512,
//                  VNNI) and the format is served: one scale for each 32 values, or 64 or a multiple of them; else
//                  decoded
//   tile class     decoded once for all rows of an item, rounded to what the unit of the other pools multiplies
//   decoding       by vectors of bytes (packed_decode.hpp) where there are some and a group is of a multiple of 16
//                  values; else one value after the other

#include <butterfly/backend/simd/bf16_ops.hpp>
#include <butterfly/backend/simd/codec/packed_decode.hpp>
#include <butterfly/backend/simd/codec/packed_levels.hpp>
#include <butterfly/backend/simd/codec/packed_score.hpp>
#include <butterfly/backend/simd/codec/packed_sum.hpp>
#include <butterfly/backend/simd/fma_unit.hpp>
#include <butterfly/quant/row_format.hpp>

#include <type_traits>

namespace butterfly::backend::vec {
inline namespace BUTTERFLY_ISA_NAMESPACE {

/// decode, one value after the other.
inline void decode_format(
    void const* codec, std::byte const* const* rows, int count, index_t n, float* out, index_t stride) noexcept {
    for (int j = 0; j < count; ++j)
        quant::detail::decode(*static_cast<quant::row_format const*>(codec), rows[j], n, out + j * stride);
}

/// Decode alone, and a unit of the tile class.
[[nodiscard]] constexpr simd_codec_ops decoded_ops(tile_unit const* unit) noexcept {
    simd_codec_ops ops{{&decode_format}, nullptr, nullptr};
    ops.tile = unit;
    return ops;
}

#if defined(__AVX2__) || defined(__aarch64__)

/// Decode alone, by vectors of bytes B.
template <class Isa, class B, quant::packing Codes>
[[nodiscard]] constexpr simd_codec_ops vector_ops(tile_unit const* unit) noexcept {
    simd_codec_ops ops = decoded_ops(unit);
    ops.base.decode    = &packed::decode<Isa, B, Codes>;
    return ops;
}

/// From codes.
template <class Isa, class B, quant::packing Codes>
[[nodiscard]] constexpr simd_codec_ops byte_ops(tile_unit const* unit) noexcept {
    simd_codec_ops ops = vector_ops<Isa, B, Codes>(unit);
    if constexpr (Codes == quant::packing::base6) {
        ops = packed::level_ops<Isa, B, packed::base6_rows>(ops);
    } else {
        ops.score      = &packed::score<Isa, B, Codes>;
        ops.accumulate = &packed::accumulate<Isa, B, Codes>;
        ops.prepare    = &packed::prepare<Isa, Codes>;
        ops.settle     = &packed::settle<Isa>;
        ops.unit       = B::dot_name;
    }
    return ops;
}

/// The functions for each packing. Tables, because ops are known by their address.
template <class Isa, class B, tile_unit const* Unit>
struct byte_tables {
    template <quant::packing Codes>
    static constexpr simd_codec_ops decoded = vector_ops<Isa, B, Codes>(Unit);
    template <quant::packing Codes>
    static constexpr simd_codec_ops served = byte_ops<Isa, B, Codes>(Unit);

    template <quant::packing Codes>
    [[nodiscard]] static simd_codec_ops const& of(bool from_codes) noexcept {
        return from_codes ? served<Codes> : decoded<Codes>;
    }

    [[nodiscard]] static simd_codec_ops const& find(quant::packing codes, bool from_codes) noexcept {
        using quant::packing;
        return codes == packing::bits2   ? of<packing::bits2>(from_codes)
               : codes == packing::bits3 ? of<packing::bits3>(from_codes)
               : codes == packing::bits4 ? of<packing::bits4>(from_codes)
               : codes == packing::bits5 ? of<packing::bits5>(from_codes)
               : codes == packing::bits8 ? of<packing::bits8>(from_codes)
                                         : of<packing::base6>(from_codes);
    }
};

#endif

template <class Isa, tile_unit const* Unit>
inline constexpr simd_codec_ops decoded_table = decoded_ops(Unit);

/// The functions for a format, with a unit of the tile class.
template <class Isa, tile_unit const* Unit>
[[nodiscard]] simd_codec_ops const& format_ops([[maybe_unused]] quant::row_format const& f) noexcept {
#if defined(__AVX2__) || defined(__aarch64__)
    using bytes = byte_vectors<Isa>;
    if constexpr (!std::is_void_v<bytes>)
        if (packed::is_decoded(f))
            return byte_tables<Isa, bytes, Unit>::find(f.codes, packed::is_served(f) && has_byte_products<Isa>());
#endif
    return decoded_table<Isa, Unit>;
}

/// The same; `unit` multiplies in the tile class where nothing else decides.
template <class Isa>
[[nodiscard]] simd_codec_ops const& packed_ops(quant::row_format const& f, bf16_unit unit) noexcept {
    if (unit == bf16_unit::emulated) return format_ops<Isa, &emulated_unit>(f);
#if defined(__x86_64__)
    if (unit == bf16_unit::dot) return format_ops<Isa, &dot_unit>(f);
    if (unit == bf16_unit::tile) return format_ops<Isa, &amx_unit>(f);
#endif
    return format_ops<Isa, &fma_unit<Isa>>(f);
}

} // namespace BUTTERFLY_ISA_NAMESPACE
} // namespace butterfly::backend::vec
