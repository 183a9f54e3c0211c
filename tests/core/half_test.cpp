// SPDX-License-Identifier: MIT
#include <butterfly/core/half.hpp>

#include "support/catch.hpp"

#include <cmath>
#include <limits>
#include <random>

namespace bf = butterfly;

namespace {

/// The 16-bit value nearest to x by search over all of them, ties to the even code: the definition.
template <class Half>
std::uint16_t nearest_by_search(float x) {
    std::uint16_t best   = 0;
    double best_distance = std::numeric_limits<double>::infinity();
    for (std::uint32_t code = 0; code < 0x10000U; ++code) {
        Half h;
        h.bits        = static_cast<std::uint16_t>(code);
        float const y = h;
        if (!std::isfinite(y) || std::signbit(y) != std::signbit(x)) continue;
        double const distance = std::fabs(static_cast<double>(y) - static_cast<double>(x));
        if (distance < best_distance || (distance == best_distance && (code & 1U) == 0U)) {
            best_distance = distance;
            best          = h.bits;
        }
    }
    return best;
}

} // namespace

TEMPLATE_TEST_CASE("every 16-bit value survives a round trip", "[core]", bf::float16, bf::bfloat16) {
    for (std::uint32_t code = 0; code < 0x10000U; ++code) {
        TestType h;
        h.bits        = static_cast<std::uint16_t>(code);
        float const x = h;
        if (std::isnan(x)) {
            REQUIRE(std::isnan(static_cast<float>(TestType(x))));
            continue;
        }
        REQUIRE(TestType(x).bits == h.bits);
    }
}

TEMPLATE_TEST_CASE("conversion rounds to the nearest value, ties to even", "[core]", bf::float16, bf::bfloat16) {
    std::mt19937 random(7);
    for (int i = 0; i < 40; ++i) {
        float const mantissa = 1.0F + static_cast<float>(random() >> 8) * 0x1p-24F;
        int const exponent   = static_cast<int>(random() % 38U) - 24;
        float const x        = (random() & 1U ? -1.0F : 1.0F) * std::ldexp(mantissa, exponent);
        CAPTURE(x);
        REQUIRE(TestType(x).bits == nearest_by_search<TestType>(x));
    }
    // Ties: halfway between a value and its successor, both parities.
    for (std::uint16_t code :
         {std::uint16_t{0x3c00}, std::uint16_t{0x3c01}, std::uint16_t{0x0004}, std::uint16_t{0x0005}}) {
        TestType low, high;
        low.bits                 = code;
        high.bits                = static_cast<std::uint16_t>(code + 1);
        float const tie          = (static_cast<float>(low) + static_cast<float>(high)) / 2;
        std::uint16_t const even = (code & 1U) == 0U ? low.bits : high.bits;
        if (tie != 0.0F) REQUIRE(TestType(tie).bits == even);
    }
}

TEST_CASE("float16 overflows to infinity at the halfway point above 65504", "[core]") {
    REQUIRE(static_cast<float>(bf::float16(65519.0F)) == 65504.0F);
    REQUIRE(std::isinf(static_cast<float>(bf::float16(65520.0F))));
    REQUIRE(std::isinf(static_cast<float>(bf::float16(-1e30F))));
}
