// SPDX-License-Identifier: MIT
#pragma once

// Seconds, and what several measurements come to.

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <vector>

namespace bench {

/// Wall time since it was made.
class stopwatch {
public:
    [[nodiscard]] double seconds() const { return std::chrono::duration<double>(clock::now() - start_).count(); }

private:
    using clock = std::chrono::steady_clock;

    clock::time_point start_ = clock::now();
};

/// 0 of nothing; the mean of the two in the middle of an even number.
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

} // namespace bench
