// SPDX-License-Identifier: MIT
#pragma once

// The sum over a whole context of a cost that is sampled at some of its chunks.
//
// Samples stand at the middles of equal parts; a line through them by least squares is summed over all tokens. That is
// exact for costs a + b * position, whatever the samples. Where noise or curvature leaves residuals r_i, the sum is
// uncertain by the standard error of the line at the middle of the context, x0, times the tokens:
//
//   s^2 = sum_i r_i^2 / (n - 2),    error^2 = s^2 * (1 / n + (x0 - mean x)^2 / sum_i (x_i - mean x)^2)

#include <butterfly/core/index.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <vector>

namespace bench {

/// Which of `all` chunks are sampled: those in the middles of `wanted` equal parts, or each where there are no more.
[[nodiscard]] inline std::vector<butterfly::index_t> sampled_chunks(butterfly::index_t all, butterfly::index_t wanted) {
    butterfly::index_t const n = std::min(wanted, all);
    std::vector<butterfly::index_t> chunks;
    for (butterfly::index_t i = 0; i < n; ++i) chunks.push_back(n == all ? i : (2 * i + 1) * all / (2 * n));
    return chunks;
}

/// y ~ at_zero + slope * x.
struct line_fit {
    double at_zero = 0, slope = 0;
    double samples = 0, mean_x = 0, square_x = 0; // square_x: sum of (x - mean_x)^2
    double variance = 0;                          // of a sample around the line; infinite below three samples

    [[nodiscard]] double operator()(double x) const noexcept { return at_zero + slope * x; }

    /// Sum over the tokens of a context, each costing what the line says at its middle.
    [[nodiscard]] double sum(double tokens) const noexcept { return tokens * (*this)(tokens / 2); }

    /// Standard error of that sum, over the sum.
    [[nodiscard]] double sum_error(double tokens) const noexcept {
        double const off  = tokens / 2 - mean_x;
        double const here = 1 / samples + (square_x > 0 ? off * off / square_x : 0.0);
        return std::sqrt(variance * here) / std::abs((*this)(tokens / 2));
    }
};

[[nodiscard]] inline line_fit fit_line(std::span<double const> x, std::span<double const> y) {
    line_fit fit{.samples = static_cast<double>(x.size())};
    double const n = fit.samples;
    double my = 0, xy = 0, squares = 0;
    for (std::size_t i = 0; i < x.size(); ++i) fit.mean_x += x[i] / n, my += y[i] / n;
    for (std::size_t i = 0; i < x.size(); ++i) {
        fit.square_x += (x[i] - fit.mean_x) * (x[i] - fit.mean_x);
        xy += (x[i] - fit.mean_x) * (y[i] - my);
    }
    fit.slope   = fit.square_x > 0 ? xy / fit.square_x : 0.0;
    fit.at_zero = my - fit.slope * fit.mean_x;
    for (std::size_t i = 0; i < x.size(); ++i) squares += (y[i] - fit(x[i])) * (y[i] - fit(x[i]));
    fit.variance = n > 2 ? squares / (n - 2) : std::numeric_limits<double>::infinity();
    return fit;
}

} // namespace bench
