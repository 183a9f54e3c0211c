// SPDX-License-Identifier: MIT
#include "limits_tiles.hpp"

#include <cstring>

// Assembly throughout: GCC 12's _tile_loadconfig declares 8 of the 64 bytes of its operand as read, so that the stores
// that fill the rest can be dropped; and tile registers are named, not allocated, whichever way they are written.

namespace bench {

#if defined(__x86_64__)
namespace {

constexpr int tile_bytes = 1024; // 16 rows of 64 bytes: 16 x 32 bf16, 16 x 64 int8, 16 x 16 float

struct alignas(64) tile_config {
    std::uint8_t palette      = 1;
    std::uint8_t start_row    = 0;
    std::uint8_t reserved[14] = {};
    std::uint16_t columns[16] = {64, 64, 64, 64, 64, 64, 64, 64}; // bytes of a row
    std::uint8_t rows[16]     = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(tile_config) == 64);

/// Tiles 0 to 3 zero and ready to be summed in, for as long as it lives.
class tile_session {
public:
    tile_session() {
        tile_config const config;
        asm volatile("ldtilecfg %0" ::"m"(config));
        asm volatile("tilezero %%tmm0\n tilezero %%tmm1\n tilezero %%tmm2\n tilezero %%tmm3" ::);
    }
    tile_session(tile_session const&)            = delete;
    tile_session& operator=(tile_session const&) = delete;
    ~tile_session() { asm volatile("tilerelease" ::); }
};

struct alignas(64) tile_memory {
    // 8 tiles of A stay in L1, 512 tiles of B in L2; one of the four sums is stored at the end of each panel.
    static constexpr int panel = 8, b_tiles = 512;
    std::uint8_t a[panel][tile_bytes];
    std::uint8_t b[b_tiles][tile_bytes];
    std::uint8_t c[tile_bytes];

    /// Bytes of bf16 values of 1/8 to 1/2 as well as of small integers. Signs alternate in A from value to value, in B
    /// from pair to pair, which keeps the sums small.
    tile_memory() {
        auto const fill = [](std::uint8_t* to, std::size_t bytes, std::size_t period) {
            for (std::size_t i = 0; i < bytes; i += 2) {
                to[i]     = static_cast<std::uint8_t>(1 + i * 37 % 127);
                to[i + 1] = i % period < period / 2 ? 0x3e : 0xbe;
            }
        };
        fill(a[0], sizeof a, 4);
        fill(b[0], sizeof b, 8);
        std::memset(c, 0, sizeof c);
    }
};

tile_memory& memory_of_thread() {
    static thread_local tile_memory memory;
    return memory;
}

void load_operands(tile_memory const& m) {
    constexpr std::int64_t row = 64;
    asm volatile("tileloadd (%0,%4,1), %%tmm4\n tileloadd (%1,%4,1), %%tmm5\n"
                 "tileloadd (%2,%4,1), %%tmm6\n tileloadd (%3,%4,1), %%tmm7" ::"r"(m.a[0]),
                 "r"(m.a[1]), "r"(m.b[0]), "r"(m.b[1]), "r"(row)
                 : "memory");
}

float store_sum(tile_memory& m) {
    constexpr std::int64_t row = 64;
    asm volatile("tilestored %%tmm0, (%0,%1,1)" ::"r"(m.c), "r"(row) : "memory");
    return static_cast<float>(m.c[3]);
}

float bf16_in_registers(std::int64_t turns) {
    tile_memory& m = memory_of_thread();
    tile_session const session;
    load_operands(m);
    for (std::int64_t t = 0; t < turns; ++t)
        asm volatile("tdpbf16ps %%tmm6, %%tmm4, %%tmm0\n tdpbf16ps %%tmm7, %%tmm4, %%tmm1\n"
                     "tdpbf16ps %%tmm6, %%tmm5, %%tmm2\n tdpbf16ps %%tmm7, %%tmm5, %%tmm3" ::);
    return store_sum(m);
}

float int8_in_registers(std::int64_t turns) {
    tile_memory& m = memory_of_thread();
    tile_session const session;
    load_operands(m);
    for (std::int64_t t = 0; t < turns; ++t)
        asm volatile("tdpbssd %%tmm6, %%tmm4, %%tmm0\n tdpbssd %%tmm7, %%tmm4, %%tmm1\n"
                     "tdpbssd %%tmm6, %%tmm5, %%tmm2\n tdpbssd %%tmm7, %%tmm5, %%tmm3" ::);
    return store_sum(m);
}

/// Four sums over a panel of K = 128: two tiles each of A and B are loaded for every four products.
float bf16_panels(std::int64_t turns, int b_tiles) {
    tile_memory& m = memory_of_thread();
    tile_session const session;
    constexpr std::int64_t row = 64;
    int at                     = 0;
    for (std::int64_t t = 0; t < turns; ++t) {
        for (int k = 0; k < tile_memory::panel; k += 2)
            asm volatile("tileloadd (%0,%4,1), %%tmm4\n tileloadd (%2,%4,1), %%tmm6\n"
                         "tdpbf16ps %%tmm6, %%tmm4, %%tmm0\n"
                         "tileloadd (%3,%4,1), %%tmm7\n tdpbf16ps %%tmm7, %%tmm4, %%tmm1\n"
                         "tileloadd (%1,%4,1), %%tmm5\n tdpbf16ps %%tmm6, %%tmm5, %%tmm2\n"
                         "tdpbf16ps %%tmm7, %%tmm5, %%tmm3" ::"r"(m.a[k]),
                         "r"(m.a[k + 1]), "r"(m.b[at + k]), "r"(m.b[at + k + 1]), "r"(row)
                         : "memory");
        store_sum(m);
        at = at + 2 * tile_memory::panel > b_tiles ? 0 : at + tile_memory::panel;
    }
    return store_sum(m);
}

float bf16_from_l1(std::int64_t turns) {
    return bf16_panels(turns, tile_memory::panel);
}

float bf16_from_l2(std::int64_t turns) {
    return bf16_panels(turns, tile_memory::b_tiles);
}

} // namespace

std::vector<compute_unit> tile_units(cpu_features const& cpu) {
    constexpr double bf16 = 2.0 * 16 * 16 * 32, int8 = 2.0 * 16 * 16 * 64;
    bool const in_bf16 = cpu.amx_bf16 && butterfly::backend::cpu::tiles_permitted();
    bool const in_int8 = cpu.amx_int8 && butterfly::backend::cpu::tiles_permitted();
    return {{"amx_bf16_registers", "GFLOP/s", in_bf16, 4 * bf16, bf16_in_registers},
            {"amx_bf16_l1", "GFLOP/s", in_bf16, 16 * bf16, bf16_from_l1},
            {"amx_bf16_l2", "GFLOP/s", in_bf16, 16 * bf16, bf16_from_l2},
            {"amx_int8_registers", "GOP/s", in_int8, 4 * int8, int8_in_registers}};
}
#else
std::vector<compute_unit> tile_units(cpu_features const&) {
    return {};
}
#endif

} // namespace bench
