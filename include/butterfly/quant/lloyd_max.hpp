// SPDX-License-Identifier: MIT
#pragma once

// Rotated rows on a Gaussian grid: L levels near the Lloyd-Max ones, one scale a row.
//
//   row of head_dim values   ->   | scale bf16 | codes |         bytes per 128 values, bits per value
//
//   L =  4     2 + 128 / 4             34     2.125
//   L =  6     2 + ceil(128 / 3)       45     2.8125      three codes a byte
//   L =  8     2 + 128 * 3 / 8         50     3.125
//   L = 16     2 + 128 / 2             66     4.125
//   L = 32     2 + 128 * 5 / 8         82     5.125
//
//   x ~ R^T (scale * level[code]),   R a random rotation (rotation.hpp): coordinates of R x are nearly Gaussian
//
// Levels are whole numbers, so that a product of bytes is a score. They were trained for the search: the encoder tries
// scales around the one of a Gaussian row and keeps the codes with the greatest <y, l>^2 / <l, l>, y = R x and l the
// levels of its codes: by least squares those of the least error. The scale stored is then
//
//   least_squares   <y, l> / <l, l>     the least error; estimates of <q, x> shrink by 1 - NMSE
//   unbiased        <y, y> / <y, l>     <x, decoded> = <x, x>; NMSE / (1 - NMSE) (Drive and Eden, Vargaftik et al.
//   2021)
//
// Error of a Gaussian row, of its square: 0.114, 0.0548, 0.0316, 0.00777 and 0.00187 by least squares, which leave no
// row off by more than itself; one value may be off by any part of the row's length. Seek: one row. head_dim: a
// multiple of 16, up to 1024. Zeros decode to zeros; a row with NaN, an infinity or a value of 2^116 or more decodes to
// NaN throughout. The scale of a row that is not zero is at least 2^-133: rows below 1e-36 lose precision, and none
// becomes zero.

#include <butterfly/quant/codec.hpp>
#include <butterfly/quant/row_format.hpp>
#include <butterfly/quant/whole_numbers.hpp>

#include <limits>
#include <string>

namespace butterfly::quant {

/// Which scale a row stores.
enum class scale_rule : std::uint8_t { least_squares, unbiased };

namespace detail {

/// The levels above zero, ascending; those below are their negatives.
template <int Levels>
inline constexpr std::array<std::int8_t, Levels / 2> positive_levels{};
template <>
inline constexpr std::array<std::int8_t, 2> positive_levels<4>{33, 111};
template <>
inline constexpr std::array<std::int8_t, 3> positive_levels<6>{18, 57, 110};
template <>
inline constexpr std::array<std::int8_t, 4> positive_levels<8>{11, 34, 61, 100};
template <>
inline constexpr std::array<std::int8_t, 8> positive_levels<16>{5, 15, 25, 36, 48, 62, 80, 106};
template <>
inline constexpr std::array<std::int8_t, 16> positive_levels<32>{2,  6,  10, 14, 18, 22, 26, 31,
                                                                 36, 41, 46, 52, 59, 67, 77, 91};

/// Scales an encoder tries: `count` of them, evenly from `first` to `last` hundredths of the one at which the largest
/// value is the outermost level. The best scales of rows of 64 to 256 Gaussian values lie there, and the error is
/// within 0.6 % of that of a dense search.
struct scale_search {
    int count;
    int first;
    int last;
};
template <int Levels>
inline constexpr scale_search search_of = Levels == 4    ? scale_search{12, 30, 75}
                                          : Levels == 6  ? scale_search{8, 45, 90}
                                          : Levels == 8  ? scale_search{8, 60, 95}
                                          : Levels == 16 ? scale_search{8, 80, 105}
                                                         : scale_search{14, 90, 120};

template <int Levels>
inline constexpr packing packing_of = Levels == 4    ? packing::bits2
                                      : Levels == 6  ? packing::base6
                                      : Levels == 8  ? packing::bits3
                                      : Levels == 16 ? packing::bits4
                                                     : packing::bits5;

/// Sums of the codes that a scale gives: `dot` = <|y|, |l|>, `square` = <l, l>.
struct level_sums {
    std::int32_t dot;
    std::int32_t square;
};

/// Finds levels of magnitudes at a scale, in whole numbers per unit of level, of so few digits that products with
/// levels are exact: whether a compiler fuses them with a sum changes nothing.
template <int Levels>
class level_grid {
public:
    static constexpr int half = Levels / 2;

    BUTTERFLY_HOST_DEVICE explicit level_grid(double scale) noexcept {
        for (int j = 0; j + 1 < half; ++j) {
            auto const at  = static_cast<std::size_t>(j);
            auto const mid = 0.5 * (positive_levels<Levels>[at] + positive_levels<Levels>[at + 1]);
            double const t = mid * scale + 0.5;
            threshold_[at] = static_cast<std::int16_t>(t < 32767.0 ? t : 32767.0);
        }
    }

    [[nodiscard]] BUTTERFLY_HOST_DEVICE level_sums sums(std::int16_t const* size, index_t n) const noexcept {
        level_sums s{0, 0};
        for (index_t i = 0; i < n; ++i) {
            auto level = static_cast<std::int16_t>(positive_levels<Levels>[0]);
            for (int j = 0; j + 1 < half; ++j)
                level = static_cast<std::int16_t>(level +
                                                  (size[i] >= threshold_[static_cast<std::size_t>(j)] ? step(j) : 0));
            s.dot += std::int32_t{size[i]} * level;
            s.square += std::int32_t{level} * level;
        }
        return s;
    }

    /// The code of a magnitude among the levels above zero.
    [[nodiscard]] BUTTERFLY_HOST_DEVICE int index(std::int16_t size) const noexcept {
        int at = 0;
        for (int j = 0; j + 1 < half; ++j) at += size >= threshold_[static_cast<std::size_t>(j)] ? 1 : 0;
        return at;
    }

private:
    [[nodiscard]] BUTTERFLY_HOST_DEVICE static constexpr int step(int j) noexcept {
        auto const at = static_cast<std::size_t>(j);
        return positive_levels<Levels>[at + 1] - positive_levels<Levels>[at];
    }

    std::array<std::int16_t, static_cast<std::size_t>(half)> threshold_{};
};

} // namespace detail

/// A row of `Levels` levels: 4, 6, 8, 16 or 32. The seed is of the rotation; one serves a whole model.
template <int Levels>
class lloyd_max {
    static_assert(Levels == 4 || Levels == 6 || Levels == 8 || Levels == 16 || Levels == 32,
                  "lloyd_max has 4, 6, 8, 16 or 32 levels");

public:
    constexpr explicit lloyd_max(std::uint64_t seed = 1, scale_rule rule = scale_rule::least_squares) noexcept
        : rule_(rule) {
        format_.codes   = detail::packing_of<Levels>;
        format_.rotated = true;
        format_.seed    = seed;
        for (int i = 0; i < Levels / 2; ++i) {
            std::int8_t const level = detail::positive_levels<Levels>[static_cast<std::size_t>(i)];
            format_.levels[static_cast<std::size_t>(Levels / 2 + i)]     = level;
            format_.levels[static_cast<std::size_t>(Levels / 2 - 1 - i)] = static_cast<std::int8_t>(-level);
        }
    }

    [[nodiscard]] row_format const& format() const noexcept { return format_; }

    /// "lloyd_max<16> seed 1", with "unbiased" where it is.
    [[nodiscard]] std::string name() const {
        return "lloyd_max<" + std::to_string(Levels) + "> seed " + std::to_string(format_.seed) +
               (rule_ == scale_rule::unbiased ? " unbiased" : "");
    }

    /// Throws shape_error unless head_dim is a multiple of 16, up to 1024.
    static void require(index_t head_dim) { detail::require_row_step("lloyd_max", head_dim); }

    [[nodiscard]] BUTTERFLY_HOST_DEVICE constexpr index_t row_bytes(index_t head_dim) const noexcept {
        return format_.row_bytes(head_dim);
    }

    BUTTERFLY_HOST_DEVICE void decode(std::byte const* row, index_t head_dim, float* out) const noexcept {
        detail::decode(format_, row, head_dim, out);
    }

    BUTTERFLY_HOST_DEVICE void encode(float const* values, index_t head_dim, std::byte* row) const noexcept {
        std::uint8_t codes[longest_row];
        bfloat16 const scale = choose(values, head_dim, codes);
        detail::store_half(scale, row);
        detail::store_codes(format_.codes, codes, head_dim, row + 2);
    }

private:
    BUTTERFLY_HOST_DEVICE bfloat16 choose(float const* values, index_t n, std::uint8_t* codes) const noexcept {
        using detail::level_grid;
        float const top = detail::largest(values, n);
        for (index_t i = 0; i < n; ++i) codes[i] = Levels / 2; // the least level above zero: no -0
        if (!(top > 0.0F)) return bfloat16(top);               // zero, or NaN

        // The rotated row in whole numbers; its signs apart.
        float y[longest_row];
        int const power = detail::exponent_of(top);
        for (index_t i = 0; i < n; ++i) y[i] = detail::times_power(values[i], -power);
        rotation{format_.seed}.forward(y, n);
        std::int16_t whole[longest_row];
        int const unit      = power + detail::to_whole(y, n, detail::exponent_of(detail::largest(y, n)), whole);
        std::int64_t energy = 0;
        std::int16_t peak   = 0;
        for (index_t i = 0; i < n; ++i) {
            codes[i] = whole[i] < 0 ? 1 : 0;
            whole[i] = static_cast<std::int16_t>(whole[i] < 0 ? -whole[i] : whole[i]);
            peak     = std::max(peak, whole[i]);
            energy += std::int32_t{whole[i]} * whole[i];
        }

        constexpr detail::scale_search search = detail::search_of<Levels>;
        constexpr double outermost = detail::positive_levels<Levels>[static_cast<std::size_t>(Levels / 2 - 1)];
        detail::level_sums best{0, 1};
        double most = -1.0, found = 0.0;
        for (int c = 0; c < search.count; ++c) {
            int const ratio = search.first * (search.count - 1) + (search.last - search.first) * c;
            auto const tried =
                static_cast<float>(static_cast<double>(peak) * ratio / (100 * (search.count - 1)) / outermost);
            detail::level_sums const s = level_grid<Levels>(tried).sums(whole, n);
            double const explained     = static_cast<double>(s.dot) * s.dot / s.square;
            if (explained > most) {
                most  = explained;
                best  = s;
                found = tried;
            }
        }
        double const fitted = rule_ == scale_rule::unbiased ? static_cast<double>(energy) / best.dot
                                                            : static_cast<double>(best.dot) / best.square;
        bfloat16 scale(static_cast<float>(std::ldexp(fitted, unit)));
        if (static_cast<float>(scale) < detail::smallest_scale) scale = bfloat16(detail::smallest_scale);

        // The codes of the scale that is stored; of `unbiased`, those found.
        double const used =
            rule_ == scale_rule::unbiased ? found : std::ldexp(static_cast<double>(static_cast<float>(scale)), -unit);
        level_grid<Levels> const grid(used);
        for (index_t i = 0; i < n; ++i) {
            int const at = grid.index(whole[i]);
            codes[i]     = static_cast<std::uint8_t>(codes[i] != 0 ? Levels / 2 - 1 - at : Levels / 2 + at);
        }
        return scale;
    }

    row_format format_{};
    scale_rule rule_;
};

static_assert(codec<lloyd_max<4>> && codec<lloyd_max<6>> && codec<lloyd_max<32>>);

} // namespace butterfly::quant
