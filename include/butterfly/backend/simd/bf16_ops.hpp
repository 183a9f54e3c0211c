// SPDX-License-Identifier: MIT
#pragma once

// What the kernels call for keys and values in bfloat16, by the unit that multiplies them.
//
//   unit       stream class               tile class
//   fma        widened to f32             widened to f32
//   dot        vdpbf16ps                  vdpbf16ps
//   tile       widened to f32             AMX         one query row leaves tiles empty, and where there are tiles
//   emulated   widened to f32             AMX, emulated            vdpbf16ps is slower than f32

#include <butterfly/backend/simd/amx_unit.hpp>
#include <butterfly/backend/simd/bf16_dot.hpp>
#include <butterfly/backend/simd/bf16_unit.hpp>
#include <butterfly/backend/simd/dot_unit.hpp>
#include <butterfly/backend/simd/raw_codec.hpp>

namespace butterfly::backend::vec {
inline namespace BUTTERFLY_ISA_NAMESPACE {

/// `stream` with a unit of the tile class.
[[nodiscard]] constexpr simd_codec_ops with_unit(simd_codec_ops stream, tile_unit const& unit) noexcept {
    stream.tile = &unit;
    return stream;
}

template <class Isa>
inline constexpr simd_codec_ops bf16_emulated_ops = with_unit(raw_ops<Isa, bfloat16>, emulated_unit);

#if defined(__x86_64__)
template <class Isa>
inline constexpr simd_codec_ops bf16_dot_ops = with_unit(bf16_dot::ops<Isa>, dot_unit);

template <class Isa>
inline constexpr simd_codec_ops bf16_tile_ops = with_unit(raw_ops<Isa, bfloat16>, amx_unit);
#endif

template <class Isa>
[[nodiscard]] simd_codec_ops const& bf16_ops(bf16_unit unit) noexcept {
    if (unit == bf16_unit::emulated) return bf16_emulated_ops<Isa>;
#if defined(__x86_64__)
    if (unit == bf16_unit::dot) return bf16_dot_ops<Isa>;
    if (unit == bf16_unit::tile) return bf16_tile_ops<Isa>;
#endif
    return raw_ops<Isa, bfloat16>;
}

} // namespace BUTTERFLY_ISA_NAMESPACE
} // namespace butterfly::backend::vec
