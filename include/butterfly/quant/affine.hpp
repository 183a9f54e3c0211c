// SPDX-License-Identifier: MIT
#pragma once

// Groups of values on an even grid: a scale and a zero each.
//
//   row   ->   | scale bf16 | zero f16 | ... one pair a group ... | codes |
//
//   x ~ scale * (level + zero),   level in [-2^(Bits-1), 2^(Bits-1)), packed as level + 2^(Bits-1)
//                                 (8 bits: as it is, of two's complement)
//
//   bytes per 128 values        group 32    64    128       bits per value at group 64
//   Bits = 2                       48      40      36           2.5
//   Bits = 3                       64      56      52           3.5
//   Bits = 4                       80      72      68           4.5
//   Bits = 8                      144     136     132           8.5
//
// The encoder fits offset and scale to the group's codes by least squares from ranges a little narrower than
// [min, max]: clipping the ends costs less than a wider step where bits are few. The zero is kept in steps, so that a
// mean that is large against the spread costs steps: scale >= |mean| / 1024, as exact as float16 at least.
//
// Error: |x - decoded| <= scale / 2 within the grid, and more for what lies outside: of 8 bits, whose range is not
// narrowed, by the roundings of zero and, times 2^8, of scale, and where least squares move an end inwards, up to the
// root of a group's values times scale / 2 (steps of 2.5 were seen, for two of 128 values). Seek: one row. head_dim: a
// multiple of 16, up to 1024; the last group may be shorter. Zeros are exact, constants as exact as float16. A group
// with NaN, an infinity or a value of 2^116 or more decodes to NaN throughout. The scale of a group that is not zero is
// at least 2^-133: groups below 1e-36 lose precision.

#include <butterfly/quant/codec.hpp>
#include <butterfly/quant/row_format.hpp>
#include <butterfly/quant/whole_numbers.hpp>

#include <limits>
#include <string>

namespace butterfly::quant {
namespace detail {

/// An even grid: value = scale * (code + zero).
struct even_grid {
    bfloat16 scale{};
    float16 zero{};
};

/// How far ranges are narrowed, in 1/32 of them, in steps of 2: further where bits are few.
template <int Bits>
inline constexpr int most_clipped = Bits == 2   ? 14
                                    : Bits == 3 ? 10
                                    : Bits == 4 ? 6
                                                : 0;

/// Chooses grids for groups of up to longest_row values, a multiple of 16, and their codes.
template <int Bits>
class grid_fit {
public:
    static constexpr int top_code = (1 << Bits) - 1;

    /// A code stands for code - lowest.
    static constexpr int lowest = 1 << (Bits - 1);

    /// Grid of n values, and their codes in [0, top_code].
    BUTTERFLY_HOST_DEVICE static even_grid choose(float const* x, index_t n, std::uint8_t* codes) noexcept {
        for (index_t i = 0; i < n; ++i) codes[i] = lowest; // +0, also where the scale is
        float const top = largest(x, n);
        if (!(top > 0.0F)) return {bfloat16(top), float16(0.0F)}; // zeros, or NaN
        float low = x[0], high = x[0];
        for (index_t i = 1; i < n; ++i) {
            low  = std::min(low, x[i]);
            high = std::max(high, x[i]);
        }

        // Distances from the middle of the range, in whole numbers.
        auto const middle = static_cast<float>(0.5 * (double{low} + double{high}));
        float apart[longest_row];
        for (index_t i = 0; i < n; ++i) apart[i] = x[i] - middle;
        values_on_grid v;
        float const reach = largest(apart, n);
        int const unit    = to_whole(apart, n, reach > 0.0F ? exponent_of(reach) : exponent_of(top), v.whole);
        double const one  = std::ldexp(1.0, unit);
        for (index_t i = 0; i < n; ++i) v.x[i] = v.whole[i];
        line best{};
        double least = std::numeric_limits<double>::infinity();
        for (int clip = 0; clip <= most_clipped<Bits>; clip += 2) {
            line const fitted  = fit(v, n, static_cast<double>(reach) / one * (1.0 - clip / 32.0));
            double const error = error_of(fitted, v, n);
            if (error < least) {
                least = error;
                best  = fitted;
            }
        }

        // Rounded to what is stored, and the codes that are nearest then.
        double const offset = static_cast<double>(middle) + best.offset * one;
        double const floor  = std::fabs(static_cast<double>(middle)) / 1024.0;
        double const step   = std::max({best.step * one, floor, double{smallest_scale}});
        even_grid g{bfloat16(static_cast<float>(step)), float16(0.0F)};
        double const scale = static_cast<double>(static_cast<float>(g.scale));
        g.zero             = float16(static_cast<float>(offset / scale + lowest));
        double const zero  = static_cast<double>(static_cast<float>(g.zero)) - lowest;
        for (index_t i = 0; i < n; ++i) {
            double const at = static_cast<double>(x[i]) / scale - zero + 0.5;
            codes[i]        = static_cast<std::uint8_t>(at < 0.0 ? 0.0 : at > top_code ? double{top_code} : at);
        }
        return g;
    }

private:
    /// value = offset + step * code, in whole numbers. Products of a float are exact in double: whether a compiler
    /// fuses them with a sum changes nothing.
    struct line {
        double offset;
        float step;
    };

    /// Values in whole numbers, and room for their codes on a line. Plain loops over arrays, for compilers to
    /// vectorise.
    struct values_on_grid {
        std::int16_t whole[longest_row];
        double x[longest_row]; // the same
        std::int32_t code[longest_row];
    };

    BUTTERFLY_HOST_DEVICE static void find_codes(line const& l, values_on_grid& v, index_t n) noexcept {
        double const offset = l.offset, step = static_cast<double>(l.step), top = top_code;
        for (index_t i = 0; i < n; ++i) {
            double const at    = (v.x[i] - offset) / step + 0.5;
            double const above = at < 0.0 ? 0.0 : at;
            v.code[i]          = static_cast<std::int32_t>(above > top ? top : above);
        }
    }

    /// The least-squares line through the codes that the grid over [-reach, reach] gives.
    [[nodiscard]] BUTTERFLY_HOST_DEVICE static line fit(values_on_grid& v, index_t n, double reach) noexcept {
        line const even{-reach, reach > 0.0 ? static_cast<float>(2.0 * reach / top_code) : 1.0F};
        find_codes(even, v, n);
        std::int32_t sum_c = 0, sum_cc = 0, sum_x = 0, sum_xc = 0; // below 2^31: 2^13 * 255 * longest_row
        for (index_t i = 0; i < n; ++i) {
            sum_c += v.code[i];
            sum_cc += v.code[i] * v.code[i];
            sum_x += v.whole[i];
            sum_xc += v.whole[i] * v.code[i];
        }
        auto const count = static_cast<std::int64_t>(n);
        std::int64_t const c{sum_c}, cc{sum_cc}, x{sum_x}, xc{sum_xc}, of = count * cc - c * c;
        if (of == 0) return even; // one code
        auto const step = static_cast<float>(static_cast<double>(count * xc - x * c) / static_cast<double>(of));
        if (!(step > 0.0F)) return even;
        return {static_cast<double>(x * cc - c * xc) / static_cast<double>(of), step};
    }

    /// Squares of what values are from a line; n is a multiple of 16.
    [[nodiscard]] BUTTERFLY_HOST_DEVICE static double error_of(line const& l, values_on_grid& v, index_t n) noexcept {
        find_codes(l, v, n);
        constexpr index_t lanes = 8;
        double const offset = l.offset, step = static_cast<double>(l.step);
        double part[lanes] = {};
        for (index_t i = 0; i < n; i += lanes)
            for (index_t j = 0; j < lanes; ++j) {
                auto const off = static_cast<float>(v.x[i + j] - offset - v.code[i + j] * step);
                part[j] += double{off} * off;
            }
        double error = 0.0;
        for (double const p : part) error += p;
        return error;
    }
};

} // namespace detail

/// A row of groups along head_dim.
template <int Bits, int Group>
class affine {
    static_assert(Bits == 2 || Bits == 3 || Bits == 4 || Bits == 8, "affine has 2, 3, 4 or 8 bits");
    static_assert(Group == 32 || Group == 64 || Group == 128, "affine has groups of 32, 64 or 128 values");

public:
    constexpr affine() noexcept {
        format_.codes = Bits == 2   ? packing::bits2
                        : Bits == 3 ? packing::bits3
                        : Bits == 4 ? packing::bits4
                                    : packing::bits8;
        format_.group = Group;
        format_.zeros = true;
        for (int c = 0; Bits < 8 && c < 1 << Bits; ++c)
            format_.levels[static_cast<std::size_t>(c)] = static_cast<std::int8_t>(c - detail::grid_fit<Bits>::lowest);
    }

    [[nodiscard]] row_format const& format() const noexcept { return format_; }

    /// "affine<4, 64>".
    [[nodiscard]] static std::string name() {
        return "affine<" + std::to_string(Bits) + ", " + std::to_string(Group) + ">";
    }

    /// Throws shape_error unless head_dim is a multiple of 16, up to 1024.
    static void require(index_t head_dim) { detail::require_row_step("affine", head_dim); }

    [[nodiscard]] BUTTERFLY_HOST_DEVICE constexpr index_t row_bytes(index_t head_dim) const noexcept {
        return format_.row_bytes(head_dim);
    }

    BUTTERFLY_HOST_DEVICE void decode(std::byte const* row, index_t head_dim, float* out) const noexcept {
        detail::decode(format_, row, head_dim, out);
    }

    BUTTERFLY_HOST_DEVICE void encode(float const* values, index_t head_dim, std::byte* row) const noexcept {
        std::uint8_t codes[longest_row];
        index_t g = 0;
        for (index_t first = 0; first < head_dim; first += Group, ++g) {
            index_t const count       = std::min<index_t>(Group, head_dim - first);
            detail::even_grid const s = detail::grid_fit<Bits>::choose(values + first, count, codes + first);
            detail::store_half(s.scale, row + 4 * g);
            detail::store_half(s.zero, row + 4 * g + 2);
        }
        for (index_t i = 0; Bits == 8 && i < head_dim; ++i) codes[i] ^= 0x80U;
        detail::store_codes(format_.codes, codes, head_dim, row + format_.header_bytes(head_dim));
    }

private:
    row_format format_{};
};

static_assert(codec<affine<2, 32>> && codec<affine<8, 128>>);

} // namespace butterfly::quant
