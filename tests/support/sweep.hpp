// SPDX-License-Identifier: MIT
#pragma once

// How much the tests with many sizes try: BUTTERFLY_TEST_SWEEP=short asks for few sizes (sanitizers), shortest leaves
// out what another machine runs as well (emulators).

#include <cstdlib>
#include <string_view>

namespace test {

[[nodiscard]] inline bool sweep_is(std::string_view name) {
    char const* const wanted = std::getenv("BUTTERFLY_TEST_SWEEP");
    return wanted != nullptr && name == wanted;
}

[[nodiscard]] inline bool shortest_sweep() {
    return sweep_is("shortest");
}

[[nodiscard]] inline bool short_sweep() {
    return sweep_is("short") || shortest_sweep();
}

} // namespace test
