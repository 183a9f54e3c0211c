// SPDX-License-Identifier: MIT
#pragma once

// A product that no flag changes.

#include <butterfly/core/config.hpp>

namespace butterfly::quant::detail {

/// a * b rounded to float, whatever follows. Compilers contract a product into the sum that uses it, and casts do not
/// keep them from it: they narrow float(double(a) * b) to a float product first. What they may not see through is a
/// volatile object.
[[nodiscard]] BUTTERFLY_HOST_DEVICE inline float product(float a, float b) noexcept {
    float const volatile p = a * b;
    return p;
}

} // namespace butterfly::quant::detail
