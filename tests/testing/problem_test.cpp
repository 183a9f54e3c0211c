// SPDX-License-Identifier: MIT
#include <butterfly/testing/problem.hpp>

#include "support/catch.hpp"

namespace bf = butterfly;
namespace bt = butterfly::testing;

TEST_CASE("the generator is SplitMix64, the same everywhere", "[testing]") {
    bt::random draws(0); // state 1: outputs of the published algorithm
    REQUIRE(draws.bits() == 0x910a2dec89025cc1U);
    REQUIRE(draws.bits() == 0xbeeb8da1658eec67U);
    bt::random again(7), other(8), stream(7, 1);
    auto const first = again.bits();
    REQUIRE(first != other.bits());
    REQUIRE(first != stream.bits());
    for (int i = 0; i < 1000; ++i) {
        double const u = draws.uniform();
        REQUIRE((u > 0.0 && u < 1.0));
        REQUIRE(std::abs(draws.normal()) <= 6.0);
        REQUIRE((draws.below(3) >= 0 && draws.below(3) < 3));
    }
}

TEST_CASE("distributions have the tails they say", "[testing]") {
    bt::tensor<float> t({1, 200, 100});
    auto const largest = [&](bt::distribution d) {
        bt::fill(t, bt::random(3), d);
        float most = 0.0F;
        double sum = 0.0;
        for (bf::index_t i = 0; i < 200; ++i)
            for (float const x : t.view().row(0, i)) {
                REQUIRE(x != 0.0F);
                most = std::max(most, std::abs(x));
                sum += std::abs(x);
            }
        return most / (sum / 20000.0);
    };
    REQUIRE(largest(bt::distribution::heavy_tailed) > 8.0);
    REQUIRE(largest(bt::distribution::normal) < 8.0);
    REQUIRE(largest(bt::distribution::uniform) < 2.1);
    REQUIRE(largest(bt::distribution::positive) < 2.1);
    REQUIRE(largest(bt::distribution::peaked) > 12.0);
}

TEMPLATE_TEST_CASE("layouts hold the same values and guard their gaps", "[testing]", float, bf::float16, bf::bfloat16) {
    bt::problem_options o{.heads = 3, .tokens = 4, .head_dim = 5, .seed = 2};
    auto const plain = bt::make_problem<TestType, TestType, TestType>(o);
    for (bt::layout const l : bt::layouts) {
        o.queries_in = o.keys_in = l;
        auto p                   = bt::make_problem<TestType, TestType, TestType>(o);
        for (bf::index_t h = 0; h < 3; ++h)
            for (bf::index_t t = 0; t < 4; ++t)
                for (bf::index_t d = 0; d < 5; ++d) {
                    REQUIRE(bt::detail::same_bits(p.q.at(h, t, d), plain.q.at(h, t, d)));
                    REQUIRE(&p.q.view().row(h, t)[static_cast<std::size_t>(d)] == &p.q.at(h, t, d));
                    REQUIRE(std::isnan(static_cast<float>(p.out.at(h, t, d))));
                }
        REQUIRE(p.k.gaps_intact());
        if (l == bt::layout::interleaved) REQUIRE(p.q.view().strides() == bf::heads_strides{5, 15});
        if (l == bt::layout::odd_stride) {
            *(&p.k.at(0, 0, 4) + 1) = TestType(1.0F);
            REQUIRE_FALSE(p.k.gaps_intact());
        }
    }
}

TEST_CASE("a part filled anew leaves the rest", "[testing]") {
    auto const before = bt::make_problem({.heads = 2, .tokens = 6, .head_dim = 3});
    auto after        = before;
    bt::fill(after.k, bt::random(99), bt::distribution::normal, 4, 2);
    for (bf::index_t h = 0; h < 2; ++h)
        for (bf::index_t t = 0; t < 6; ++t) REQUIRE((after.k.at(h, t, 0) == before.k.at(h, t, 0)) == (t < 4));
}
