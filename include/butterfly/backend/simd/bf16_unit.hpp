// SPDX-License-Identifier: MIT
#pragma once

// What multiplies keys and values that are stored as bfloat16.
//
//   fma        converted to f32: exact products, f32 speed                        everywhere
//   dot        vdpbf16ps: pairs of bf16 products summed in f32                    AVX512-BF16
//   tile       AMX: 16 x 16 outer products of pairs, summed in f32                AMX-BF16
//   emulated   what `tile` computes, in portable code: for tests                  everywhere
//
// All but fma round queries and probabilities to bfloat16 (relative 2^-8, what the stored keys and values have already
// been rounded by) and treat subnormals as zero. Sums are f32 in all of them.

#include <butterfly/backend/simd/cpu.hpp>

#include <cstdint>

namespace butterfly::backend {

enum class bf16_unit : std::uint8_t { best, fma, dot, tile, emulated };

[[nodiscard]] constexpr char const* name_of(bf16_unit u) noexcept {
    constexpr char const* names[] = {"best", "fma", "dot", "tile", "emulated"};
    return names[static_cast<int>(u)];
}

/// Whether this CPU has it. Asking for `tile` asks the system for tiles, which changes the process (cpu.hpp).
[[nodiscard]] inline bool available(bf16_unit u) noexcept {
    if (u == bf16_unit::dot) return cpu::found().avx512_bf16;
    if (u == bf16_unit::tile) return cpu::found().amx_bf16 && cpu::tiles_permitted();
    return true;
}

/// The fastest unit of this CPU that is not above `most`: tiles; else the dot where it beats f32, which it does on
/// AMD's cores (twice the rate of FMA) and not on Intel's (half of it); else f32.
[[nodiscard]] inline bf16_unit best_up_to(bf16_unit most) noexcept {
    if (most == bf16_unit::tile && available(bf16_unit::tile)) return bf16_unit::tile;
    bool const dot = most != bf16_unit::fma && available(bf16_unit::dot) && cpu::found().amd;
    return dot ? bf16_unit::dot : bf16_unit::fma;
}

/// What `asked` comes to here: one that is available. `best` is best_up_to(tile).
[[nodiscard]] inline bf16_unit resolve(bf16_unit asked) noexcept {
    if (asked == bf16_unit::best) return best_up_to(bf16_unit::tile);
    return available(asked) ? asked : bf16_unit::fma;
}

} // namespace butterfly::backend
