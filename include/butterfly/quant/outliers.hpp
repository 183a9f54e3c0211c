// SPDX-License-Identifier: MIT
#pragma once

// The channels of a row that stand out, as bfloat16; the others by another codec.
//
//   | row of Base, the outliers replaced by zeros | index u16, value bf16 | ... Count times |     + 4 * Count bytes
//
// Outliers are the Count values of greatest magnitude, ascending by index. Rotated codecs have no need of this: a
// rotation spreads what stands out (rotation.hpp). It is for codecs that keep the basis.
//
// Error: that of Base on a row without its outliers, and the rounding to bfloat16 of those, of finite ones to the
// largest there is where they would become infinite. Seek: one row. What Base says of zeros, NaN and head_dim holds; an
// outlier that is not finite is so alone.

#include <butterfly/quant/codec.hpp>
#include <butterfly/quant/row_format.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>

namespace butterfly::quant {

/// A codec with the `Count` largest values of each row kept apart.
template <row_codec Base, int Count>
struct outliers {
    static_assert(Count > 0);

    Base base{};

    /// "affine<2, 64> and 4 outliers".
    [[nodiscard]] std::string name() const requires named<Base> {
        return std::string(base.name()) + " and " + std::to_string(Count) + " outliers";
    }

    /// Throws shape_error where Base does, or where rows are shorter than Count.
    static void require(index_t head_dim) {
        if constexpr (requires { Base::require(head_dim); }) Base::require(head_dim);
        if (head_dim < Count || head_dim > longest_row)
            butterfly::detail::fail<shape_error>("outliers: head_dim " + std::to_string(head_dim) + " is not in [" +
                                                 std::to_string(Count) + ", " + std::to_string(longest_row) + "]");
    }

    [[nodiscard]] BUTTERFLY_HOST_DEVICE constexpr index_t row_bytes(index_t head_dim) const noexcept {
        return base.row_bytes(head_dim) + 4 * Count;
    }

    BUTTERFLY_HOST_DEVICE void decode(std::byte const* row, index_t head_dim, float* out) const noexcept {
        base.decode(row, head_dim, out);
        restore(row, head_dim, out);
    }

    /// Writes a row's outliers over what Base decodes: for leaves that decode rows of Base in a way of their own.
    BUTTERFLY_HOST_DEVICE void restore(std::byte const* row, index_t head_dim, float* out) const noexcept {
        std::byte const* at = row + base.row_bytes(head_dim);
        for (int i = 0; i < Count; ++i, at += 4) {
            std::uint16_t index = 0;
            std::memcpy(&index, at, sizeof index);
            bfloat16 value;
            std::memcpy(&value, at + 2, sizeof value);
            if (index < head_dim) out[index] = static_cast<float>(value);
        }
    }

    BUTTERFLY_HOST_DEVICE void encode(float const* values, index_t head_dim, std::byte* row) const noexcept {
        float rest[longest_row];
        bool taken[longest_row] = {};
        std::copy_n(values, head_dim, rest);
        std::array<std::uint16_t, Count> index{};
        for (std::uint16_t& at : index) {
            index_t most = 0;
            float size   = -1.0F;
            for (index_t d = 0; d < head_dim; ++d)
                if (!taken[d] && !(magnitude(values[d]) <= size)) {
                    most = d;
                    size = magnitude(values[d]);
                }
            at          = static_cast<std::uint16_t>(most);
            taken[most] = true;
            rest[most]  = 0.0F;
        }
        std::sort(index.begin(), index.end());
        base.encode(rest, head_dim, row);
        std::byte* to = row + base.row_bytes(head_dim);
        for (std::uint16_t const at : index) {
            bfloat16 value(values[at]);
            if (std::isfinite(values[at]) && !std::isfinite(static_cast<float>(value))) --value.bits;
            std::memcpy(to, &at, sizeof at);
            std::memcpy(to + 2, &value, sizeof value);
            to += 4;
        }
    }

private:
    /// |x|; NaN stands out like an infinity.
    [[nodiscard]] BUTTERFLY_HOST_DEVICE static float magnitude(float x) noexcept {
        return std::isnan(x) ? std::numeric_limits<float>::infinity() : std::fabs(x);
    }
};

} // namespace butterfly::quant
