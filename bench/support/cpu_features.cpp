// SPDX-License-Identifier: MIT
#include "cpu_features.hpp"

#include <cstdint>
#include <fstream>
#include <utility>
#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
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
    // Not sysconf: inside a virtual machine it was seen to give the L3 of the whole socket.
    for (int index = 0; index < 8; ++index) {
        std::string const folder = "/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index) + "/";
        int level                = 0;
        std::string type;
        std::size_t kib = 0;
        std::ifstream(folder + "level") >> level;
        std::ifstream(folder + "type") >> type;
        std::ifstream(folder + "size") >> kib; // "48K"
        if (kib == 0 || type == "Instruction") continue;
        if (level == 1) sizes.l1 = kib << 10;
        if (level == 2) sizes.l2 = kib << 10;
        if (level == 3) sizes.l3 = kib << 10;
    }
    return sizes;
}

} // namespace bench
