// SPDX-License-Identifier: MIT
#include "../../bench/support/timing.hpp"
#include "support/catch.hpp"

#include <thread>

TEST_CASE("a median stands in the middle, whatever the order", "[bench]") {
    REQUIRE(bench::median({}) == 0);
    REQUIRE(bench::median({3}) == 3);
    REQUIRE(bench::median({9, 1, 4}) == 4);
    REQUIRE(bench::median({8, 1, 4, 2}) == 3);
}

TEST_CASE("a spread is the largest less the smallest, over the median", "[bench]") {
    REQUIRE(bench::spread({}) == 0);
    REQUIRE(bench::spread({2, 2}) == 0);
    REQUIRE(bench::spread({1, 4, 2}) == 1.5);
    REQUIRE(bench::spread({0, 0, 1}) == 0); // no median to measure by
}

TEST_CASE("a stopwatch counts seconds since it was made", "[bench]") {
    bench::stopwatch const watch;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    double const first = watch.seconds();
    REQUIRE(first >= 0.02);
    REQUIRE(watch.seconds() >= first);
}
