// SPDX-License-Identifier: MIT
#pragma once

// The tile units (AMX) of limits_compute.hpp: products in registers, and with operands that are loaded from L1 or L2.

#include "limits_compute.hpp"

namespace bench {

/// Empty on other architectures than x86-64.
[[nodiscard]] std::vector<compute_unit> tile_units(cpu_features const& cpu);

} // namespace bench
