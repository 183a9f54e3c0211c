// SPDX-License-Identifier: MIT
#pragma once

// turbo_kv with the largest rotated coordinates apart: turbo_kv_4bo, turbo_kv_3bo.
//
//   S = eight of the largest |r|,   inv = top level / max of |r| outside S
//   decode = norm * inverse rotation(r as a half in S, level / inv elsewhere)

#include <butterfly/quant/codec.hpp>
#include <butterfly/quant/published/blocks.hpp>
#include <butterfly/quant/published/turbo_kv.hpp>

namespace butterfly::quant::published {
namespace detail {

template <int Bits>
struct turbo_outlier_block {
    using base = turbo_block<Bits>;

    static constexpr int outliers    = 8;
    static constexpr index_t indices = base::bytes, values = indices + outliers;
    static constexpr index_t bytes = values + 2 * outliers;

    BUTTERFLY_HOST_DEVICE static void encode(float const* x, int n, std::byte* at) noexcept {
        float r[block_size];
        float const length = norm_of(x, n);
        rotate_unit(x, n, inverse_norm_of(length), r);

        bool apart[block_size] = {};
        select(r, n, apart, at);
        float top = 0.0F;
        for (int i = 0; i < n; ++i)
            if (!apart[i] && std::fabs(r[i]) > top) top = std::fabs(r[i]);
        base::encode_rotated(r, n, length, top, at);
    }

    BUTTERFLY_HOST_DEVICE static void decode(std::byte const* at, int n, float* out) noexcept {
        base::decode_rotated(at, n, out);
        for (int k = 0; k < outliers; ++k) {
            int const i = std::to_integer<int>(at[indices + k]);
            if (i < n) out[i] = load_half(at + values + 2 * k);
        }
        rotate_back(out, n);
        base::scale(at, n, out);
    }

private:
    /// Writes the slots. A coordinate takes the first of the slots that hold least, if it is larger than what is there:
    /// slots are in no order.
    BUTTERFLY_HOST_DEVICE static void select(float const* r, int n, bool* apart, std::byte* at) noexcept {
        int index[outliers];
        float size[outliers];
        for (int k = 0; k < outliers; ++k) {
            index[k] = -1;
            size[k]  = -1.0F;
        }
        for (int i = 0; i < n; ++i) {
            int least = 0;
            for (int k = 1; k < outliers; ++k)
                if (size[k] < size[least]) least = k;
            if (!(std::fabs(r[i]) > size[least])) continue;
            size[least]  = std::fabs(r[i]);
            index[least] = i;
        }
        for (int k = 0; k < outliers; ++k) {
            if (index[k] < 0) continue; // stays 0, 0
            apart[index[k]] = true;
            at[indices + k] = static_cast<std::byte>(index[k]);
            store_half(at + values + 2 * k, r[index[k]]);
        }
    }
};

} // namespace detail

/// turbo_kv_4b with eight coordinates apart.
///
///   | norm f16 | 0 0 | inv f16 | 0 0 | c1 c0 | c3 c2 | ... | i0 ... i7 | r_i0 ... r_i7 f16 |
///     0                4               8: 64 bytes           72          80                     96 bytes per 128
///
/// 6.0 bits per value (12.0 at head_dim 64), more than turbo_kv_5b and with more error. The eight have codes too, which
/// are not read.
///
/// Defects: those of turbo_kv_4b, but for the scale, which fits better. A block of fewer than eight values leaves slots
/// over; they name coordinate 0 and hold 0, and decode takes them at their word: coordinate 0 of such a block is lost.
struct turbo_kv_4bo : detail::rows_of<detail::turbo_outlier_block<4>> {
    [[nodiscard]] static constexpr char const* name() noexcept { return "turbo_kv_4bo"; }
};

/// turbo_kv_3b with eight coordinates apart.
///
///   | norm f16 | 0 0 | inv f16 | 0 0 | codes as a stream of 3 bits ... | i0 ... i7 | r_i0 ... r_i7 f16 |
///     0                4               8: 48 bytes                       56          64        80 bytes per 128
///
/// 5.0 bits per value (10.0 at head_dim 64). Defects: those of turbo_kv_4bo.
struct turbo_kv_3bo : detail::rows_of<detail::turbo_outlier_block<3>> {
    [[nodiscard]] static constexpr char const* name() noexcept { return "turbo_kv_3bo"; }
};

static_assert(codec<turbo_kv_4bo> && codec<turbo_kv_3bo>);

} // namespace butterfly::quant::published
