// SPDX-License-Identifier: MIT
#pragma once

// Rotated rows by a bit-shift trellis, one scale a row: the quality tier. The bytes of lloyd_max of as many bits, and
// about a third less error; encoding takes four to ten times as long.
//
//   row of head_dim values   ->   | scale bf16 | stream |        2 + head_dim * Bits / 8 bytes
//
//   stream, bit 0 of byte 0 first, Bits = 2   | 0 1 | 2 3 | 4 5 | 6 7 | ...
//   window of value 0                         |<-- 6 bits ----->|
//   window of value 1                               |<-- 6 bits ----->|
//
//   w_i = bits Bits * i to Bits * i + 5 of the stream, its first bits once more behind its last (tail-biting)
//   x ~ R^T (scale * level[w]),   R a random rotation (rotation.hpp): coordinates of R x are nearly Gaussian
//
// A value has 64 levels and pays for Bits bits: the rest of its window belongs to its neighbours. Levels are whole
// numbers, and odd: level[63 - w] = -level[w], so that a stream inverted stands for -x. 64 of them are what one shuffle
// of bytes reads; a window stands in two bytes next to each other.
//
//   |x - decoded|^2 / |x|^2 of Gaussian rows of 128, 30000 of them; D(R) = 2^(-2 Bits) bounds long ones
//
//   Bits   bytes   trellis   lloyd_max     gain      D(R)     encode
//      2      34    0.0771      0.1141   1.70 dB   0.0625       9 us
//      3      50    0.0204      0.0316   1.89 dB   0.0156      11 us
//      4      66    0.0056      0.0078   1.47 dB   0.0039      12 us
//
// Times are of one row of 128 on a core of an AMD EPYC (Zen 5), g++ 12 -O3 -march=native; without flags of a machine,
// 17 to 30 us. Rows of 16 have an error of 0.0761, 0.0178, 0.0043, of 1024 of 0.0791, 0.0217, 0.0062.
//
// Encoding: the row in whole numbers (whole_numbers.hpp); one walk over it (Viterbi) for several scales at once, for
// the path of least error of each, wherever it starts and ends; at the best of them the path is closed: the state
// between the last value and the first is the one that the best path over the end and the beginning passes, and the
// walk starts and ends there; and again at the scale that fits that path best. The better of the two is kept; the scale
// stored is that of a scale_rule, as in lloyd_max.hpp. All sums are of integers. Against all starts and 26 scales this
// loses 0.6 to 0.8 %. Of 10000 rows that were decoded and are encoded again at most one has other bytes, of rows of 16
// at most eight.
//
// The tables: simulated annealing over the order of Gaussian quantiles, each order refined by the means of what maps to
// its levels. The order is what gains: those from one state must be spread as well as those into one. The same levels
// shuffled give 0.0997, 0.0295, 0.0090 (means of 30 orders), in ascending order 0.1201, 0.0348, 0.0088.
//
// Rejected:
//   windows of 8 bits, 256 levels     0.0755, 0.0203, 0.0054, with 64 levels trained as briefly 0.0811, 0.0225, 0.0069;
//                                     but a gather instead of a shuffle
//   levels that are not odd           no better at 2 and 3 bits, 0.0054 at 4
//   levels trained at one scale       0.0061 at 4 bits: they reach too far for rows that choose their scale
//   one scale, that of the row's rms  0.0779, 0.0213, 0.0061; 4 of them at 3 and 4 bits 0.0206, 0.0057
//   the closing state from 8 values   of each side instead of 24: at 2 bits 1 % more error
//
// Seek: one row. head_dim: a multiple of 16, up to 1024. Zeros decode to zeros, none of them -0; a row with NaN, an
// infinity or a value of 2^116 or more decodes to NaN throughout. The scale of a row that is not zero is at least
// 2^-133: rows below 1e-36 lose precision, and none becomes zero.
//
// Sources: Marcellin and Fischer 1990 (trellis coded quantization); Tseng et al. 2024, QTIP (bit-shift trellis, a table
// of levels, tail-biting); Viterbi 1967.

#include <butterfly/quant/codec.hpp>
#include <butterfly/quant/lloyd_max.hpp>
#include <butterfly/quant/rotation.hpp>
#include <butterfly/quant/row_format.hpp>
#include <butterfly/quant/whole_numbers.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>

namespace butterfly::quant {
namespace detail {

/// Windows are of 6 bits.
inline constexpr int windows = 64;

/// Levels of windows 0 to 31; level[63 - w] = -level[w].
template <int Bits>
inline constexpr std::array<std::int8_t, windows / 2> lower_levels{};
template <>
inline constexpr std::array<std::int8_t, windows / 2> lower_levels<2>{
    33, -3,  -40,  125, 51,  -79, 11,  -26, 100, -47, 26,  -10, 6,  -29, -72, 49,
    -4, -41, -100, 34,  -18, 65,  -62, 16,  -62, 20,  -16, 62,  46, 4,   -29, -82};
template <>
inline constexpr std::array<std::int8_t, windows / 2> lower_levels<3>{
    57, -39, -74, 38, 17,  -4,  -22, 100, -5, 40, 127, -36, 59,  18,  -70, -15,
    95, -7,  -43, 9,  -70, -24, 57,  29,  33, 7,  83,  -5,  -24, -48, 21,  53};
template <>
inline constexpr std::array<std::int8_t, windows / 2> lower_levels<4>{
    44, -127, 30, 19,  -11, -5,  -19, 61,  -28, 53,  -71, 2,  8,  105, -40, 37,
    34, -61,  84, -53, 16,  -42, 23,  -23, -77, -14, -2,  48, 66, 9,   -30, -92};

/// The window of value i of n.
template <int Bits>
[[nodiscard]] BUTTERFLY_HOST_DEVICE constexpr unsigned
load_window(std::byte const* stream, index_t n, index_t i) noexcept {
    index_t const at    = i * Bits / 8;
    index_t const next  = at + 1 < n * Bits / 8 ? at + 1 : 0;
    unsigned const bits = std::to_integer<unsigned>(stream[at]) | std::to_integer<unsigned>(stream[next]) << 8;
    return bits >> (i * Bits % 8) & (windows - 1U);
}

/// Packs the windows of a closed path: the lowest bits of each, those that are the value's own.
template <int Bits>
BUTTERFLY_HOST_DEVICE constexpr void store_windows(std::uint8_t const* window, index_t n, std::byte* stream) noexcept {
    for (index_t i = 0; i < n * Bits / 8; ++i) stream[i] = std::byte{0};
    for (index_t i = 0; i < n; ++i) {
        unsigned const bits = (window[i] & ((1U << Bits) - 1U)) << (i * Bits % 8);
        stream[i * Bits / 8] |= static_cast<std::byte>(bits & 255U);
        if (bits > 255U) stream[i * Bits / 8 + 1] |= static_cast<std::byte>(bits >> 8);
    }
}

/// A window with its digits in reverse, digits of 2 bits or, where values have 3, of 3. In that order, that of
/// branches, those from one state stand together, and those into one state as far apart as there are states.
template <int Bits>
[[nodiscard]] BUTTERFLY_HOST_DEVICE constexpr int reversed(int window) noexcept {
    return Bits == 3 ? (window & 7) << 3 | window >> 3 : (window & 3) << 4 | (window & 12) | window >> 4;
}

/// The walk through the trellis, for several scales at a time.
///
///   branch x, a window, is from state x / ways to state x % states     cost[to] = min cost[from] + (y - target[x])^2
///
/// Loops are flat, over branches and scales, so that compilers make vectors of them. A branch costs less than 2^25: |y|
/// is at most 2^12, 32 times a root mean square below 2^7, and targets are within 2^10. The least of all costs stays
/// below 2^26, for from any state there is a way to a level near zero, and the others are two branches above it at
/// most: `ways` times a cost has room in 32 bits.
template <int Bits, int Scales>
class trellis_walk {
public:
    static constexpr int ways = 1 << Bits, states = windows / ways;

    /// Scales in 2^-16 of a whole number per unit of level.
    BUTTERFLY_HOST_DEVICE trellis_walk(std::array<std::int8_t, windows> const& level,
                                       std::int32_t const (&scale)[Scales]) noexcept {
        for (int x = 0; x < windows; ++x)
            for (int c = 0; c < Scales; ++c) {
                auto const at           = static_cast<std::size_t>(reversed<Bits>(x));
                target_[x * Scales + c] = (level[at] * scale[c] + 0x8000) >> 16;
            }
    }

    /// Starts anywhere.
    BUTTERFLY_HOST_DEVICE void start_anywhere() noexcept {
        for (std::int32_t& c : cost_) c = 0;
    }
    /// Starts in one state; costs of another are more than those of all ways from there.
    BUTTERFLY_HOST_DEVICE void start_in(int state) noexcept {
        for (std::int32_t& c : cost_) c = 1 << 26;
        for (int c = 0; c < Scales; ++c) cost_[state * Scales + c] = 0;
    }

    /// One value.
    BUTTERFLY_HOST_DEVICE void step(std::int32_t y) noexcept {
        std::int32_t sum[branches];
        lay_out(sum);
        for (int x = 0; x < branches; ++x) sum[x] += square(y - target_[x]);
        fold(sum);
        for (int s = 0; s < states * Scales; ++s) cost_[s] = sum[s];
    }

    /// One value, of one scale, and by which way each state was reached: branch way * states + state.
    BUTTERFLY_HOST_DEVICE void step(std::int32_t y, std::uint8_t* way) noexcept requires(Scales == 1) {
        std::int32_t sum[branches];
        lay_out(sum);
        for (int x = 0; x < branches; ++x) sum[x] = (sum[x] + square(y - target_[x])) * ways + x / states;
        fold(sum);
        for (int s = 0; s < states; ++s) {
            way[s]   = static_cast<std::uint8_t>(sum[s] & (ways - 1));
            cost_[s] = sum[s] >> Bits;
        }
    }

    /// The state of least cost, and that cost.
    [[nodiscard]] BUTTERFLY_HOST_DEVICE int best_state(int lane = 0) const noexcept {
        int best = 0;
        for (int s = 1; s < states; ++s)
            if (cost_[s * Scales + lane] < cost_[best * Scales + lane]) best = s;
        return best;
    }
    [[nodiscard]] BUTTERFLY_HOST_DEVICE std::int32_t cost(int state, int lane = 0) const noexcept {
        return cost_[state * Scales + lane];
    }

private:
    static constexpr int branches = windows * Scales;

    [[nodiscard]] BUTTERFLY_HOST_DEVICE static constexpr std::int32_t square(std::int32_t x) noexcept { return x * x; }

    /// Costs of the states that branches are from.
    BUTTERFLY_HOST_DEVICE void lay_out(std::int32_t* sum) const noexcept {
        for (int s = 0; s < states; ++s)
            for (int w = 0; w < ways; ++w)
                std::memcpy(sum + (s * ways + w) * Scales, cost_ + s * Scales, Scales * sizeof(std::int32_t));
    }

    /// The least of the branches into each state.
    BUTTERFLY_HOST_DEVICE static void fold(std::int32_t* sum) noexcept {
        for (int half = branches / 2; half >= states * Scales; half /= 2)
            for (int x = 0; x < half; ++x) sum[x] = sum[x + half] < sum[x] ? sum[x + half] : sum[x];
    }

    std::int32_t target_[branches];
    std::int32_t cost_[states * Scales];
};

/// Sums over the levels of a path: `dot` = <y, l>, `square` = <l, l>.
struct path_sums {
    std::int64_t dot;
    std::int64_t square;

    /// What the path explains of <y, y>, at the scale of least squares; negative where y points the other way.
    [[nodiscard]] BUTTERFLY_HOST_DEVICE double explained() const noexcept {
        return static_cast<double>(dot) * static_cast<double>(dot < 0 ? -dot : dot) / static_cast<double>(square);
    }
};

} // namespace detail

/// A row of `Bits` bits a value: 2, 3 or 4. The seed is of the rotation; one serves a whole model.
template <int Bits>
class trellis {
    static_assert(Bits == 2 || Bits == 3 || Bits == 4, "trellis has 2, 3 or 4 bits");

public:
    constexpr explicit trellis(std::uint64_t seed = 1, scale_rule rule = scale_rule::least_squares) noexcept
        : seed_(seed), rule_(rule) {
        for (std::size_t w = 0; w < levels_.size() / 2; ++w) {
            levels_[w]                      = detail::lower_levels<Bits>[w];
            levels_[levels_.size() - 1 - w] = static_cast<std::int8_t>(-levels_[w]);
        }
    }

    /// What a window stands for, in units of the scale.
    [[nodiscard]] BUTTERFLY_HOST_DEVICE constexpr std::array<std::int8_t, detail::windows> const&
    levels() const noexcept {
        return levels_;
    }

    /// The seed of the rotation.
    [[nodiscard]] BUTTERFLY_HOST_DEVICE constexpr std::uint64_t seed() const noexcept { return seed_; }

    /// "trellis<2> seed 1", with "unbiased" where it is.
    [[nodiscard]] std::string name() const {
        return "trellis<" + std::to_string(Bits) + "> seed " + std::to_string(seed_) +
               (rule_ == scale_rule::unbiased ? " unbiased" : "");
    }

    /// Throws shape_error unless head_dim is a multiple of 16, up to 1024.
    static void require(index_t head_dim) { detail::require_row_step("trellis", head_dim); }

    [[nodiscard]] BUTTERFLY_HOST_DEVICE constexpr index_t row_bytes(index_t head_dim) const noexcept {
        return 2 + head_dim * Bits / 8;
    }

    /// The values of a row in the basis they were coded in.
    BUTTERFLY_HOST_DEVICE void decode_in_basis(std::byte const* row, index_t head_dim, float* out) const noexcept {
        float const scale = detail::load_half<bfloat16>(row);
        for (index_t i = 0; i < head_dim; ++i)
            out[i] = scale * static_cast<float>(levels_[detail::load_window<Bits>(row + 2, head_dim, i)]);
    }

    BUTTERFLY_HOST_DEVICE void decode(std::byte const* row, index_t head_dim, float* out) const noexcept {
        decode_in_basis(row, head_dim, out);
        if (detail::load_half<bfloat16>(row) == 0.0F)
            for (index_t i = 0; i < head_dim; ++i) out[i] = 0.0F; // the signs of a rotation would make some -0
        else
            rotation{seed_}.inverse(out, head_dim);
    }

    BUTTERFLY_HOST_DEVICE void encode(float const* values, index_t head_dim, std::byte* row) const noexcept {
        std::uint8_t window[longest_row];
        bfloat16 const scale = choose(values, head_dim, window);
        detail::store_half(scale, row);
        detail::store_windows<Bits>(window, head_dim, row + 2);
    }

private:
    /// Scales tried: so many, evenly from -`within` to `within` thousandths around the usual one, at which the root
    /// mean square of a row is `usual` levels: on average the best.
    static constexpr int scales = Bits == 2 ? 4 : 8, within = Bits == 2 ? 120 : 190;
    static constexpr double usual = Bits == 2 ? 48 : Bits == 3 ? 43.5 : 41.5;

    /// In 2^-16 of a whole number per unit of level: targets stay within 2^10.
    static constexpr std::int32_t largest_scale = 8 << 16;

    BUTTERFLY_HOST_DEVICE bfloat16 choose(float const* values, index_t n, std::uint8_t* window) const noexcept {
        float const top = detail::largest(values, n);
        for (index_t i = 0; i < n; ++i) window[i] = 0;
        if (!(top > 0.0F)) return bfloat16(top); // zero, or NaN

        // The rotated row in whole numbers.
        float y[longest_row];
        int const power = detail::exponent_of(top);
        for (index_t i = 0; i < n; ++i) y[i] = detail::times_power(values[i], -power);
        rotation{seed_}.forward(y, n);
        std::int16_t whole[longest_row];
        int const unit      = power + detail::to_whole(y, n, detail::exponent_of(detail::largest(y, n)), whole);
        std::int64_t energy = 0;
        for (index_t i = 0; i < n; ++i) energy += std::int32_t{whole[i]} * whole[i];

        // Again, in numbers whose root mean square is in [64, 128): squares of them have room in 32 bits.
        int shift = 0;
        while (energy >> (2 * shift) >= 128 * 128 * std::int64_t{n}) ++shift;
        std::int16_t small[longest_row];
        for (index_t i = 0; i < n; ++i) small[i] = static_cast<std::int16_t>((whole[i] + (1 << shift >> 1)) >> shift);

        double const rms         = std::sqrt(static_cast<double>(energy) / static_cast<double>(n));
        std::int32_t const first = best_scale(small, n, static_cast<std::int32_t>(std::ldexp(rms / usual, 16 - shift)));
        detail::path_sums best   = closed_path(small, whole, n, first, window);

        // Once more, at the scale that fits best.
        std::uint8_t other[longest_row];
        double const fit = std::ldexp(static_cast<double>(best.dot) / static_cast<double>(best.square), 16 - shift);
        if (fit > 0.0 && fit < largest_scale) {
            detail::path_sums const again = closed_path(small, whole, n, static_cast<std::int32_t>(fit), other);
            if (again.explained() > best.explained()) {
                best = again;
                std::copy(other, other + n, window);
            }
        }

        if (best.dot <= 0) return bfloat16(detail::smallest_scale);
        double const fitted = rule_ == scale_rule::unbiased
                                  ? static_cast<double>(energy) / static_cast<double>(best.dot)
                                  : static_cast<double>(best.dot) / static_cast<double>(best.square);
        bfloat16 const scale(static_cast<float>(std::ldexp(fitted, unit)));
        return static_cast<float>(scale) < detail::smallest_scale ? bfloat16(detail::smallest_scale) : scale;
    }

    /// The scale, among those tried, of the path of least error, wherever it starts and ends.
    [[nodiscard]] BUTTERFLY_HOST_DEVICE std::int32_t
    best_scale(std::int16_t const* y, index_t n, std::int32_t usual_scale) const noexcept {
        std::int32_t scale[scales];
        for (int c = 0; c < scales; ++c)
            scale[c] = static_cast<std::int32_t>(std::int64_t{usual_scale} *
                                                 (1000 * (scales - 1) + within * (2 * c - (scales - 1))) /
                                                 (1000 * (scales - 1)));
        detail::trellis_walk<Bits, scales> walk(levels_, scale);
        walk.start_anywhere();
        for (index_t i = 0; i < n; ++i) walk.step(y[i]);
        int best = 0;
        for (int c = 1; c < scales; ++c)
            if (walk.cost(walk.best_state(c), c) < walk.cost(walk.best_state(best), best)) best = c;
        return scale[best];
    }

    /// The windows of a path that ends where it starts. That state is the one the best path through the last values and
    /// the first ones again passes between them.
    BUTTERFLY_HOST_DEVICE detail::path_sums closed_path(std::int16_t const* y,
                                                        std::int16_t const* whole,
                                                        index_t n,
                                                        std::int32_t scale,
                                                        std::uint8_t* window) const noexcept {
        std::int32_t const only[1] = {scale};
        using one_walk             = detail::trellis_walk<Bits, 1>;
        constexpr int states = one_walk::states, ways = one_walk::ways;
        one_walk walk(levels_, only);
        std::uint8_t way[longest_row][states];

        index_t const around = std::min<index_t>(48 / Bits, n);
        walk.start_anywhere();
        for (index_t i = n - around; i < n; ++i) walk.step(y[i]);
        for (index_t i = 0; i < around; ++i) walk.step(y[i], way[i]);
        int state = walk.best_state();
        for (index_t i = around; i-- > 0;) state = (way[i][state] * states + state) / ways;

        walk.start_in(state);
        for (index_t i = 0; i < n; ++i) walk.step(y[i], way[i]);
        detail::path_sums sums{0, 0};
        for (index_t i = n; i-- > 0;) {
            int const branch         = way[i][state] * states + state;
            int const w              = detail::reversed<Bits>(branch);
            window[i]                = static_cast<std::uint8_t>(w);
            state                    = branch / ways;
            std::int32_t const level = levels_[static_cast<std::size_t>(w)];
            sums.dot += std::int32_t{whole[i]} * level;
            sums.square += level * level;
        }
        return sums;
    }

    std::array<std::int8_t, detail::windows> levels_{};
    std::uint64_t seed_;
    scale_rule rule_;
};

static_assert(codec<trellis<2>> && codec<trellis<3>> && codec<trellis<4>>);

} // namespace butterfly::quant
