// SPDX-License-Identifier: MIT
#pragma once

// Small statistics: medians and a line by least squares.

#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

namespace bench {

[[nodiscard]] inline double median(std::vector<double> x) {
    if (x.empty()) return 0;
    auto const middle = x.begin() + static_cast<std::ptrdiff_t>(x.size() / 2);
    std::nth_element(x.begin(), middle, x.end());
    if (x.size() % 2 == 1) return *middle;
    return (*middle + *std::max_element(x.begin(), middle)) / 2;
}

/// Largest less smallest over the median.
[[nodiscard]] inline double spread(std::vector<double> const& x) {
    if (x.empty()) return 0;
    auto const [low, high] = std::minmax_element(x.begin(), x.end());
    double const middle    = median(x);
    return middle > 0 ? (*high - *low) / middle : 0.0;
}

/// y ~ at_zero + slope * x, with the root mean square of the residuals over the mean of y.
struct line_fit {
    double at_zero = 0, slope = 0, error = 0;
    [[nodiscard]] double operator()(double x) const noexcept { return at_zero + slope * x; }
};

[[nodiscard]] inline line_fit fit_line(std::span<double const> x, std::span<double const> y) {
    auto const n = static_cast<double>(x.size());
    double mx = 0, my = 0, xx = 0, xy = 0;
    for (std::size_t i = 0; i < x.size(); ++i) mx += x[i] / n, my += y[i] / n;
    for (std::size_t i = 0; i < x.size(); ++i) xx += (x[i] - mx) * (x[i] - mx), xy += (x[i] - mx) * (y[i] - my);
    line_fit fit{.slope = xx > 0 ? xy / xx : 0.0};
    fit.at_zero    = my - fit.slope * mx;
    double squares = 0;
    for (std::size_t i = 0; i < x.size(); ++i) squares += (y[i] - fit(x[i])) * (y[i] - fit(x[i]));
    fit.error = my > 0 ? std::sqrt(squares / n) / my : 0.0;
    return fit;
}

} // namespace bench
