// SPDX-License-Identifier: MIT
#include <butterfly/quant/affine.hpp>

#include "quant/inputs.hpp"

namespace bf = butterfly;
namespace bq = butterfly::quant;

namespace {

template <int Bits>
constexpr double affine_bound(int group) {
    if (Bits == 2) return group == 32 ? 0.0975 : group == 64 ? 0.1106 : 0.1179;
    if (Bits == 3) return group == 32 ? 0.0239 : group == 64 ? 0.0297 : 0.0337;
    if (Bits == 4) return group == 32 ? 0.0056 : group == 64 ? 0.0073 : 0.0088;
    return group == 32 ? 2.3e-5 : group == 64 ? 3.0e-5 : 3.7e-5;
}

/// Rows that grids find hard, by number.
test::row_floats hard_row(bf::testing::random& draws, int kind, bf::index_t n) {
    test::row_floats x;
    double const rare = 0.2 * draws.uniform(), apart = draws.uniform();
    for (bf::index_t i = 0; i < n; ++i) {
        double const z = test::gaussian(draws);
        x.push_back(static_cast<float>(kind == 0   ? z
                                       : kind == 1 ? draws.heavy_tailed()
                                       : kind == 2 ? 0.001 * z + (draws.uniform() < rare ? 1.0 : 0.0)
                                       : kind == 3 ? static_cast<double>(draws.below(2))
                                       : kind == 4 ? 1000.0 + 0.1 * z
                                       : kind == 5 ? static_cast<double>(draws.below(7))
                                       : kind == 6 ? (i < 2                     ? 255.0 * static_cast<double>(i)
                                                      : draws.uniform() < apart ? 94.49
                                                                                : 134.51)
                                                   : std::exp(5 * z)));
    }
    return x;
}
constexpr int hard_kinds = 8;

template <int Bits, int Group>
struct grid {
    static constexpr int bits = Bits, group = Group;
    using codec = bq::affine<Bits, Group>;

    /// Scale, zero and the values of the lowest and the highest code, of the group that value i of a row is in.
    double scale, zero, low, high;
    grid(test::row_bytes const& row, bf::index_t i) {
        auto const g = bq::detail::load_group(codec().format(), row.data(), i / Group);
        scale        = g.scale;
        zero         = g.zero;
        low          = scale * (zero - (1 << (Bits - 1)));
        high         = low + scale * ((1 << Bits) - 1);
    }
};

using all_grids = std::tuple<grid<2, 32>,
                             grid<2, 64>,
                             grid<2, 128>,
                             grid<3, 32>,
                             grid<3, 64>,
                             grid<3, 128>,
                             grid<4, 32>,
                             grid<4, 64>,
                             grid<4, 128>,
                             grid<8, 32>,
                             grid<8, 64>,
                             grid<8, 128>>;

/// Error of a group on the even grid over [min, max], as it is usually made.
template <int Bits>
double plain_error(test::row_floats const& x) {
    auto const [low, high] = std::minmax_element(x.begin(), x.end());
    double const step      = (double{*high} - double{*low}) / ((1 << Bits) - 1);
    double error           = 0.0;
    for (float const v : x) error += std::pow(v - *low - (step > 0.0 ? std::round((v - *low) / step) * step : 0.0), 2);
    return error;
}

double square_error(test::row_floats const& x, test::row_floats const& y) {
    return test::relative_error(x, y) * test::dot(x, x);
}

} // namespace

TEST_CASE("rows of affine have the bytes of their table", "[quant]") {
    REQUIRE(bq::affine<2, 32>().row_bytes(128) == 48);
    REQUIRE(bq::affine<2, 64>().row_bytes(128) == 40);
    REQUIRE(bq::affine<2, 128>().row_bytes(128) == 36);
    REQUIRE(bq::affine<3, 32>().row_bytes(128) == 64);
    REQUIRE(bq::affine<3, 64>().row_bytes(128) == 56);
    REQUIRE(bq::affine<3, 128>().row_bytes(128) == 52);
    REQUIRE(bq::affine<4, 32>().row_bytes(128) == 80);
    REQUIRE(bq::affine<4, 64>().row_bytes(128) == 72);
    REQUIRE(bq::affine<4, 128>().row_bytes(128) == 68);
    REQUIRE(bq::affine<8, 32>().row_bytes(128) == 144);
    REQUIRE(bq::affine<8, 64>().row_bytes(128) == 136);
    REQUIRE(bq::affine<8, 128>().row_bytes(128) == 132);
    REQUIRE(bq::affine<2, 64>().row_bytes(80) == 8 + 20); // the second group has 16 values
    REQUIRE(bq::affine<4, 64>().name() == "affine<4, 64>");
}

TEST_CASE("rows of affine, packed by hand", "[quant]") {
    auto const row = [](auto const& codec, test::row_floats const& x) { return test::hex(test::pack(codec, x, 16)); };
    // Scale 2 (0x4000), zero 3 (0x4200): codes 0 1 2 3 stand for 2 * (code - 2 + 3). The codes of row_format_test.cpp.
    REQUIRE(row(bq::affine<2, 32>(), {2, 4, 6, 8, 8, 6, 4, 2, 4, 4, 6, 6, 8, 2, 8, 2}) == "00400042dc19e623");
    // Scale 0.5 (0x3f00), zero 0: 0.5 * (code - 4).
    REQUIRE(row(bq::affine<3, 64>(), {-2, 0.5F, -1, 1.5F, -0.5F, 1, -1.5F, 0, -1.5F, 0.5F, 1, -1, 1.5F, -2, -0.5F,
                                      0}) == "003f0000dc19e623609f");
    // Scale 1 (0x3f80), zero -100 (0xd640): code - 8 - 100.
    REQUIRE(row(bq::affine<4, 128>(), {-108, -107, -106, -105, -104, -103, -102, -101, -100, -99, -98, -97, -96, -95,
                                       -94, -93}) == "803f40d68091a2b3c4d5e6f7");
    // Scale 1, zero 0: codes are the values.
    REQUIRE(row(bq::affine<8, 32>(), {0, -1, 1, -2, 127, -128, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}) ==
            "803f000000ff01fe7f8002030405060708090a0b");
}

TEMPLATE_LIST_TEST_CASE("error of affine on Gaussian rows", "[quant]", all_grids) {
    bf::testing::random draws(1);
    typename TestType::codec const codec;
    double const error =
        test::mean_error(codec, 128, test::many_rows(), [&] { return test::gaussian_row(draws, 128); });
    double const bound = affine_bound<TestType::bits>(TestType::group);
    CAPTURE(codec.name(), error, bound);
    REQUIRE(error <= bound);
    REQUIRE(error >= 0.85 * bound); // less is an error of the test
}

TEMPLATE_LIST_TEST_CASE("affine keeps the nearest point of its grid", "[quant]", all_grids) {
    std::uint32_t const seed = test::another_seed();
    bf::testing::random draws(seed);
    typename TestType::codec const codec;
    for (int kind = 0; kind < hard_kinds; ++kind)
        for (int i = 0; i < 40; ++i) {
            CAPTURE(seed, kind, i);
            test::row_floats const x  = hard_row(draws, kind, 144); // the last group is short
            test::row_bytes const row = test::pack(codec, x, 144);
            test::row_floats const y  = test::unpack(codec, row, 144);
            for (bf::index_t d = 0; d < 144; ++d) {
                TestType const g(row, d);
                double const v = x[static_cast<std::size_t>(d)], got = y[static_cast<std::size_t>(d)];
                double const inside   = std::clamp(v, g.low, g.high); // what lies outside becomes the end
                double const rounding = 0x1p-23 * (std::abs(g.low) + std::abs(g.high));
                REQUIRE(std::abs(inside - got) <= g.scale / 2 + rounding);
                if (g.scale == 0.0) continue; // zeros
                REQUIRE(std::abs(std::remainder(got / g.scale - g.zero, 1.0)) <= rounding / g.scale);
                if (v <= g.low) REQUIRE(std::abs(got - g.low) <= rounding);
                if (v >= g.high) REQUIRE(std::abs(got - g.high) <= rounding);
                // Eight bits clip by the roundings, 255 times 2^-8 of the scale, 2^-4 of the zero, and where least
                // squares move an end: the squares of a group's errors add up to no more than half a step each.
                double const moved = 0.5 * std::sqrt(static_cast<double>(TestType::group));
                if (TestType::bits == 8 && g.scale > 0x1p-126)
                    REQUIRE(std::abs(v - got) <=
                            g.scale * (moved + 255 * 0x1p-8 + std::abs(g.zero) * 0x1p-11 + 0x1p-4));
                REQUIRE(std::abs(g.low + g.high) / 2 <= 1024 * 1.01 * g.scale + g.high - g.low);
            }
        }
}

TEMPLATE_LIST_TEST_CASE("affine is no worse than the grid over [min, max]", "[quant]", all_grids) {
    std::uint32_t const seed = test::another_seed();
    bf::testing::random draws(seed);
    typename TestType::codec const codec;
    for (int kind = 0; kind < hard_kinds; ++kind) {
        double error = 0.0, plain = 0.0, stored = 0.0;
        for (int i = 0; i < 100; ++i) {
            test::row_floats const x  = hard_row(draws, kind, TestType::group);
            test::row_bytes const row = test::pack(codec, x, TestType::group);
            TestType const g(row, 0);
            // What the roundings of scale and zero that are stored cost at most.
            double const ends = std::max(std::abs(g.low), std::abs(g.high));
            stored += std::pow(0x1p-8 * (g.high - g.low) + 0x1p-11 * ends, 2) * TestType::group;
            error += square_error(x, test::unpack(codec, row, TestType::group));
            plain += plain_error<TestType::bits>(x);
        }
        CAPTURE(seed, kind, error, plain, stored);
        REQUIRE(error <= plain + stored);
        if (kind == 0 && TestType::bits < 4) REQUIRE(error <= (TestType::bits == 2 ? 0.75 : 0.9) * plain);
    }
}

TEMPLATE_LIST_TEST_CASE("affine keeps means that are large against the spread", "[quant]", all_grids) {
    std::uint32_t const seed = test::another_seed();
    bf::testing::random draws(seed);
    typename TestType::codec const codec;
    for (float const mean : {1000.0F, -77.0F, 3e4F, 1e6F, -1e30F, 1e-25F})
        for (float const spread : {0.0F, 1e-7F, 1e-4F}) {
            test::row_floats x = test::gaussian_row(draws, 80);
            for (float& v : x) v = mean * (1.0F + spread * v);
            test::row_floats const y = test::round_trip(codec, x, 80);
            for (std::size_t d = 0; d < x.size(); ++d) {
                CAPTURE(seed, mean, spread, d);
                REQUIRE(std::fabs(y[d] - x[d]) <= (spread == 0.0F ? 1.01F * 0x1p-11F : 0x1p-10F) * std::fabs(x[d]));
            }
        }
    // What a grid resolves: a mean of a hundred times the spread costs nothing but the rounding of the zero.
    double means = 0.0, none = 0.0;
    for (int i = 0; i < 200; ++i) {
        test::row_floats x = test::gaussian_row(draws, 128);
        none += square_error(x, test::round_trip(codec, x, 128));
        for (float& v : x) v += 100.0F;
        means += square_error(x, test::round_trip(codec, x, 128));
    }
    CAPTURE(seed, means, none);
    REQUIRE(means <= 1.1 * none + 200 * 128 * std::pow(100 * 0x1p-11, 2));
}

TEMPLATE_LIST_TEST_CASE("groups of affine do not see each other", "[quant]", all_grids) {
    std::uint32_t const seed = test::another_seed();
    bf::testing::random draws(seed);
    typename TestType::codec const codec;
    for (bf::index_t const n : {48, 80, 96, 144, 240, 1024}) {
        CAPTURE(seed, n);
        test::row_floats x = test::gaussian_row(draws, n);
        for (bf::index_t d = 0; d < n; ++d) // groups of very different sizes
            x[static_cast<std::size_t>(d)] *= std::ldexp(1.0F, static_cast<int>(d / TestType::group % 7) * 9 - 30);
        test::row_floats const y = test::round_trip(codec, x, n);
        for (bf::index_t first = 0; first < n; first += TestType::group) {
            bf::index_t const end = std::min<bf::index_t>(n, first + TestType::group);
            test::row_floats const alone(x.begin() + first, x.begin() + end);
            REQUIRE(test::round_trip(codec, alone, end - first) ==
                    test::row_floats(y.begin() + first, y.begin() + end));
        }
    }
}

TEST_CASE("affine takes rows of up to 1024 values", "[quant]") {
    using codec = bq::affine<4, 64>;
    for (bf::index_t const n : {16, 80, 96, 1024}) REQUIRE(test::refusal<codec>(n) == "");
    for (bf::index_t const n : {0, 8, 100, -64, 1040})
        REQUIRE(test::refusal<codec>(n) ==
                "affine: head_dim " + std::to_string(n) + " is not a multiple of 16 up to 1024");
}

TEST_CASE("rows of affine have the same bytes everywhere", "[quant]") {
    using test::bytes_and_values;
    auto const row = [](auto const& codec, bf::index_t n = 48) {
        return test::hex(test::pack(codec, test::pattern_row(test::pattern::bell, 4, n), n));
    };
    REQUIRE(row(bq::affine<2, 32>()) == "0c43a6392e43f3390e21c15e169764c696752985");
    REQUIRE(row(bq::affine<3, 64>()) == "9842b13a1847d3e93d2adc9d079260876dfb644f6b90");
    REQUIRE(row(bq::affine<4, 128>()) == "2042d33c3887264a794cb13a2b33f17c078466c659f7c807a6643aa6");
    REQUIRE(row(bq::affine<8, 32>(), 16) == "e63f08c52803f04b3f7f8d476bb6807c08d0f6f4");
    REQUIRE(bytes_and_values(bq::affine<2, 32>()) == "5f0353ea79ea317a");
    REQUIRE(bytes_and_values(bq::affine<2, 64>()) == "7be1517bf6393545");
    REQUIRE(bytes_and_values(bq::affine<2, 128>()) == "4e2e051897f25989");
    REQUIRE(bytes_and_values(bq::affine<3, 64>()) == "c89205e0723be84f");
    REQUIRE(bytes_and_values(bq::affine<4, 32>()) == "88c11a20a1dccae8");
    REQUIRE(bytes_and_values(bq::affine<4, 128>()) == "66c5250687edaed9");
    REQUIRE(bytes_and_values(bq::affine<8, 64>()) == "756b8ab457569f7a");
}
