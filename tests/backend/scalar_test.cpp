// SPDX-License-Identifier: MIT
#include <butterfly/backend/scalar.hpp>

#include "backend/check_laws.hpp"

namespace bf = butterfly;

TEST_CASE("scalar keeps the laws", "[backend]") {
    if (test::shortest_sweep()) return;
    test::check_laws(bf::backend::scalar{}, {.seed = 1});
}

TEST_CASE("scalar keeps the laws for other inputs", "[backend]") {
    if (test::short_sweep()) return;
    test::check_laws(bf::backend::scalar{}, {.seed = 77, .brief = true});
}

TEST_CASE("scalar says what it is", "[backend]") {
    bf::backend::scalar const policy;
    REQUIRE(policy.name() == "scalar");
    REQUIRE(policy.available());
    auto p           = bf::testing::make_problem({.heads = 2, .tokens = 3});
    auto const all   = bf::testing::detail::whole(p);
    auto const bound = bf::make_problem(policy, p.q.view(), p.out.view(), {}, all);
    REQUIRE(supports(policy, bound.problem()));
    REQUIRE(explain(policy, bound.problem()) == "scalar: one row at a time, one pass in key order, serial");
}
