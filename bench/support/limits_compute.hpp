// SPDX-License-Identifier: MIT
#pragma once

// Loops that do nothing but arithmetic, one per unit of the CPU: what a kernel is measured against.
//
// Each runs independent chains, 24 where there are registers for them, else 12, on finite operands that are not zero,
// and returns a sum of what it computed. Each is compiled for its own instruction set whatever the flags of
// the build, and must be called only where the CPU has it.

#include "cpu_features.hpp"

#include <cstdint>
#include <string>
#include <vector>

namespace bench {

struct compute_unit {
    std::string name;
    std::string unit;                     // "GFLOP/s", "GOP/s" or "G elements/s"
    bool present               = false;   // on this CPU
    double work                = 0;       // operations of one turn
    float (*run)(std::int64_t) = nullptr; // so many turns
};

/// Every unit that is known on this architecture, those absent from this CPU too.
[[nodiscard]] std::vector<compute_unit> compute_units(cpu_features const& cpu);

} // namespace bench
