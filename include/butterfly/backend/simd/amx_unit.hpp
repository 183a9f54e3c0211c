// SPDX-License-Identifier: MIT
#pragma once

// The tile unit of AMX: outer products of 16 x 32 bf16, summed in f32.
//
//   keys     A tiles [16 keys][32 channels], 1 KiB each, packed: rows 256 to 1024 bytes apart alias in the first cache
//   values   A tiles [16 columns][32 keys], transposed
//   B        [k][32 rows] words: two tiles side by side, 128 bytes from line to line
//
// Blocks of 2 x 2 tiles: four products for four loads. C is loaded and stored once for 64 keys (values) or for all
// channels (scores). Sums run in ascending k, a tile at a time: blocks change no bit.
//
// Written over a set of eight tile registers, of which there are two: the machine's, by inline assembly (so that it
// compiles with any flags, and the whole configuration is an operand of ldtilecfg), and an emulated one that computes
// the same, so that packing, tails and masks are tested everywhere.

#include <butterfly/backend/simd/tile_unit.hpp>
#include <butterfly/backend/simd/transpose.hpp>
#include <butterfly/core/half.hpp>

#include <algorithm>
#include <cstring>

namespace butterfly::backend::vec {
inline namespace BUTTERFLY_ISA_NAMESPACE {
namespace amx {

inline constexpr int side = 16, strip = 2 * side, tile_words = side * side, depth = 2 * side; // depth: bf16 of a row

/// Channels or columns of A in tiles.
[[nodiscard]] constexpr index_t tiles_of(index_t n) noexcept {
    return butterfly::detail::ceil_div(n, index_t{depth});
}

#if defined(__x86_64__)
/// The machine's tile registers. Each instruction in both dialects of the assembler, {AT&T|Intel}.
struct registers {
    static void configure() noexcept {
        struct alignas(64) configuration {
            std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
            std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
            std::uint8_t rows[16]       = {16, 16, 16, 16, 16, 16, 16, 16};
        };
        static_assert(sizeof(configuration) == 64);
        configuration const all{};
        asm volatile("ldtilecfg %0" : : "m"(all) : "memory");
    }
    static void release() noexcept { asm volatile("tilerelease" : : : "memory"); }

    template <int Tile>
    static void zero() noexcept {
        asm volatile("tilezero {%%|}tmm%c0" : : "i"(Tile));
    }
    template <int Tile>
    static void load(void const* from, index_t row_bytes) noexcept {
        asm volatile("tileloadd {(%0,%1,1), %%tmm%c2|tmm%c2, [%0+%1*1]}"
                     :
                     : "r"(from), "r"(row_bytes), "i"(Tile)
                     : "memory");
    }
    template <int Tile>
    static void store(void* to, index_t row_bytes) noexcept {
        asm volatile("tilestored {%%tmm%c2, (%0,%1,1)|[%0+%1*1], tmm%c2}"
                     :
                     : "r"(to), "r"(row_bytes), "i"(Tile)
                     : "memory");
    }
    /// C += A B.
    template <int C, int A, int B>
    static void multiply() noexcept {
        asm volatile("tdpbf16ps {%%tmm%c2, %%tmm%c1, %%tmm%c0|tmm%c0, tmm%c1, tmm%c2}" : : "i"(C), "i"(A), "i"(B));
    }
};
#endif

/// The same in portable code.
struct emulated_registers {
    struct tile {
        std::uint32_t word[side][side];
    };
    static inline thread_local tile tiles[8];

    static void configure() noexcept {}
    static void release() noexcept {}

    template <int Tile>
    static void zero() noexcept {
        tiles[Tile] = {};
    }
    template <int Tile>
    static void load(void const* from, index_t row_bytes) noexcept {
        for (int i = 0; i < side; ++i)
            std::memcpy(tiles[Tile].word[i], static_cast<std::byte const*>(from) + i * row_bytes, 4 * side);
    }
    template <int Tile>
    static void store(void* to, index_t row_bytes) noexcept {
        for (int i = 0; i < side; ++i)
            std::memcpy(static_cast<std::byte*>(to) + i * row_bytes, tiles[Tile].word[i], 4 * side);
    }
    template <int C, int A, int B>
    static void multiply() noexcept {
        for (int i = 0; i < side; ++i) {
            float even[side] = {}, odd[side] = {}; // two sums, added to each other and then to C
            for (int k = 0; k < side; ++k) {
                std::uint32_t const a = tiles[A].word[i][k];
                for (int n = 0; n < side; ++n) {
                    std::uint32_t const b = tiles[B].word[k][n];
                    even[n] += value(a << 16) * value(b << 16);
                    odd[n] += value(a & 0xffff0000U) * value(b & 0xffff0000U);
                }
            }
            for (int n = 0; n < side; ++n) {
                float c = std::bit_cast<float>(tiles[C].word[i][n]);
                c += even[n] + odd[n];
                tiles[C].word[i][n] = std::bit_cast<std::uint32_t>(c);
            }
        }
    }

private:
    /// Subnormal operands count as zero.
    static float value(std::uint32_t bits) noexcept {
        return std::bit_cast<float>((bits & 0x7f800000U) != 0 ? bits : bits & 0x80000000U);
    }
};

/// A block of C: `tall` and `wide` tiles, C += A B over `depths` tiles of k.
template <class Tiles>
void multiply(std::uint32_t const* a, // tiles, the second row of them a_next words on
              index_t a_next,
              bool tall,
              std::uint32_t const* b, // [depths * 16][strip]
              bool wide,
              index_t depths,
              bool add,
              float* c) noexcept { // [tall ? 32 : 16][strip]
    constexpr index_t line = strip * 4;
    float* const below     = c + side * strip;
    if (add) {
        Tiles::template load<0>(c, line);
        if (wide) Tiles::template load<1>(c + side, line);
        if (tall) Tiles::template load<2>(below, line);
        if (tall && wide) Tiles::template load<3>(below + side, line);
    } else {
        Tiles::template zero<0>();
        Tiles::template zero<1>();
        Tiles::template zero<2>();
        Tiles::template zero<3>();
    }
    for (index_t k = 0; k < depths; ++k) {
        Tiles::template load<4>(a + k * tile_words, 4 * side);
        Tiles::template load<6>(b + k * side * strip, line);
        Tiles::template multiply<0, 4, 6>();
        if (wide) {
            Tiles::template load<7>(b + k * side * strip + side, line);
            Tiles::template multiply<1, 4, 7>();
        }
        if (tall) {
            Tiles::template load<5>(a + a_next + k * tile_words, 4 * side);
            Tiles::template multiply<2, 5, 6>();
            if (wide) Tiles::template multiply<3, 5, 7>();
        }
    }
    Tiles::template store<0>(c, line);
    if (wide) Tiles::template store<1>(c + side, line);
    if (tall) Tiles::template store<2>(below, line);
    if (tall && wide) Tiles::template store<3>(below + side, line);
}

/// Copies `count` of at most `Most` bf16; whole ones without a call.
template <int Most>
inline void copy(void* to, std::byte const* from, index_t count) noexcept {
    if (count == Most)
        std::memcpy(to, from, Most * 2);
    else
        std::memcpy(to, from, static_cast<std::size_t>(count) * 2);
}

inline void
pack_keys(std::byte const* const* rows, int first, int end, index_t head_dim, std::uint32_t* keys) noexcept {
    index_t const across = tiles_of(head_dim);
    for (int j = first; j < end; ++j)
        for (index_t t = 0; t < across; ++t) {
            std::uint32_t* const to = keys + (j / side * across + t) * tile_words + j % side * side;
            index_t const left      = std::min<index_t>(head_dim - t * depth, depth);
            if (left < depth) std::fill_n(to, side, 0U);
            copy<depth>(to, rows[j] + t * depth * 2, left);
        }
}

/// One A tile: 16 columns from `column`, 32 keys from `key`; keys outside [first, end) are zero.
inline void pack_value_tile(std::byte const* const* rows,
                            int key,
                            int first,
                            int end,
                            index_t column,
                            index_t columns,
                            std::uint32_t* tile) noexcept {
    std::uint32_t pairs[side][side];
    for (int p = 0; p < side; ++p) {
        std::uint16_t even[side] = {}, odd[side] = {};
        int const j = key + 2 * p;
        if (j >= first && j < end) copy<side>(even, rows[j] + column * 2, columns);
        if (j + 1 >= first && j + 1 < end) copy<side>(odd, rows[j + 1] + column * 2, columns);
        for (int c = 0; c < side; ++c) pairs[p][c] = std::uint32_t{even[c]} | std::uint32_t{odd[c]} << 16;
    }
    transpose(&pairs[0][0], side, side, side, tile, side);
}

inline void
pack_values(std::byte const* const* rows, int first, int end, index_t head_dim, std::uint32_t* values) noexcept {
    constexpr int deep = tile_slots / depth;
    for (index_t c = 0; c < column_rows(head_dim); c += side)
        for (int d = first / depth; d <= (end - 1) / depth; ++d)
            pack_value_tile(rows, d * depth, first, end, c, std::clamp<index_t>(head_dim - c, 0, side),
                            values + (c / side * deep + d) * tile_words);
}

template <class Tiles>
void score(std::uint32_t const* keys,
           index_t /*key_stride*/,
           int first,
           int end,
           index_t head_dim,
           std::uint32_t const* queries,
           int rows,
           fetch_queue& ahead,
           float* scores) noexcept {
    index_t const across = tiles_of(head_dim);
    for (int j = first - first % side; j < end; j += 2 * side) {
        ahead.fetch_some();
        multiply<Tiles>(keys + j / side * across * tile_words, across * tile_words, j + side<end, queries, rows> side,
                        across, false, scores + j * strip);
    }
}

template <class Tiles>
void accumulate(std::uint32_t const* values,
                index_t /*value_stride*/,
                int first,
                int end,
                index_t head_dim,
                std::uint32_t const* weights,
                int rows,
                bool fresh,
                fetch_queue& ahead,
                float const* factor,
                float* out) noexcept {
    constexpr index_t deep = tile_slots / depth;
    int const from = first / depth, depths = (end - 1) / depth + 1 - from;
    if (!fresh && factor != nullptr)
        for (index_t c = 0; c < head_dim; ++c)
            for (int r = 0; r < (rows > side ? strip : side); ++r) out[c * strip + r] *= factor[r];
    for (index_t c = 0; c < head_dim; c += 2 * side) {
        ahead.fetch_some();
        multiply<Tiles>(values + (c / side * deep + from) * tile_words, deep * tile_words, true,
                        weights + from * side * strip, rows > side, depths, !fresh, out + c * strip);
    }
}

template <class Tiles>
inline constexpr tile_unit unit{.name         = "amx",
                                .strip        = strip,
                                .high         = 2 * side,
                                .rows         = 512,
                                .most         = 512,
                                .pairs        = 2,
                                .key_step     = depth,
                                .key_stride   = nullptr,
                                .value_stride = nullptr,
                                .start        = &Tiles::configure,
                                .stop         = &Tiles::release,
                                .pack_keys    = &pack_keys,
                                .pack_values  = &pack_values,
                                .score        = &score<Tiles>,
                                .accumulate   = &accumulate<Tiles>};

} // namespace amx

#if defined(__x86_64__)
inline constexpr tile_unit const& amx_unit = amx::unit<amx::registers>;
#endif
inline constexpr tile_unit const& emulated_unit = amx::unit<amx::emulated_registers>;

} // namespace BUTTERFLY_ISA_NAMESPACE
} // namespace butterfly::backend::vec
