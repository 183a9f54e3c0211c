// SPDX-License-Identifier: MIT
#include <butterfly/quant/int8.hpp>

#include "quant/inputs.hpp"

namespace bf = butterfly;
namespace bq = butterfly::quant;

namespace {

float scale_of_row(test::row_bytes const& row) {
    return bq::detail::load_half<bf::bfloat16>(row.data());
}

int code_of_value(test::row_bytes const& row, std::size_t i) {
    return static_cast<std::int8_t>(std::to_integer<std::uint8_t>(row[2 + i]));
}

/// A row of any size, often with a few large values.
test::row_floats row_of_any_size(bf::testing::random& draws, bf::index_t n) {
    int const exponent = static_cast<int>(draws.between(-110, 112));
    test::row_floats x;
    for (bf::index_t i = 0; i < n; ++i) x.push_back(static_cast<float>(std::ldexp(draws.heavy_tailed(), exponent)));
    return x;
}

} // namespace

TEST_CASE("a row of int8, packed by hand", "[quant]") {
    REQUIRE(bq::int8().row_bytes(128) == 130);
    REQUIRE(std::string(bq::int8::name()) == "int8");
    // Scale 0.5 (0x3f00): 63.5 / 127.
    test::row_floats const x{0, -0.5F, 0.5F, -1, 63.5F, -63.5F, 1, 1.5F, 2, 2.5F, 3, 3.5F, 4, 4.5F, 5, 5.5F};
    REQUIRE(test::hex(test::pack(bq::int8(), x, 16)) == "003f00ff01fe7f8102030405060708090a0b");
    // Halves go away from zero: 127 * 2^-7 is the largest, 0x3c00 is 2^-7.
    test::row_floats y(16, 0.0F);
    y[0] = 127 * 0x1p-7F;
    y[1] = 1.5F * 0x1p-7F;
    y[2] = -1.5F * 0x1p-7F;
    y[3] = 0.49F * 0x1p-7F;
    REQUIRE(test::hex(test::pack(bq::int8(), y, 16)) == "003c7f02fe00000000000000000000000000");
}

TEST_CASE("int8 has every code but -128", "[quant]") {
    test::row_floats x;
    for (int c = -127; c <= 127; ++c) x.push_back(0.25F * static_cast<float>(c));
    x.push_back(0.0F);
    test::row_bytes const row = test::pack(bq::int8(), x, 256);
    REQUIRE(scale_of_row(row) == 0.25F);
    for (std::size_t i = 0; i < 255; ++i) REQUIRE(code_of_value(row, i) == static_cast<int>(i) - 127);
    REQUIRE(test::unpack(bq::int8(), row, 256) == x);
}

TEST_CASE("int8 is within half of its scale, and a second round changes nothing", "[quant]") {
    std::uint32_t const seed = test::another_seed();
    bf::testing::random draws(seed);
    bq::int8 const codec;
    int const rows = test::short_sweep() ? 1000 : 5000;
    for (int i = 0; i < rows; ++i) {
        bf::index_t const n      = draws.one_of({bf::index_t{16}, bf::index_t{48}, bf::index_t{128}});
        test::row_floats const x = row_of_any_size(draws, n);
        CAPTURE(seed, i, n);
        test::row_bytes const row = test::pack(codec, x, n);
        test::row_floats const y  = test::unpack(codec, row, n);
        double const scale        = scale_of_row(row);
        int most                  = 0;
        for (std::size_t d = 0; d < x.size(); ++d) {
            // A quotient is rounded to float before it is to a whole number.
            REQUIRE(std::abs(double{x[d]} - double{y[d]}) <= (0.5 + 128 * 0x1p-24) * scale);
            REQUIRE(std::abs(code_of_value(row, d)) <= 127);
            REQUIRE(y[d] == scale * code_of_value(row, d));
            most = std::max(most, std::abs(code_of_value(row, d)));
        }
        REQUIRE(most == 127); // no finer scale would do
        REQUIRE(test::pack(codec, y, n) == row);
    }
}

TEST_CASE("the largest value of int8 has code 127 wherever its scale rounds to", "[quant]") {
    // Every bfloat16 of one binade, the midpoints between, and their neighbours.
    for (std::uint32_t bits = 0x3f800000U; bits <= 0x40000000U; bits += 0x8000U)
        for (std::int32_t const off : {-300, -1, 0, 1, 300}) {
            float const scale = std::bit_cast<float>(bits + static_cast<std::uint32_t>(off));
            test::row_floats x(16, 0.0F);
            x[3]                      = -127.0F * scale;
            test::row_bytes const row = test::pack(bq::int8(), x, 16);
            CAPTURE(bits, off);
            REQUIRE(code_of_value(row, 3) == -127);
            REQUIRE(std::abs(double{x[3]} + 127.0 * double{scale_of_row(row)}) <= 0.5 * double{scale_of_row(row)});
        }
}

TEST_CASE("int8 keeps the bound of tiny rows", "[quant]") {
    std::uint32_t const seed = test::another_seed();
    bf::testing::random draws(seed);
    for (int exponent = -149; exponent < -105; ++exponent)
        for (int i = 0; i < 20; ++i) {
            test::row_floats x;
            for (int d = 0; d < 16; ++d) x.push_back(std::ldexp(test::gaussian(draws), exponent));
            x[0]                      = std::ldexp(1.0F, exponent);
            test::row_bytes const row = test::pack(bq::int8(), x, 16);
            test::row_floats const y  = test::unpack(bq::int8(), row, 16);
            double const scale        = scale_of_row(row);
            CAPTURE(seed, exponent, i, scale);
            REQUIRE(scale >= 0x1p-133);
            for (std::size_t d = 0; d < x.size(); ++d)
                REQUIRE(std::abs(double{x[d]} - double{y[d]}) <= (0.5 + 128 * 0x1p-24) * scale);
        }
}

TEST_CASE("error of int8 on Gaussian rows", "[quant]") {
    bf::testing::random draws(1);
    double const error =
        test::mean_error(bq::int8(), 128, test::many_rows(), [&] { return test::gaussian_row(draws, 128); });
    // The largest of 128 is 2.7 deviations or so: (2.7 / 127)^2 / 12.
    REQUIRE(error < 4.4e-5);
    REQUIRE(error > 3.5e-5);
}

TEST_CASE("int8 takes rows of up to 1024 values", "[quant]") {
    for (bf::index_t const n : {16, 112, 1024}) REQUIRE(test::refusal<bq::int8>(n) == "");
    for (bf::index_t const n : {0, 8, 100, -64, 1040})
        REQUIRE(test::refusal<bq::int8>(n) ==
                "int8: head_dim " + std::to_string(n) + " is not a multiple of 16 up to 1024");
}

TEST_CASE("rows of int8 have the same bytes everywhere", "[quant]") {
    REQUIRE(test::hex(test::pack(bq::int8(), test::pattern_row(test::pattern::bell, 4, 16), 16)) ==
            "f13f21feec4237748d3f62b5817203cdf2f0");
    REQUIRE(test::bytes_and_values(bq::int8()) == "4efdd69cf5f537ec");
}
