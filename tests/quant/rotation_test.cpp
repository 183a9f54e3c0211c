// SPDX-License-Identifier: MIT
#include <butterfly/quant/rotation.hpp>

#include "quant/inputs.hpp"

#include <bit>

namespace bf = butterfly;
namespace bq = butterfly::quant;

namespace {

/// Multiples of 16 that rows may have, and lengths that only the rotation takes.
std::vector<bf::index_t> lengths() {
    std::vector<bf::index_t> all{1, 2, 3, 4, 7, 8, 20, 31, 33, 320, 512, 576, 1023, 1024};
    for (bf::index_t n = 16; n <= 256; n += 16) all.push_back(n);
    return all;
}

test::row_floats rotated(bq::rotation const& r, test::row_floats x) {
    r.forward(x.data(), std::ssize(x));
    return x;
}

test::row_floats rotated_back(bq::rotation const& r, test::row_floats x) {
    r.inverse(x.data(), std::ssize(x));
    return x;
}

float largest_of(test::row_floats const& x) {
    float top = 0.0F;
    for (float const v : x) top = std::max(top, std::fabs(v));
    return top;
}

/// H D x / sqrt(m) of the m coordinates from `first` on, from the definition: H[i][j] = (-1)^(bits that i and j share).
void transform_by_definition(bq::rotation const& r, int pass, std::vector<double>& x, std::size_t first) {
    auto const m = static_cast<std::size_t>(bq::rotation::order(std::ssize(x)));
    std::vector<double> y(m, 0.0);
    for (std::size_t i = 0; i < m; ++i)
        for (std::size_t j = 0; j < m; ++j) {
            bool const minus = (std::popcount(i & j) % 2 != 0) != r.minus(pass, static_cast<bf::index_t>(j));
            y[i] += (minus ? -x[first + j] : x[first + j]) / std::sqrt(static_cast<double>(m));
        }
    std::copy(y.begin(), y.end(), x.begin() + static_cast<std::ptrdiff_t>(first));
}

/// Mean of y^4 where that of y^2 is 1: 3 for a Gaussian row.
double kurtosis(test::row_floats const& y) {
    double fourth = 0.0;
    for (float const v : y) fourth += std::pow(double{v}, 4);
    return fourth * static_cast<double>(y.size()) / std::pow(test::dot(y, y), 2);
}

} // namespace

TEST_CASE("splitmix64 is the published generator", "[quant]") {
    REQUIRE(bf::detail::splitmix64(0, 0) == 0xe220a8397b1dcdafU);
    REQUIRE(bf::detail::splitmix64(0, 1) == 0x6e789e6aa1b965f4U);
    REQUIRE(bf::detail::splitmix64(0, 2) == 0x06c45d188009454fU);
    // Skipping ahead is one step of the state.
    REQUIRE(bf::detail::splitmix64(0x9e3779b97f4a7c15U, 0) == bf::detail::splitmix64(0, 1));
}

TEST_CASE("the order of a rotation is the largest power of two that fits", "[quant]") {
    for (bf::index_t const n : {1, 2, 4, 16, 128, 512}) REQUIRE(bq::rotation::order(n) == n);
    REQUIRE(bq::rotation::order(3) == 2);
    REQUIRE(bq::rotation::order(80) == 64);
    REQUIRE(bq::rotation::order(127) == 64);
    REQUIRE(bq::rotation::order(576) == 512);
}

TEST_CASE("a rotation is the signed Hadamard matrix of its definition", "[quant]") {
    std::uint32_t const seed = test::another_seed();
    bf::testing::random draws(seed);
    bq::rotation const r{seed};
    for (bf::index_t const n : lengths()) {
        if (n > 256) continue;
        CAPTURE(seed, n);
        test::row_floats const x = test::gaussian_row(draws, n);
        std::vector<double> wanted(x.begin(), x.end());
        transform_by_definition(r, 0, wanted, 0);
        if (auto const m = bq::rotation::order(n); m != n)
            transform_by_definition(r, 1, wanted, static_cast<std::size_t>(n - m));
        test::row_floats const y = rotated(r, x);
        for (std::size_t i = 0; i < y.size(); ++i)
            REQUIRE(std::abs(double{y[i]} - wanted[i]) <= 0x1p-20 * std::sqrt(test::dot(x, x)));
    }
}

TEST_CASE("a rotation is undone and keeps scores", "[quant]") {
    std::uint32_t const seed = test::another_seed();
    bf::testing::random draws(seed);
    for (bf::index_t const n : lengths()) {
        bq::rotation const r{static_cast<std::uint64_t>(draws.bits())};
        CAPTURE(seed, n, r.seed);
        for (int i = 0; i < 20; ++i) {
            test::row_floats x = test::gaussian_row(draws, n), y = test::gaussian_row(draws, n);
            if (i % 2 == 1) x[static_cast<std::size_t>(draws.below(n))] *= 100.0F;
            test::row_floats const there = rotated(r, x), back = rotated_back(r, there);
            for (std::size_t d = 0; d < x.size(); ++d)
                REQUIRE(std::fabs(back[d] - x[d]) <= 8 * 0x1p-23F * largest_of(x));
            test::row_floats const away = rotated(r, rotated_back(r, x)); // it has an inverse on both sides
            for (std::size_t d = 0; d < x.size(); ++d)
                REQUIRE(std::fabs(away[d] - x[d]) <= 8 * 0x1p-23F * largest_of(x));
            double const sizes = std::sqrt(test::dot(x, x) * test::dot(y, y));
            REQUIRE(std::abs(test::dot(there, rotated(r, y)) - test::dot(x, y)) <= 8 * 0x1p-23 * sizes);
        }
    }
}

TEST_CASE("a constant vector spreads like a Gaussian one", "[quant]") {
    int const seeds = test::short_sweep() ? 100 : 400;
    for (bf::index_t const n : lengths()) {
        if (n < 64) continue;
        CAPTURE(n);
        double sum = 0.0;
        for (int seed = 0; seed < seeds; ++seed) {
            test::row_floats const y =
                rotated({static_cast<std::uint64_t>(seed)}, test::row_floats(static_cast<std::size_t>(n), 1.0F));
            sum += kurtosis(y);
            REQUIRE(largest_of(y) < 6.0F);
        }
        // For a power of two the mean over all signs is 3 - 2 / n; its deviation over some seeds is sqrt(24 / n /
        // seeds).
        double const deviation = std::sqrt(24.0 / static_cast<double>(n) / seeds);
        REQUIRE(std::abs(sum / seeds - 3.0 + 2.0 / static_cast<double>(n)) < 0.05 + 5 * deviation);
    }
}

TEST_CASE("one coordinate spreads, whichever it is", "[quant]") {
    for (std::uint64_t const seed : {0U, 1U, 2U, 77U})
        for (bf::index_t const n : lengths()) {
            if (n > 576 && (test::short_sweep() || seed > 0)) continue;
            auto const m       = bq::rotation::order(n);
            double const share = 1.0 / std::sqrt(static_cast<double>(m));
            for (bf::index_t i = 0; i < n; ++i) {
                CAPTURE(seed, n, i);
                test::row_floats x(static_cast<std::size_t>(n), 0.0F);
                x[static_cast<std::size_t>(i)] = 1.0F;
                bq::rotation const r{seed};
                r.forward(x.data(), n);
                REQUIRE(std::abs(test::dot(x, x) - 1.0) < 0x1p-20);
                if (i < n - m || n == m) { // the first transform alone writes row 0 of H: the signs
                    REQUIRE((x[0] < 0.0F) == r.minus(0, i));
                    REQUIRE(std::abs(std::fabs(double{x[0]}) - share) < 0x1p-20);
                }
                if (i >= m) REQUIRE((x[static_cast<std::size_t>(n - m)] < 0.0F) == r.minus(1, i - (n - m)));
                // Each coordinate is a sum of up to m signs / m: 5.5 deviations.
                REQUIRE(double{largest_of(x)} <= std::min(5.5 * share, 1.0) + 0x1p-20);
                if (n == m)
                    for (float const v : x) REQUIRE(std::abs(std::fabs(double{v}) - share) < 0x1p-20);
            }
        }
}

TEST_CASE("signs of a seed are fair and those of two seeds unrelated", "[quant]") {
    for (bf::index_t const n : {128, 240}) {
        bf::testing::random draws(5, static_cast<std::uint64_t>(n));
        test::row_floats const x = test::gaussian_row(draws, n);
        std::vector<test::row_floats> all;
        for (std::uint64_t seed = 0; seed < 40; ++seed) all.push_back(rotated({seed}, x));
        for (std::size_t a = 0; a < all.size(); ++a)
            for (std::size_t b = 0; b < a; ++b) { // a global sign apart: 1; unrelated: 1 / sqrt(n) or so
                CAPTURE(n, a, b);
                REQUIRE(std::abs(test::dot(all[a], all[b])) / test::dot(x, x) < 0.6);
            }
    }
    for (std::uint64_t seed = 0; seed < 20; ++seed) {
        int minus = 0, like_before = 0, like_the_other_pass = 0;
        bq::rotation const r{seed};
        for (bf::index_t i = 0; i < 1024; ++i) {
            minus += r.minus(0, i) ? 1 : 0;
            like_before += i > 0 && r.minus(0, i) == r.minus(0, i - 1) ? 1 : 0;
            like_the_other_pass += r.minus(0, i) == r.minus(1, i) ? 1 : 0;
        }
        CAPTURE(seed);
        for (int const count : {minus, like_before, like_the_other_pass}) REQUIRE(std::abs(count - 512) < 5 * 16);
    }
}

TEST_CASE("a rotation has the same bits everywhere", "[quant]") {
    bq::rotation const seven{7};
    // By hand: seven.minus(0, i) of 0 to 7 are 1 1 1 0 1 0 1 1, and the first row of H is all ones.
    test::row_floats const x = test::pattern_row(test::pattern::bell, 1, 12);
    REQUIRE(x == test::row_floats{146, 96, -122, -92, 156, -35, -44, 193, 50, 40, 89, 166});
    test::row_floats const y = rotated(seven, x);
    REQUIRE(y[0] == -552.0F * 0x1.6a09e6p-2F); // 1 / sqrt(8) to the nearest float
    REQUIRE(y[4] == 0x1.f67b78p+6F);
    REQUIRE(y[11] == -0x1.9e75f8p+4F);
    test::fingerprint there, back;
    for (bf::index_t const n : lengths())
        for (test::pattern const p : {test::pattern::bell, test::pattern::heavy, test::pattern::large_mean}) {
            there.add(rotated(seven, test::pattern_row(p, 2, n)));
            back.add(rotated_back(seven, test::pattern_row(p, 3, n)));
        }
    REQUIRE(there.text() == "f5162d3251587234");
    REQUIRE(back.text() == "0d1a9c0ff57e3eb7");
}
