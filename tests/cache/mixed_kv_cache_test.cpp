// SPDX-License-Identifier: MIT

#include "cache/backends.hpp"
#include "support/catch.hpp"
#include "support/mixed_model.hpp"
#include "support/sweep.hpp"

namespace mixed_cache { // names of its own, for builds that compile several of these files as one
TEMPLATE_LIST_TEST_CASE("a mixed-precision cache agrees with a model that keeps every token",
                        "[mixed]",
                        cache_backends) {
    auto const policy            = in_f32<TestType>();
    std::uint64_t const programs = test::short_sweep() ? 100 : 1000;
    for (std::uint64_t seed = 0; seed < programs; ++seed) {
        butterfly::testing::random draws(0, seed);
        std::vector<std::uint8_t> program(static_cast<std::size_t>(draws.between(30, 90)));
        for (auto& byte : program) byte = static_cast<std::uint8_t>(draws.below(256));
        CAPTURE(seed);
        REQUIRE(butterfly::testing::run_mixed_program(policy, one_answer<TestType>, close_if_packed<TestType>,
                                                      program) == "");
    }
}

} // namespace mixed_cache
