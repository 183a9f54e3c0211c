// SPDX-License-Identifier: MIT
#pragma once

// BUTTERFLY_TEST_SWEEP=short asks tests for few sizes: emulators, sanitizers.

#include <cstdlib>
#include <cstring>

namespace test {

[[nodiscard]] inline bool short_sweep() {
    char const* const wanted = std::getenv("BUTTERFLY_TEST_SWEEP");
    return wanted != nullptr && std::strcmp(wanted, "short") == 0;
}

} // namespace test
