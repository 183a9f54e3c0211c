// SPDX-License-Identifier: MIT

#include <butterfly/backend/scalar.hpp>

#include "support/cache_model.hpp"
#include "support/catch.hpp"

namespace bf = butterfly;

TEST_CASE("a compressed cache agrees with a model that keeps every token") {
    bf::backend::scalar const cpu;
    for (std::uint64_t seed = 0; seed < 3000; ++seed) {
        bf::testing::random draws(0, seed);
        std::vector<std::uint8_t> program(static_cast<std::size_t>(draws.between(20, 120)));
        for (auto& byte : program) byte = static_cast<std::uint8_t>(draws.below(256));
        CAPTURE(seed);
        REQUIRE(bf::testing::run_cache_program(cpu, true, program) == "");
    }
}
