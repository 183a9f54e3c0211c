// SPDX-License-Identifier: MIT
#include <butterfly/quant/affine.hpp>
#include <butterfly/quant/affine_channels.hpp>
#include <butterfly/quant/int8.hpp>
#include <butterfly/quant/lloyd_max.hpp>
#include <butterfly/quant/outliers.hpp>

#include "quant/inputs.hpp"

#include <numeric>

namespace bf = butterfly;
namespace bq = butterfly::quant;

namespace {

template <class Base, int Count>
constexpr bool can_be_held = requires {
    typename bq::outliers<Base, Count>;
};

struct nameless {
    [[nodiscard]] constexpr bf::index_t row_bytes(bf::index_t n) const noexcept { return n; }
    void encode(float const*, bf::index_t, std::byte*) const noexcept;
    void decode(std::byte const*, bf::index_t, float*) const noexcept;
};
static_assert(bq::row_codec<bq::outliers<nameless, 2>> && !bq::named<bq::outliers<nameless, 2>>);
static_assert(bq::named<bq::outliers<bq::int8, 2>>);

/// The places of the largest values, by sorting: ascending.
std::vector<std::size_t> places_of_largest(test::row_floats const& x, std::size_t count) {
    std::vector<std::size_t> order(x.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return std::fabs(x[a]) > std::fabs(x[b]); });
    order.resize(count);
    std::sort(order.begin(), order.end());
    return order;
}

/// Checks a row against its definition: Base of the row with its largest values set to zero, then those.
template <class Base, int Count>
void check_definition(test::row_floats const& x) {
    bq::outliers<Base, Count> const codec;
    Base const base;
    auto const n    = std::ssize(x);
    auto const held = places_of_largest(x, Count);
    auto rest       = x;
    for (std::size_t const i : held) rest[i] = 0.0F;
    test::row_bytes wanted        = test::pack(base, rest, n);
    test::row_floats wanted_value = test::unpack(base, wanted, n);
    for (std::size_t const i : held) {
        bf::bfloat16 const v(x[i]);
        for (unsigned const half : {static_cast<unsigned>(i), unsigned{v.bits}}) {
            wanted.push_back(static_cast<std::byte>(half & 255U));
            wanted.push_back(static_cast<std::byte>(half >> 8));
        }
        wanted_value[i] = v;
    }
    test::row_bytes const row = test::pack(codec, x, n);
    REQUIRE(test::hex(row) == test::hex(wanted));
    REQUIRE(test::unpack(codec, row, n) == wanted_value);
    for (std::size_t const i : held) REQUIRE(std::fabs(wanted_value[i] - x[i]) <= 0x1p-8F * std::fabs(x[i]));
}

} // namespace

TEST_CASE("outliers hold codecs of rows", "[quant]") {
    STATIC_REQUIRE(can_be_held<bq::int8, 2>);
    STATIC_REQUIRE(can_be_held<bq::affine<2, 32>, 2>);
    STATIC_REQUIRE(!can_be_held<bq::affine_channels<2, 32>, 2>); // a tile is written at once
    STATIC_REQUIRE(bq::row_codec<bq::outliers<bq::outliers<bq::int8, 2>, 2>>);
    REQUIRE(bq::outliers<bq::affine<2, 64>, 4>().row_bytes(128) == 40 + 16);
    REQUIRE(bq::outliers<bq::affine<2, 64>, 4>().name() == "affine<2, 64> and 4 outliers");
    REQUIRE(bq::outliers<bq::int8, 1>().name() == "int8 and 1 outliers");
    REQUIRE(bq::outliers<bq::lloyd_max<4>, 2>{bq::lloyd_max<4>(9)}.name() == "lloyd_max<4> seed 9 and 2 outliers");
}

TEST_CASE("a row with outliers, packed by hand", "[quant]") {
    // int8 of scale 1 (0x3f80), then 5 and 12 (0x0005, 0x000c) with -1000 (0xc47a) and 3e38 (0x7f62).
    test::row_floats x{127, -1, 2, 3, -127, -1000, 6, 7, 8, 9, 10, 11, 3e38F, 13, 14, 15};
    REQUIRE(test::hex(test::pack(bq::outliers<bq::int8, 2>(), x, 16)) ==
            "803f7fff02038100060708090a0b000d0e0f05007ac40c00627f");
    REQUIRE(test::unpack(bq::outliers<bq::int8, 2>(), test::pack(bq::outliers<bq::int8, 2>(), x, 16), 16)[5] == -1000);
}

TEST_CASE("outliers are the largest values, and the rest is what Base makes of it", "[quant]") {
    std::uint32_t const seed = test::another_seed();
    bf::testing::random draws(seed);
    for (bf::index_t const n : {16, 80, 128, 1024})
        for (int i = 0; i < 20; ++i) {
            CAPTURE(seed, n, i);
            test::row_floats x;
            for (bf::index_t d = 0; d < n; ++d) x.push_back(static_cast<float>(draws.heavy_tailed()));
            if (i % 4 == 1) // many of one size, of both signs
                for (float& v : x) v = v < 0.0F ? -2.0F : 2.0F;
            if (i % 4 == 2) std::fill(x.begin() + 3, x.end(), 0.0F); // fewer than are held
            if (i % 4 == 3) x.back() = 1e30F;
            check_definition<bq::int8, 1>(x);
            check_definition<bq::int8, 5>(x);
            check_definition<bq::affine<2, 64>, 4>(x);
            check_definition<bq::lloyd_max<4>, 3>(x);
            check_definition<bq::affine<4, 32>, 16>(x);
        }
}

TEST_CASE("all values of a row may be outliers", "[quant]") {
    bf::testing::random draws(3);
    test::row_floats const x = test::gaussian_row(draws, 16);
    test::row_floats const y = test::round_trip(bq::outliers<bq::int8, 16>(), x, 16);
    for (std::size_t d = 0; d < x.size(); ++d) REQUIRE(y[d] == static_cast<float>(bf::bfloat16(x[d])));
}

TEST_CASE("outliers of equal size are those that stand first", "[quant]") {
    test::row_floats const x(16, -3.0F);
    test::row_bytes const row = test::pack(bq::outliers<bq::int8, 3>(), x, 16);
    REQUIRE(test::hex({row.begin() + 18, row.end()}, 4) == "000040c0 010040c0 020040c0");
    REQUIRE(test::unpack(bq::outliers<bq::int8, 3>(), row, 16)[2] == -3.0F);
}

TEST_CASE("a row of zeros of either sign is a row of zeros", "[quant]") {
    for (float const zero : {0.0F, -0.0F}) {
        test::row_floats const x(32, zero);
        test::row_floats const y = test::round_trip(bq::outliers<bq::affine<2, 32>, 4>(), x, 32);
        for (std::size_t d = 0; d < y.size(); ++d) {
            REQUIRE(y[d] == 0.0F);
            REQUIRE(std::signbit(y[d]) == (d < 4 && std::signbit(zero))); // outliers as they are
        }
    }
}

TEST_CASE("what is not finite stays alone while it is an outlier", "[quant]") {
    float const infinity = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
    bf::testing::random draws(4);
    bq::outliers<bq::affine<2, 64>, 3> const codec;
    test::row_floats const clean = test::gaussian_row(draws, 128);
    for (float const bad : {nan, -nan, infinity, -infinity, 0x1p116F, -3e38F}) {
        test::row_floats x = clean;
        x[70] = x[7]             = bad;
        test::row_floats const y = test::round_trip(codec, x, 128);
        for (std::size_t d = 0; d < x.size(); ++d) {
            CAPTURE(bad, d);
            if (d != 7 && d != 70)
                REQUIRE(std::isfinite(y[d]));
            else if (std::isnan(bad))
                REQUIRE(std::isnan(y[d]));
            else
                REQUIRE(y[d] == static_cast<float>(bf::bfloat16(bad)));
        }
        // The third is the largest of the others: each is found where it was.
        test::row_floats rest = clean;
        rest[70] = rest[7]  = 0.0F;
        std::size_t const i = places_of_largest(rest, 1).front();
        REQUIRE(y[i] == static_cast<float>(bf::bfloat16(clean[i])));
        // One more than are held: its group is lost, the other is not.
        x[1] = x[2]              = bad;
        test::row_floats const z = test::round_trip(codec, x, 128);
        for (std::size_t d = 0; d < x.size(); ++d) {
            CAPTURE(bad, d);
            bool const held = d == 1 || d == 2 || d == 7;
            if (!held && d >= 64) REQUIRE(std::isnan(z[d]));
            if (!held && d < 64) REQUIRE(std::isfinite(z[d]));
        }
    }
}

TEST_CASE("a finite outlier stays finite", "[quant]") {
    bq::outliers<bq::int8, 2> const codec;
    std::vector<float> row(16, 1.0F);
    row[3] = std::numeric_limits<float>::max(); // beyond the largest bfloat16 by half a step
    row[9] = -std::numeric_limits<float>::max();
    std::vector<std::byte> packed(static_cast<std::size_t>(codec.row_bytes(16)));
    codec.encode(row.data(), 16, packed.data());
    std::vector<float> back(16);
    codec.decode(packed.data(), 16, back.data());
    REQUIRE(back[3] == 0x1.fep127F);
    REQUIRE(back[9] == -0x1.fep127F);
}

TEST_CASE("outliers spare the others a wide grid", "[quant]") {
    bf::testing::random draws(5);
    double with = 0.0, without = 0.0;
    for (int i = 0; i < 200; ++i) {
        test::row_floats x = test::gaussian_row(draws, 128);
        for (std::size_t const d : {5U, 42U, 77U, 120U}) x[d] *= 50.0F;
        test::row_floats const a = test::round_trip(bq::outliers<bq::affine<2, 64>, 4>(), x, 128);
        test::row_floats const b = test::round_trip(bq::affine<2, 64>(), x, 128);
        with += test::relative_error(x, a) / 200;
        without += test::relative_error(x, b) / 200;
    }
    CAPTURE(with, without);
    // Energies: 124 of the rest, 10000 of the outliers. The rest costs 0.11 of itself.
    REQUIRE(with < 0.013);
    REQUIRE(without > 0.03);
}

TEST_CASE("rows that cannot hold their outliers are refused", "[quant]") {
    using few = bq::outliers<bq::int8, 20>;
    REQUIRE(test::refusal<few>(32) == "");
    REQUIRE(test::refusal<few>(1024) == "");
    REQUIRE(test::refusal<few>(16) == "outliers: head_dim 16 is not in [20, 1024]");
    REQUIRE(test::refusal<few>(2048) == "int8: head_dim 2048 is not a multiple of 16 up to 1024");
    REQUIRE(test::refusal<few>(40) == "int8: head_dim 40 is not a multiple of 16 up to 1024");
    REQUIRE(test::refusal<bq::outliers<bq::raw<float>, 3>>(3) == ""); // raw rows may be of any length
    REQUIRE(test::refusal<bq::outliers<bq::raw<float>, 3>>(2) == "outliers: head_dim 2 is not in [3, 1024]");
    REQUIRE(test::refusal<bq::outliers<bq::raw<float>, 3>>(1025) == "outliers: head_dim 1025 is not in [3, 1024]");
}

TEST_CASE("rows with outliers have the same bytes everywhere", "[quant]") {
    using test::bytes_and_values;
    bq::outliers<bq::affine<2, 64>, 4> const four;
    REQUIRE(test::hex(test::pack(four, test::pattern_row(test::pattern::heavy, 4, 32), 32)) ==
            "8a47ce321e668aaeaaaab8da05001a480a0049c81a000c491c0086c8");
    REQUIRE(bytes_and_values(four) == "916d18132a13f641");
    REQUIRE(bytes_and_values(bq::outliers<bq::lloyd_max<16>, 2>()) == "ad05632aa03d0b8b");
}
