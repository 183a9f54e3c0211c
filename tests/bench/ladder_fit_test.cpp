// SPDX-License-Identifier: MIT

// How the ladder sums a cost that it samples: exactly where the cost is a line, with a stated error where it is not.

#include <butterfly/testing/problem.hpp>

#include "../../bench/support/ladder_fit.hpp"
#include "support/catch.hpp"

namespace bf = butterfly;

namespace {

constexpr bf::index_t step = 384;

struct sampled_sum {
    double sum, error;
};

/// What the ladder makes of a context whose token at position p costs cost(p), each chunk times 1 + noise * normal.
template <class Cost>
sampled_sum
sampled(bf::index_t context, bf::index_t wanted, Cost const& cost, double noise = 0, std::uint64_t seed = 0) {
    bf::testing::random draws(seed, 1);
    std::vector<double> x, y;
    for (bf::index_t const chunk : bench::sampled_chunks((context + step - 1) / step, wanted)) {
        bf::index_t const first = chunk * step, end = std::min(first + step, context);
        double seconds = 0;
        for (bf::index_t p = first; p < end; ++p) seconds += cost(static_cast<double>(p));
        seconds *= 1 + noise * draws.normal();
        x.push_back(static_cast<double>(first + end) / 2);
        y.push_back(seconds / static_cast<double>(end - first));
    }
    auto const fit = bench::fit_line(x, y);
    return {fit.sum(static_cast<double>(context)), fit.sum_error(static_cast<double>(context))};
}

template <class Cost>
double full(bf::index_t context, Cost const& cost) {
    double sum = 0;
    for (bf::index_t p = 0; p < context; ++p) sum += cost(static_cast<double>(p));
    return sum;
}

double line(double position) {
    return 3e-6 + 2e-9 * position;
}

} // namespace

TEST_CASE("sampled chunks are the middles of equal parts", "[bench]") {
    REQUIRE(bench::sampled_chunks(100, 5) == std::vector<bf::index_t>{10, 30, 50, 70, 90});
    REQUIRE(bench::sampled_chunks(7, 3) == std::vector<bf::index_t>{1, 3, 5});
    REQUIRE(bench::sampled_chunks(3, 9) == std::vector<bf::index_t>{0, 1, 2});
    REQUIRE(bench::sampled_chunks(0, 9).empty());
}

TEST_CASE("a cost that is a line is summed exactly and without error", "[bench]") {
    for (bf::index_t const context : {5000, 32768, 131072})
        for (bf::index_t const wanted : {3, 5, 8, 9}) {
            auto const s = sampled(context, wanted, line);
            CAPTURE(context, wanted, s.error);
            REQUIRE(std::abs(s.sum / full(context, line) - 1) < 1e-9);
            REQUIRE(s.error < 1e-9);
        }
}

TEST_CASE("noise widens the stated error, and the truth lies within it as often as it should", "[bench]") {
    double const truth = full(32768, line);
    double last        = 0;
    for (double const noise : {0.001, 0.01, 0.05}) {
        int within = 0, runs = 400;
        double stated = 0;
        for (int i = 0; i < runs; ++i) {
            auto const s = sampled(32768, 9, line, noise, static_cast<std::uint64_t>(i));
            within += std::abs(s.sum - truth) < 2 * s.error * s.sum ? 1 : 0;
            stated += s.error / runs;
        }
        CAPTURE(noise, within, stated);
        REQUIRE(stated > 3 * last);
        REQUIRE(within > 0.85 * runs); // two standard errors from nine samples: about 0.91
        last = stated;
    }
}

TEST_CASE("a curved cost is off by no more than two stated errors", "[bench]") {
    auto const curved = [](double p) { return 1e-6 * std::sqrt(1 + p); };
    for (bf::index_t const wanted : {5, 8, 9}) {
        auto const s = sampled(131072, wanted, curved);
        CAPTURE(wanted, s.sum, s.error);
        REQUIRE(s.error > 1e-3);
        REQUIRE(std::abs(s.sum / full(131072, curved) - 1) < 2 * s.error);
    }
}

TEST_CASE("two samples say nothing of their error", "[bench]") {
    REQUIRE(std::isinf(sampled(32768, 2, line).error));
}
