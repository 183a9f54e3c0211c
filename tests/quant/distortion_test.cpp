// SPDX-License-Identifier: MIT
#include <butterfly/quant/affine.hpp>
#include <butterfly/quant/distortion.hpp>
#include <butterfly/quant/lloyd_max.hpp>

#include "quant/inputs.hpp"

namespace bf = butterfly;
namespace bq = butterfly::quant;

namespace {

double density(double t) {
    return std::exp(-t * t / 2) / std::sqrt(2 * std::numbers::pi);
}

double above(double t) {
    return 0.5 * std::erfc(t / std::numbers::sqrt2);
}

/// The error of the quantizer of 2^bits levels whose thresholds are midway between levels and whose levels are the
/// means of their cells, on N(0, 1).
double error_by_definition(int bits) {
    std::size_t const half = std::size_t{1} << (bits - 1);
    std::vector<double> levels(half), edges(half + 1, 0.0);
    for (std::size_t i = 0; i < half; ++i) // one in so many of the density to the third: nearly there
        for (double low = 0.0, high = 20.0; high - low > 1e-9;) {
            levels[i]           = (low + high) / 2;
            double const wanted = 0.5 - (static_cast<double>(i) + 0.5) / static_cast<double>(2 * half);
            (above(levels[i] / std::sqrt(3.0)) > wanted ? low : high) = levels[i];
        }
    double error = 1.0;
    for (int round = 0; round < 2000; ++round) {
        for (std::size_t i = 1; i < half; ++i) edges[i] = (levels[i - 1] + levels[i]) / 2;
        edges[half] = 40.0;
        error       = 1.0;
        for (std::size_t i = 0; i < half; ++i) {
            double const share = above(edges[i]) - above(edges[i + 1]);
            levels[i]          = (density(edges[i]) - density(edges[i + 1])) / share;
            error -= 2 * share * levels[i] * levels[i];
        }
    }
    return error;
}

} // namespace

TEST_CASE("rate-distortion falls by a factor of four a bit", "[quant]") {
    REQUIRE(bq::rate_distortion(0) == 1.0);
    REQUIRE(bq::rate_distortion(1) == 0.25);
    REQUIRE(bq::rate_distortion(2) == 0.0625);
    REQUIRE(bq::rate_distortion(4) == 0.00390625);
    REQUIRE(bq::rate_distortion(2.125) == Approx(0.0625 / std::exp2(0.25)));
    REQUIRE(bq::decibels(1.0) == 0.0);
    REQUIRE(bq::decibels(100.0) == Approx(20.0));
    REQUIRE(bq::decibels(bq::rate_distortion(1)) == Approx(-6.0206).epsilon(1e-5));
}

TEST_CASE("the table of Lloyd-Max quantizers is what their definition gives", "[quant]") {
    REQUIRE(bq::lloyd_max_distortion(0) == 1.0); // one level, zero
    for (int bits = 1; bits <= 8; ++bits) {
        CAPTURE(bits);
        REQUIRE(bq::lloyd_max_distortion(bits) == Approx(error_by_definition(bits)).epsilon(1e-4));
        REQUIRE(bq::lloyd_max_distortion(bits) > bq::rate_distortion(bits));
    }
    REQUIRE(bq::lloyd_max_distortion(1) == Approx(1.0 - 2.0 / std::numbers::pi).epsilon(1e-5));
    static_assert(bq::lloyd_max_distortion(2) == 0.117482);
}

TEST_CASE("bits per value count scales", "[quant]") {
    REQUIRE(bq::bits_per_value(bq::lloyd_max<16>(), 128) == 4.125);
    REQUIRE(bq::bits_per_value(bq::lloyd_max<16>(), 64) == 4.25);
    REQUIRE(bq::bits_per_value(bq::affine<2, 64>(), 128) == 2.5);
    REQUIRE(bq::bits_per_value(bq::raw<bf::bfloat16>(), 80) == 16.0);
}

TEST_CASE("nmse is error over energy, of one row and of many", "[quant]") {
    test::row_floats const x{3, 4, 0, 0}, y{3, 4, 0, 5}, twice{6, 8, 0, 0}, zeros(4, 0.0F);
    REQUIRE(bq::nmse(x, x) == 0.0);
    REQUIRE(bq::nmse(x, y) == 1.0);
    REQUIRE(bq::nmse(x, zeros) == 1.0);
    REQUIRE(bq::nmse(zeros, zeros) == 0.0);
    REQUIRE(std::isinf(bq::nmse(zeros, x)));

    bq::row_error rows; // energies add up, not ratios
    REQUIRE(rows.nmse() == 0.0);
    rows.add(x, y);
    rows.add(twice, twice);
    REQUIRE(rows.nmse() == 25.0 / 125.0);

    test::row_floats bad = x;
    bad[1]               = std::numeric_limits<float>::quiet_NaN();
    rows.add(x, bad);
    REQUIRE(std::isnan(rows.nmse()));
}

TEST_CASE("slope and rms of scores that are scaled, shifted or not known", "[quant]") {
    bq::score_error halved, exact, shifted;
    REQUIRE(std::isnan(exact.slope()));
    REQUIRE(std::isnan(exact.rms()));
    for (double const score : {-3.0, 1.0, 2.0}) {
        halved.add(score, score / 2, 4.0);
        exact.add(score, score, 4.0);
        shifted.add(score, score + 1.0, 4.0);
    }
    REQUIRE(halved.pairs() == 3);
    REQUIRE(halved.slope() == 0.5);
    REQUIRE(halved.rms() == Approx(std::sqrt((2.25 + 0.25 + 1.0) / 12)));
    REQUIRE(exact.slope() == 1.0);
    REQUIRE(exact.rms() == 0.0);
    REQUIRE(shifted.slope() == 1.0); // an offset that all scores share: no softmax notices
    REQUIRE(shifted.rms() == 0.5);

    exact.add(5.0, 0.0, 0.0); // a key or a query of zeros
    REQUIRE(exact.pairs() == 3);

    // Vectors: <q, x> = 2, <q, y> = 3, |q|^2 |x|^2 / d = 2 * 2 / 2.
    bq::score_error vectors;
    vectors.add(test::row_floats{1, 1}, test::row_floats{1, 1}, test::row_floats{1, 2});
    REQUIRE(vectors.slope() == 1.5);
    REQUIRE(vectors.rms() == Approx(1 / std::numbers::sqrt2));
}

TEMPLATE_TEST_CASE("scores over rotated rows err by the root of nmse and shrink by nmse",
                   "[quant]",
                   bq::lloyd_max<4>,
                   bq::lloyd_max<8>,
                   bq::lloyd_max<32>) {
    TestType const codec;
    bf::testing::random draws(5);
    bq::row_error rows;
    bq::score_error scores;
    for (int i = 0; i < test::many_rows(); ++i) {
        auto const x = test::gaussian_row(draws, 128), q = test::gaussian_row(draws, 128);
        auto const y = test::round_trip(codec, x, 128);
        rows.add(x, y);
        scores.add(q, x, y);
    }
    double const root = std::sqrt(rows.nmse()), pairs = static_cast<double>(scores.pairs());
    CAPTURE(rows.nmse(), scores.slope(), scores.rms());
    // Over n pairs a slope is known to root / sqrt(n), a mean square to sqrt(2 / n).
    REQUIRE(std::abs(scores.slope() - (1 - rows.nmse())) < 5 * root / std::sqrt(pairs));
    REQUIRE(scores.rms() == Approx(root).epsilon(4 / std::sqrt(pairs)));
}
