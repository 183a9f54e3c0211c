// SPDX-License-Identifier: MIT
#include <butterfly/core/error.hpp>

#include "support/catch.hpp"

namespace bf = butterfly;

TEST_CASE("errors are what the standard library calls them", "[core]") {
    REQUIRE_THROWS_AS(bf::detail::fail<bf::shape_error>("x"), std::invalid_argument);
    REQUIRE_THROWS_AS(bf::detail::fail<bf::graph_error>("x"), std::invalid_argument);
    REQUIRE_THROWS_AS(bf::detail::fail<bf::capacity_error>("x"), std::length_error);
    REQUIRE_THROWS_AS(bf::detail::fail<bf::format_error>("x"), std::runtime_error);
    REQUIRE_THROWS_AS(bf::detail::fail<bf::backend_error>("x"), std::runtime_error);
    try {
        bf::detail::fail<bf::capacity_error>("the words");
    } catch (std::exception const& e) {
        REQUIRE(std::string(e.what()) == "the words");
    }
}
