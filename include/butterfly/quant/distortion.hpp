// SPDX-License-Identifier: MIT
#pragma once

// What a codec loses, and the least that can be lost.
//
//   nmse     sum |y - x|^2 / sum |x|^2                                     x a row, y what comes back of it
//   slope    sum <q, x> <q, y> / sum <q, x>^2                              of estimates <q, y> on scores <q, x>
//   rms      sqrt(mean over pairs of (<q, y> - <q, x>)^2 d / (|q|^2 |x|^2))   1: as large as scores of random q and x
//
// Least squares leaves <y, y - x> = 0, so that scores shrink: slope = 1 - nmse. A slope of 1 is unbiased; a mean of
// errors would not tell, because scores have either sign. Where errors have no preferred direction, as those of rotated
// rows, rms = sqrt(nmse).
//
// Bounds are for independent values of N(0, 1) and hold for any rows that a rotation has made Gaussian: R bits a value,
// scales included, cannot do better than D(R) = 2^-2R (Shannon 1959); 2^b levels, each value by itself, not better than
// those of Lloyd (1957) and Max (1960). All sums are in double. A NaN in a row makes the figures NaN.

#include <butterfly/quant/codec.hpp>

#include <array>
#include <cmath>
#include <limits>
#include <span>

namespace butterfly::quant {

/// Bits that a codec keeps of each value of a row, its scales and paddings included.
template <decoder Codec>
[[nodiscard]] double bits_per_value(Codec const& codec, index_t head_dim) noexcept {
    return 8.0 * static_cast<double>(codec.row_bytes(head_dim)) / static_cast<double>(head_dim);
}

/// D(R) = 2^-2R: the least nmse of Gaussian values in R bits each.
[[nodiscard]] inline double rate_distortion(double bits) noexcept {
    return std::exp2(-2.0 * bits);
}

/// The least nmse of Gaussian values of 2^bits levels, 0 <= bits <= 8.
[[nodiscard]] constexpr double lloyd_max_distortion(int bits) noexcept {
    constexpr std::array<double, 9> least{1.0,       0.363380,   0.117482,   0.0345478,  0.00950101,
                                          0.0025047, 0.00064424, 0.00016348, 0.000041185};
    BUTTERFLY_ASSERT(0 <= bits && bits <= 8);
    return least[static_cast<std::size_t>(bits)];
}

/// A ratio of energies in decibels: 2 is 3.01.
[[nodiscard]] inline double decibels(double ratio) noexcept {
    return 10.0 * std::log10(ratio);
}

/// <a, b>. Requires equal lengths.
[[nodiscard]] inline double inner_product(std::span<float const> a, std::span<float const> b) noexcept {
    BUTTERFLY_ASSERT(a.size() == b.size());
    double sum = 0.0;
    for (std::size_t i = 0; i < a.size(); ++i) sum += double{a[i]} * double{b[i]};
    return sum;
}

/// The error of rows, over as many as are added.
class row_error {
public:
    /// A row and what comes back of it. Requires equal lengths.
    void add(std::span<float const> x, std::span<float const> y) noexcept {
        BUTTERFLY_ASSERT(x.size() == y.size());
        for (std::size_t i = 0; i < x.size(); ++i) {
            double const off = double{y[i]} - double{x[i]};
            error_ += off * off;
        }
        energy_ += inner_product(x, x);
    }

    /// Error over energy: 0 where both are, infinite where there is error alone.
    [[nodiscard]] double nmse() const noexcept {
        if (error_ == 0.0 && energy_ == 0.0) return 0.0;
        return energy_ == 0.0 ? std::numeric_limits<double>::infinity() : error_ / energy_;
    }

private:
    double error_ = 0.0, energy_ = 0.0;
};

/// The nmse of one row, or of rows next to each other.
[[nodiscard]] inline double nmse(std::span<float const> x, std::span<float const> y) noexcept {
    row_error e;
    e.add(x, y);
    return e.nmse();
}

/// The error of scores, over as many pairs of a query and a key as are added.
class score_error {
public:
    /// A score, an estimate of it, and |q|^2 |k|^2 / d. Pairs of which that is 0 do not count.
    void add(double score, double estimate, double unit) noexcept {
        if (unit == 0.0) return;
        square_ += score * score;
        product_ += score * estimate;
        error_ += (estimate - score) * (estimate - score) / unit;
        ++pairs_;
    }

    /// A query, a key, and what comes back of the key. Requires equal lengths.
    void add(std::span<float const> q, std::span<float const> x, std::span<float const> y) noexcept {
        add(inner_product(q, x), inner_product(q, y),
            inner_product(q, q) * inner_product(x, x) / static_cast<double>(q.size()));
    }

    [[nodiscard]] index_t pairs() const noexcept { return pairs_; }

    /// Of the line through zero that fits estimates over scores; NaN where all scores are 0.
    [[nodiscard]] double slope() const noexcept { return product_ / square_; }

    /// Root of the mean square of errors in units of |q| |k| / sqrt(d); NaN without pairs.
    [[nodiscard]] double rms() const noexcept { return std::sqrt(error_ / static_cast<double>(pairs_)); }

private:
    double square_ = 0.0, product_ = 0.0, error_ = 0.0;
    index_t pairs_ = 0;
};

} // namespace butterfly::quant
