// SPDX-License-Identifier: MIT
#include "cpu_features.hpp"

#include <unistd.h>

#include <array>
#include <cstdint>
#include <utility>
#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#endif

namespace bench {
namespace {

#if defined(__x86_64__)

/// Registers whose contents the system saves; bit 1 and 2: vectors to 256 bits, 5 to 7: to 512, 17 and 18: tiles.
std::uint64_t saved_state() {
    std::uint32_t low = 0, high = 0;
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return std::uint64_t{high} << 32 | low;
}

/// Tiles are given to a process that asks for them (ARCH_REQ_XCOMP_PERM of XTILE_DATA).
bool permitted_tiles() {
#if defined(__linux__)
    constexpr long request = 0x1023, tile_data = 18;
    return ::syscall(SYS_arch_prctl, request, tile_data) == 0;
#else
    return false;
#endif
}

bool bit(std::uint32_t word, int n) {
    return (word >> n & 1U) != 0;
}

#endif

} // namespace

cpu_features detect_cpu_features() {
    cpu_features f;
#if defined(__x86_64__)
    std::uint32_t a = 0, b = 0, c = 0, d = 0;
    constexpr int osxsave = 27, fma = 12;
    if (__get_cpuid(1, &a, &b, &c, &d) == 0 || !bit(c, osxsave)) return f;
    bool const has_fma        = bit(c, fma);
    std::uint64_t const saved = saved_state();
    auto const saves          = [saved](std::uint64_t mask) { return (saved & mask) == mask; };
    bool const ymm = saves(0x6), zmm = saves(0xe6), tiles = saves(0x60000);

    if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return f;
    std::uint32_t const leaves = a;
    f.avx2_fma                 = ymm && has_fma && bit(b, 5);
    f.avx512f                  = zmm && bit(b, 16);
    f.avx512_vnni              = f.avx512f && bit(c, 11);
    f.avx512_fp16              = f.avx512f && bit(d, 23);
    bool const usable          = tiles && bit(d, 24) && permitted_tiles();
    f.amx_bf16                 = usable && bit(d, 22);
    f.amx_int8                 = usable && bit(d, 25);
    if (leaves >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0) f.avx512_bf16 = f.avx512f && bit(a, 5);
#endif
    return f;
}

std::string cpu_features::names() const {
    std::string text;
    for (auto const& [name, there] : {std::pair{"avx2", avx2_fma},
                                      {"avx512f", avx512f},
                                      {"avx512_fp16", avx512_fp16},
                                      {"avx512_bf16", avx512_bf16},
                                      {"avx512_vnni", avx512_vnni},
                                      {"amx_bf16", amx_bf16},
                                      {"amx_int8", amx_int8}})
        if (there) text += (text.empty() ? "" : " ") + std::string(name);
    return text;
}

cache_sizes detect_cache_sizes() {
    cache_sizes sizes;
#if defined(_SC_LEVEL1_DCACHE_SIZE)
    auto const ask = [](int name, std::size_t& size) {
        if (long const said = ::sysconf(name); said > 0) size = static_cast<std::size_t>(said);
    };
    ask(_SC_LEVEL1_DCACHE_SIZE, sizes.l1);
    ask(_SC_LEVEL2_CACHE_SIZE, sizes.l2);
    ask(_SC_LEVEL3_CACHE_SIZE, sizes.l3);
#endif
    return sizes;
}

} // namespace bench
