// SPDX-License-Identifier: MIT
#pragma once

// The checksum of zip archives and saved caches: CRC-32, polynomial 0xedb88320, reflected.
//
// Eight bytes at a time by eight tables of 256 words: table[k][b] is what byte b adds to the checksum of a text that
// has k bytes after it. Equals one byte at a time by table[0].

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace butterfly::detail {

inline constexpr auto crc32_table = [] {
    std::array<std::array<std::uint32_t, 256>, 8> t{};
    for (std::uint32_t i = 0; i < 256; ++i) {
        t[0][i] = i;
        for (int bit = 0; bit < 8; ++bit) t[0][i] = (t[0][i] >> 1) ^ ((t[0][i] & 1U) != 0U ? 0xedb88320U : 0U);
    }
    for (std::size_t k = 1; k < t.size(); ++k)
        for (std::size_t i = 0; i < 256; ++i) t[k][i] = (t[k - 1][i] >> 8) ^ t[0][t[k - 1][i] & 0xffU];
    return t;
}();

/// The checksum of `data`; `crc` continues an earlier one.
[[nodiscard]] inline std::uint32_t crc32(std::span<std::byte const> data, std::uint32_t crc = 0) noexcept {
    auto const& t   = crc32_table;
    auto const word = [](std::byte const* p) noexcept { // little-endian, on every machine
        return static_cast<std::uint32_t>(p[0]) | static_cast<std::uint32_t>(p[1]) << 8 |
               static_cast<std::uint32_t>(p[2]) << 16 | static_cast<std::uint32_t>(p[3]) << 24;
    };
    std::byte const* at = data.data();
    std::size_t left    = data.size();
    crc                 = ~crc;
    for (; left >= 8; at += 8, left -= 8) {
        std::uint32_t const a = crc ^ word(at), b = word(at + 4);
        crc = t[7][a & 0xffU] ^ t[6][a >> 8 & 0xffU] ^ t[5][a >> 16 & 0xffU] ^ t[4][a >> 24] ^ //
              t[3][b & 0xffU] ^ t[2][b >> 8 & 0xffU] ^ t[1][b >> 16 & 0xffU] ^ t[0][b >> 24];
    }
    for (; left > 0; ++at, --left) crc = (crc >> 8) ^ t[0][(crc ^ static_cast<std::uint32_t>(*at)) & 0xffU];
    return ~crc;
}

} // namespace butterfly::detail
