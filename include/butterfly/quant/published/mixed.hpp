// SPDX-License-Identifier: MIT
#pragma once

// Min-max bins, and the largest values apart: mixed_4b8.

#include <butterfly/quant/codec.hpp>
#include <butterfly/quant/published/blocks.hpp>
#include <butterfly/quant/published/uniform.hpp>

namespace butterfly::quant::published {
namespace detail {

struct mixed_block {
    static constexpr int outliers    = 4;
    static constexpr index_t indices = 4, values = 8, codes = 16;
    static constexpr index_t bytes = codes + block_size / 2;

    BUTTERFLY_HOST_DEVICE static void encode(float const* x, int n, std::byte* at) noexcept {
        bool apart[block_size] = {};
        for (int k = 0; k < outliers; ++k) {
            int const i     = largest(x, n, apart);
            apart[i]        = true;
            at[indices + k] = static_cast<std::byte>(i);
            store_half(at + values + 2 * k, x[i]);
        }

        bounds range;
        int rest = 0;
        for (int i = 0; i < n; ++i) {
            if (apart[i]) continue;
            range.admit(x[i]);
            ++rest;
        }
        if (rest == 0) range = {0.0F, 0.0F};
        float const step = range.step(16);
        store_half(at, step);
        store_half(at + 2, range.low);
        for (int i = 0; i < n; ++i)
            if (!apart[i]) put_code<4>(at + codes, i, bin_of(x[i], range.low, step, 15));
    }

    BUTTERFLY_HOST_DEVICE static void decode(std::byte const* at, int n, float* out) noexcept {
        float const step = load_half(at), low = load_half(at + 2);
        for (int i = 0; i < n; ++i) out[i] = middle_of(get_code<4>(at + codes, i), low, step);
        for (int k = 0; k < outliers; ++k) {
            int const i = std::to_integer<int>(at[indices + k]);
            if (i < n) out[i] = load_half(at + values + 2 * k);
        }
    }

private:
    /// The first of the largest |x| that are not apart yet; 0 where all are.
    [[nodiscard]] BUTTERFLY_HOST_DEVICE static int largest(float const* x, int n, bool const* apart) noexcept {
        int index  = 0;
        float most = -1.0F;
        for (int i = 0; i < n; ++i) {
            if (apart[i] || !(std::fabs(x[i]) > most)) continue;
            index = i;
            most  = std::fabs(x[i]);
        }
        return index;
    }
};

} // namespace detail

/// The four largest |x| of 128 as halves, by descending size; sixteen levels over the range of the others, as
/// uniform_4b.
///
///   | step f16 | low f16 | i0 i1 i2 i3 | x_i0 x_i1 x_i2 x_i3 f16 | c1 c0 | c3 c2 | ... |
///     0          2         4: 4 bytes    8: 8 bytes                16: 64 bytes             80 bytes per 128
///
/// Codes of the four are 0 and not read. 5.0 bits per value, 10.0 at head_dim 64.
///
/// Defects: those of uniform_4b, and four outliers however many there are. A block of fewer than four values names
/// value 0 again where it has no more. A NaN is one of the four only where no number is left.
struct mixed_4b8 : detail::rows_of<detail::mixed_block> {
    [[nodiscard]] static constexpr char const* name() noexcept { return "mixed_4b8"; }
};

static_assert(codec<mixed_4b8>);

} // namespace butterfly::quant::published
