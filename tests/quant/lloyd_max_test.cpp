// SPDX-License-Identifier: MIT
#include <butterfly/quant/lloyd_max.hpp>

#include "quant/inputs.hpp"

namespace bf = butterfly;
namespace bq = butterfly::quant;

namespace {

template <int Levels>
constexpr double gaussian_bound = Levels == 4    ? 0.1145
                                  : Levels == 6  ? 0.0555
                                  : Levels == 8  ? 0.0318
                                  : Levels == 16 ? 0.0079
                                                 : 0.0020;

template <int N>
using levels = std::integral_constant<int, N>;

/// The quantizer of least error of a Gaussian variable (Lloyd 1957, Max 1960), by its own definition: thresholds midway
/// between levels, levels the means of their cells.
class textbook_grid {
public:
    explicit textbook_grid(int count) {
        for (int i = 0; i < count; ++i) levels_.push_back(-3.0 + 6.0 * (i + 0.5) / count);
        auto const density = [](double t) { return std::exp(-t * t / 2) / std::sqrt(2 * std::numbers::pi); };
        auto const below   = [](double t) { return 0.5 * std::erfc(-t / std::numbers::sqrt2); };
        for (int round = 0; round < 3000; ++round) {
            std::vector<double> edges{-40.0};
            for (std::size_t i = 1; i < levels_.size(); ++i) edges.push_back((levels_[i - 1] + levels_[i]) / 2);
            edges.push_back(40.0);
            for (std::size_t i = 0; i < levels_.size(); ++i)
                levels_[i] = (density(edges[i]) - density(edges[i + 1])) / (below(edges[i + 1]) - below(edges[i]));
        }
    }

    [[nodiscard]] double nearest(double x) const {
        return *std::min_element(levels_.begin(), levels_.end(),
                                 [&](double a, double b) { return std::abs(a - x) < std::abs(b - x); });
    }

    /// Relative error of a row at its own deviation, which a real format would have to store.
    [[nodiscard]] double relative_error(test::row_floats const& x) const {
        double const sigma = std::sqrt(test::dot(x, x) / static_cast<double>(x.size()));
        double error       = 0.0;
        for (float const v : x) error += std::pow(v - sigma * nearest(v / sigma), 2);
        return error / test::dot(x, x);
    }

private:
    std::vector<double> levels_;
};

} // namespace

TEST_CASE("rows of lloyd_max have the bytes of their table", "[quant]") {
    REQUIRE(bq::lloyd_max<4>().row_bytes(128) == 34);
    REQUIRE(bq::lloyd_max<6>().row_bytes(128) == 45);
    REQUIRE(bq::lloyd_max<8>().row_bytes(128) == 50);
    REQUIRE(bq::lloyd_max<16>().row_bytes(128) == 66);
    REQUIRE(bq::lloyd_max<32>().row_bytes(128) == 82);
    REQUIRE(bq::lloyd_max<16>().name() == "lloyd_max<16> seed 1");
    REQUIRE(bq::lloyd_max<6>(9, bq::scale_rule::unbiased).name() == "lloyd_max<6> seed 9 unbiased");
}

TEMPLATE_TEST_CASE("levels of lloyd_max are odd and ascend, as its format says",
                   "[quant]",
                   levels<4>,
                   levels<6>,
                   levels<8>,
                   levels<16>,
                   levels<32>) {
    constexpr int count    = TestType::value;
    bq::row_format const f = bq::lloyd_max<count>(77).format();
    REQUIRE(f.rotated);
    REQUIRE(f.seed == 77);
    REQUIRE(!f.zeros);
    REQUIRE(f.group == 0);
    for (std::size_t i = 0; i < count; ++i) REQUIRE(f.levels[i] == -f.levels[count - 1 - i]);
    for (std::size_t i = 1; i < count; ++i) REQUIRE(f.levels[i] > f.levels[i - 1]);
    for (std::size_t i = count; i < f.levels.size(); ++i) REQUIRE(f.levels[i] == 0);
}

TEMPLATE_TEST_CASE(
    "error of lloyd_max on Gaussian rows", "[quant]", levels<4>, levels<6>, levels<8>, levels<16>, levels<32>) {
    constexpr int count = TestType::value;
    bq::lloyd_max<count> const codec;
    bf::testing::random draws(1);
    textbook_grid const grid(count);
    double textbook    = 0.0;
    int const rows     = test::many_rows();
    double const error = test::mean_error(codec, 128, rows, [&] {
        test::row_floats x = test::gaussian_row(draws, 128);
        textbook += grid.relative_error(x) / rows;
        return x;
    });
    CAPTURE(count, error, textbook);
    REQUIRE(error <= gaussian_bound<count>);
    REQUIRE(error >= 0.9 * gaussian_bound<count>); // less is an error of the test
    REQUIRE(error < 0.99 * textbook);
}

TEMPLATE_TEST_CASE("error of lloyd_max is that of Gaussian rows whatever the rows",
                   "[quant]",
                   levels<4>,
                   levels<6>,
                   levels<8>,
                   levels<16>,
                   levels<32>) {
    constexpr int count = TestType::value;
    bf::testing::random draws(2);
    int const rows = test::many_rows() / 8;
    for (bf::index_t const n : {48, 80, 96, 112, 128, 256, 576}) {
        double heavy = 0.0, means = 0.0;
        for (int i = 0; i < rows; ++i) {
            bq::lloyd_max<count> const codec(draws.bits()); // one rotation may suit one direction
            test::row_floats const x = test::with_large_channels(draws, n), y = test::around_one(draws, n, 0.1F);
            heavy += test::relative_error(x, test::round_trip(codec, x, n)) / rows;
            means += test::relative_error(y, test::round_trip(codec, y, n)) / rows;
        }
        CAPTURE(count, n, heavy, means);
        // Shorter rows are fitted better, longer ones by less; what stands in the last coordinates alone is spread
        // less.
        double const allowed = gaussian_bound<count> * (n == 128 ? 1.1 : n < 256 ? 1.2 : 1.25);
        REQUIRE(heavy <= allowed);
        REQUIRE(means <= allowed);
    }
}

TEMPLATE_TEST_CASE("lloyd_max codes a constant row like a Gaussian one", "[quant]", levels<4>, levels<8>, levels<32>) {
    constexpr int count = TestType::value;
    double sum          = 0.0;
    for (std::uint64_t seed = 0; seed < 200; ++seed) {
        test::row_floats const x(128, 3.25F);
        sum += test::relative_error(x, test::round_trip(bq::lloyd_max<count>(seed), x, 128));
    }
    REQUIRE(sum / 200 <= 1.1 * gaussian_bound<count>);
    REQUIRE(sum / 200 >= 0.5 * gaussian_bound<count>);
}

TEMPLATE_TEST_CASE("lloyd_max keeps the nearest level of each coordinate",
                   "[quant]",
                   levels<4>,
                   levels<6>,
                   levels<8>,
                   levels<16>,
                   levels<32>) {
    constexpr int count      = TestType::value;
    std::uint32_t const seed = test::another_seed();
    bf::testing::random draws(seed);
    for (bf::index_t const n : {16, 48, 128, 240})
        for (int i = 0; i < 50; ++i) {
            CAPTURE(seed, n, i);
            bq::lloyd_max<count> const codec(draws.bits());
            test::row_floats const x  = i % 2 == 0 ? test::gaussian_row(draws, n) : test::with_large_channels(draws, n);
            test::row_bytes const row = test::pack(codec, x, n);
            test::row_floats y        = x, in_basis(y.size());
            bq::rotation{codec.format().seed}.forward(y.data(), n);
            bq::detail::decode_in_basis(codec.format(), row.data(), n, in_basis.data());
            double const scale = bq::detail::load_group(codec.format(), row.data(), 0).scale;
            float top          = 0.0F;
            for (float const v : y) top = std::max(top, std::fabs(v));
            for (std::size_t d = 0; d < y.size(); ++d) {
                double nearest = std::numeric_limits<double>::infinity();
                for (std::size_t c = 0; c < count; ++c)
                    nearest = std::min(nearest, std::abs(y[d] - scale * codec.format().levels[c]));
                // Values and thresholds are within half of a whole number, 2^-12 of the largest coordinate at most, and
                // what is one off a threshold is two farther from the level beyond it.
                REQUIRE(std::abs(double{y[d]} - double{in_basis[d]}) <= nearest + 0x1p-11 * double{top});
            }
        }
}

TEMPLATE_TEST_CASE(
    "lloyd_max fits its scale by least squares", "[quant]", levels<4>, levels<6>, levels<8>, levels<16>, levels<32>) {
    constexpr int count = TestType::value;
    bf::testing::random draws(4);
    double sum = 0.0;
    for (int i = 0; i < 1000; ++i) {
        bq::lloyd_max<count> const codec(draws.bits());
        test::row_floats const x = test::gaussian_row(draws, 128), y = test::round_trip(codec, x, 128);
        double const best = test::dot(x, y) / test::dot(y, y); // times the scale of y: 1 by least squares
        sum += best / 1000;
        CAPTURE(i);
        REQUIRE(std::abs(best - 1.0) < 0x1p-8 + 0.04); // a bfloat16, and codes that changed for it
    }
    REQUIRE(std::abs(sum - 1.0) < 0.0015);
}

TEMPLATE_TEST_CASE("the unbiased scale of lloyd_max keeps <x, decoded> = <x, x>",
                   "[quant]",
                   levels<4>,
                   levels<6>,
                   levels<8>,
                   levels<16>,
                   levels<32>) {
    constexpr int count = TestType::value;
    test::check_unbiased([](std::uint64_t seed) { return bq::lloyd_max<count>(seed, bq::scale_rule::unbiased); }, 300,
                         0.1F);
}

TEMPLATE_TEST_CASE("scores over rows of lloyd_max shrink by what its rule says",
                   "[quant]",
                   levels<4>,
                   levels<6>,
                   levels<8>,
                   levels<16>,
                   levels<32>) {
    constexpr int count = TestType::value;
    bf::testing::random draws(3);
    int const rows = test::many_rows();
    for (bq::scale_rule const rule : {bq::scale_rule::least_squares, bq::scale_rule::unbiased}) {
        bq::lloyd_max<count> const codec(6, rule);
        double exact_exact = 0.0, exact_decoded = 0.0, error = 0.0;
        for (int i = 0; i < rows; ++i) {
            test::row_floats const x = test::gaussian_row(draws, 128), y = test::round_trip(codec, x, 128);
            test::row_floats const q = test::gaussian_row(draws, 128);
            double const score       = test::dot(q, x);
            exact_exact += score * score;
            exact_decoded += score * test::dot(q, y);
            error += test::relative_error(x, y) / rows;
        }
        double const slope  = exact_decoded / exact_exact;
        double const wanted = rule == bq::scale_rule::unbiased ? 1.0 : 1.0 - error;
        double const noise  = std::sqrt(error / rows); // of the slope
        CAPTURE(count, static_cast<int>(rule), slope, error);
        REQUIRE(std::abs(slope - wanted) < 4 * noise);
        if (rule == bq::scale_rule::unbiased) // NMSE / (1 - NMSE), of the NMSE of least squares
            REQUIRE(error <= 1.02 * gaussian_bound<count> / (1 - gaussian_bound<count>));
    }
}

TEMPLATE_TEST_CASE("the search of lloyd_max is as good as a dense one",
                   "[quant]",
                   levels<4>,
                   levels<6>,
                   levels<8>,
                   levels<16>,
                   levels<32>) {
    constexpr int count = TestType::value;
    bf::testing::random draws(7);
    int const rows = test::short_sweep() ? 40 : 150;
    for (bf::index_t const n : {64, 128, 256}) {
        double searched = 0.0, dense = 0.0;
        for (int i = 0; i < rows; ++i) {
            bq::lloyd_max<count> const codec(draws.bits());
            test::row_floats const x = test::gaussian_row(draws, n);
            searched += test::relative_error(x, test::round_trip(codec, x, n)) / rows;
            test::row_floats y = x;
            bq::rotation{codec.format().seed}.forward(y.data(), n);
            float top = 0.0F;
            for (float& v : y) top = std::max(top, v = std::fabs(v));
            auto const first = codec.format().levels.begin() + count / 2, last = first + count / 2;
            double explained = 0.0; // <y, l>^2 / <l, l> of the best of many scales, each half a hundredth from the next
            for (double ratio = 0.2; ratio < 1.6; ratio += 0.005) {
                double dot = 0.0, square = 0.0;
                for (float const v : y) {
                    double const at  = v / (ratio * top) * *(last - 1);
                    auto const above = std::lower_bound(first, last - 1, at);
                    int const level  = above != first && at - *(above - 1) < *above - at ? *(above - 1) : *above;
                    dot += double{v} * level;
                    square += level * level;
                }
                explained = std::max(explained, dot * dot / square);
            }
            dense += (1.0 - explained / test::dot(y, y)) / rows;
        }
        CAPTURE(count, n, searched, dense);
        REQUIRE(searched <= 1.01 * dense); // 0.5 %, and the rounding of the scale
        REQUIRE(searched >= 0.999 * dense);
    }
}

TEST_CASE("rows that lloyd_max stands for exactly keep their bytes", "[quant]") {
    std::uint32_t const seed = test::another_seed();
    bf::testing::random draws(seed);
    auto const check = [&]<int Count>(levels<Count>) {
        for (int i = 0; i < 100; ++i) {
            CAPTURE(seed, i, Count);
            bq::lloyd_max<Count> const codec(draws.bits());
            test::row_floats const x = test::round_trip(codec, test::gaussian_row(draws, 128), 128);
            REQUIRE(test::relative_error(x, test::round_trip(codec, x, 128)) < 1e-3 * gaussian_bound<Count>);
        }
    };
    check(levels<4>{});
    check(levels<6>{});
    check(levels<8>{});
    check(levels<16>{});
    check(levels<32>{});
}

TEST_CASE("a row of zeros of lloyd_max has no -0 in its basis", "[quant]") {
    bq::lloyd_max<6> const codec;
    test::row_bytes const row = test::pack(codec, test::row_floats(48, -0.0F), 48);
    REQUIRE(test::hex(row) == "000081818181818181818181818181818181"); // 3 + 6 * 3 + 36 * 3
    test::row_floats in_basis(48);
    bq::detail::decode_in_basis(codec.format(), row.data(), 48, in_basis.data());
    for (float const v : in_basis) REQUIRE((v == 0.0F && !std::signbit(v)));
}

TEST_CASE("values become the nearest whole numbers, of 13 digits", "[quant]") {
    float const x[] = {1.0F, -1.0F, 0x1p-13F, 0x1.8p-14F, -0x1.8p-14F, 0x1.7p-14F, 0x1p-15F, 0x1.ffffp0F, -0x1.ffffp0F};
    std::int16_t whole[9];
    REQUIRE(bq::detail::to_whole(x, 9, 1, whole) == -12); // all below 2
    std::int16_t const wanted[] = {4096, -4096, 1, 0, 0, 0, 0, 8192, -8192};
    for (int i = 0; i < 9; ++i) REQUIRE(whole[i] == wanted[i]);
    REQUIRE(bq::detail::to_whole(x + 2, 5, 0, whole) == -13);
    std::int16_t const finer[] = {1, 1, -1, 1, 0};
    for (int i = 0; i < 5; ++i) REQUIRE(whole[i] == finer[i]);
    REQUIRE(bq::detail::exponent_of(1.0F) == 1);
    REQUIRE(bq::detail::exponent_of(0x1.fffffep0F) == 1);
    REQUIRE(bq::detail::exponent_of(0x1p-149F) == -148);
}

TEST_CASE("lloyd_max takes rows of up to 1024 values", "[quant]") {
    REQUIRE(test::refusal<bq::lloyd_max<6>>(1024) == "");
    REQUIRE(test::refusal<bq::lloyd_max<6>>(80) == "");
    for (bf::index_t const n : {0, -16, 8, 100, 1040, 2048})
        REQUIRE(test::refusal<bq::lloyd_max<6>>(n) ==
                "lloyd_max: head_dim " + std::to_string(n) + " is not a multiple of 16 up to 1024");
    test::row_floats const x = test::pattern_row(test::pattern::bell, 1, 1024);
    REQUIRE(test::relative_error(x, test::round_trip(bq::lloyd_max<16>(), x, 1024)) < 0.012);
}

TEST_CASE("rows of lloyd_max have the same bytes everywhere", "[quant]") {
    using test::bytes_and_values;
    auto const row = [](auto const& codec) {
        return test::hex(test::pack(codec, test::pattern_row(test::pattern::bell, 4, 48), 48));
    };
    REQUIRE(row(bq::lloyd_max<4>()) == "034025632954928275ab5946a01d");
    REQUIRE(row(bq::lloyd_max<6>()) == "44405c8938557b511aa6502b7532365a7a39");
    REQUIRE(row(bq::lloyd_max<8>()) == "89408f9643fe3420af01929334aab2dc56a7a409");
    REQUIRE(row(bq::lloyd_max<16>()) == "754096be96636839d69c37422a77919057997529a4474a77a13b");
    REQUIRE(row(bq::lloyd_max<32>()) == "9a402d6d2dd6c173ad397f9554ff3220af23929334aaea52588f84ee5377a409");
    REQUIRE(row(bq::lloyd_max<16>(2)) == "6440cdbcb7f83487392799adb83277cbcaa9a8db2ca682d25ca2");
    REQUIRE(row(bq::lloyd_max<16>(1, bq::scale_rule::unbiased)) ==
            "774096be96636839d69c37422a77919057997529a4474a77a13b");
    REQUIRE(bytes_and_values(bq::lloyd_max<4>()) == "115fe2abc2e7f9a5");
    REQUIRE(bytes_and_values(bq::lloyd_max<6>()) == "5c98bfc3621f195b");
    REQUIRE(bytes_and_values(bq::lloyd_max<8>()) == "1b16dd54619da5f4");
    REQUIRE(bytes_and_values(bq::lloyd_max<16>()) == "c0f7004300c5397e");
    REQUIRE(bytes_and_values(bq::lloyd_max<32>()) == "a7fd9b4afe0953b8");
    REQUIRE(bytes_and_values(bq::lloyd_max<4>(1, bq::scale_rule::unbiased)) == "8fbbaf2b3c8c952b");
    REQUIRE(bytes_and_values(bq::lloyd_max<32>(3, bq::scale_rule::unbiased)) == "919d56915b0ca1e4");
}
