// SPDX-License-Identifier: MIT
#pragma once

// Levels of the instruction sets that one binary may choose among. A level includes those before it.
//
//   level       linked as            adds
//   baseline    kernels of its own   what every CPU of the architecture has: SSE2; `neon` on AArch64
//   x86_v3      kernels of its own   AVX2, FMA, F16C
//   x86_v4      kernels of its own   AVX-512
//   x86_zen4    with the others      vdpbf16ps for bf16 keys and values, where it beats f32
//   x86_amx     with the others      AMX tiles for them
//
// A level stands for instructions, not for a make: x86_zen4, named after the first CPU where vdpbf16ps pays, is there
// on Intel's CPUs with AVX512-BF16 too, and is fma to bf16_unit_of there, because vdpbf16ps is the slower one.

#include <butterfly/backend/simd/bf16_unit.hpp>

#include <cstdint>

namespace butterfly::backend {

enum class isa_level : std::uint8_t {
    baseline,
    neon = baseline, // of AArch64: its baseline, by its name
    x86_v3,
    x86_v4,
    x86_zen4,
    x86_amx,
    highest = x86_amx
};

[[nodiscard]] constexpr char const* name_of(isa_level level) noexcept {
#if defined(__aarch64__)
    constexpr char const* lowest = "neon";
#else
    constexpr char const* lowest = "baseline";
#endif
    constexpr char const* names[] = {lowest, "x86_v3", "x86_v4", "x86_zen4", "x86_amx"};
    return names[static_cast<int>(level)];
}

/// Whether this CPU has the instructions, whoever made it.
[[nodiscard]] inline bool available(isa_level level) noexcept {
    switch (level) {
    case isa_level::baseline:
        return true;
    case isa_level::x86_v3:
        return cpu::found().avx2;
    case isa_level::x86_v4:
        return cpu::found().avx512;
    case isa_level::x86_zen4:
        return cpu::found().avx512_bf16;
    case isa_level::x86_amx:
        return available(bf16_unit::tile);
    }
    return false;
}

/// The unit for bf16 keys and values of this CPU, not above a level.
[[nodiscard]] inline bf16_unit bf16_unit_of(isa_level at_most) noexcept {
    if (at_most >= isa_level::x86_amx) return best_up_to(bf16_unit::tile);
    return best_up_to(at_most >= isa_level::x86_zen4 ? bf16_unit::dot : bf16_unit::fma);
}

} // namespace butterfly::backend
