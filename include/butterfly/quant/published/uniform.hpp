// SPDX-License-Identifier: MIT
#pragma once

// Min-max bins: uniform_2b, uniform_3b, uniform_4b.
//
//   low = min x,   step = max(max x - low, 1e-8) / 2^b,   code = clamp(floor((x - low) / step), 0, 2^b - 1)
//   decode = low + (code + 0.5) * step
//
// A value is read as the middle of its bin: |x - decode| <= step / 2 before the rounding of step and low, and no value
// ever comes back as the smallest or largest. The product of decode is exact (11 bits of a half by 5 of code + 0.5), so
// that contraction cannot change it.
//
// Defects they share: halves that are cut off instead of rounded, a step below 2^-14 that becomes zero (128 normal
// values times 1e-4 all come back from uniform_4b as their minimum), a low or a step from 2^16 on that becomes infinity
// (nothing of the group comes back), and a low whose rounding moves the whole group where it is large against the step.

#include <butterfly/quant/codec.hpp>
#include <butterfly/quant/published/blocks.hpp>

#include <limits>

namespace butterfly::quant::published {
namespace detail {

/// Smallest and largest of what was admitted; a NaN stays.
struct bounds {
    float low  = std::numeric_limits<float>::infinity();
    float high = -std::numeric_limits<float>::infinity();

    BUTTERFLY_HOST_DEVICE void admit(float x) noexcept {
        if (x < low || std::isnan(x)) low = x;
        if (x > high || std::isnan(x)) high = x;
    }

    /// The width of one of `bins` bins.
    [[nodiscard]] BUTTERFLY_HOST_DEVICE float step(int bins) const noexcept {
        float const range = high - low;
        return (range < 1e-8F ? 1e-8F : range) / static_cast<float>(bins);
    }
};

/// The bin of x; 0 for NaN.
[[nodiscard]] BUTTERFLY_HOST_DEVICE inline int bin_of(float x, float low, float step, int top) noexcept {
    float const bin = std::floor((x - low) / step);
    return bin > 0.0F ? (bin < static_cast<float>(top) ? static_cast<int>(bin) : top) : 0;
}

/// The middle of a bin.
[[nodiscard]] BUTTERFLY_HOST_DEVICE inline float middle_of(int code, float low, float step) noexcept {
    return low + (static_cast<float>(code) + 0.5F) * step;
}

/// A block with a step and a low for each 32 values.
template <int Bits>
struct uniform_groups {
    static constexpr int group     = 32;
    static constexpr index_t steps = 0, lows = 8, codes = 16; // where they stand
    static constexpr index_t bytes = codes + block_size * Bits / 8;

    BUTTERFLY_HOST_DEVICE static void encode(float const* x, int n, std::byte* at) noexcept {
        for (int first = 0, g = 0; first < n; first += group, ++g) {
            int const end = first + group < n ? first + group : n;
            bounds range;
            for (int i = first; i < end; ++i) range.admit(x[i]);
            store_half(at + steps + 2 * g, range.step(1 << Bits));
            store_half(at + lows + 2 * g, range.low);

            float const low  = load_half(at + lows + 2 * g);
            float const step = load_half(at + steps + 2 * g);
            for (int i = first; i < end; ++i)
                put_code<Bits>(at + codes, i, bin_of(x[i], low, step < 1e-10F ? 1e-10F : step, (1 << Bits) - 1));
        }
    }

    BUTTERFLY_HOST_DEVICE static void decode(std::byte const* at, int n, float* out) noexcept {
        for (int i = 0; i < n; ++i)
            out[i] = middle_of(get_code<Bits>(at + codes, i), load_half(at + lows + 2 * (i / group)),
                               load_half(at + steps + 2 * (i / group)));
    }
};

/// A block with one step and one low.
struct uniform_block {
    static constexpr index_t codes = 4;
    static constexpr index_t bytes = codes + block_size / 2;

    BUTTERFLY_HOST_DEVICE static void encode(float const* x, int n, std::byte* at) noexcept {
        bounds range;
        for (int i = 0; i < n; ++i) range.admit(x[i]);
        float const step = range.step(16);
        store_half(at, step);
        store_half(at + 2, range.low);
        for (int i = 0; i < n; ++i) put_code<4>(at + codes, i, bin_of(x[i], range.low, step, 15));
    }

    BUTTERFLY_HOST_DEVICE static void decode(std::byte const* at, int n, float* out) noexcept {
        float const step = load_half(at), low = load_half(at + 2);
        for (int i = 0; i < n; ++i) out[i] = middle_of(get_code<4>(at + codes, i), low, step);
    }
};

} // namespace detail

/// Four levels for each of 32 values. Bins are cut from the stored halves.
///
///   | step f16 x 4 | low f16 x 4 | c3 c2 c1 c0 | c7 c6 c5 c4 | ... |     48 bytes per 128
///     0              8             16: 32 bytes, 4 codes each
///
/// Defects: called 2 bit, takes 3.0 per value, and 6.0 at head_dim 64, since a short block is as long as a whole one. A
/// group of one and the same value, 256 or more in size, divides what the half cut off by 1e-10: where it was published
/// the conversion to int overflows and anything may follow, here the code saturates (and means nothing, as the stored
/// step is zero).
struct uniform_2b : detail::rows_of<detail::uniform_groups<2>> {
    [[nodiscard]] static constexpr char const* name() noexcept { return "uniform_2b"; }
};

/// Eight levels for each of 32 values. Bins are cut from the stored halves.
///
///   | step f16 x 4 | low f16 x 4 | c2 c1 c0 as a stream of 3 bits ... |     64 bytes per 128
///     0              8             16: 48 bytes
///
/// Defects: called 3 bit, takes 4.0 per value (8.0 at head_dim 64); those of uniform_2b.
struct uniform_3b : detail::rows_of<detail::uniform_groups<3>> {
    [[nodiscard]] static constexpr char const* name() noexcept { return "uniform_3b"; }
};

/// Sixteen levels for 128 values.
///
///   | step f16 | low f16 | c1 c0 | c3 c2 | ... |     68 bytes per 128, 4.25 bits per value (8.5 at head_dim 64)
///     0          2         4: 64 bytes, low nibble first
///
/// Defects: bins are cut from the unrounded step and low but read with the halves, so that they disagree; one outlier
/// widens the bins of all 128.
struct uniform_4b : detail::rows_of<detail::uniform_block> {
    [[nodiscard]] static constexpr char const* name() noexcept { return "uniform_4b"; }
};

static_assert(codec<uniform_2b> && codec<uniform_3b> && codec<uniform_4b>);

} // namespace butterfly::quant::published
