// SPDX-License-Identifier: MIT
#pragma once

// Eight bits a value, one scale a row, as the values are: no rotation, no zero.
//
//   | scale bf16 | c0 | c1 | ... |        2 + head_dim bytes: 130 per 128 values, 8.125 bits a value
//
//   x ~ scale * c,   c in [-127, 127] of two's complement,   scale = max |x| / 127, to the nearest bfloat16
//
// Error: |x - decoded| <= scale / 2: rounding moves max |x| / scale by at most 127 / 256, so that its code is 127; a
// row that is decoded and encoded again has the same bytes. Seek: one row. head_dim: a multiple of 16, up to 1024.
// Zeros are exact; a row with NaN, an infinity or a value of 2^116 or more decodes to NaN throughout. The scale of a
// row that is not zero is at least 2^-133, so values below 2^-134 become zero; rows below 1e-36 lose precision, and a
// second round may change their bytes.

#include <butterfly/quant/codec.hpp>
#include <butterfly/quant/row_format.hpp>
#include <butterfly/quant/whole_numbers.hpp>

namespace butterfly::quant {

/// int8 with one scale a row.
class int8 {
public:
    [[nodiscard]] row_format const& format() const noexcept { return format_; }
    [[nodiscard]] static constexpr char const* name() noexcept { return "int8"; }

    /// Throws shape_error unless head_dim is a multiple of 16, up to 1024.
    static void require(index_t head_dim) { detail::require_row_step("int8", head_dim); }

    [[nodiscard]] BUTTERFLY_HOST_DEVICE constexpr index_t row_bytes(index_t head_dim) const noexcept {
        return format_.row_bytes(head_dim);
    }

    BUTTERFLY_HOST_DEVICE void decode(std::byte const* row, index_t head_dim, float* out) const noexcept {
        detail::decode(format_, row, head_dim, out);
    }

    BUTTERFLY_HOST_DEVICE void encode(float const* values, index_t head_dim, std::byte* row) const noexcept {
        float const top = detail::largest(values, head_dim);
        bfloat16 scale(top);
        if (top > 0.0F) {
            scale = bfloat16(top / 127.0F);
            if (127.5F * static_cast<float>(scale) <= top) ++scale.bits; // subnormal: the next one up
        }
        detail::store_half(scale, row);
        float const by = top > 0.0F ? static_cast<float>(scale) : 1.0F; // zeros, or NaN: what codes say is not felt
        for (index_t d = 0; d < head_dim; ++d) {
            float const code = top > 0.0F ? values[d] / by : 0.0F;
            row[2 + d]       = static_cast<std::byte>(static_cast<int>(code + (code < 0.0F ? -0.5F : 0.5F)));
        }
    }

private:
    row_format format_{};
};

static_assert(codec<int8>);

} // namespace butterfly::quant
