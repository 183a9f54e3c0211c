// SPDX-License-Identifier: MIT
#include <butterfly/backend/simd/read_probe.hpp>

#include "support/catch.hpp"

#include <memory>

namespace {

using butterfly::backend::vec::read_probe;

constexpr double bytes = 2.0 * read_probe::least_bytes;

/// Tells a probe of spans that take `time[i]` for distance i until it has chosen, and returns what it chose.
butterfly::index_t choice(std::array<double, read_probe::leads.size()> const& time) {
    auto const probe = std::make_unique<read_probe>();
    for (int i = 0; i < 1000; ++i) {
        read_probe::trial const t = probe->next();
        if (t.number < 0) return t.lead;
        REQUIRE(t.lead == read_probe::leads[static_cast<std::size_t>(t.number)]);
        // Every seventh span meets a busy machine.
        probe->tell(t, bytes, bytes * time[static_cast<std::size_t>(t.number)] * (i % 7 == 0 ? 5 : 1));
    }
    FAIL("never chose");
    return -1;
}

} // namespace

TEST_CASE("the distance that reads fastest is kept", "[backend]") {
    REQUIRE(choice({1.0, 1.0, 1.0, 1.0}) == read_probe::leads[0]);
    REQUIRE(choice({1.0, 0.98, 0.97, 0.99}) == read_probe::leads[0]); // as good as equal
    REQUIRE(choice({1.0, 0.8, 1.1, 0.9}) == read_probe::leads[1]);
    REQUIRE(choice({1.0, 0.8, 0.7, 0.9}) == read_probe::leads[2]);
    REQUIRE(choice({1.0, 2.0, 2.0, 0.5}) == read_probe::leads[3]);
}

TEST_CASE("short spans and spans that nobody told of choose nothing", "[backend]") {
    auto const probe = std::make_unique<read_probe>();
    for (int i = 0; i < 500; ++i) {
        read_probe::trial const t = probe->next();
        REQUIRE(t.number >= 0);
        if (i % 2 == 0) probe->tell(t, read_probe::least_bytes - 1.0, 1.0);
    }
}
