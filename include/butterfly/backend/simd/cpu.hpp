// SPDX-License-Identifier: MIT
#pragma once

// What this CPU and its operating system allow, asked once: cpuid and XCR0. A compiler's own check is not enough: an
// operating system may not save the registers. Tiles (AMX) must be asked for besides, which changes the process (its
// signal frames grow): nobody does before they are wanted.

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace butterfly::backend::cpu {

/// Instructions that may be executed.
struct features {
    bool avx2        = false; // all of x86-64-v3: AVX2, FMA, F16C, BMI1, BMI2, LZCNT, MOVBE
    bool avx512      = false; // all of x86-64-v4: AVX-512 F, BW, CD, DQ, VL
    bool avx512_vbmi = false;
    bool avx512_vnni = false;
    bool avx512_bf16 = false;
    bool avx512_fp16 = false;
    bool amx_bf16    = false; // tiles, where tiles_permitted()
    bool amx_int8    = false;
    bool amd         = false; // the vendor: what an instruction costs differs
};

namespace detail {

#if defined(__x86_64__)
/// Register states the operating system saves (XCR0).
[[nodiscard]] inline unsigned saved_states() noexcept {
    unsigned low = 0, high = 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    static_cast<void>(high); // the states asked for are all in the lower half
    return low;
}
#endif

[[nodiscard]] inline features ask() noexcept {
    features f;
#if defined(__x86_64__)
    auto const bit = [](unsigned word, int n) { return (word >> n & 1U) != 0; };
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (__get_cpuid(0, &a, &b, &c, &d) == 0) return f;
    f.amd = b == 0x68747541U;                                                    // "Auth" of AuthenticAMD
    if (__get_cpuid(1, &a, &b, &c, &d) == 0 || !bit(c, 27)) return f;            // OSXSAVE
    bool const first     = bit(c, 12) && bit(c, 22) && bit(c, 28) && bit(c, 29); // FMA, MOVBE, AVX, F16C
    unsigned const saved = saved_states();
    bool const lzcnt     = __get_cpuid(0x80000001U, &a, &b, &c, &d) != 0 && bit(c, 5);
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return f;
    bool const vectors = (saved & 0x6U) == 0x6U, masks = (saved & 0xe6U) == 0xe6U, tiles = (saved >> 17 & 3U) == 3U;
    f.avx2                = vectors && first && lzcnt && bit(b, 3) && bit(b, 5) && bit(b, 8); // BMI1, AVX2, BMI2
    f.avx512              = masks && f.avx2 && bit(b, 16) && bit(b, 17) && bit(b, 28) && bit(b, 30) && bit(b, 31);
    f.avx512_vbmi         = f.avx512 && bit(c, 1);
    f.avx512_vnni         = f.avx512 && bit(c, 11);
    f.avx512_fp16         = f.avx512 && bit(d, 23);
    bool const amx        = f.avx512 && tiles && bit(d, 24); // AMX-TILE
    f.amx_bf16            = amx && bit(d, 22);
    f.amx_int8            = amx && bit(d, 25);
    unsigned const leaves = a;
    if (leaves >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0) f.avx512_bf16 = f.avx512 && bit(a, 5);
#endif
    return f;
}

} // namespace detail

/// What was found when first asked.
[[nodiscard]] inline features const& found() noexcept {
    static features const known = detail::ask();
    return known;
}

/// Whether this process may use the tile registers of amx_bf16 and amx_int8. The first call asks Linux for them.
[[nodiscard]] inline bool tiles_permitted() noexcept {
    static bool const permitted = [] {
#if defined(__x86_64__) && defined(__linux__)
        constexpr long request_permission = 0x1023, tile_data = 18; // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
        return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
        return false;
#endif
    }();
    return permitted;
}

} // namespace butterfly::backend::cpu
