// SPDX-License-Identifier: MIT
#pragma once

// A packed row as plain data: what codecs that differ only in how they choose codes have in common. Kernels read a row
// by its format and know no codec.
//
//   row   = | groups | codes |          group = | scale bf16 |  or  | scale bf16 | zero f16 |
//   value = scale * (level[code] + zero),   then rotated back where the format says so
//
// One group is `group` values next to each other (the last one of a row may have fewer), or all of them. A scale is a
// bfloat16, for its range: no scale of a finite row flushes to zero or overflows. A zero is in units of the scale, so
// that a mean that is large against the scale costs precision of the zero, not range. No scale is negative: kernels
// that sum from codes make NaN of one.
//
// Codes stand in chunks of 64 values, then of 32 and 16 where the row ends so, each chunk by itself and values of a
// chunk in planes, so that vectors of 16 to 64 bytes unpack by shifts into the order of the values:
//
//   chunk of c values      byte i, lowest bits first                          bytes
//   bits 8                 v[i]                                               c
//   bits 4                 v[i] | v[i + c/2]                                  c / 2
//   bits 2                 v[i] | v[i + c/4] | v[i + c/2] | v[i + 3c/4]       c / 4
//   bits 5, bits 3         the lowest 4 or 2 bits likewise, then the          c / 2 or c / 4, and c / 8
//                          highest bits in planes of c/8: v[i] | v[i + c/8] | ...
//   base 6                 no chunks: v[i] + 6 v[i + m] + 36 v[i + 2m]        m = ceil(n / 3)

#include <butterfly/core/half.hpp>
#include <butterfly/core/index.hpp>
#include <butterfly/quant/rotation.hpp>
#include <butterfly/quant/row_length.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace butterfly::quant {

/// How codes are packed.
enum class packing : std::uint8_t { bits2, bits3, bits4, bits5, bits8, base6 };

/// What rows of a codec look like.
struct row_format {
    packing codes      = packing::bits8;
    index_t group      = 0;     // values that share a scale; 0: all of the row
    bool zeros         = false; // a group has a zero
    bool rotated       = false; // values are of the basis of rotation{seed}
    std::uint64_t seed = 0;
    std::array<std::int8_t, 32> levels{}; // bits 8: not used, a code is its own level, of two's complement

    [[nodiscard]] BUTTERFLY_HOST_DEVICE constexpr index_t groups(index_t n) const noexcept {
        return group == 0 ? 1 : butterfly::detail::ceil_div(n, group);
    }
    [[nodiscard]] BUTTERFLY_HOST_DEVICE constexpr index_t header_bytes(index_t n) const noexcept {
        return groups(n) * (zeros ? 4 : 2);
    }
    [[nodiscard]] BUTTERFLY_HOST_DEVICE constexpr index_t row_bytes(index_t n) const noexcept;
};

namespace detail {

/// Bits of a code that stand in planes of several bits, and in planes of one; base 6 has none.
struct code_bits {
    int plane;
    int top;
};
[[nodiscard]] BUTTERFLY_HOST_DEVICE constexpr code_bits bits_of(packing p) noexcept {
    switch (p) {
    case packing::bits2:
        return {2, 0};
    case packing::bits3:
        return {2, 1};
    case packing::bits4:
        return {4, 0};
    case packing::bits5:
        return {4, 1};
    case packing::bits8:
        return {8, 0};
    case packing::base6:
        break;
    }
    return {0, 0};
}

[[nodiscard]] BUTTERFLY_HOST_DEVICE constexpr index_t code_bytes(packing p, index_t n) noexcept {
    code_bits const b = bits_of(p);
    return p == packing::base6 ? butterfly::detail::ceil_div(n, 3) : n * (b.plane + b.top) / 8;
}

/// The chunk of a row of n values that value i stands in.
struct chunk {
    index_t first; // of its values
    index_t count; // 64, 32 or 16
};
[[nodiscard]] BUTTERFLY_HOST_DEVICE constexpr chunk chunk_of(index_t n, index_t i) noexcept {
    index_t const whole = n - n % 64;
    if (i < whole) return {i - i % 64, 64};
    if (n - whole >= 32 && i < whole + 32) return {whole, 32};
    return {n - 16, 16};
}

/// Where the bits of one code stand: `shift` bits up in byte `at`; the highest in bit `top_shift` of byte `top_at`.
struct code_place {
    index_t at;
    int shift;
    index_t top_at;
    int top_shift;
};
[[nodiscard]] BUTTERFLY_HOST_DEVICE constexpr code_place place_of(packing p, index_t n, index_t i) noexcept {
    code_bits const b    = bits_of(p);
    chunk const c        = chunk_of(n, i);
    index_t const start  = c.first * (b.plane + b.top) / 8;
    index_t const stride = c.count * b.plane / 8; // of a plane
    index_t const tops   = c.count / 8;           // of a plane of one bit
    index_t const within = i - c.first;
    return {start + within % stride, static_cast<int>(within / stride) * b.plane, start + stride + within % tops,
            static_cast<int>(within / tops)};
}

[[nodiscard]] BUTTERFLY_HOST_DEVICE constexpr unsigned power_of_6(index_t digit) noexcept {
    return digit == 0 ? 1U : digit == 1 ? 6U : 36U;
}

/// The code of value i of n.
[[nodiscard]] BUTTERFLY_HOST_DEVICE constexpr unsigned
load_code(packing p, std::byte const* codes, index_t n, index_t i) noexcept {
    if (p == packing::base6) {
        index_t const m = butterfly::detail::ceil_div(n, 3);
        return std::to_integer<unsigned>(codes[i % m]) / power_of_6(i / m) % 6U;
    }
    code_bits const b    = bits_of(p);
    code_place const at  = place_of(p, n, i);
    unsigned const plane = std::to_integer<unsigned>(codes[at.at]) >> at.shift & ((1U << b.plane) - 1U);
    unsigned const top   = b.top == 0 ? 0U : std::to_integer<unsigned>(codes[at.top_at]) >> at.top_shift & 1U;
    return plane | top << b.plane;
}

/// Puts the code of value i of n where zeros are.
BUTTERFLY_HOST_DEVICE constexpr void
add_code(packing p, unsigned code, index_t n, index_t i, std::byte* codes) noexcept {
    if (p == packing::base6) {
        std::byte& to = codes[i % butterfly::detail::ceil_div(n, 3)];
        to            = static_cast<std::byte>(std::to_integer<unsigned>(to) +
                                    code * power_of_6(i / butterfly::detail::ceil_div(n, 3)));
        return;
    }
    code_bits const b   = bits_of(p);
    code_place const at = place_of(p, n, i);
    codes[at.at] |= static_cast<std::byte>((code & ((1U << b.plane) - 1U)) << at.shift);
    if (b.top != 0) codes[at.top_at] |= static_cast<std::byte>((code >> b.plane & 1U) << at.top_shift);
}

/// Packs n codes.
BUTTERFLY_HOST_DEVICE constexpr void
store_codes(packing p, std::uint8_t const* values, index_t n, std::byte* codes) noexcept {
    for (index_t i = 0; i < code_bytes(p, n); ++i) codes[i] = std::byte{0};
    for (index_t i = 0; i < n; ++i) add_code(p, values[i], n, i, codes);
}

/// What a code stands for, in units of the scale.
[[nodiscard]] BUTTERFLY_HOST_DEVICE constexpr float level_of(row_format const& f, unsigned code) noexcept {
    return static_cast<float>(f.codes == packing::bits8 ? static_cast<std::int8_t>(code) : f.levels[code]);
}

template <class T>
[[nodiscard]] BUTTERFLY_HOST_DEVICE float load_half(std::byte const* at) noexcept {
    T x;
    std::memcpy(&x, at, sizeof x);
    return static_cast<float>(x);
}

template <class T>
BUTTERFLY_HOST_DEVICE void store_half(T x, std::byte* at) noexcept {
    std::memcpy(at, &x, sizeof x);
}

/// Scale and zero of a group.
struct group_scale {
    float scale;
    float zero;
};
[[nodiscard]] BUTTERFLY_HOST_DEVICE inline group_scale
load_group(row_format const& f, std::byte const* row, index_t g) noexcept {
    if (!f.zeros) return {load_half<bfloat16>(row + 2 * g), 0.0F};
    return {load_half<bfloat16>(row + 4 * g), load_half<float16>(row + 4 * g + 2)};
}

/// The values of a row in the basis they were coded in.
BUTTERFLY_HOST_DEVICE inline void
decode_in_basis(row_format const& f, std::byte const* row, index_t n, float* out) noexcept {
    std::byte const* const codes = row + f.header_bytes(n);
    index_t const group          = f.group == 0 ? n : f.group;
    for (index_t first = 0, g = 0; first < n; first += group, ++g) {
        group_scale const s = load_group(f, row, g);
        for (index_t i = first; i < n && i < first + group; ++i)
            out[i] = s.scale * (level_of(f, load_code(f.codes, codes, n, i)) + s.zero);
    }
}

/// The values a row stands for.
BUTTERFLY_HOST_DEVICE inline void decode(row_format const& f, std::byte const* row, index_t n, float* out) noexcept {
    decode_in_basis(f, row, n, out);
    if (f.rotated) rotation{f.seed}.inverse(out, n);
}

} // namespace detail

constexpr index_t row_format::row_bytes(index_t n) const noexcept {
    return header_bytes(n) + detail::code_bytes(codes, n);
}

} // namespace butterfly::quant
