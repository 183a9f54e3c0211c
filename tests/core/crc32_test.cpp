// SPDX-License-Identifier: MIT
#include <butterfly/core/crc32.hpp>

#include "support/catch.hpp"

#include <random>
#include <string_view>
#include <vector>

namespace crc32_tests { // names of its own, for builds that compile several of these files as one

using butterfly::detail::crc32;

/// One bit at a time, from the polynomial alone.
std::uint32_t by_bits(std::span<std::byte const> data, std::uint32_t crc = 0) {
    crc = ~crc;
    for (std::byte const b : data) {
        crc ^= static_cast<std::uint32_t>(b);
        for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1U) != 0U ? 0xedb88320U : 0U);
    }
    return ~crc;
}

std::uint32_t of_text(std::string_view text) {
    return crc32(std::as_bytes(std::span(text.data(), text.size())));
}

TEST_CASE("crc32 of texts whose checksum is known", "[core]") {
    REQUIRE(of_text("") == 0U);
    REQUIRE(of_text("a") == 0xe8b7be43U);
    REQUIRE(of_text("abc") == 0x352441c2U);
    REQUIRE(of_text("123456789") == 0xcbf43926U);
    REQUIRE(of_text("The quick brown fox jumps over the lazy dog") == 0x414fa339U);
    REQUIRE(crc32(std::vector<std::byte>(32)) == 0x190a55adU);
    REQUIRE(crc32(std::vector<std::byte>(32, std::byte{0xff})) == 0xff6cab0bU);
}

TEST_CASE("crc32 is that of one bit at a time, at every length and alignment, in one piece and in two", "[core]") {
    std::mt19937 random(1);
    std::vector<std::byte> bytes(80);
    for (std::byte& b : bytes) b = static_cast<std::byte>(random());
    for (std::size_t first = 0; first < 9; ++first)
        for (std::size_t size = 0; first + size <= bytes.size(); ++size) {
            auto const part          = std::span(bytes).subspan(first, size);
            std::uint32_t const want = by_bits(part);
            CAPTURE(first, size);
            REQUIRE(crc32(part) == want);
            for (std::size_t cut = 0; cut <= size; cut += 5)
                REQUIRE(crc32(part.subspan(cut), crc32(part.first(cut))) == want);
        }
}

} // namespace crc32_tests
