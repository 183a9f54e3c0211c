// SPDX-License-Identifier: MIT
#pragma once

// Block formats of ggml, as its files and caches have them: q8_0, q4_0, q4_1.
//
// A row is head_dim / 32 blocks of 32 values; head_dim must be a multiple of 32, up to 1024. Bytes are little-endian,
// scales are binary16 rounded to nearest even, nibbles of byte j are value j (low) and value j + 16 (high).
//
// encode is ggml's reference, each product and sum rounded on its own, as its text has it. (A build of ggml that
// contracts x * id + 8.5 of q4_0 takes another code where that sum is within a rounding of an integer: fewer than one
// in ten million normal values, more where values stand on a grid.) ggml leaves undefined what a float that is not
// finite or does not fit becomes as a code. Here codes saturate, NaN takes the code of zero, and a block with a NaN has
// scale NaN, so that it shows when the row is read.
//
// decode is a product of a half and a few bits, which is exact in float, and at most one sum: whether a compiler
// contracts it or not, the bits are the same.

#include <butterfly/core/half.hpp>
#include <butterfly/core/index.hpp>
#include <butterfly/quant/codec.hpp>
#include <butterfly/quant/product.hpp>
#include <butterfly/quant/row_length.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>

namespace butterfly::quant {
namespace detail {

/// The integer part of x, from 0 to top; `otherwise` for NaN.
[[nodiscard]] BUTTERFLY_HOST_DEVICE inline int ggml_code(float x, int top, int otherwise) noexcept {
    if (std::isnan(x)) return otherwise;
    return x > 0.0F ? (x < static_cast<float>(top) ? static_cast<int>(x) : top) : 0;
}

[[nodiscard]] BUTTERFLY_HOST_DEVICE inline float ggml_load(std::byte const* at) noexcept {
    float16 h;
    std::memcpy(&h.bits, at, sizeof h.bits);
    return static_cast<float>(h);
}

BUTTERFLY_HOST_DEVICE inline void ggml_store(std::byte* at, float x) noexcept {
    float16 const h(x);
    std::memcpy(at, &h.bits, sizeof h.bits);
}

/// 1 / d, or 0 for 0.
[[nodiscard]] BUTTERFLY_HOST_DEVICE inline float ggml_inverse(float d) noexcept {
    return d != 0.0F ? 1.0F / d : 0.0F;
}

/// Rows of blocks of 32 values: Block has `bytes`, encode(x, at), decode(at, out) and `name`.
template <class Block>
struct ggml_rows {
    static constexpr index_t block_size = 32;

    [[nodiscard]] BUTTERFLY_HOST_DEVICE constexpr index_t row_bytes(index_t head_dim) const noexcept {
        return head_dim / block_size * Block::bytes;
    }

    BUTTERFLY_HOST_DEVICE void encode(float const* values, index_t head_dim, std::byte* row) const noexcept {
        for (index_t b = 0; b < head_dim / block_size; ++b)
            Block::encode(values + b * block_size, row + b * Block::bytes);
    }

    BUTTERFLY_HOST_DEVICE void decode(std::byte const* row, index_t head_dim, float* out) const noexcept {
        for (index_t b = 0; b < head_dim / block_size; ++b) Block::decode(row + b * Block::bytes, out + b * block_size);
    }

    [[nodiscard]] static constexpr char const* name() noexcept { return Block::name; }

    /// Throws shape_error where rows of head_dim values cannot be packed.
    static void require(index_t head_dim) {
        if (head_dim < block_size || head_dim % block_size != 0 || head_dim > longest_row)
            butterfly::detail::fail<shape_error>(std::string(name()) + ": head_dim " + std::to_string(head_dim) +
                                                 " is not a multiple of 32 up to 1024");
    }
};

struct q8_0_block {
    static constexpr index_t bytes    = 2 + 32;
    static constexpr char const* name = "ggml_q8_0";

    BUTTERFLY_HOST_DEVICE static void encode(float const* x, std::byte* at) noexcept {
        float top = 0.0F;
        for (int i = 0; i < 32; ++i)
            if (std::fabs(x[i]) > top || std::isnan(x[i])) top = std::fabs(x[i]);
        float const d       = top / 127.0F;
        float const inverse = ggml_inverse(d);
        ggml_store(at, d);
        for (int i = 0; i < 32; ++i) {
            float const q  = std::round(product(x[i], inverse)); // halves away from zero
            int const size = ggml_code(std::fabs(q), 127, 0);
            at[2 + i]      = static_cast<std::byte>(q < 0.0F ? -size : size);
        }
    }

    BUTTERFLY_HOST_DEVICE static void decode(std::byte const* at, float* out) noexcept {
        float const d = ggml_load(at);
        for (int i = 0; i < 32; ++i)
            out[i] = d * static_cast<float>(static_cast<std::int8_t>(std::to_integer<unsigned>(at[2 + i])));
    }
};

struct q4_0_block {
    static constexpr index_t bytes    = 2 + 16;
    static constexpr char const* name = "ggml_q4_0";

    BUTTERFLY_HOST_DEVICE static void encode(float const* x, std::byte* at) noexcept {
        float top = 0.0F, farthest = 0.0F; // |x| and x of the first of the largest
        for (int i = 0; i < 32; ++i)
            if (std::fabs(x[i]) > top || std::isnan(x[i])) {
                top      = std::fabs(x[i]);
                farthest = x[i];
            }
        float const d       = farthest / -8.0F;
        float const inverse = ggml_inverse(d);
        ggml_store(at, d);
        for (int j = 0; j < 16; ++j) {
            int const low  = ggml_code(product(x[j], inverse) + 8.5F, 15, 8);
            int const high = ggml_code(product(x[j + 16], inverse) + 8.5F, 15, 8);
            at[2 + j]      = static_cast<std::byte>(low | high << 4);
        }
    }

    BUTTERFLY_HOST_DEVICE static void decode(std::byte const* at, float* out) noexcept {
        float const d = ggml_load(at);
        for (int j = 0; j < 16; ++j) {
            int const codes = std::to_integer<int>(at[2 + j]);
            out[j]          = d * static_cast<float>((codes & 15) - 8);
            out[j + 16]     = d * static_cast<float>((codes >> 4) - 8);
        }
    }
};

struct q4_1_block {
    static constexpr index_t bytes    = 4 + 16;
    static constexpr char const* name = "ggml_q4_1";

    BUTTERFLY_HOST_DEVICE static void encode(float const* x, std::byte* at) noexcept {
        float low  = std::numeric_limits<float>::max();
        float high = -low;
        for (int i = 0; i < 32; ++i) {
            if (x[i] < low || std::isnan(x[i])) low = x[i];
            if (x[i] > high || std::isnan(x[i])) high = x[i];
        }
        float const d       = (high - low) / 15.0F;
        float const inverse = ggml_inverse(d);
        ggml_store(at, d);
        ggml_store(at + 2, low);
        for (int j = 0; j < 16; ++j) {
            int const first  = ggml_code(product(x[j] - low, inverse) + 0.5F, 15, 0);
            int const second = ggml_code(product(x[j + 16] - low, inverse) + 0.5F, 15, 0);
            at[4 + j]        = static_cast<std::byte>(first | second << 4);
        }
    }

    BUTTERFLY_HOST_DEVICE static void decode(std::byte const* at, float* out) noexcept {
        float const d = ggml_load(at), low = ggml_load(at + 2);
        for (int j = 0; j < 16; ++j) {
            int const codes = std::to_integer<int>(at[4 + j]);
            out[j]          = d * static_cast<float>(codes & 15) + low;
            out[j + 16]     = d * static_cast<float>(codes >> 4) + low;
        }
    }
};

} // namespace detail

/// d = max |x| / 127,   code = round(x / d), halves away from zero,   decode = code * d.
///
///   | d f16 | c0 | c1 | ... | c31 |     34 bytes per 32 values, 8.5 bits per value
///
/// |x - decode| <= d / 2, and |code| times the rounding of d. From max |x| = 127 * 65520 on d is infinite; up to
/// 127 * 2^-25 it is zero.
struct ggml_q8_0 : detail::ggml_rows<detail::q8_0_block> {};

/// d = the x of largest |x|, divided by -8,   code = min(15, floor(x / d + 8.5)),   decode = (code - 8) * d.
///
///   | d f16 | c16 c0 | c17 c1 | ... | c31 c15 |     18 bytes per 32 values, 4.5 bits per value
///
/// The x of largest |x| has code 0 and comes back as it was, up to the rounding of d. |x - decode| <= |d| / 2, and
/// |code - 8| times that rounding; but up to |d| for an x of the other sign that is nearly as large: it would need
/// code 16.
struct ggml_q4_0 : detail::ggml_rows<detail::q4_0_block> {};

/// m = min x,   d = (max x - m) / 15,   code = floor((x - m) / d + 0.5),   decode = code * d + m.
///
///   | d f16 | m f16 | c16 c0 | c17 c1 | ... | c31 c15 |     20 bytes per 32 values, 5.0 bits per value
///
/// |x - decode| <= d / 2, and the rounding of d and of m: that of m dominates where |m| is large against the range.
struct ggml_q4_1 : detail::ggml_rows<detail::q4_1_block> {};

static_assert(codec<ggml_q8_0> && codec<ggml_q4_0> && codec<ggml_q4_1>);

} // namespace butterfly::quant
