// SPDX-License-Identifier: MIT
#pragma once

// The published formats of values: v_q4, v_q2.
//
//   d = max |x| / 7 or / 1.5104 for each 32 values,   decode = (code - 8) * d or level * d
//
// Where they were published scales stand in an array of their own and groups are cut over the rows of all heads one
// after another. A row here is one head's, its codes and then its scales: the same codes and scales where head_dim is a
// multiple of 32. (Where it is not, the published engine writes groups across heads and reads them per head: wrong.)
//
//   | codes, 32 values a group ... | d f32 | d f32 | ... |

#include <butterfly/quant/codec.hpp>
#include <butterfly/quant/published/blocks.hpp>
#include <butterfly/quant/published/levels.hpp>

namespace butterfly::quant::published {
namespace detail {

/// Format has `bits`, `code_of(scaled value)`, `value_of(code)` and `top`, what the largest |x| is scaled to.
template <class Format>
struct value_rows {
    static constexpr index_t group = 32;

    [[nodiscard]] BUTTERFLY_HOST_DEVICE constexpr index_t row_bytes(index_t head_dim) const noexcept {
        return groups(head_dim) * (code_bytes + scale_bytes);
    }

    BUTTERFLY_HOST_DEVICE void encode(float const* values, index_t head_dim, std::byte* row) const noexcept {
        std::memset(row, 0, static_cast<std::size_t>(groups(head_dim) * code_bytes));
        for (index_t g = 0; g < groups(head_dim); ++g) {
            index_t const end = (g + 1) * group < head_dim ? (g + 1) * group : head_dim;
            float top         = 0.0F;
            for (index_t i = g * group; i < end; ++i)
                if (std::fabs(values[i]) > top || std::isnan(values[i])) top = std::fabs(values[i]);
            float const d       = top / Format::top;
            float const inverse = d > 1e-10F ? 1.0F / d : 0.0F;
            for (index_t i = g * group; i < end; ++i)
                put_code<Format::bits>(row, i, Format::code_of(product(values[i], inverse)));
            store(row + groups(head_dim) * code_bytes + g * scale_bytes, d);
        }
    }

    BUTTERFLY_HOST_DEVICE void decode(std::byte const* row, index_t head_dim, float* out) const noexcept {
        std::byte const* const scales = row + groups(head_dim) * code_bytes;
        for (index_t i = 0; i < head_dim; ++i)
            out[i] = Format::value_of(get_code<Format::bits>(row, i)) * load<float>(scales + i / group * scale_bytes);
    }

private:
    static constexpr index_t code_bytes  = group * Format::bits / 8; // of a group
    static constexpr index_t scale_bytes = 4;

    [[nodiscard]] BUTTERFLY_HOST_DEVICE static constexpr index_t groups(index_t head_dim) noexcept {
        return butterfly::detail::ceil_div(head_dim, group);
    }
};

struct fifteen_levels {
    static constexpr int bits  = 4;
    static constexpr float top = 7.0F;

    [[nodiscard]] BUTTERFLY_HOST_DEVICE static int code_of(float x) noexcept {
        float const rounded = std::round(x); // halves away from zero
        return 8 +
               (rounded > -7.0F ? (rounded < 7.0F ? static_cast<int>(rounded) : 7) : (std::isnan(rounded) ? 0 : -7));
    }
    [[nodiscard]] BUTTERFLY_HOST_DEVICE static float value_of(int code) noexcept {
        return static_cast<float>(code - 8);
    }
};

struct four_levels {
    static constexpr int bits  = 2;
    static constexpr float top = top_level<2>;

    [[nodiscard]] BUTTERFLY_HOST_DEVICE static int code_of(float x) noexcept { return nearest_code<2>(x); }
    [[nodiscard]] BUTTERFLY_HOST_DEVICE static float value_of(int code) noexcept { return level<2>(code); }
};

} // namespace detail

/// Fifteen levels for each of 32 values: code = 8 + round(x / d), halves away from zero.
///
///   | c1 c0 | c3 c2 | ... | d f32 ... |     64 + 16 bytes per 128, 5.0 bits per value
///
/// |x - decode| <= d / 2. Defects: code 0 is never used; a scale of 4 bytes where 2 would do. Scales up to 1e-10 code
/// zeros. (Both formats keep float32 scales, so that nothing saturates or flushes.)
struct v_q4 : detail::value_rows<detail::fifteen_levels> {
    [[nodiscard]] static constexpr char const* name() noexcept { return "v_q4"; }
};

/// Four levels for each of 32 values: the Lloyd-Max levels of N(0, 1), +-0.4528 and +-1.5104.
///
///   | c3 c2 c1 c0 | ... | d f32 ... |     32 + 16 bytes per 128, 3.0 bits per value
///
/// Defects: called 2 bit, takes 3.0; the outermost level is the largest |x|, far out of place for a group of 32, and
/// costs 60 % more error than levels of fixed width. Zero has no code: a group of zeros comes back as -0, one of scale
/// up to 1e-10 as -0.4528 d throughout.
struct v_q2 : detail::value_rows<detail::four_levels> {
    [[nodiscard]] static constexpr char const* name() noexcept { return "v_q2"; }
};

static_assert(codec<v_q4> && codec<v_q2>);

} // namespace butterfly::quant::published
