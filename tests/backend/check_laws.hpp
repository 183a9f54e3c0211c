// SPDX-License-Identifier: MIT
#pragma once

// The loop of a backend's test.

#include <butterfly/testing/properties.hpp>

#include "support/catch.hpp"
#include "support/sweep.hpp"

namespace test {

/// Requires every law of a policy, with keys and values kept as KV.
template <butterfly::element KV = float, class Policy>
void check_laws(Policy const& policy, butterfly::testing::sweep sweep) {
    sweep.brief = sweep.brief || short_sweep();
    for (auto const& law : butterfly::testing::laws<Policy, KV>()) {
        DYNAMIC_SECTION(law.name << ", seed " << sweep.seed) {
            butterfly::testing::report const found = law.check(policy, sweep);
            INFO(found.text);
            REQUIRE(found.ok);
            REQUIRE(found.cases > 0);
        }
    }
}

} // namespace test
