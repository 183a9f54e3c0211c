// SPDX-License-Identifier: MIT
#pragma once

// Direction and norm, the direction rotated and coded by levels: turbo_kv_3b, turbo_kv_4b, turbo_kv_5b,
// turbo_kv_5b_fast.
//
//   norm = |x|,   r = rotation(x / norm),   inv = top level / max |r|,   code = nearest level to r * inv
//   decode = norm * inverse rotation(level / inv)
//
// Defects they share: those of the rotation (rotation.hpp); a scale that makes the largest coordinate the outermost
// level, too wide for few levels: 25 % more error at 3 bits than levels of fixed width; two numbers where one would do,
// as only norm / inv counts; four bytes of header that are always zero; halves that are cut off. A norm from 2^16 on is
// stored as infinity and then nothing of the block is finite; a norm up to 1e-10 is coded as zeros, one below 2^-14
// read as zero.

#include <butterfly/quant/codec.hpp>
#include <butterfly/quant/published/blocks.hpp>
#include <butterfly/quant/published/levels.hpp>
#include <butterfly/quant/published/rotation.hpp>

namespace butterfly::quant::published {
namespace detail {

/// 1 / norm, or 0 where there is hardly any (or it is NaN).
[[nodiscard]] BUTTERFLY_HOST_DEVICE inline float inverse_norm_of(float norm) noexcept {
    return norm > 1e-10F ? 1.0F / norm : 0.0F;
}

/// A block of levels of `Bits` bits in codes of `Stored` bits.
template <int Bits, int Stored = Bits>
struct turbo_block {
    static constexpr index_t norm = 0, inverse = 4, codes = 8; // where they stand
    static constexpr index_t bytes = codes + block_size * Stored / 8;

    BUTTERFLY_HOST_DEVICE static void encode(float const* x, int n, std::byte* at) noexcept {
        float r[block_size];
        float const length = norm_of(x, n);
        rotate_unit(x, n, inverse_norm_of(length), r);
        float top = 0.0F;
        for (int i = 0; i < n; ++i)
            if (std::fabs(r[i]) > top) top = std::fabs(r[i]);
        encode_rotated(r, n, length, top, at);
    }

    BUTTERFLY_HOST_DEVICE static void decode(std::byte const* at, int n, float* out) noexcept {
        decode_rotated(at, n, out);
        rotate_back(out, n);
        scale(at, n, out);
    }

    /// The parts, for blocks that do something in between. `top` is what the outermost level stands for.
    BUTTERFLY_HOST_DEVICE static void
    encode_rotated(float const* r, int n, float length, float top, std::byte* at) noexcept {
        float const inv = top_level<Bits> / (top < 1e-10F ? 1.0F : top);
        store_half(at + norm, length);
        store_half(at + inverse, inv);
        for (int i = 0; i < n; ++i) put_code<Stored>(at + codes, i, nearest_code<Bits>(product(r[i], inv)));
    }

    BUTTERFLY_HOST_DEVICE static void decode_rotated(std::byte const* at, int n, float* out) noexcept {
        float const inv  = load_half(at + inverse);
        float const step = 1.0F / (inv < 1e-10F ? std::sqrt(static_cast<float>(n)) : inv);
        for (int i = 0; i < n; ++i) out[i] = level<Bits>(get_code<Stored>(at + codes, i) & ((1 << Bits) - 1)) * step;
    }

    BUTTERFLY_HOST_DEVICE static void scale(std::byte const* at, int n, float* out) noexcept {
        float const length = load_half(at + norm);
        for (int i = 0; i < n; ++i) out[i] *= length;
    }
};

} // namespace detail

/// Eight levels.
///
///   | norm f16 | 0 0 | inv f16 | 0 0 | codes as a stream of 3 bits ... |     56 bytes per 128, 3.5 bits per value
///     0                4               8: 48 bytes
///
/// Defects: see the head of the file. With values of mean 1 and deviation 0.1 it is worse than storing nothing. 7.0
/// bits per value at head_dim 64.
struct turbo_kv_3b : detail::rows_of<detail::turbo_block<3>> {
    [[nodiscard]] static constexpr char const* name() noexcept { return "turbo_kv_3b"; }
};

/// Sixteen levels.
///
///   | norm f16 | 0 0 | inv f16 | 0 0 | c1 c0 | c3 c2 | ... |     72 bytes per 128, 4.5 bits per value
///     0                4               8: 64 bytes, low nibble first
///
/// Defects: see the head of the file; 66 bytes would hold the same. 9.0 bits per value at head_dim 64.
struct turbo_kv_4b : detail::rows_of<detail::turbo_block<4>> {
    [[nodiscard]] static constexpr char const* name() noexcept { return "turbo_kv_4b"; }
};

/// Thirty-two levels.
///
///   | norm f16 | 0 0 | inv f16 | 0 0 | codes as a stream of 5 bits ... |     88 bytes per 128, 5.5 bits per value
///     0                4               8: 80 bytes
///
/// Defects: see the head of the file, and levels that are not those of a normal distribution (levels.hpp). 11.0 bits
/// per value at head_dim 64.
struct turbo_kv_5b : detail::rows_of<detail::turbo_block<5>> {
    [[nodiscard]] static constexpr char const* name() noexcept { return "turbo_kv_5b"; }
};

/// turbo_kv_5b with a byte for each code.
///
///   | norm f16 | 0 0 | inv f16 | 0 0 | c0 | c1 | ... |     136 bytes per 128, 8.5 bits per value
///     0                4               8: 128 bytes
///
/// Defects: those of turbo_kv_5b, and bytes enough for 8 bits a value. The upper three bits of a code are zero where it
/// is written and not looked at where it is read (where it was published a code from 32 on reads past the levels).
struct turbo_kv_5b_fast : detail::rows_of<detail::turbo_block<5, 8>> {
    [[nodiscard]] static constexpr char const* name() noexcept { return "turbo_kv_5b_fast"; }
};

static_assert(codec<turbo_kv_3b> && codec<turbo_kv_4b> && codec<turbo_kv_5b> && codec<turbo_kv_5b_fast>);

} // namespace butterfly::quant::published
