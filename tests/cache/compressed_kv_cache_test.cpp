// SPDX-License-Identifier: MIT

#include "cache/backends.hpp"
#include "support/cache_model.hpp"
#include "support/catch.hpp"
#include "support/sweep.hpp"

TEMPLATE_LIST_TEST_CASE("a compressed cache agrees with a model that keeps every token", "[cache]", cache_backends) {
    auto const policy            = in_f32<TestType>();
    std::uint64_t const programs = test::short_sweep() ? 300 : 3000;
    for (std::uint64_t seed = 0; seed < programs; ++seed) {
        butterfly::testing::random draws(0, seed);
        std::vector<std::uint8_t> program(static_cast<std::size_t>(draws.between(20, 120)));
        for (auto& byte : program) byte = static_cast<std::uint8_t>(draws.below(256));
        CAPTURE(seed);
        REQUIRE(butterfly::testing::run_cache_program(policy, one_answer<TestType>, program) == "");
    }
}
