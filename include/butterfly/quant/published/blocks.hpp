// SPDX-License-Identifier: MIT
#pragma once

// What the published KV quantizers share (quant.cpp, Apache-2.0, commit bd347db). They are here to be compared with,
// byte for byte and defects included; nothing of ours is built on them.
//
//   row     ceil(head_dim / 128) blocks, each coded alone; the last may hold fewer values but takes the same bytes
//   bytes   little-endian; bytes that no value needs are zero (the published code leaves some as they were)
//   codes   value i at bits b * i .. b * i + b - 1 of the stream, lowest bit first
//
// All arithmetic is float32, sums left to right, and no flag that keeps IEEE arithmetic changes a bit: where a product
// meets a sum and is not exact it goes through `product`. What the published code leaves undefined (float to int
// conversions that overflow, NaN) is defined here: codes saturate, and a value that is not finite leaves a
// header that is not finite either, so that it shows when the row is read.

#include <butterfly/core/index.hpp>
#include <butterfly/quant/product.hpp>

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace butterfly::quant::published::detail {

/// Values of a block.
inline constexpr int block_size = 128;

using quant::detail::product;

/// The published conversion to binary16, not the one of core/half.hpp: it cuts the mantissa off, takes what is smaller
/// than 2^-14 as zero, and all from 2^16 on, infinities and NaN as infinity.
[[nodiscard]] BUTTERFLY_HOST_DEVICE constexpr std::uint16_t to_half(float x) noexcept {
    auto const u        = std::bit_cast<std::uint32_t>(x);
    auto const sign     = (u >> 16) & 0x8000U;
    auto const exponent = static_cast<int>((u >> 23) & 0xffU) - 112;
    if (exponent <= 0) return static_cast<std::uint16_t>(sign);
    if (exponent >= 31) return static_cast<std::uint16_t>(sign | 0x7c00U);
    return static_cast<std::uint16_t>(sign | static_cast<std::uint32_t>(exponent) << 10 | ((u >> 13) & 0x3ffU));
}

/// And back: subnormals are read as zeros.
[[nodiscard]] BUTTERFLY_HOST_DEVICE constexpr float from_half(std::uint16_t h) noexcept {
    std::uint32_t const sign     = static_cast<std::uint32_t>(h & 0x8000U) << 16;
    std::uint32_t const exponent = (h >> 10) & 0x1fU;
    std::uint32_t const mantissa = h & 0x3ffU;
    if (exponent == 0U) return std::bit_cast<float>(sign);
    if (exponent == 0x1fU) return std::bit_cast<float>(sign | 0x7f800000U | mantissa << 13);
    return std::bit_cast<float>(sign | (exponent + 112U) << 23 | mantissa << 13);
}

[[nodiscard]] BUTTERFLY_HOST_DEVICE inline float load_half(std::byte const* at) noexcept {
    std::uint16_t h;
    std::memcpy(&h, at, sizeof h);
    return from_half(h);
}

BUTTERFLY_HOST_DEVICE inline void store_half(std::byte* at, float x) noexcept {
    std::uint16_t const h = to_half(x);
    std::memcpy(at, &h, sizeof h);
}

template <class T>
[[nodiscard]] BUTTERFLY_HOST_DEVICE T load(std::byte const* at) noexcept {
    T x;
    std::memcpy(&x, at, sizeof x);
    return x;
}

template <class T>
BUTTERFLY_HOST_DEVICE void store(std::byte* at, T x) noexcept {
    std::memcpy(at, &x, sizeof x);
}

/// The code of value i in a stream of codes of `Bits` bits, 1 to 8.
template <int Bits>
[[nodiscard]] BUTTERFLY_HOST_DEVICE inline int get_code(std::byte const* stream, index_t i) noexcept {
    index_t const bit = Bits * i;
    int const shift   = static_cast<int>(bit % 8);
    unsigned window   = std::to_integer<unsigned>(stream[bit / 8]);
    if (shift + Bits > 8) window |= std::to_integer<unsigned>(stream[bit / 8 + 1]) << 8;
    return static_cast<int>((window >> shift) & ((1U << Bits) - 1U));
}

/// Puts a code into a stream whose bits are zero there.
template <int Bits>
BUTTERFLY_HOST_DEVICE inline void put_code(std::byte* stream, index_t i, int code) noexcept {
    index_t const bit     = Bits * i;
    int const shift       = static_cast<int>(bit % 8);
    unsigned const window = static_cast<unsigned>(code) << shift;
    stream[bit / 8] |= static_cast<std::byte>(window & 0xffU);
    if (shift + Bits > 8) stream[bit / 8 + 1] |= static_cast<std::byte>(window >> 8);
}

/// Rows as blocks. A block type has
///
///   bytes                    of one block, whatever it holds
///   encode(values, n, at)    packs n values, 1 to 128, into zeros
///   decode(at, n, out)       and unpacks them
template <class Block>
struct rows_of {
    [[nodiscard]] BUTTERFLY_HOST_DEVICE constexpr index_t row_bytes(index_t head_dim) const noexcept {
        return butterfly::detail::ceil_div(head_dim, block_size) * Block::bytes;
    }

    BUTTERFLY_HOST_DEVICE void encode(float const* values, index_t head_dim, std::byte* row) const noexcept {
        for (index_t first = 0; first < head_dim; first += block_size, row += Block::bytes) {
            std::memset(row, 0, static_cast<std::size_t>(Block::bytes));
            Block::encode(values + first, count(first, head_dim), row);
        }
    }

    BUTTERFLY_HOST_DEVICE void decode(std::byte const* row, index_t head_dim, float* out) const noexcept {
        for (index_t first = 0; first < head_dim; first += block_size, row += Block::bytes)
            Block::decode(row, count(first, head_dim), out + first);
    }

private:
    [[nodiscard]] BUTTERFLY_HOST_DEVICE static constexpr int count(index_t first, index_t head_dim) noexcept {
        return static_cast<int>(head_dim - first < block_size ? head_dim - first : block_size);
    }
};

} // namespace butterfly::quant::published::detail
