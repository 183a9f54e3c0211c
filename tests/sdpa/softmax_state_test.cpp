// SPDX-License-Identifier: MIT
#include <butterfly/sdpa/softmax_state.hpp>
#include <butterfly/testing/problem.hpp>

#include "support/catch.hpp"

namespace bf = butterfly;

namespace {

constexpr float inf = std::numeric_limits<float>::infinity();

double exact_lse(std::vector<float> const& scores) {
    double sum = 0.0;
    for (float const s : scores) sum += std::exp(static_cast<double>(s));
    return std::log(sum);
}

bf::softmax_state state(std::vector<float> const& scores) {
    bf::softmax_state s;
    for (float const x : scores) s.push(x);
    return s;
}

bool near(double a, double b) {
    return std::abs(a - b) <= 1e-5 + 1e-5 * std::abs(b);
}

} // namespace

TEST_CASE("a softmax state is ln of the sum of exp", "[sdpa]") {
    bf::testing::random draws(5);
    for (int n = 1; n < 200; n += 7) {
        std::vector<float> scores;
        for (int i = 0; i < n; ++i) scores.push_back(static_cast<float>(20.0 * draws.normal()));
        bf::softmax_state const s = state(scores);
        REQUIRE(near(s.lse(), exact_lse(scores)));
        REQUIRE(s.max == *std::max_element(scores.begin(), scores.end()));
        double weights = 0.0;
        for (float const x : scores) weights += s.weight(x);
        REQUIRE(near(weights, s.sum));
    }
}

TEST_CASE("push returns what rescales the past", "[sdpa]") {
    bf::softmax_state s;
    REQUIRE(s.push(3.0F) == 0.0F); // nothing before it
    REQUIRE(s.push(1.0F) == 1.0F); // no new maximum
    REQUIRE(near(s.push(5.0F), std::exp(-2.0)));
    REQUIRE(s.weight(5.0F) == 1.0F);
}

TEST_CASE("a hidden key changes nothing", "[sdpa]") {
    bf::softmax_state s;
    REQUIRE(s.push(-inf) == 1.0F);
    REQUIRE(s.empty());
    REQUIRE(s.lse() == -inf);
    REQUIRE(s.weight(-inf) == 0.0F);
    s.push(2.0F);
    s.push(-inf);
    REQUIRE(s.sum == 1.0F);
    REQUIRE(s.lse() == 2.0F);
}

TEST_CASE("a NaN score poisons its state and no other", "[sdpa]") {
    bf::softmax_state const bad = state({1.0F, std::numeric_limits<float>::quiet_NaN(), 2.0F});
    REQUIRE(std::isnan(bad.lse()));
    REQUIRE_FALSE(bad.empty());
    REQUIRE(std::isnan(merge(bad, state({1.0F})).merged.lse()));
    REQUIRE(std::isnan(merge(state({1.0F}), bad).merged.lse()));
    REQUIRE(std::isnan(merge(bf::softmax_state{}, bad).merged.lse()));
}

TEST_CASE("merged states are the state of the union", "[sdpa]") {
    bf::testing::random draws(6);
    for (int i = 0; i < 200; ++i) {
        std::vector<float> parts[3], all;
        for (auto& part : parts)
            for (bf::index_t n = draws.below(5); n > 0; --n) {
                part.push_back(static_cast<float>(30.0 * draws.normal()));
                all.push_back(part.back());
            }
        bf::softmax_state const a = state(parts[0]), b = state(parts[1]), c = state(parts[2]);
        auto const left  = merge(merge(a, b).merged, c).merged;
        auto const right = merge(a, merge(b, c).merged).merged;
        REQUIRE(left.empty() == all.empty());
        REQUIRE(right.empty() == all.empty());
        if (all.empty()) {
            REQUIRE(left.lse() == -inf);
            continue;
        }
        REQUIRE(near(left.lse(), exact_lse(all)));
        REQUIRE(near(right.lse(), left.lse()));
        auto const ab = merge(a, b), ba = merge(b, a);
        if (a.empty() && b.empty()) continue;
        REQUIRE(ab.merged.sum == ba.merged.sum);
        REQUIRE(ab.a == ba.b);
        REQUIRE(ab.b == ba.a);
        // Factors bring accumulators along: a.sum and b.sum are accumulators of ones.
        REQUIRE(near(ab.a * a.sum + ab.b * b.sum, ab.merged.sum));
    }
}

TEST_CASE("an empty state is neutral and two are empty", "[sdpa]") {
    bf::softmax_state const a = state({-500.0F, 3.0F});
    for (auto const& m : {merge(a, bf::softmax_state{}).merged, merge(bf::softmax_state{}, a).merged}) {
        REQUIRE(m.max == a.max);
        REQUIRE(m.sum == a.sum);
    }
    auto const none = merge(bf::softmax_state{}, bf::softmax_state{});
    REQUIRE(none.merged.empty());
    REQUIRE(none.merged.lse() == -inf);
    REQUIRE(merge(bf::softmax_state{}, bf::state_of(inf)).merged.lse() == inf); // not inf - inf
    REQUIRE(bf::state_of(-inf).empty());
    REQUIRE(bf::state_of(-3.5F).lse() == -3.5F);
}
